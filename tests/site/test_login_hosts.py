"""Every kind of login: a visitor follows a link, becomes a user, acts, and the link gets the credit."""

import importlib.util
import re
import secrets
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from flask import Response, request, session
from werkzeug.test import TestResponse

from flask_referrals import InvalidValueError, Referral, ReferralResponse, current_referrals
from tests import login_hosts
from tests.databases import on_sqlite, unavailable
from tests.login_hosts import GiveUsers, Site, opened
from tests.pages import snippets

LOGINS: list[GiveUsers] = [
    login_hosts.flask_login,
    login_hosts.flask_login_without_user_model,
    login_hosts.flask_security,
    login_hosts.flask_security_without_sign_up,
    login_hosts.flask_jwt_extended,
    login_hosts.flask_jwt_extended_without_user_model,
    login_hosts.flask_session,
    login_hosts.tutorial,
]
REMEMBERING: list[GiveUsers] = [
    login_hosts.flask_login,
    login_hosts.flask_login_without_user_model,
    login_hosts.flask_security,
    login_hosts.flask_session,
]


def name_of(give_users: GiveUsers) -> str:
    return give_users.__name__


@pytest.fixture
def site(give_users: GiveUsers, database_url: str) -> Iterator[Site]:
    """A site with one kind of login."""
    if "security" in give_users.__name__ and importlib.util.find_spec("flask_security") is None:
        pytest.skip("Flask-Security needs a newer Python, or a newer Flask.")
    if give_users is login_hosts.flask_jwt_extended_with_pages_on_another_origin:
        pytest.importorskip("flask_cors")
    with ExitStack() as stack:
        config = {}
        if give_users is login_hosts.flask_session:
            config["SESSION_KEY_PREFIX"] = stack.enter_context(new_sessions())
        yield stack.enter_context(opened(give_users, database_url, **config))


@contextmanager
def new_sessions() -> Iterator[str]:
    """Yield a prefix for sessions in Redis, which are deleted in the end."""
    prefix = f"flask_referrals_test_{secrets.token_hex(4)}:"
    with redis.Redis.from_url(login_hosts.REDIS_URL) as server:
        try:
            server.ping()
        except redis.ConnectionError as error:
            unavailable(f"No Redis server ({error}): set TEST_REDIS_URL.")
        yield prefix
        for key in server.scan_iter(f"{prefix}*"):
            server.delete(key)


class OnSQLite:
    """For what does not depend on the database."""

    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        return sqlite_url


class Browser:
    """A browser, and what its script keeps: the token of a site that gives one."""

    def __init__(self, site: Site) -> None:
        self.client = site.app.test_client()
        self.headers: dict[str, str] = {}

    def follow(self, code: str, **headers: str) -> None:
        """Click on a link: no script, no token."""
        answer = self.client.get(f"/referrals/{code}", headers=headers)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/welcome")

    def act(self, action: str = "BOUGHT") -> str:
        """Do something, and return the code of the link that gets credit."""
        answer = self.client.post(f"/act/{action}", headers=self.headers)
        assert answer.status_code == 200
        return answer.text

    def sign_up(self, name: str) -> None:
        self._become(name, "/signup")

    def log_in(self, name: str, **fields: str) -> None:
        self._become(name, "/login", **fields)

    def _become(self, name: str, path: str, **fields: str) -> None:
        fields.update(name=name, email=f"{name}@mail.com", password="correct horse")
        answer = self.client.post(path, data=fields)
        assert answer.status_code == 200 or answer.headers["Location"] == "/"
        if answer.is_json:
            self.headers["Authorization"] = f"Bearer {answer.json['access_token']}"  # type: ignore[index]

    def log_out(self) -> TestResponse:
        answer = self.client.post("/logout", headers=self.headers)
        self.headers.clear()
        return answer


def link(site: Site, label: str = "") -> str:
    """Make a link of the site's own, and return its code."""
    with site.app.app_context():
        return Referral.create("/welcome", label=label).code


def recorded(site: Site) -> list[tuple[str, Any]]:
    """What was done, and by the user with which key."""
    with site.app.app_context():
        model = current_referrals.ReferralResponse
        rows = site.db.session.scalars(sa.select(model).order_by(model.created_at, model.id))
        return [(row.action, row.user_id) for row in rows]


