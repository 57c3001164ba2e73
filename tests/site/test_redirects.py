"""Targets on their way: given with a link, stored by a member, and sent in the header that a browser reads."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from email.message import Message
from html.parser import HTMLParser
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
import sqlalchemy as sa
from flask import request
from sqlalchemy import event
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_referrals import Referral
from flask_referrals.state import current_state
from flask_referrals.web.urls import target_location
from tests.host import BROWSER, Host, make_host
from tests.site.helpers import needs_flask_31
from tests.unit.test_redirects import LISTED, OWN_HOST, REFUSED, SURROGATES, TAKEN, assert_stays


class Answer(NamedTuple):
    """What came over the wire."""

    status: int
    headers: Message
    body: str


class Site:
    """The site behind a real socket, with a link to /welcome and one whose target is no longer allowed."""

    def __init__(self, host: Host, port: int) -> None:
        self.host = host
        self.port = port
        with host.app.app_context():
            self.code = Referral.create("/welcome").code
            with host.app.test_request_context(base_url="https://site.example"):
                self.http_code = Referral.create("/", label="http").code
            host.db.session.execute(
                host.referrals.Referral.__table__.update()  # type: ignore[attr-defined]
                .where(host.referrals.Referral.code == self.http_code)
                .values(redirect_to="http://shop.example/")
            )
            host.db.session.commit()

    def send(self, method: str, path: str, body: str | None = None, *, secure: bool = False, **headers: str) -> Answer:
        """Send a request, and return the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        proto = "https" if secure else "http"
        headers = {"Host": OWN_HOST, "User-Agent": BROWSER, "X-Forwarded-Proto": proto, **headers}
        try:
            connection.request(method, f"/referrals/{path}", body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    def follow(self, query: str = "", *, code: str | None = None, secure: bool = False) -> Answer:
        """Follow a link."""
        return self.send("GET", f"{code or self.code}{query}", secure=secure)

    def location(self, query: str = "", *, code: str | None = None, secure: bool = False) -> str:
        """Follow a link, and return the header as it was on the wire."""
        answer = self.follow(query, code=code, secure=secure)
        assert answer.status == 302
        (location,) = answer.headers.get_all("Location", [])
        return str(location)

    def create(self, target: str, *, as_form: bool = False, secure: bool = False) -> tuple[int, dict[str, str]]:
        """Make a link as a member of the site, and return the status and the values of the answer."""
        fields = {"redirect_to": target}
        body = urlencode(fields) if as_form else json.dumps(fields)
        mimetype = "application/x-www-form-urlencoded" if as_form else "application/json"
        answer = self.send("POST", "", body, secure=secure, Authorization="olga", **{"Content-Type": mimetype})
        return answer.status, json.loads(answer.body)


class QuietHandler(WSGIRequestHandler):
    """Writes no log."""

    def log(self, type: str, message: str, *args: object) -> None:
        pass


def start_host(url: str, **settings: Any) -> Host:
    """Return the site on a database, with a member who is logged in by a header."""
    settings = {"REFERRALS_ALLOWED_REDIRECT_HOSTS": LISTED, **settings}
    host = make_host(url, with_login=False, **settings)
    host.app.wsgi_app = ProxyFix(host.app.wsgi_app, x_for=0, x_proto=1)  # type: ignore[method-assign]
    with host.app.app_context():
        # Thousands of commits: none waits for the disk.
        event.listen(host.db.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    host.referrals.user_loader(
        lambda: host.db.session.scalar(sa.select(host.User)) if request.headers.get("Authorization") == "olga" else None
    )
    return host


@contextmanager
def listening(host: Host) -> Iterator[int]:
    """Let the site listen, and yield its port."""
    server = make_server("127.0.0.1", 0, host.app, request_handler=QuietHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        with host.app.app_context():
            host.db.engine.dispose()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site, listening."""
    host = start_host(f"sqlite:///{tmp_path_factory.mktemp('redirects') / 'host.db'}")
    with host.app.app_context():
        host.db.create_all()
        host.user("olga")
    with listening(host) as port:
        yield Site(host, port)


@contextmanager
def restarted(site: Site, **settings: Any) -> Iterator[Site]:
    """Yield the site as it is with other settings, on the same database."""
    with_others = copy(site)
    with_others.host = start_host(site.host.app.config["SQLALCHEMY_DATABASE_URI"], **settings)
    with listening(with_others.host) as with_others.port:
        yield with_others


class Markup(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


class TestHeader:
    """What a browser is sent when the target comes with the link, as ``?redirect_to=``."""

    @pytest.mark.parametrize(("target", "location"), TAKEN.items())
    def test_good_target_is_in_the_header(self, site: Site, target: str, location: str) -> None:
        assert site.location(f"?redirect_to={quote(target, safe='')}") == location
        assert_stays(location)

    @pytest.mark.parametrize("target", REFUSED)
    def test_bad_target_gives_way_to_that_of_the_link(self, site: Site, target: str) -> None:
        assert site.location(f"?redirect_to={quote(target, safe='')}") == "/welcome"

    @pytest.mark.parametrize(
        "target",
        [
            "/%ff",
            "/%ED%A0%80",
            "%C0%AF%C0%AFevil.example",
            "/%C0%AFevil.example",
            "//%ff",
            "%2F%5Cevil.example",
            "https://%ED%A0%80.tea.example/",
            "https://evil.example%ff.tea.example/",
            "https://shop.example/%ff",
        ],
    )
    def test_bytes_that_are_no_text_do_not_lead_away(self, site: Site, target: str) -> None:
        location = site.location(f"?redirect_to={target}")
        assert location.isascii()
        assert_stays(location)

    @pytest.mark.parametrize("target", ["http://site.example/", "http://shop.example/", "HTTP://shop.example/"])
    def test_https_is_not_downgraded(self, site: Site, target: str) -> None:
        assert site.location(f"?redirect_to={quote(target)}", secure=True) == "/welcome"
        assert site.location(f"?redirect_to={quote(target)}") == target.replace("HTTP:", "http:")

    @pytest.mark.parametrize("query", ["", "?redirect_to=/a", "?redirect_to=//evil.example"])
    def test_answer_is_302_and_no_cache_keeps_it(self, site: Site, query: str) -> None:
        answer = site.follow(query)
        assert answer.status == 302
        assert answer.headers.get_all("Cache-Control") == ["no-store"]
        assert answer.headers.get_all("Vary") == ["Cookie"]  # it gives a new visitor a key
        assert len(answer.headers.get_all("Set-Cookie", [])) == 2  # the session, and the lasting cookie

    @pytest.mark.parametrize("target", [target for target in TAKEN if set(target) & set("<>\"'&`{")])
    def test_page_under_the_header_links_to_the_same_and_holds_nothing_else(self, site: Site, target: str) -> None:
        answer = site.follow(f"?redirect_to={quote(target, safe='')}")
        page = Markup(answer.body)
        assert [tag for tag, _ in page.tags] == ["html", "title", "h1", "p", "a"]
        assert page.tags[-1][1] == {"href": answer.headers["Location"]}
        assert page.text.count(answer.headers["Location"]) == 1

    def test_host_that_has_left_the_list_is_no_target(self, site: Site) -> None:
        _, made = site.create("https://shop.example/tea")
        code, query = made["code"], "?redirect_to=https://shop.example/cups"
        assert site.location(code=code) == "https://shop.example/tea"
        assert site.location(query) == "https://shop.example/cups"
        settings = {"REFERRALS_ALLOWED_REDIRECT_HOSTS": LISTED[1:], "REFERRALS_FALLBACK_URL": "/home"}
        with restarted(site, **settings) as site:
            assert site.location(code=code) == site.location(query, code=code) == "/home"
            assert site.location(query) == "/welcome"
            assert site.create("https://shop.example/tea")[0] == 400

    @pytest.mark.parametrize("fallback", ["/home", "https://shop.example/home"])
    def test_stored_target_is_checked_again_at_each_click(self, site: Site, fallback: str) -> None:
        with restarted(site, REFERRALS_FALLBACK_URL=fallback) as site:
            assert site.location(code=site.http_code) == "http://shop.example/"
            assert site.location(code=site.http_code, secure=True) == fallback

    def test_fallback_that_must_not_be_sent_gives_way_to_the_front_page(self, site: Site) -> None:
        with restarted(site, REFERRALS_FALLBACK_URL="http://shop.example/home") as site:
            assert site.location(code=site.http_code, secure=True) == "/"

    def test_first_of_two_targets_is_the_one_that_is_checked(self, site: Site) -> None:
        assert site.location("?redirect_to=/first&redirect_to=//evil.example") == "/first"
        assert site.location("?redirect_to=//evil.example&redirect_to=/second") == "/welcome"


class TestCreation:
    """The same targets when a member makes a link to them."""

    @pytest.mark.parametrize(("target", "location"), TAKEN.items())
    def test_good_target_is_stored_and_sent(self, site: Site, target: str, location: str) -> None:
        status, made = site.create(target)
        assert status == 200
        assert site.create(target, as_form=True) == (status, made)
        assert site.location(code=made["code"]) == location

    @pytest.mark.parametrize("target", [*REFUSED, *SURROGATES])
    def test_bad_target_is_refused_with_a_reason(self, site: Site, target: str) -> None:
        for as_form in [False] if target in SURROGATES else [False, True]:
            status, answer = site.create(target, as_form=as_form)
            assert status == 400
            assert re.fullmatch("redirect_to (must be|is longer than|has a NUL or) .+", answer["error"])

    def test_http_target_is_refused_by_https(self, site: Site) -> None:
        assert site.create("http://shop.example/a", secure=True)[0] == 400
        assert site.create("https://shop.example/a", secure=True)[0] == 200
        assert site.create("http://shop.example/a")[0] == 200


class TestTargetLocation:
    """The targets of links, with the app's own hosts and endpoints."""

    def test_own_host_is_that_of_the_request(self, site: Site) -> None:
        with site.host.app.test_request_context(base_url="http://other.example:5000"):
            assert (
                target_location(current_state().settings, "http://other.example:5000/a")
                == "http://other.example:5000/a"
            )
            assert target_location(current_state().settings, "http://other.example/a") is None
            assert target_location(current_state().settings, f"http://{OWN_HOST}/a") is None

    @pytest.mark.parametrize("name", ["REFERRALS_BASE_URL", "SERVER_NAME"])
    def test_own_host_is_that_of_the_settings_too(self, sqlite_url: str, name: str) -> None:
        value = "https://me.example:8000/mount" if name == "REFERRALS_BASE_URL" else "me.example:8000"
        settings: dict[str, Any] = {name: value}
        host = make_host(sqlite_url, with_login=False, **settings)
        with host.app.app_context():
            assert target_location(current_state().settings, "https://me.example:8000/a") == "https://me.example:8000/a"
            assert target_location(current_state().settings, "https://me.example/a") is None
            assert target_location(current_state().settings, "https://evil.example/a") is None

    @pytest.mark.parametrize("host", [".example", "*.example", "*", "a..example", "[::1", "evil.example, x"])
    def test_host_header_that_is_no_host_is_not_allowed(self, site: Site, host: str) -> None:
        with site.host.app.test_request_context(headers={"Host": host}):
            assert target_location(current_state().settings, "http://evil.example/") is None
            assert target_location(current_state().settings, "/a") == "/a"

    @needs_flask_31
    def test_untrusted_host_is_not_allowed(self, sqlite_url: str) -> None:
        host = make_host(sqlite_url, with_login=False, TRUSTED_HOSTS=[OWN_HOST])
        answer = host.client().get("/referrals/x?redirect_to=http://evil.example/", base_url="http://evil.example")
        assert (answer.status_code, answer.headers.get("Location")) == (400, None)

    @pytest.mark.parametrize(
        ("endpoint", "location"), [("index", "/"), ("act", None), ("static", None), ("none", None)]
    )
    def test_endpoint_is_taken_when_it_needs_no_arguments(
        self, site: Site, endpoint: str, location: str | None
    ) -> None:
        with site.host.app.app_context():
            assert target_location(current_state().settings, endpoint) == location
        with site.host.app.test_request_context():
            assert target_location(current_state().settings, endpoint) == location

    def test_endpoint_is_under_the_mount_path(self, site: Site) -> None:
        with site.host.app.test_request_context(base_url="http://site.example/mount"):
            assert target_location(current_state().settings, "index") == "/mount/"

    @pytest.mark.parametrize("target", [None, "", *SURROGATES])
    def test_nothing_leads_nowhere(self, site: Site, target: str | None) -> None:
        with site.host.app.test_request_context():
            assert target_location(current_state().settings, target) is None
