"""The signed key by which a visitor is known before there is a user."""

import hashlib
import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import flask
import pytest
import sqlalchemy as sa
import time_machine
from flask import Flask, Request
from flask.sessions import SessionInterface
from flask.testing import FlaskClient
from itsdangerous import Signer, TimestampSigner

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host, make_host, statements

#: Where the key is, and what it is signed for.
ENTRY = "_referral"
SALT = "flask-referrals.visitor"
HOUR = 3600


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """A key is the same on every database."""
    return shared_sqlite_url


@pytest.fixture
def code(host: Host) -> str:
    """The code of a link."""
    with host.app.app_context():
        return Referral.create("/").code


@pytest.fixture
def token(client: FlaskClient, code: str) -> str:
    """The signed key of a visitor who clicked on the link, as it is in the session."""
    client.get(f"/referrals/{code}")
    return token_of(client)


def token_of(client: FlaskClient) -> str:
    with client.session_transaction() as session:
        return str(session[ENTRY])


def credit(host: Host, entry: Any) -> str | None:
    """Return the code of the link that gets credit for a visitor with this entry in the session."""
    with host.app.test_request_context():
        flask.session[ENTRY] = entry
        referral = Referral.referral_for_request()
        return None if referral is None else referral.code


def sign(host: Host, value: str | bytes, *, age: float = 0, salt: str = SALT, secret: str | None = None) -> str:
    """Sign by hand, as if some seconds ago."""

    class Clock(TimestampSigner):
        def get_timestamp(self) -> int:
            return math.ceil(time.time() - age)

    return (
        Clock(secret or str(host.app.secret_key), salt=salt, digest_method=hashlib.sha384).sign(value).decode("latin-1")
    )


def key_in(token: str) -> str:
    return token.split(".")[0]


def test_key_is_random_and_names_nothing_else(host: Host, code: str, token: str) -> None:
    with host.app.app_context():
        (response,) = host.responses()
        assert response.session_key == key_in(token)
    assert len(key_in(token)) == 43
    other = host.client()
    other.get(f"/referrals/{code}")
    assert key_in(token_of(other)) != key_in(token)


def test_key_is_kept_from_click_to_click(host: Host, client: FlaskClient, code: str, token: str) -> None:
    client.get(f"/referrals/{code}")
    assert key_in(token_of(client)) == key_in(token)


class TestNextLink:
    """A visitor who has a key follows another link."""

    @pytest.fixture
    def next_code(self, host: Host) -> str:
        with host.app.app_context():
            return Referral.create("/next").code

    def test_session_stays_as_it_is(self, host: Host, client: FlaskClient, next_code: str, token: str) -> None:
        client.post("/act/LOOKED")  # Flask-Login has something to keep, the second time
        answer = client.get(f"/referrals/{next_code}")
        assert "Set-Cookie" not in answer.headers
        assert credit(host, token) == next_code

    def test_nothing_is_left_behind_the_key(self, client: FlaskClient, next_code: str, token: str) -> None:
        with client.session_transaction() as session:
            session[ENTRY] = f"{token}~of a recorder that is no more"
        client.get(f"/referrals/{next_code}")
        assert "~" not in token_of(client)

    @pytest.mark.parametrize(
        "settings",
        [{"REFERRALS_ATTRIBUTION_WINDOW": HOUR}, {"SECRET_KEY_FALLBACKS": ["older"]}],
        ids=["its age matters", "its secret is about to be dropped"],
    )
    def test_key_is_signed_anew(
        self, new_host: MakeHost, client: FlaskClient, next_code: str, token: str, settings: dict[str, Any]
    ) -> None:
        host = new_host(**settings)  # the same site, started again
        client.application = host.app
        with time_machine.travel(time.time() + 60):
            client.get(f"/referrals/{next_code}")
            renewed = token_of(client)
            assert key_in(renewed) == key_in(token)
            assert renewed != token
            assert credit(host, renewed) == next_code


def test_valid_key_gives_credit(host: Host, code: str, token: str) -> None:
    assert credit(host, token) == code
    assert credit(host, sign(host, key_in(token))) == code


