"""The lasting cookie behind the session: ``REFERRALS_COOKIE``."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import time_machine
from flask import Flask, session
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from freezegun import freeze_time

from flask_referrals import Referral, Referrals
from flask_referrals.exceptions import ConfigurationError
from tests.conftest import MakeHost
from tests.host import Host, follow, sent_by_requests
from tests.site.helpers import has_key, key_of

NAME = "referral"
MARCH = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Cookies do not depend on the database."""
    return sqlite_url


@pytest.fixture
def code(host: Host) -> str:
    with host.app.app_context():
        return Referral.create("/").code


def names(host: Host) -> list[str | None]:
    with host.app.app_context():
        return [response.user.name if response.user else None for response in host.responses()]


def restart(client: FlaskClient) -> None:
    """Close the browser and start it again: what has no lifetime is gone."""
    client.delete_cookie("session")


def cookie_of(client: FlaskClient, name: str = NAME) -> str | None:
    cookie = client.get_cookie(name)
    return cookie.value if cookie is not None else None


class TestRestart:
    """The browser is closed and started again between the click and the sign-up."""

    #: Ways to come in by the link with the code "coffee".
    WAYS: dict[str, Callable[[FlaskClient], Any]] = {
        "link": lambda client: client.get("/referrals/coffee"),
        "query": lambda client: client.get("/?ref=coffee"),
        "attach": lambda client: client.post("/typed"),
        "respond": lambda client: client.post("/answer"),
    }

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        return self.make(new_host)

    def make(self, new_host: MakeHost, **config: Any) -> Host:
        host = new_host(REFERRALS_QUERY_PARAM="ref", **config)

        @host.app.post("/typed")
        def typed() -> str:
            Referral.attach("coffee")
            return ""

        @host.app.post("/answer")
        def answer() -> str:
            Referral.create("/coffee").respond("CAME")
            return ""

        with host.app.app_context():
            Referral.create("/coffee", code="coffee")
        return host

    @pytest.mark.parametrize("way", WAYS)
    def test_visitor_is_credited_all_the_same(self, host: Host, client: FlaskClient, way: str) -> None:
        self.WAYS[way](client)
        restart(client)
        assert client.post("/act/LOOKED").text == "coffee"
        client.post("/signup", data={"name": "mia"})
        assert names(host) == ["mia"] * 3

    def test_visitor_is_credited_by_a_login(self, host: Host, client: FlaskClient) -> None:
        with host.app.app_context():
            host.user("mia")
        client.get("/referrals/coffee")
        restart(client)
        client.post("/login", data={"name": "mia"})
        assert names(host) == ["mia"]
        assert cookie_of(client) is None

    def test_remembered_login_joins(self, host: Host, client: FlaskClient) -> None:
        client.post("/signup", data={"name": "mia", "remember": "yes"})
        restart(client)
        with_remember = client.get_cookie("remember_token")
        assert with_remember is not None
        client.delete_cookie("remember_token")
        client.get("/referrals/coffee")
        restart(client)
        client.set_cookie("remember_token", with_remember.value)
        assert client.post("/act/BOUGHT").text == "coffee"
        assert names(host) == ["mia", "mia"]
        assert cookie_of(client) is None

    def test_without_the_cookie_the_credit_is_lost(self, new_host: MakeHost) -> None:
        host = self.make(new_host, REFERRALS_COOKIE=None)
        client = host.client()
        assert len(client.get("/referrals/coffee").headers.getlist("Set-Cookie")) == 1
        restart(client)
        assert client.post("/act/LOOKED").text == ""

    def test_next_click_keeps_the_key_in_the_session_again(self, host: Host, client: FlaskClient) -> None:
        client.get("/referrals/coffee")
        text = key_of(client)
        restart(client)
        with host.app.app_context():
            Referral.create("/tea", code="tea")
        client.get("/referrals/tea")
        assert str(key_of(client)).partition(".")[0] == str(text).partition(".")[0]
        assert key_of(client) == cookie_of(client)

    def test_it_costs_no_statement(self, host: Host, client: FlaskClient) -> None:
        def act() -> list[str]:
            with sent_by_requests(host) as sent:
                client.post("/act/LOOKED")
            return sent

        client.get("/referrals/coffee")
        act()
        before = act()
        restart(client)
        assert act() == before


def test_click_sets_one_lax_cookie_with_the_key_of_the_session(client: FlaskClient, code: str) -> None:
    answer = client.get(f"/referrals/{code}")
    (cookie,) = (each for each in answer.headers.getlist("Set-Cookie") if each.startswith(f"{NAME}="))
    assert set(cookie.split("; ")[1:]) == {"HttpOnly", "SameSite=Lax", "Path=/", f"Max-Age={90 * 86400}"}
    assert cookie_of(client) == key_of(client)


