"""How much a visitor's session grows."""

import pytest
from flask import session
from flask.testing import FlaskClient

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    """The site, where every click counts, and which keeps something of its own in the session."""
    host = new_host(REFERRALS_REPEAT_WINDOW=None, with_login=False)

    @host.app.post("/basket")
    def fill_basket() -> str:
        session["basket"] = ["tea", "cup"]
        return ""

    return host


@pytest.fixture
def database_url() -> str:
    """A session is the same on every database; this one writes no files."""
    return "sqlite://"


def cookie_length(client: FlaskClient) -> int:
    cookie = client.get_cookie("session")
    assert cookie is not None
    return len(cookie.value)


def test_clicks_on_ten_links_add_less_than_200_bytes_to_the_cookie(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        codes = [Referral.create("/", label=str(number)).code for number in range(10)]
    client.post("/basket")
    before = cookie_length(client)
    for number in range(200):
        assert client.get(f"/referrals/{codes[number % 10]}").status_code == 302
    assert 0 < cookie_length(client) - before <= 200
    with host.app.app_context():
        responses = host.responses()
        assert len(responses) == 200
        assert len({response.session_key for response in responses}) == 1
