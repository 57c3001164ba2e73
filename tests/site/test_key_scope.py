"""How far the visitor's key reaches: caches, paths and domains, and the store of the sessions."""

import pytest
from flask import Flask, Request, Response, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask.testing import FlaskClient
from flask_login import logout_user
from flask_sqlalchemy import SQLAlchemy
from werkzeug.test import EnvironBuilder, TestResponse

from flask_referrals import Referral, Referrals
from tests.conftest import MakeHost
from tests.host import Host, follow


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """A header is the same on every database."""
    return shared_sqlite_url


def test_answer_that_sets_the_own_cookie_is_not_for_other_visitors_of_a_cache(new_host: MakeHost) -> None:
    host = new_host(with_login=False, REFERRALS_COOKIE="referral")
    with host.app.app_context():
        code = Referral.create("/").code
    answer = host.client().get(f"/referrals/{code}")
    assert "Set-Cookie" in answer.headers
    assert "Cookie" in answer.vary


class TestSharedCache:
    """The host marks its pages ``public``: a shared cache would give the key of one visitor to the others."""

    @pytest.fixture(params=[None, "referral"], ids=["session", "cookie"])
    def cookie(self, request: pytest.FixtureRequest) -> str | None:
        cookie: str | None = request.param
        return cookie

    @pytest.fixture
    def host(self, new_host: MakeHost, cookie: str | None) -> Host:
        host = new_host(with_login=False, REFERRALS_COOKIE=cookie, REFERRALS_QUERY_PARAM="ref")
        with host.app.app_context():
            Referral.create("/", code="alice")

        @host.app.get("/tea")
        def tea() -> Response:
            if request.args.get("ask") == "credit":
                Referral.referral_for_request()
            if request.args.get("ask") == "attach":
                Referral.attach("alice")
            return self.make_public(Response("tea"))

        @host.app.after_request
        def make_public_at_last(response: Response) -> Response:
            return self.make_public(response) if "late" in request.args else response

        return host

    @staticmethod
    def make_public(response: Response) -> Response:
        response.headers["Cache-Control"] = "public, max-age=60"
        return response

    @pytest.mark.parametrize("path", ["/tea?ref=alice", "/tea?ref=alice&ask=credit&late", "/tea?ask=attach"])
    def test_page_that_sets_a_key_is_private(self, client: FlaskClient, path: str) -> None:
        answer = client.get(path)
        assert "Set-Cookie" in answer.headers
        assert set(answer.headers["Cache-Control"].split(", ")) == {"private", "max-age=60"}
        assert "Cookie" in answer.vary

    @pytest.mark.parametrize("has_key", [True, False])
    def test_page_that_reads_the_credit_varies_by_the_cookie(self, client: FlaskClient, has_key: bool) -> None:
        if has_key:
            client.get("/referrals/alice")
        answer = client.get("/tea?ask=credit")
        assert answer.headers["Cache-Control"] == "public, max-age=60"
        assert "Cookie" in answer.vary

    def test_page_that_does_neither_stays_as_it_is(self, client: FlaskClient) -> None:
        answer = client.get("/tea?ref=unknown")
        assert answer.headers["Cache-Control"] == "public, max-age=60"
        assert "Set-Cookie" not in answer.headers
        assert "Cookie" not in client.get("/tea").vary

    def test_link_is_stored_by_no_cache(self, client: FlaskClient) -> None:
        assert client.get("/referrals/alice").headers["Cache-Control"] == "no-store"


def test_own_cookie_has_the_path_and_the_domain_of_the_session(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_COOKIE="referral", SESSION_COOKIE_PATH="/referrals", SESSION_COOKIE_DOMAIN="site.example")
    with host.app.app_context():
        code = Referral.create("/").code
    cookie = host.client().get(f"/referrals/{code}", base_url="http://site.example").headers["Set-Cookie"]
    assert {"Path=/referrals", "Domain=site.example"} <= set(cookie.split("; "))