@pytest.mark.parametrize(
    ("window", "days"),
    [(timedelta(days=7), 7), (timedelta(days=1000), 390), (None, 390)],
)
def test_cookie_lasts_as_long_as_the_window_and_at_most_13_months(
    new_host: MakeHost, window: timedelta | None, days: int
) -> None:
    host = new_host(REFERRALS_ATTRIBUTION_WINDOW=window)
    client = host.client()
    with time_machine.travel(MARCH, tick=False):
        code = follow(host, client)
        cookie = client.get_cookie(NAME)
        assert cookie is not None
        assert cookie.max_age == days * 86400
    for age, credited in ((timedelta(days=days), code), (timedelta(days=days, seconds=1), "")):
        with time_machine.travel(MARCH + age, tick=False):
            restart(client)
            client.set_cookie(NAME, cookie.value)
            assert client.post("/act/BOUGHT").text == credited


@pytest.mark.parametrize("has_session", [True, False])
@pytest.mark.parametrize(("days", "is_credited"), [(89, True), (91, False)])
def test_action_is_credited_within_90_days(
    host: Host, client: FlaskClient, days: int, is_credited: bool, has_session: bool
) -> None:
    with time_machine.travel(MARCH, tick=False) as clock:
        follow(host, client)
        clock.shift(timedelta(hours=20))
        code = follow(host, client, "/tea")
        clock.shift(timedelta(days=days))
        if has_session:
            client.set_cookie("session", session_of(host, client))
        else:
            restart(client)
        assert client.post("/act/BOUGHT").text == (code if is_credited else "")


@pytest.mark.parametrize("year", [2020, 2040])
def test_action_is_credited_while_a_test_of_the_host_freezes_the_time(
    host: Host, client: FlaskClient, year: int
) -> None:
    with freeze_time(MARCH.replace(year=year)):
        code = follow(host, client)
        assert client.post("/act/BOUGHT").text == code


def session_of(host: Host, client: FlaskClient) -> str:
    """Return the cookie of a session that lasts: Flask's own is 31 days old at most."""
    cookie = client.get_cookie("session")
    assert cookie is not None
    data = host.app.session_interface.get_signing_serializer(host.app).loads(cookie.value)  # type: ignore[attr-defined]
    return str(host.app.session_interface.get_signing_serializer(host.app).dumps(data))  # type: ignore[attr-defined]


class TestScope:
    @pytest.mark.parametrize(
        ("config", "url", "name", "attributes"),
        [
            ({}, "http://site.example", "referral", {"Path=/"}),
            ({}, "https://site.example", "__Host-referral", {"Path=/", "Secure"}),
            ({"SESSION_COOKIE_SECURE": True}, "http://site.example", "__Host-referral", {"Path=/", "Secure"}),
            (
                {"SESSION_COOKIE_DOMAIN": "site.example"},
                "https://site.example",
                "referral",
                {"Path=/", "Secure", "Domain=site.example"},
            ),
            ({"SESSION_COOKIE_PATH": "/referrals"}, "https://site.example", "referral", {"Path=/referrals", "Secure"}),
            ({"REFERRALS_COOKIE": "friend"}, "https://site.example", "__Host-friend", {"Path=/", "Secure"}),
        ],
    )
    def test_cookie_has_the_scope_of_the_session_and_a_name_that_protects_it(
        self, new_host: MakeHost, config: dict[str, Any], url: str, name: str, attributes: set[str]
    ) -> None:
        host = new_host(**config)
        with host.app.app_context():
            code = Referral.create("/").code
        cookies = host.client().get(f"/referrals/{code}", base_url=url).headers.getlist("Set-Cookie")
        (cookie,) = (each for each in cookies if each.startswith(f"{name}="))
        lax = {"HttpOnly", "SameSite=Lax", f"Max-Age={90 * 86400}"}
        assert set(cookie.split("; ")[1:]) == attributes | lax

    def test_cookie_that_a_subdomain_can_set_is_not_read_on_https(self, host: Host, client: FlaskClient) -> None:
        code = follow(host, client)
        token = str(cookie_of(client))
        for name, credited in ((NAME, ""), (f"__Host-{NAME}", code)):
            other = host.client()
            other.set_cookie(name, token)
            assert other.post("/act/LOOKED", base_url="https://localhost").text == credited


@pytest.mark.parametrize("value", ["", "x", "a.b.c", "\N{SNOWMAN}", "x" * 4000])
def test_cookie_that_was_not_made_here_is_no_key(host: Host, client: FlaskClient, code: str, value: str) -> None:
    client.set_cookie(NAME, value)
    assert client.post("/act/LOOKED").text == ""