@on_sqlite
@pytest.mark.parametrize("give_users", LOGINS, ids=name_of)
class TestJourney:
    """Click, become a user, act."""

    def test_visitor_who_signs_up_is_credited(self, site: Site) -> None:
        code, browser = link(site), Browser(site)
        browser.follow(code)
        browser.sign_up("mia")
        assert browser.act() == code
        actions, users = zip(*recorded(site), strict=True)
        assert actions in [("RESPONDED", "SIGNED_UP", "BOUGHT"), ("RESPONDED", "BOUGHT")]
        assert len(set(users)) == 1 and None not in users

    def test_visitor_who_logs_in_is_credited(self, site: Site) -> None:
        Browser(site).sign_up("mia")
        code, browser = link(site), Browser(site)
        browser.follow(code)
        browser.log_in("mia")
        assert browser.act() == code
        assert [action for action, _ in recorded(site)] == ["RESPONDED", "BOUGHT"]
        assert len({user for _, user in recorded(site)} - {None}) == 1
        other = Browser(site)  # at home, without a click
        other.log_in("mia")
        assert other.act() == code

    def test_next_person_on_the_browser_inherits_nothing(self, site: Site) -> None:
        browser = Browser(site)
        browser.follow(link(site))
        browser.sign_up("mia")
        assert browser.act() != ""
        browser.follow(link(site, "another"))
        browser.log_out()
        browser.sign_up("next")
        assert browser.act() == ""
        browser.log_out()
        browser.log_in("next")
        assert browser.act() == ""
        browser.log_out()
        assert browser.act() == ""

    def test_logged_in_user_who_follows_a_link_is_credited(self, site: Site) -> None:
        browser = Browser(site)
        browser.sign_up("mia")
        code = link(site)
        browser.follow(code)
        assert browser.act() == code
        assert len({user for _, user in recorded(site)} - {None}) == 1


class TestSignUp(OnSQLite):
    """Recorded in the request that makes the user."""

    @pytest.mark.parametrize(
        "give_users",
        [
            login_hosts.flask_login,
            login_hosts.flask_security,
            login_hosts.flask_jwt_extended,
            login_hosts.flask_session,
            login_hosts.tutorial,
        ],
        ids=name_of,
    )
    def test_it_is_credited(self, site: Site) -> None:
        browser = Browser(site)
        browser.follow(link(site))
        browser.sign_up("mia")
        (click, clicked_by), (sign_up, signed_up_by) = recorded(site)
        assert (click, sign_up) == ("RESPONDED", "SIGNED_UP")
        assert clicked_by == signed_up_by is not None

    @pytest.mark.parametrize("give_users", [login_hosts.flask_security_without_sign_up], ids=name_of)
    def test_user_without_a_key_at_login_is_joined_by_that_login(self, site: Site) -> None:
        from flask_security.signals import user_registered

        keys: list[int | None] = []

        def look(app: object, user: Any, **extra: Any) -> None:
            keys.append(user.id)

        browser = Browser(site)
        browser.follow(link(site))
        with user_registered.connected_to(look, site.app):
            browser.sign_up("mia")
        assert keys == [None]
        assert recorded(site) == [("RESPONDED", 1)]


@pytest.mark.parametrize("give_users", REMEMBERING, ids=name_of)
class TestRememberMe(OnSQLite):
    """The browser was closed, and its user comes back."""

    def test_remembered_user_is_credited(self, site: Site) -> None:
        browser = Browser(site)
        browser.sign_up("mia")
        browser.log_out()
        browser.log_in("mia", remember="y")
        browser.client.delete_cookie("session")
        code = link(site)
        browser.follow(code)
        assert browser.act() == code
        assert len({user for _, user in recorded(site)}) == 1
        browser.log_out()
        browser.sign_up("next")
        assert browser.act() == ""


@pytest.mark.parametrize("give_users", [login_hosts.no_users])
class TestNoUsers:
    """A site without users credits browsers."""

    def test_visitor_is_credited(self, site: Site) -> None:
        code, browser = link(site), Browser(site)
        browser.follow(code)
        assert browser.act("SUBSCRIBED") == code
        assert recorded(site) == [("RESPONDED", None), ("SUBSCRIBED", None)]
        assert Browser(site).act() == ""

    def test_form_answers_401(self, site: Site) -> None:
        answer = Browser(site).client.post("/referrals/", data={"redirect_to": "/"})
        assert answer.status_code == 401


@pytest.mark.parametrize("give_users", LOGINS, ids=name_of)
class TestOwner(OnSQLite):
    """Who may create links, and see their responses."""

    def test_user_makes_a_link_and_gets_the_credit(self, site: Site) -> None:
        olga, mia = Browser(site), Browser(site)
        olga.sign_up("olga")
        answer = olga.client.post("/referrals/", json={"redirect_to": "/welcome"}, headers=olga.headers)
        assert answer.json is not None
        code = answer.json["code"]
        mia.follow(code)
        mia.sign_up("mia")
        assert mia.act() == code
        assert olga.act() == ""
        with site.app.app_context():
            referral = site.db.session.scalars(sa.select(Referral)).one()
            assert referral.user_id is not None
            assert referral.response_count == 1
            assert referral.user_id not in {user for _, user in recorded(site)}

    def test_visitor_cannot_make_a_link(self, site: Site) -> None:
        assert Browser(site).client.post("/referrals/", json={"redirect_to": "/"}).status_code == 401

    def test_own_click_that_only_the_login_reveals_is_not_credited(self, site: Site) -> None:
        olga = Browser(site)
        olga.sign_up("olga")
        answer = olga.client.post("/referrals/", json={"redirect_to": "/welcome"}, headers=olga.headers)
        olga.log_out()
        assert answer.json is not None
        olga.follow(answer.json["code"])
        olga.log_in("olga")
        assert olga.act() == ""
        with site.app.app_context():
            (response,) = site.db.session.scalars(sa.select(ReferralResponse)).all()
            assert response.ignored == "self"


