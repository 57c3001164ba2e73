"""The visitor's key in a cookie of its own: ``REFERRALS_COOKIE``."""

from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host, follow

NAME = "referral"


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    return new_host(REFERRALS_COOKIE=NAME)


@pytest.fixture
def code(host: Host) -> str:
    with host.app.app_context():
        return Referral.create("/").code


def names(host: Host) -> list[str | None]:
    with host.app.app_context():
        return [response.user.name if response.user else None for response in host.responses()]


def test_click_sets_one_lax_cookie_and_no_session(client: FlaskClient, code: str) -> None:
    answer = client.get(f"/referrals/{code}")
    (cookie,) = answer.headers.getlist("Set-Cookie")
    assert cookie.startswith(f"{NAME}=")
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=33696000"} <= set(cookie.split("; "))
    assert "Cookie" in answer.vary


def test_cookie_lives_as_long_as_there_is_credit_and_is_as_secure_as_the_session(
    new_host: MakeHost,
) -> None:
    host = new_host(REFERRALS_COOKIE=NAME, REFERRALS_ATTRIBUTION_WINDOW=timedelta(days=7), SESSION_COOKIE_SECURE=True)
    with host.app.app_context():
        code = Referral.create("/").code
    cookie = host.client().get(f"/referrals/{code}").headers["Set-Cookie"]
    assert {"Secure", "Max-Age=604800"} <= set(cookie.split("; "))


def test_visitor_is_recognised_by_it(client: FlaskClient, code: str) -> None:
    client.get(f"/referrals/{code}")
    assert client.post("/act/LOOKED").text == code


def test_second_click_sets_it_anew_only_if_it_counts(client: FlaskClient, code: str) -> None:
    client.get(f"/referrals/{code}")
    assert "Set-Cookie" not in client.get(f"/referrals/{code}").headers


@pytest.mark.parametrize("value", ["", "x", "a.b.c", "\N{SNOWMAN}", "x" * 4000])
def test_cookie_that_was_not_made_here_is_no_key(host: Host, client: FlaskClient, code: str, value: str) -> None:
    client.set_cookie(NAME, value)
    assert client.post("/act/LOOKED").text == ""


def test_entry_in_the_session_is_not_read(host: Host, client: FlaskClient, code: str) -> None:
    client.get(f"/referrals/{code}")
    cookie = client.get_cookie(NAME)
    assert cookie is not None
    with client.session_transaction() as session:
        session["_referral"] = cookie.value
    client.delete_cookie(NAME)
    assert client.post("/act/LOOKED").text == ""


def test_login_joins_and_deletes_it(host: Host, client: FlaskClient, code: str) -> None:
    client.get(f"/referrals/{code}")
    client.post("/signup", data={"name": "mia"})
    assert names(host) == ["mia", "mia"]
    assert client.get_cookie(NAME) is None


def test_logout_deletes_it(host: Host, client: FlaskClient) -> None:
    follow(host, client)
    client.post("/logout")
    assert client.get_cookie(NAME) is None


def test_response_and_action_in_one_request_are_one_visitors(host: Host, client: FlaskClient, code: str) -> None:
    @host.app.post("/both")
    def both() -> str:
        referral = Referral.create("/two")
        referral.respond("CAME")
        response = Referral.record_response("BOUGHT")
        return "" if response is None else response.referral.code

    assert client.post("/both").text != ""
    assert client.post("/act/LATER").text != ""


def test_page_without_a_click_sets_none(client: FlaskClient) -> None:
    assert "Set-Cookie" not in client.get("/").headers


class StrictBrowser:
    """A browser that keeps SameSite=Strict: from another site it sends Lax cookies alone."""

    def __init__(self, host: Host) -> None:
        self.client = host.client()
        self._session_name: str = host.app.config["SESSION_COOKIE_NAME"]

    def come_from_another_site(self, path: str) -> Any:
        """Follow a link on another site."""
        withheld = self.client.get_cookie(self._session_name)
        self.client.delete_cookie(self._session_name)
        answer = self.client.get(path, headers={"Sec-Fetch-Site": "cross-site"})
        if withheld is not None and self.client.get_cookie(self._session_name) is None:
            self.client.set_cookie(self._session_name, withheld.value)
        return answer


@pytest.mark.parametrize(("cookie", "survives"), [(NAME, True), (None, False)])
def test_login_survives_a_click_under_strict_session_cookies(
    new_host: MakeHost, cookie: str | None, survives: bool
) -> None:
    host = new_host(SESSION_COOKIE_SAMESITE="Strict", REFERRALS_COOKIE=cookie)

    @host.app.get("/me")
    def me() -> str:
        from flask_login import current_user

        return current_user.name if current_user.is_authenticated else "nobody"

    browser = StrictBrowser(host)
    browser.client.post("/signup", data={"name": "mia"})
    with host.app.app_context():
        code = Referral.create("/").code
    browser.come_from_another_site(f"/referrals/{code}")
    assert browser.client.get("/me").text == ("mia" if survives else "nobody")
    if survives:
        assert browser.client.post("/act/BOUGHT").text == code
        assert set(names(host)) == {"mia"}


def post_back(host: Host, client: FlaskClient, path: str, name: str) -> None:
    """Post the form of an identity provider: from another site, a browser sends neither Lax nor Strict cookies."""
    elsewhere = host.client()
    elsewhere.post(path, data={"name": name}, headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://idp.example"})
    session_name: str = host.app.config["SESSION_COOKIE_NAME"]
    for cookie in (session_name, NAME):
        if (received := elsewhere.get_cookie(cookie)) is not None:
            client.set_cookie(cookie, received.value)


@pytest.mark.parametrize(("cookie", "survives"), [(NAME, True), (None, False)])
def test_credit_survives_a_login_that_is_posted_from_another_site(
    new_host: MakeHost, cookie: str | None, survives: bool
) -> None:
    host = new_host(REFERRALS_COOKIE=cookie)
    with host.app.app_context():
        host.user("mia")
    client = host.client()
    code = follow(host, client)
    post_back(host, client, "/login", "mia")
    assert client.post("/act/SIGNED_UP").text == (code if survives else "")
    assert set(names(host)) == ({"mia"} if survives else {None})
    assert client.get_cookie(NAME) is None


def test_sign_up_in_a_view_that_is_posted_to_from_another_site_is_not_credited(host: Host, client: FlaskClient) -> None:
    code = follow(host, client)
    post_back(host, client, "/signup", "mia")
    assert names(host) == [None]
    assert client.post("/act/BOUGHT").text == code
    assert names(host) == ["mia", "mia"]


def test_strict_sessions_without_it_are_warned_of(new_host: MakeHost, caplog: pytest.LogCaptureFixture) -> None:
    new_host(SESSION_COOKIE_SAMESITE="Strict", REFERRALS_COOKIE=NAME)
    assert not caplog.records
    new_host(SESSION_COOKIE_SAMESITE="Strict")
    assert "REFERRALS_COOKIE" in caplog.text


def test_it_is_no_other_cookie(app_of_session_name: Flask) -> None:
    from flask_referrals import Referrals
    from flask_referrals.exceptions import ConfigurationError

    with pytest.raises(ConfigurationError, match="REFERRALS_COOKIE must be another name"):
        Referrals(app_of_session_name)


@pytest.fixture
def app_of_session_name(sqlite_url: str) -> Flask:
    from flask_sqlalchemy import SQLAlchemy

    app = Flask("host")
    app.config.from_mapping(SECRET_KEY="s" * 32, SQLALCHEMY_DATABASE_URI=sqlite_url, REFERRALS_COOKIE="session")
    SQLAlchemy(app)
    return app
