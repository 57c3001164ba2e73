"""How far the visitor's key reaches: caches, paths and domains, and the store of the sessions."""

from flask import Flask, Request, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask.testing import FlaskClient
from flask_login import logout_user
from flask_sqlalchemy import SQLAlchemy
from werkzeug.test import EnvironBuilder

from flask_referrals import Referral, Referrals
from tests.conftest import MakeHost
from tests.host import Host, follow


def test_answer_that_sets_the_own_cookie_is_not_for_other_visitors_of_a_cache(new_host: MakeHost) -> None:
    host = new_host(with_login=False, REFERRALS_COOKIE="referral")
    with host.app.app_context():
        code = Referral.create("/").code
    answer = host.client().get(f"/referrals/{code}")
    assert "Set-Cookie" in answer.headers
    assert "Cookie" in answer.vary


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

    client = host.client()
    assert len(client.post("/twice").headers.getlist("Set-Cookie")) == 1
    assert client.get_cookie("referral") is not None
    stranger = host.client()
    assert len(stranger.post("/answer?leave=1").headers.getlist("Set-Cookie")) == 1
    assert stranger.get_cookie("referral") is None


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


def test_user_who_is_told_by_the_loader_alone_is_logged_in(sqlite_url: str) -> None:
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
