"""Visitors who opt out or do not consent get no key, and lose an earlier one."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host
from tests.site.helpers import has_key, rows

REFUSALS: dict[str, dict[str, str]] = {"opt-out": {"Sec-GPC": "1"}, "no consent": {"X-No-Consent": "1"}}

#: Ways to come in by the link with the code "coffee".
WAYS: dict[str, Callable[..., Any]] = {
    "link": lambda client, **options: client.get("/referrals/coffee", **options),
    "query": lambda client, **options: client.get("/?ref=coffee", **options),
    "attach": lambda client, **options: client.post("/typed", **options),
    "respond": lambda client, **options: client.post("/answer", **options),
}


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    host = new_host(REFERRALS_RESPECT_GPC=True, REFERRALS_QUERY_PARAM="ref")
    host.referrals.consent(lambda request: "X-No-Consent" not in request.headers)

    @host.app.post("/typed")
    def typed() -> str:
        response = Referral.attach("coffee")
        return "" if response is None else response.action

    @host.app.post("/answer")
    def answer() -> str:
        coffee = host.db.session.scalars(sa.select(Referral).where(Referral.code == "coffee")).one()
        return coffee.respond("CAME").action

    @host.app.get("/credit")
    def credit() -> str:
        referral = Referral.referral_for_request()
        return referral.code if referral is not None else ""

    with host.app.app_context():
        Referral.create("/tea", code="tea")
        Referral.create("/coffee", code="coffee")
        host.user("mia")
    return host


@pytest.fixture(params=REFUSALS)
def refusal(request: pytest.FixtureRequest) -> dict[str, str]:
    """The header of a visitor who refuses."""
    return REFUSALS[request.param]


def keys(host: Host) -> list[str | None]:
    """Return the visitor keys of all responses, oldest first."""
    with host.app.app_context():
        return [response.session_key for response in host.responses()]


def test_no_way_in_sets_a_key(host: Host, refusal: dict[str, str]) -> None:
    for way_in in WAYS.values():
        client = host.client()
        answer = way_in(client, headers=refusal)
        assert answer.status_code in (200, 302)
        assert "Set-Cookie" not in answer.headers
        assert client.post("/act/BOUGHT").text == ""
    assert keys(host) == [None] * len(WAYS)


def test_every_way_in_drops_an_earlier_key(host: Host, refusal: dict[str, str]) -> None:
    for way_in in WAYS.values():
        client = host.client()
        client.get("/referrals/tea")
        way_in(client, headers=refusal)
        assert not has_key(client)
        assert client.get_cookie("referral") is None
        assert client.post("/act/BOUGHT").text == ""
    assert [key is not None for key in keys(host)] == [True, False] * len(WAYS)


def test_login_after_a_refusal_does_not_join(host: Host) -> None:
    for refusal in REFUSALS.values():
        client = host.client()
        client.get("/referrals/tea")
        client.post("/login", data={"name": "mia"}, headers=refusal)
    assert [row.user for row in rows(host)] == [None] * len(REFUSALS)


def test_action_after_a_refusal_is_not_credited(host: Host) -> None:
    for refusal in REFUSALS.values():
        client = host.client()
        client.get("/referrals/tea")
        assert client.get("/credit", headers=refusal).text == ""
        assert client.post("/act/BOUGHT", headers=refusal).text == ""
    assert [row.action for row in rows(host)] == ["RESPONDED"] * len(REFUSALS)