class TestTokens(OnSQLite):
    """What a token that is no good does."""

    def bad_tokens(self, site: Site) -> list[str]:
        from flask_jwt_extended import create_access_token, create_refresh_token

        with site.app.app_context():
            expired = create_access_token("1", expires_delta=timedelta(seconds=-1))
            of_nobody = create_access_token("404")
            refresh = create_refresh_token("1")
        forged = f"{of_nobody[:-8]}AAAAAAAA"
        return [f"Bearer {token}" for token in (expired, forged, refresh, "x", "", "a b")]

    @pytest.mark.parametrize("give_users", [login_hosts.flask_jwt_extended])
    def test_click_is_anonymous(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        code, browser = link(site), Browser(site)
        with site.app.app_context():
            from flask_jwt_extended import create_access_token

            of_nobody = f"Bearer {create_access_token('404')}"
        for token in [*self.bad_tokens(site), of_nobody]:
            browser.follow(code, Authorization=token)
            browser.headers["Authorization"] = token
            assert browser.act() == code
        assert {user for _, user in recorded(site)} == {None}
        assert caplog.records == []

    @pytest.mark.parametrize("give_users", [login_hosts.flask_jwt_extended_without_user_model])
    def test_link_redirects_when_the_loader_fails_and_the_visitor_stays_the_same(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, second, browser = link(site), link(site, "second"), Browser(site)
        browser.follow(first)
        tokens = self.bad_tokens(site)
        for token in tokens:
            browser.follow(second, Authorization=token)
        assert len(caplog.records) == len(tokens)
        browser.sign_up("mia")
        assert browser.act() == second
        assert {user for _, user in recorded(site)} == {"mia"}

    @pytest.mark.parametrize("give_users", [login_hosts.flask_jwt_extended])
    def test_logout_that_keeps_the_session_drops_the_key(self, site: Site) -> None:
        @site.app.post("/logout-that-keeps")
        def log_out_of_the_site() -> str:
            session["basket"] = "tea"
            current_referrals.drop_visitor_key()
            return ""

        browser = Browser(site)
        browser.sign_up("mia")
        browser.follow(link(site))
        browser.client.post("/logout-that-keeps")
        browser.sign_up("next")
        assert browser.act() == ""

    @pytest.mark.parametrize("give_users", [login_hosts.flask_jwt_extended])
    def test_token_of_a_login_is_kept_to_its_user(self, site: Site) -> None:
        """A script may lose its token without telling the site; the visitor's key is then long dropped."""
        browser = Browser(site)
        browser.follow(link(site))
        browser.sign_up("mia")
        browser.headers.clear()
        assert browser.act() == ""
        browser.sign_up("next")
        assert browser.act() == ""


class TestUserInG(OnSQLite):
    """The login keeps the user of the request in ``flask.g``."""

    @pytest.fixture
    def give_users(self) -> GiveUsers:
        return login_hosts.tutorial

    def test_task_within_the_request_records_for_the_user_whom_it_is_given(self, site: Site) -> None:
        """With Celery's ``task_always_eager``, a task runs at once, in an app context of its own."""

        @site.app.post("/task")
        def task() -> str:
            with site.app.app_context():
                User = current_referrals.Referral.user.property.mapper.class_
                response = Referral.record_response("BOUGHT", user=site.db.session.scalars(sa.select(User)).one())
                return "" if response is None else response.referral.code

        browser, code = Browser(site), link(site)
        browser.follow(code)
        browser.sign_up("mia")
        assert Browser(site).client.post("/task").text == code


class TestServerSideSession(OnSQLite):
    """Flask-Session in a real Redis."""

    @pytest.fixture
    def give_users(self) -> GiveUsers:
        return login_hosts.flask_session

    def test_visitors_key_is_on_the_server(self, site: Site) -> None:
        browser = Browser(site)
        browser.follow(link(site))
        cookie = browser.client.get_cookie("session")
        assert cookie is not None and len(cookie.value) < 64
        store, prefix = site.app.config["SESSION_REDIS"], site.app.config["SESSION_KEY_PREFIX"]
        assert b"_referral" in store.get(f"{prefix}{cookie.value}")
        browser.sign_up("mia")
        cookie = browser.client.get_cookie("session")
        assert cookie is not None
        assert b"_referral" not in store.get(f"{prefix}{cookie.value}")

    def test_program_leaves_nothing_on_the_server(self, site: Site) -> None:
        code, browser = link(site), Browser(site)
        answer = browser.client.get(f"/referrals/{code}", headers={"User-Agent": "Googlebot/2.1"})
        assert answer.status_code == 302
        assert "Set-Cookie" not in answer.headers

    def test_session_that_gets_a_new_id_after_the_login_is_credited(self, site: Site) -> None:
        @site.app.after_request
        def protect_against_fixation(response: Response) -> Response:
            if request.path == "/signup":
                site.app.session_interface.regenerate(session)  # type: ignore[attr-defined]
            return response

        code, browser = link(site), Browser(site)
        browser.follow(code)
        before = browser.client.get_cookie("session")
        browser.sign_up("mia")
        assert browser.client.get_cookie("session") != before
        assert browser.act() == code


@pytest.mark.parametrize("give_users", [login_hosts.flask_jwt_extended_with_pages_on_another_origin])
class TestAnotherOrigin(OnSQLite):
    """A page of another origin creates links with a token, if the origin is listed."""

    @pytest.mark.parametrize(
        ("origin", "has_token", "status"),
        [("https://app.example", True, 200), ("https://app.example", False, 401), ("https://evil.example", True, 403)],
    )
    def test_page_may_create_a_link(self, site: Site, origin: str, has_token: bool, status: int) -> None:
        browser, page = Browser(site), {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        browser.sign_up("mia")
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = browser.client.options("/referrals/", headers=page | asked)
        token = browser.headers if has_token else {}
        answer = browser.client.post("/referrals/", headers=page | token, json={"redirect_to": "/tea"})
        assert (preflight.status_code, answer.status_code, answer.mimetype) == (200, status, "application/json")
        allowed = [origin] if origin == "https://app.example" else []
        for each in (preflight, answer):
            assert each.headers.getlist("Access-Control-Allow-Origin") == allowed
        with site.app.app_context():
            owners = [link.user.name for link in site.db.session.scalars(sa.select(Referral))]
        assert owners == (["mia"] if status == 200 else [])


@pytest.mark.parametrize("give_users", [login_hosts.no_users])
class TestBareIdentities(OnSQLite):
    """Without a user model, a user may be a bare id."""

    KEY = uuid.UUID(int=7)

    @pytest.mark.parametrize(
        ("user", "stored"), [("mia", "mia"), ("x" * 255, "x" * 255), (7, "7"), (0, "0"), (KEY, str(KEY))]
    )
    def test_it_is_stored_as_text(self, site: Site, user: Any, stored: str) -> None:
        with site.app.test_request_context():
            current_referrals.user_loader(lambda: user)
            assert Referral.create("/", user=user).user_id == stored
            assert Referral.create("/", user=user) is Referral.create("/", user=stored)
            response = Referral.create("/other").respond("CALLED")
            assert response.user_id == stored
            assert Referral.referral_responses_for_request() == [response]

    @pytest.mark.parametrize("user", [True, 1.5, b"mia", object(), "", "x" * 256, "mi\0a", "\ud800"])
    def test_anything_else_is_refused(self, site: Site, user: Any) -> None:
        with site.app.app_context():
            with pytest.raises(InvalidValueError, match=r"^user "):
                Referral.create("/", user=user)
            assert site.db.session.scalars(sa.select(Referral)).all() == []

    def test_identity_of_an_object_is_its_get_id(self, site: Site) -> None:
        class User:
            def __init__(self, key: Any) -> None:
                self.key = key

            def get_id(self) -> Any:
                return self.key

        with site.app.app_context():
            assert Referral.create("/", user=User(7)).user_id == "7"
            assert Referral.create("/", user=User(None)).user_id is None


def test_every_snippet_of_the_docs_is_in_these_sites() -> None:
    sites = re.sub(r"  # type: ignore\[.*\]", "", Path(login_hosts.__file__).read_text())
    found = snippets("logins.rst", "python")
    assert len(found) >= 6
    for snippet in found:
        match = re.fullmatch(r"((?:(?:from|import) [^\n]*\n|\n)*)(.*)", snippet, re.DOTALL)
        assert match is not None
        imports, code = match.groups()
        # There they are parts of functions.
        assert any(textwrap.indent(code.strip("\n"), margin) in sites for margin in (4 * " ", 8 * " "))
        compile(snippet, "docs/logins.rst", "exec")
        if all(importlib.util.find_spec(name) for name in re.findall(r"^(?:from|import) (\w+)", imports, re.MULTILINE)):
            exec(imports, {})
