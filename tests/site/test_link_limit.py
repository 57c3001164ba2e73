"""How many links a user may make with the form: ``REFERRALS_LINK_LIMIT``."""

from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host, in_parallel

LIMIT = 3


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    return new_host(REFERRALS_LINK_LIMIT=LIMIT, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 16})


def member(host: Host, name: str = "mia") -> FlaskClient:
    client = host.client()
    client.post("/signup", data={"name": name})
    return client


def make(client: FlaskClient, label: str) -> Any:
    return client.post("/referrals/", json={"redirect_to": "/", "label": label})


def count(host: Host) -> int:
    with host.app.app_context():
        return host.db.session.scalar(sa.select(sa.func.count()).select_from(host.referrals.Referral)) or 0


def test_one_more_is_refused(host: Host) -> None:
    client = member(host)
    assert [make(client, str(number)).status_code for number in range(LIMIT + 1)] == [200] * LIMIT + [403]
    assert make(client, "4").json == {"error": f"You have {LIMIT} links, and cannot make more."}
    assert count(host) == LIMIT


def test_link_that_is_there_is_still_given(host: Host) -> None:
    client = member(host)
    for number in range(LIMIT):
        make(client, str(number))
    assert make(client, "0").status_code == 200


def test_each_user_has_their_own(host: Host) -> None:
    for name in ("mia", "tom"):
        client = member(host, name)
        assert {make(client, str(number)).status_code for number in range(LIMIT)} == {200}


def test_browser_gets_a_page(host: Host) -> None:
    client = member(host)
    for number in range(LIMIT):
        make(client, str(number))
    answer = client.post("/referrals/", data={"redirect_to": "/", "label": "x"}, headers={"Accept": "text/html"})
    assert answer.status_code == 403
    assert "cannot make more" in answer.text


def test_requests_in_parallel_do_not_pass_it(host: Host) -> None:
    client = member(host)
    cookie = client.get_cookie("session")
    assert cookie is not None
    answers: list[int] = []

    def send(number: int) -> None:
        browser = host.client()
        browser.set_cookie("session", cookie.value)
        answers.append(make(browser, str(number)).status_code)

    in_parallel([lambda number=number: send(number) for number in range(12)])  # type: ignore[misc]
    assert sorted(answers) == [200] * LIMIT + [403] * (12 - LIMIT)
    assert count(host) == LIMIT


def test_the_sites_own_calls_are_not_limited(host: Host) -> None:
    with host.app.app_context():
        mia = host.user("mia")
        for number in range(LIMIT + 1):
            Referral.create("/", user=mia, label=str(number))
    assert count(host) == LIMIT + 1


def test_none_is_any_number(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_LINK_LIMIT=None)
    client = member(host)
    assert {make(client, str(number)).status_code for number in range(5)} == {200}
