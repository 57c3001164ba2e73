"""Who brought whom: a user's first credited action binds them."""

from datetime import datetime
from datetime import timedelta
from datetime import timezone

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from flask_referrals import Referral
from flask_referrals import ReferralResponse
from tests.conftest import MakeHost
from tests.host import Host
from tests.host import follow
from tests.host import statements


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


def test_binding_to_an_expired_link_earns_nothing_and_gives_nobody_else_the_credit(
    host: Host, client: FlaskClient
) -> None:
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


def test_referrer_and_referred_are_told_in_one_statement_each(host: Host) -> None:
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