class TestForgery:
    """A text that is not a signed key is ignored without an error."""

    def test_every_changed_character_is_noticed(self, host: Host, token: str) -> None:
        with host.app.test_request_context():
            for position, old in enumerate(token):
                for new in {"A", "B", "a", "0", "9", "_", "-", ".", "=", " ", "\0", "\u00e9", old.swapcase()} - {old}:
                    flask.session[ENTRY] = token[:position] + new + token[position + 1 :]
                    assert Referral.referral_for_request() is None, (position, new)

    def test_every_missing_or_added_character_is_noticed(self, host: Host, token: str) -> None:
        with host.app.test_request_context():
            for position in range(len(token) + 1):
                cut = [token[:position], token[position:], token[:position] + token[position + 1 :]]
                added = [token[:position] + new + token[position:] for new in "A.= \n"]
                for forged in {*cut, *added} - {token}:
                    flask.session[ENTRY] = forged
                    assert Referral.referral_for_request() is None, forged

    @pytest.mark.parametrize(
        "entry",
        [
            None,
            True,
            False,
            0,
            1,
            -1,
            1.5,
            2**70,
            [],
            ["a"],
            {},
            {"key": "a"},
            b"bytes",
            "",
            ".",
            "..",
            "a.b.c",
            "\ud800",
        ],
        ids=ascii,
    )
    def test_entry_of_another_kind_is_no_key(self, host: Host, entry: Any) -> None:
        assert credit(host, entry) is None

    def test_key_in_a_list_is_no_key(self, host: Host, token: str) -> None:
        assert credit(host, [token]) is None
        assert credit(host, {"key": token}) is None
        assert credit(host, token.encode()) is None

    def test_key_as_it_is_stored_is_no_key(self, host: Host, token: str) -> None:
        assert credit(host, key_in(token)) is None

    @pytest.mark.parametrize(
        "salt", ["cookie-session", "itsdangerous", "itsdangerous.Signer", "flask-referrals.target", ""]
    )
    def test_key_signed_for_another_use_is_no_key(self, host: Host, token: str, salt: str) -> None:
        assert credit(host, sign(host, key_in(token), salt=salt)) is None

    def test_key_signed_with_another_secret_is_no_key(self, host: Host, token: str) -> None:
        assert credit(host, sign(host, key_in(token), secret="another")) is None

    def test_key_signed_without_a_time_is_no_key(self, host: Host, token: str) -> None:
        signer = Signer(str(host.app.secret_key), salt=SALT, digest_method=hashlib.sha384)
        assert credit(host, signer.sign(key_in(token)).decode()) is None
        assert credit(host, signer.sign(f"{key_in(token)}.not-a-time").decode()) is None
        assert credit(host, signer.sign(f"{key_in(token)}.{'_' * 40}").decode()) is None

    def test_session_cookie_is_no_key(self, host: Host, client: FlaskClient, token: str) -> None:
        cookie = client.get_cookie("session")
        assert cookie is not None
        assert credit(host, cookie.value) is None

    def test_alien_payload_is_no_key(self, host: Host, token: str) -> None:
        key = key_in(token)
        for alien in (
            "",
            "1",
            "x" * 42,
            "x" * 44,
            key + "A",
            f"{key}\n",
            f" {key}",
            "\u00e9" * 43,
            b"\xff" * 43,
            b"\0" * 43,
        ):
            with host.app.app_context(), statements(host.db) as sent:
                assert credit(host, sign(host, alien)) is None
            assert sent == []

    def test_visitor_with_a_forged_key_gets_a_new_one(
        self, host: Host, client: FlaskClient, code: str, token: str
    ) -> None:
        with client.session_transaction() as session:
            session[ENTRY] = token[:-1]
        assert client.post("/act/BOUGHT").text == ""
        assert client.get(f"/referrals/{code}").status_code == 302
        assert key_in(token_of(client)) != key_in(token)
        assert client.post("/act/BOUGHT").text == code

    def test_key_is_read_from_the_session_and_its_cookie_alone(self, host: Host, token: str) -> None:
        browser = host.client()
        browser.set_cookie(ENTRY, token)
        browser.set_cookie("visitor", token)
        answer = browser.post(
            f"/act/BOUGHT?{ENTRY}={token}&session_key={key_in(token)}&key={token}",
            data={ENTRY: token, "session_key": key_in(token), "key": token},
            headers={ENTRY: token, "X-Referral": token, "Authorization": f"Bearer {token}"},
        )
        assert (answer.status_code, answer.text) == (200, "")
        with browser.session_transaction() as session:
            assert ENTRY not in session