def test_visitor_whose_browser_has_lost_the_cookie_gets_it_again(host: Host, client: FlaskClient) -> None:
    follow(host, client)
    client.delete_cookie(NAME)
    client.post("/act/LOOKED")
    assert cookie_of(client) is None
    follow(host, client, "/tea")
    assert cookie_of(client) == key_of(client)


class TestNothingIsLeft:
    """Neither in the session nor in the cookie, also when the browser has been started again."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host(REFERRALS_RESPECT_GPC=True)
        host.referrals.consent(lambda request: "X-No-Consent" not in request.headers)

        @host.app.post("/withdraw")
        def withdraw() -> str:
            host.referrals.drop_visitor_key()
            return ""

        @host.app.post("/leave")
        def leave_a_login_of_ones_own() -> str:
            session.clear()
            host.referrals.drop_visitor_key()
            return ""

        return host

    WAYS: dict[str, Callable[[FlaskClient], Any]] = {
        "sign-up": lambda client: client.post("/signup", data={"name": "mia"}),
        "login": lambda client: client.post("/login", data={"name": "tom"}),
        "logout": lambda client: client.post("/logout"),
        "consent withdrawn": lambda client: client.post("/withdraw"),
        "own logout": lambda client: client.post("/leave"),
        "action without consent": lambda client: client.post("/act/LOOKED", headers={"X-No-Consent": "1"}),
        "action with GPC": lambda client: client.post("/act/LOOKED", headers={"Sec-GPC": "1"}),
        "click without consent": lambda client: client.get("/referrals/tea", headers={"X-No-Consent": "1"}),
        "click with GPC": lambda client: client.get("/referrals/tea", headers={"Sec-GPC": "1"}),
        "login with GPC": lambda client: client.post("/login", data={"name": "tom"}, headers={"Sec-GPC": "1"}),
    }

    @pytest.mark.parametrize("is_restarted", [False, True])
    @pytest.mark.parametrize("way", WAYS)
    def test_after(self, host: Host, client: FlaskClient, way: str, is_restarted: bool) -> None:
        with host.app.app_context():
            host.user("tom")
            Referral.create("/tea", code="tea")
        follow(host, client)
        if is_restarted:
            restart(client)
        self.WAYS[way](client)
        assert cookie_of(client) is None
        assert not has_key(client)
        client.post("/logout")
        assert client.post("/act/BOUGHT").text == ""

    def test_second_person_on_the_browser_inherits_nothing(self, host: Host, client: FlaskClient) -> None:
        follow(host, client)
        client.post("/signup", data={"name": "mia"})
        client.post("/logout")
        restart(client)
        client.post("/signup", data={"name": "tom"})
        assert client.post("/act/BOUGHT").text == ""
        assert names(host) == ["mia", "mia"]

    def test_error_in_the_consent_function_drops_nothing(self, host: Host, client: FlaskClient) -> None:
        code = follow(host, client)

        def fail(request: Any) -> bool:
            raise RuntimeError("the host's fault")

        working = host.referrals.hooks.consent
        host.referrals.consent(fail)
        assert client.post("/act/LOOKED").text == ""
        host.referrals.hooks.consent = working
        assert client.post("/act/LOOKED").text == code


def test_pending_clicks_of_a_recorder_survive_the_restart(new_host: MakeHost) -> None:
    events: list[Any] = []
    host = new_host(make_recorder=lambda app: events.append)
    client = host.client()
    code = follow(host, client)
    restart(client)
    assert client.post("/act/LOOKED").text == code


def test_response_and_action_in_one_request_are_one_visitors(host: Host, client: FlaskClient, code: str) -> None:
    @host.app.post("/both")
    def both() -> str:
        Referral.create("/two").respond("CAME")
        session.clear()
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
    new_host(SESSION_COOKIE_SAMESITE="Strict")
    assert not caplog.records
    new_host(SESSION_COOKIE_SAMESITE="Strict", REFERRALS_COOKIE=None)
    assert "REFERRALS_COOKIE" in caplog.text


@pytest.mark.parametrize("name", ["session", "__Host-session"])
def test_it_is_another_cookie_than_the_sessions(sqlite_url: str, name: str) -> None:
    app = Flask("host")
    app.config.from_mapping(SECRET_KEY="s" * 32, SQLALCHEMY_DATABASE_URI=sqlite_url, SESSION_COOKIE_NAME=name)
    SQLAlchemy(app)
    app.config["REFERRALS_COOKIE"] = "session"
    with pytest.raises(ConfigurationError, match="REFERRALS_COOKIE must be another name"):
        Referrals(app)
