"""Whose touches count for whom, and until when."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
import time_machine
from flask import session
from flask.testing import FlaskClient

from flask_referrals import Referral, ReferralResponse
from tests.conftest import MakeHost
from tests.host import Host, follow

MOMENT = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)


def test_visitors_are_credited_with_their_own_clicks_alone(host: Host, client: FlaskClient) -> None:
    code = follow(host, client, "/a")
    follow(host, host.client(), "/b")
    assert client.post("/act/BOUGHT").text == code


@pytest.mark.parametrize("policy", ["last", lambda touches: touches[0]])
@pytest.mark.parametrize(("seconds", "winner"), [((2, 1), "/a"), ((1, 2), "/b"), ((1, 1), "/b")])
def test_last_click_is_the_last_by_time_and_of_one_moment_the_last_row(
    new_host: MakeHost, policy: object, seconds: tuple[int, int], winner: str
) -> None:
    host = new_host(REFERRALS_ATTRIBUTION=policy, REFERRALS_ATTRIBUTION_WINDOW=None)
    client = host.client()
    codes = {path: follow(host, client, path) for path in ("/a", "/b")}
    with host.app.app_context():
        for response, second in zip(host.responses(), seconds, strict=True):
            response.created_at = MOMENT + timedelta(seconds=second)
        host.db.session.commit()
    assert client.post("/act/BOUGHT").text == codes[winner]


def test_owner_who_clicked_twice_before_logging_in_earns_nothing(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        code = Referral.create("/", user=host.user("olga")).code
    client.get(f"/referrals/{code}")
    client.get(f"/referrals/{code}")
    client.post("/login", data={"name": "olga"})
    assert client.post("/act/BOUGHT").text == ""


def test_link_of_another_earns_credit_with_a_user(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        host.user("mia")
        code = Referral.create("/", user=host.user("olga")).code
    client.get(f"/referrals/{code}")
    client.post("/login", data={"name": "mia"})
    assert client.post("/act/BOUGHT").text == code


def test_anonymous_click_is_not_credited_with_the_next_user(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_RESPECT_GPC=True)
    with host.app.app_context():
        code = Referral.create("/").code
    host.client().get(f"/referrals/{code}", headers={"Sec-GPC": "1"})
    member = host.client()
    member.post("/signup", data={"name": "mia"})
    assert member.post("/act/BOUGHT").text == ""


@pytest.mark.parametrize(
    ("present", "given", "is_credited"),
    [(None, "mia", False), ("mia", "mia", True), ("mia", "otto", False), ("otto", "mia", False)],
)
def test_clicks_are_credited_with_the_user_the_view_names_if_that_user_is_logged_in(
    new_host: MakeHost, present: str | None, given: str, is_credited: bool
) -> None:
    host = new_host(with_login=False)
    ids = {"mia": 1001, "otto": 1002}  # Python makes an object of its own of each number that is read

    @host.referrals.user_loader
    def load_user() -> Any:
        name = session.get("name")
        return None if name is None else host.db.session.get(host.User, ids[name])

    @host.app.post("/sell")
    def sell() -> str:
        session["name"] = present
        user = host.db.session.get(host.User, ids[given])
        host.db.session.expunge(user)  # it came from elsewhere, a cache for one
        response = Referral.record_response("BOUGHT", user=user)
        return "" if response is None else response.referral.code

    with host.app.app_context():
        for name, key in ids.items():
            host.add(host.User(id=key, name=name))
    client = host.client()
    code = follow(host, client)
    assert client.post("/sell").text == (code if is_credited else "")


@pytest.mark.parametrize("reason", ["fraud", "void"])
def test_click_that_the_host_took_out_of_the_counts_earns_nothing(host: Host, client: FlaskClient, reason: str) -> None:
    follow(host, client)
    with host.app.app_context():
        host.db.session.execute(sa.update(ReferralResponse).values(ignored=reason))
        host.db.session.commit()
    assert client.post("/act/BOUGHT").text == ""


@pytest.mark.parametrize("policy", ["last", lambda touches: touches[0] if touches else None])
@pytest.mark.parametrize(("left", "is_credited"), [(timedelta(seconds=1), True), (timedelta(0), False)])
def test_link_earns_credit_until_the_moment_it_expires(
    new_host: MakeHost, policy: object, left: timedelta, is_credited: bool
) -> None:
    host = new_host(REFERRALS_ATTRIBUTION=policy)
    client = host.client()
    with time_machine.travel(MOMENT, tick=False):
        code = follow(host, client)
        with host.app.app_context():
            host.db.session.execute(sa.update(Referral).values(expired_at=MOMENT + left))
            host.db.session.commit()
        assert client.post("/act/BOUGHT").text == (code if is_credited else "")


@pytest.mark.parametrize(("late", "is_credited"), [(timedelta(0), True), (timedelta(seconds=1), False)])
def test_click_earns_credit_until_the_window_is_over(new_host: MakeHost, late: timedelta, is_credited: bool) -> None:
    host = new_host(REFERRALS_ATTRIBUTION_WINDOW=3600)
    client = host.client()
    with time_machine.travel(MOMENT, tick=False):
        code = follow(host, client)
    with time_machine.travel(MOMENT + timedelta(hours=1) + late, tick=False):
        assert client.post("/act/BOUGHT").text == (code if is_credited else "")