class TestNewSecret:
    """``SECRET_KEY`` is exchanged; the old one is in ``SECRET_KEY_FALLBACKS`` for a while."""

    @pytest.fixture
    def exchange(self, host: Host) -> Callable[..., None]:
        """Take a new key, and keep others."""

        def exchange(new: str, *old: str | None) -> None:
            host.app.config.update(SECRET_KEY=new, SECRET_KEY_FALLBACKS=list(old))

        return exchange

    def test_old_key_still_reads(
        self, host: Host, client: FlaskClient, code: str, token: str, exchange: Callable[..., None]
    ) -> None:
        exchange("second", str(host.app.secret_key))
        assert client.post("/act/BOUGHT").text == code
        exchange("third", *["second", "a test's secret"])
        assert client.post("/act/BOUGHT").text == code

    def test_old_key_that_was_given_up_does_not(
        self, host: Host, code: str, token: str, exchange: Callable[..., None]
    ) -> None:
        exchange("second")
        assert credit(host, token) is None

    def test_new_one_signs(self, host: Host, code: str, exchange: Callable[..., None]) -> None:
        exchange("second", "first", "zeroth")
        visitor = host.client()
        visitor.get(f"/referrals/{code}")
        token = token_of(visitor)
        exchange("second")
        assert credit(host, token) == code
        exchange("first")
        assert credit(host, token) is None
        exchange("zeroth")
        assert credit(host, token) is None


class TestTime:
    """A key is good for ``REFERRALS_ATTRIBUTION_WINDOW``, and so is the click it came with."""

    def visit(self, host: Host, *, click_age: float = 0, key_age: float = 0) -> bool:
        """Whether a visitor is credited whose click is stored, and whose key is signed, as of then."""
        client = host.client()
        with host.app.app_context():
            code = Referral.create("/").code
        client.get(f"/referrals/{code}")
        with host.app.app_context():
            model = host.referrals.ReferralResponse
            clicked_at = datetime.now(timezone.utc) - timedelta(seconds=click_age)
            host.db.session.execute(sa.update(model).values(created_at=clicked_at))
            host.db.session.commit()
        return credit(host, sign(host, key_in(token_of(client)), age=key_age)) == code

    @pytest.mark.parametrize("window", [HOUR, float(HOUR), timedelta(hours=1)])
    def test_key_lasts_as_long_as_the_window(self, new_host: MakeHost, window: Any) -> None:
        host = new_host(REFERRALS_ATTRIBUTION_WINDOW=window)
        assert self.visit(host, key_age=HOUR - 1)
        assert not self.visit(host, key_age=HOUR + 1)

    def test_click_lasts_as_long_as_the_window(self, new_host: MakeHost) -> None:
        host = new_host(REFERRALS_ATTRIBUTION_WINDOW=HOUR)
        assert self.visit(host, click_age=HOUR - 1)
        assert not self.visit(host, click_age=HOUR + 1)

    def test_both_are_valid_at_any_age_without_a_window(self, new_host: MakeHost) -> None:
        host = new_host(REFERRALS_ATTRIBUTION_WINDOW=None)
        age = timedelta(days=5 * 365).total_seconds()
        assert self.visit(host, click_age=age, key_age=age)

    @pytest.mark.parametrize("window", [None, HOUR])
    def test_clock_that_is_a_little_ahead_is_tolerated(self, new_host: MakeHost, window: int | None) -> None:
        host = new_host(REFERRALS_ATTRIBUTION_WINDOW=window)
        assert self.visit(host, key_age=-30)
        assert not self.visit(host, key_age=-120)

    @pytest.mark.parametrize("age", [HOUR, -60])
    def test_both_limits_are_included(self, new_host: MakeHost, age: int) -> None:
        host = new_host(REFERRALS_ATTRIBUTION_WINDOW=HOUR)
        with time_machine.travel(datetime(2026, 5, 1, 12, tzinfo=timezone.utc), tick=False):
            assert self.visit(host, key_age=age)
            assert not self.visit(host, key_age=age + math.copysign(1, age))

    def test_expired_key_is_replaced_at_the_next_click(self, new_host: MakeHost) -> None:
        host = new_host(REFERRALS_ATTRIBUTION_WINDOW=HOUR)
        client = host.client()
        with host.app.app_context():
            code = Referral.create("/").code
        client.get(f"/referrals/{code}")
        old = key_in(token_of(client))
        with client.session_transaction() as session:
            session[ENTRY] = sign(host, old, age=HOUR + 1)
        assert client.post("/act/BOUGHT").text == ""
        client.get(f"/referrals/{code}")
        assert key_in(token_of(client)) != old
        assert client.post("/act/BOUGHT").text == code


