"""Who brought whom: a user's first credited action binds them."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy

from flask_referrals import Referral, ReferralResponse, Referrals
from tests.conftest import MakeHost
from tests.host import Host, follow, statements


def test_one_visitors_action_says_nothing_of_another(host: Host, client: FlaskClient) -> None:
    follow(host, client, "/a")
    client.post("/act/BOUGHT")
    other = host.client()
    code = follow(host, other, "/b")
    assert other.post("/act/BOUGHT").text == code


def test_later_actions_follow_the_first_one_credited(host: Host, client: FlaskClient) -> None:
    first = follow(host, client, "/a")
    client.post("/signup", data={"name": "mia"})
    follow(host, client, "/b")
    assert client.post("/act/BOUGHT").text == first


def test_binding_outlives_the_window(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_ATTRIBUTION_WINDOW=60)
    client = host.client()
    code = follow(host, client)
    client.post("/signup", data={"name": "mia"})
    with host.app.app_context():
        long_ago = datetime.now(timezone.utc) - timedelta(days=1)
        host.db.session.execute(sa.update(ReferralResponse).values(created_at=long_ago))
        host.db.session.commit()
    assert client.post("/act/BOUGHT").text == code


@pytest.mark.parametrize("policy", ["last", lambda touches: touches[0]])
def test_binding_to_an_expired_link_earns_no_credit_for_any_link(new_host: MakeHost, policy: object) -> None:
    host = new_host(REFERRALS_ATTRIBUTION=policy)
    client = host.client()
    first = follow(host, client, "/a")
    client.post("/signup", data={"name": "mia"})
    follow(host, client, "/b")
    with host.app.app_context():
        referral = host.db.session.scalars(sa.select(Referral).where(Referral.code == first)).one()
        referral.expired_at = datetime.now(timezone.utc)
        host.db.session.commit()
    assert client.post("/act/BOUGHT").text == ""


@pytest.mark.parametrize("policy", ["last", lambda touches: touches[0]])
def test_policy_of_the_host_comes_after_the_binding(new_host: MakeHost, policy: object) -> None:
    host = new_host(REFERRALS_ATTRIBUTION=policy)
    client = host.client()
    first = follow(host, client, "/a")
    client.post("/signup", data={"name": "mia"})
    follow(host, client, "/b")
    assert client.post("/act/BOUGHT").text == first


def test_visitors_who_are_no_users_are_not_among_the_referred(sqlite_url: str) -> None:
    app, db = Flask("host"), SQLAlchemy()
    app.config.from_mapping(SECRET_KEY="s" * 32, SQLALCHEMY_DATABASE_URI=sqlite_url)
    db.init_app(app)
    referrals = Referrals(app)
    with app.app_context():
        db.create_all()
        referral = Referral.create("/", user="olga")
        for user_id, session_key in (("mia", None), (None, "x" * 43)):
            db.session.add(
                referrals.ReferralResponse(
                    referral_id=referral.id, action="BOUGHT", user_id=user_id, session_key=session_key
                )
            )
        db.session.commit()
        assert Referral.referred_by("olga") == ["mia"]
        db.session.remove()
        db.engine.dispose()


def test_referrer_and_referred_are_read_in_one_statement_each(host: Host) -> None:
    with host.app.app_context():
        olga = host.user("olga")
        codes = [Referral.create(path, user=olga).code for path in ("/a", "/b")]
    for name, code in (("mia", codes[0]), ("max", codes[1]), ("looker", codes[0])):
        client = host.client()
        client.get(f"/referrals/{code}")
        if name == "looker":  # followed the link, and did nothing
            client.post("/logout")
        else:
            client.post("/signup", data={"name": name})
            client.post("/act/BOUGHT")
    with host.app.app_context():
        users = {user.name: user for user in host.db.session.scalars(sa.select(host.User))}
        with statements(host.db) as sent:
            referred = Referral.referred_by(users["olga"])
            referral = Referral.referrer_of(users["mia"])
        assert [user.name for user in referred] == ["mia", "max"]
        assert referral is not None and referral.code == codes[0]
        assert len(sent) == 2
        assert Referral.referrer_of(users["olga"]) is None
        assert Referral.referred_by(users["mia"]) == []


class TestReferred:
    """``referrer_of`` and ``referred_by``."""

    @pytest.fixture(autouse=True)
    def people(self, host: Host, ctx: None) -> None:
        """Two members with a link each, and two customers."""
        self.users = {name: host.user(name) for name in ("olga", "otto", "mia", "max")}
        self.links = {name: Referral.create("/", user=self.users[name]) for name in ("olga", "otto")}

    def credit(self, host: Host, customer: str, owner: str, second: int = 0) -> Any:
        """Store an action that was credited at this second."""
        return host.add(
            host.referrals.ReferralResponse(
                referral_id=self.links[owner].id,
                user_id=self.users[customer].id,
                action="BOUGHT",
                created_at=datetime(2026, 5, 1, 12, 0, second, tzinfo=timezone.utc),
            )
        )

    def referred(self) -> dict[str, list[str]]:
        return {name: [user.name for user in Referral.referred_by(self.users[name])] for name in self.links}

    def referrer(self, customer: str) -> str | None:
        referral = Referral.referrer_of(self.users[customer])
        return None if referral is None else referral.user.name

    def test_each_user_has_their_own_referrer(self, host: Host) -> None:
        self.credit(host, "mia", "otto")
        self.credit(host, "max", "olga")
        assert self.referred() == {"olga": ["max"], "otto": ["mia"]}
        assert (self.referrer("mia"), self.referrer("max")) == ("otto", "olga")

    def test_they_are_in_the_order_in_which_they_came(self, host: Host) -> None:
        self.credit(host, "mia", "olga", second=2)
        self.links["olga"] = Referral.create("/other", user=self.users["olga"])
        self.credit(host, "max", "olga", second=1)
        assert self.referred()["olga"] == ["max", "mia"]

    def test_time_decides_and_not_the_order_of_the_rows(self, host: Host) -> None:
        self.credit(host, "mia", "otto", second=2)
        self.credit(host, "mia", "olga", second=1)
        assert self.referred() == {"olga": ["mia"], "otto": []}
        assert self.referrer("mia") == "olga"

    def test_order_of_the_rows_decides_between_actions_of_one_moment(self, host: Host) -> None:
        self.credit(host, "mia", "otto")
        self.credit(host, "mia", "olga")
        assert self.referred() == {"olga": [], "otto": ["mia"]}
        assert self.referrer("mia") == "otto"

    def test_voided_action_binds_no_user(self, host: Host) -> None:
        self.credit(host, "mia", "olga", second=1).void("a fraud")
        self.credit(host, "mia", "otto", second=2)
        assert self.referred() == {"olga": [], "otto": ["mia"]}
        assert self.referrer("mia") == "otto"