def test_own_cookie_is_sent_once_and_says_what_was_last(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_COOKIE="referral")

    @host.app.post("/answer")
    def answer_and_leave() -> str:
        Referral.create("/").respond("CAME")
        if "leave" in request.args:
            logout_user()
        return ""

    @host.app.post("/twice")
    def answer_twice() -> str:
        for path in ("/a", "/b"):
            Referral.create(path).respond("CAME")
        return ""

    def count_cookies(answer: TestResponse) -> int:
        return sum(each.startswith("referral=") for each in answer.headers.getlist("Set-Cookie"))

    client = host.client()
    assert count_cookies(client.post("/twice")) == 1
    assert client.get_cookie("referral") is not None
    other = host.client()
    assert count_cookies(other.post("/answer?leave=1")) == 0
    assert other.get_cookie("referral") is None
    assert count_cookies(client.post("/answer?leave=1")) == 1
    assert client.get_cookie("referral") is None


@pytest.mark.parametrize("path", ["/answer", "/referrals/alice"])
def test_own_cookie_that_is_dropped_after_the_response_was_made_is_sent_once(new_host: MakeHost, path: str) -> None:
    host = new_host(with_login=False)

    @host.app.get("/answer")
    def answer() -> str:
        Referral.create("/").respond("CAME")
        return ""

    @host.app.after_request
    def drop(response: Response) -> Response:
        host.referrals.drop_visitor_key()
        return response

    with host.app.app_context():
        Referral.create("/", code="alice")
    client = host.client()
    cookies = [each for each in client.get(path).headers.getlist("Set-Cookie") if each.startswith("referral=")]
    assert len(cookies) <= 1
    assert client.get_cookie("referral") is None


def test_page_that_reads_the_own_cookie_varies_by_it_whatever_the_sessions_say(new_host: MakeHost) -> None:
    class Unnoticed(SecureCookieSession):
        accessed = property(lambda self: False, lambda self, value: None)

    class Interface(SecureCookieSessionInterface):
        session_class = Unnoticed

    host = new_host(with_login=False)
    host.app.session_interface = Interface()
    client = host.client()
    assert "Cookie" in client.post("/act/LOOKED").vary
    assert "Cookie" not in client.get("/").vary


def test_session_is_opened_a_second_time_only_when_the_view_has_changed_it(new_host: MakeHost) -> None:
    opened: list[str] = []

    class Counted(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
            opened.append(request.path)
            return super().open_session(app, request)

    host = new_host(with_login=False)
    host.app.session_interface = Counted()
    client = host.client()
    follow(host, client)
    with client.session_transaction() as session:
        session["_referral"] = "no key"
    opened.clear()
    client.post("/act/BOUGHT")
    assert opened == ["/act/BOUGHT"]


def test_user_from_the_loader_alone_is_logged_in(sqlite_url: str) -> None:
    app, db = Flask("host"), SQLAlchemy()
    app.config.from_mapping(SECRET_KEY="s" * 32, SQLALCHEMY_DATABASE_URI=sqlite_url)
    db.init_app(app)
    referrals = Referrals(app)
    referrals.user_loader(lambda: "mia")
    with app.test_request_context():
        db.create_all()
        assert Referral.create("/").respond("CAME").user_id == "mia"
        db.session.remove()
        db.engine.dispose()


def request_of(client: FlaskClient) -> Request:
    """Return a request that this browser could send, which is not the current one."""
    cookie = client.get_cookie("session")
    assert cookie is not None
    return Request(EnvironBuilder(environ_overrides={"HTTP_COOKIE": f"session={cookie.value}"}).get_environ())


def test_request_that_is_given_is_not_the_current_users(host: Host, client: FlaskClient) -> None:
    given: list[Request] = []

    @host.app.post("/replay")
    def replay() -> str:
        response = Referral.record_response("BOUGHT", request=given[0])
        return "" if response is None else response.referral.code

    code = follow(host, client)
    given.append(request_of(client))
    member = host.client()
    member.post("/signup", data={"name": "mia"})
    assert member.post("/replay").text == code
    with host.app.app_context():
        assert [response.user_id for response in host.responses()] == [None, None]


def test_history_is_joined_by_a_worker_that_is_given_the_request(host: Host, client: FlaskClient) -> None:
    code = follow(host, client)
    with host.app.app_context():
        response = Referral.record_response("BOUGHT", user=host.user("mia"), request=request_of(client), join=True)
        assert response is not None and response.referral.code == code
        assert [response.user.name for response in host.responses()] == ["mia", "mia"]