class NoSessions(SessionInterface):
    """An app that keeps no sessions: Flask gives it one that cannot be written to."""

    def open_session(self, app: Flask, request: Request) -> None:
        return None


class TestNoSession:
    """Nothing breaks where visitors cannot be recognised."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        """The site without sessions."""
        host = new_host(with_login=False)
        host.app.session_interface = NoSessions()
        return host

    def test_click_redirects_and_is_recorded(self, host: Host, client: FlaskClient, code: str) -> None:
        answer = client.get(f"/referrals/{code}?redirect_to=/tea")
        assert (answer.status_code, answer.headers["Location"]) == (302, "/tea")
        assert "Set-Cookie" not in answer.headers
        with host.app.app_context():
            (response,) = host.responses()
            assert (response.ignored, response.referral.code) == (None, code)

    def test_action_is_anonymous(self, host: Host, client: FlaskClient, code: str) -> None:
        client.get(f"/referrals/{code}")
        assert client.post("/act/BOUGHT").text == ""
        with host.app.test_request_context():
            assert Referral.record_response("BOUGHT") is None
            assert Referral.referral_for_request() is None
            assert list(Referral.referral_responses_for_request()) == []

    def test_login_joins_no_history(self, host: Host) -> None:
        with host.app.test_request_context():
            host.referrals.link_user(host.user("mia"))

    def test_response_to_a_link_is_recorded(self, host: Host, code: str) -> None:
        with host.app.test_request_context():
            referral = host.db.session.scalars(sa.select(Referral)).one()
            assert referral.respond("SHARED").action == "SHARED"


class TestNoRequest:
    """A worker, a command or a shell: there is no visitor."""

    def test_action_earns_no_credit_and_runs_no_statement(self, host: Host, code: str) -> None:
        with host.app.app_context(), statements(host.db) as sent:
            assert Referral.record_response("BOUGHT") is None
            assert Referral.referral_for_request() is None
            assert list(Referral.referral_responses_for_request()) == []
        assert sent == []

    def test_request_can_be_given(self, host: Host, code: str, client: FlaskClient, token: str) -> None:
        cookie = client.get_cookie("session")
        assert cookie is not None
        with host.app.test_request_context(headers={"Cookie": f"session={cookie.value}"}) as context:
            request = context.request
        with host.app.app_context():
            response = Referral.record_response("BOUGHT", request=request)
            assert response is not None and response.referral.code == code
            assert response.session_key == key_in(token)

    def test_user_can_be_given(self, host: Host, client: FlaskClient, code: str) -> None:
        client.get(f"/referrals/{code}")
        client.post("/signup", data={"name": "mia"})
        with host.app.app_context():
            mia = host.db.session.scalars(sa.select(host.User)).one()
            response = Referral.record_response("PAID", user=mia)
            assert response is not None
            assert (response.referral.code, response.user, response.ip_address) == (code, mia, None)


def test_site_on_plain_cookies_sees_the_key_only_signed(host: Host, client: FlaskClient, token: str) -> None:
    """The session is readable by its owner: nothing in it is a secret of somebody else's."""
    with client.session_transaction() as session:
        assert set(session) == {ENTRY}
        assert session[ENTRY].count(".") == 2


def test_two_sites_with_different_secrets_share_no_keys(host: Host, token: str, tmp_path: Any) -> None:
    other = make_host(f"sqlite:///{tmp_path / 'host.db'}", SECRET_KEY="another")
    assert credit(other, token) is None
    with other.app.app_context():
        other.db.engine.dispose()
