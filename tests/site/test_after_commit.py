"""Receivers and changes of the visitor key run after the COMMIT of their transaction, when nothing is held.

A rollback of the transaction or of their savepoint discards them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, Response, session
from flask.testing import FlaskClient
from sqlalchemy import event

from flask_referrals import Referral, ReferralResponse, referral_created, response_recorded, user_linked_to_response
from tests.conftest import MakeHost
from tests.host import Host, follow
from tests.site.helpers import (
    CONFLICT,
    ONE_CONNECTION,
    REFUSAL,
    Row,
    add_own_login,
    engine_of,
    failing,
    find_user,
    has_key,
    names,
    rows,
)

COOKIE = "referral"
SIGNALS = (referral_created, response_recorded, user_linked_to_response)


class Undo(Exception):
    """Rolls a savepoint back."""


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    """A site where the next recorded action joins a visitor who has logged in."""
    host = new_host(with_login=False)
    add_own_login(host)
    return host


@contextmanager
def heard(host: Host) -> Iterator[list[str]]:
    """Collect the names of the signals that are sent."""
    sent: list[str] = []

    def receive(name: str, app: Flask, **payload: object) -> None:
        sent.append(name)

    with ExitStack() as stack:
        for signal in SIGNALS:
            stack.enter_context(signal.connected_to(partial(receive, signal.name), host.app))
        yield sent


def visitor_who_logged_in(host: Host) -> tuple[FlaskClient, str]:
    """Return a browser with a key that is not joined yet, and the code of its link."""
    client = host.client()
    code = follow(host, client)
    with host.app.app_context():
        host.user("mia")
    client.post("/login", data={"name": "mia"})
    return client, code


def announces(host: Host) -> Any:
    """Return a function that tells whether a statement loads a response for the receivers, after its COMMIT."""
    stored: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
        if statement.startswith("INSERT INTO referral_response"):
            stored[:] = ["INSERT"]

    def commit(conn: Any) -> None:
        if stored:
            stored.append("COMMIT")

    event.listen(engine_of(host), "before_cursor_execute", note)
    event.listen(engine_of(host), "commit", commit)
    return lambda statement: "COMMIT" in stored and statement.startswith("SELECT referral_response")


class TestAnnouncementFails:
    """The row is durable, but the SELECT that loads it for the receivers fails."""

    @pytest.mark.parametrize("error", [CONFLICT, REFUSAL])
    def test_action_is_stored_once_and_returned(self, host: Host, caplog: pytest.LogCaptureFixture, error: str) -> None:
        client, code = visitor_who_logged_in(host)
        with (
            user_linked_to_response.connected_to(lambda app, response: response.action, host.app),
            failing(host, announces(host), error) as failed,
        ):
            assert client.post("/act/BOUGHT").text == code
        assert len(failed) == 1
        assert rows(host) == [Row("RESPONDED", "mia"), Row("BOUGHT", "mia")]
        assert not has_key(client)
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("error", [CONFLICT, REFUSAL])
    def test_commit_of_the_host_succeeds(self, host: Host, caplog: pytest.LogCaptureFixture, error: str) -> None:
        @host.app.post("/buy")
        def buy() -> str:
            Referral.record_response("BOUGHT", commit=False)
            host.db.session.commit()
            return "bought"

        client, _ = visitor_who_logged_in(host)
        with (
            user_linked_to_response.connected_to(lambda app, response: response.action, host.app),
            failing(host, announces(host), error) as failed,
        ):
            assert client.post("/buy").text == "bought"
        assert len(failed) == 1
        assert rows(host) == [Row("RESPONDED", "mia"), Row("BOUGHT", "mia")]
        assert not has_key(client)
        assert len(caplog.records) == 1


def test_receiver_that_queries_the_database_needs_no_second_connection(
    new_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS=ONE_CONNECTION)
    seen: list[str] = []

    def receive(app: Flask, response: ReferralResponse) -> None:
        seen.append(response.action)
        seen.extend(host.db.session.scalars(sa.select(host.User.name)))

    client = host.client()
    code = follow(host, client)
    with host.app.app_context():
        host.user("mia")
    with response_recorded.connected_to(receive, host.app):
        assert client.post("/act/BOUGHT").text == code
    assert seen == ["BOUGHT", "mia"]
    assert caplog.records == []


class TestSavepoint:
    """The host rolls a savepoint back, and commits."""

    @pytest.fixture(params=["its own", "an outer one"])
    def rolled_back(self, host: Host, request: pytest.FixtureRequest) -> Any:
        """Open a savepoint that is rolled back, or released within one that is rolled back."""

        @contextmanager
        def savepoint() -> Iterator[None]:
            with suppress(Undo), host.db.session.begin_nested():
                if request.param == "an outer one":
                    with host.db.session.begin_nested():
                        yield
                else:
                    yield
                raise Undo

        return savepoint

    def test_key_stays_and_nothing_is_announced(self, host: Host, rolled_back: Any) -> None:
        @host.app.post("/try")
        def record_and_roll_back() -> str:
            with rolled_back():
                assert Referral.record_response("TRIED", commit=False) is not None
                Referral.create("/tried", commit=False)
            host.db.session.commit()
            return ""

        client, code = visitor_who_logged_in(host)
        with heard(host) as sent:
            client.post("/try")
        assert sent == []
        assert rows(host) == [Row("RESPONDED")]
        assert has_key(client)
        assert client.post("/act/BOUGHT").text == code
        assert rows(host) == [Row("RESPONDED", "mia"), Row("BOUGHT", "mia")]

    def test_other_work_of_the_transaction_is_announced(
        self, host: Host, rolled_back: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        @host.app.post("/try")
        def record_twice() -> str:
            Referral.record_response("FIRST", commit=False)
            with rolled_back():
                Referral.record_response("TRIED", commit=False)
            Referral.record_response("LAST", commit=False)
            host.db.session.commit()
            return ""

        actions: list[str] = []
        client = host.client()
        follow(host, client)
        with response_recorded.connected_to(lambda app, response: actions.append(response.action), host.app):
            client.post("/try")
        assert actions == ["FIRST", "LAST"]
        assert caplog.records == []

    def test_key_of_a_response_that_is_not_stored_is_not_set(self, host: Host, rolled_back: Any) -> None:
        @host.app.post("/try")
        def respond_and_roll_back() -> str:
            referral = Referral.create("/")
            with rolled_back():
                referral.respond("TRIED", commit=False)
            host.db.session.commit()
            return ""

        client = host.client()
        assert "Set-Cookie" not in client.post("/try").headers
        assert rows(host) == []

    def test_key_of_link_user_stays(self, host: Host, rolled_back: Any) -> None:
        @host.app.post("/try")
        def link_and_roll_back() -> str:
            with rolled_back():
                host.referrals.link_user(find_user(host, "mia"), commit=False)
            host.db.session.commit()
            return ""

        client, _ = visitor_who_logged_in(host)
        with heard(host) as sent:
            client.post("/try")
        assert sent == []
        assert has_key(client)


class TestCookieOfItsOwn:
    """The host commits after the view: the response can still carry the cookie."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host(with_login=False, REFERRALS_COOKIE=COOKIE)
        add_own_login(host)

        @host.app.after_request
        def commit(response: Response) -> Response:
            host.db.session.commit()
            return response

        @host.app.post("/answer")
        def answer() -> str:
            return Referral.create("/", code="tea", commit=False).respond("CAME", commit=False).action

        @host.app.post("/buy")
        def buy() -> str:
            Referral.record_response("BOUGHT", commit=False)
            return ""

        return host

    def test_cookie_is_set(self, host: Host) -> None:
        client = host.client()
        client.post("/answer")
        assert client.get_cookie(COOKIE) is not None
        assert client.post("/act/BOUGHT").text == "tea"

    def test_cookie_is_deleted(self, host: Host) -> None:
        client, _ = visitor_who_logged_in(host)
        assert client.get_cookie(COOKIE) is not None
        client.post("/buy")
        assert rows(host) == [Row("RESPONDED", "mia"), Row("BOUGHT", "mia")]
        assert client.get_cookie(COOKIE) is None
        assert not has_key(client)


class TestBeginBlock:
    """``with db.session.begin():`` allows no statement after its COMMIT; receivers run after the block."""

    @pytest.mark.parametrize("call", ["record_response", "link_user"])
    def test_receiver_may_query_the_database(self, host: Host, caplog: pytest.LogCaptureFixture, call: str) -> None:
        @host.app.post("/block")
        def block() -> str:
            with host.db.session.begin():
                user = host.db.session.get(host.User, session["user_id"])
                host.db.session.add(host.Product(name="tea"))
                if call == "link_user":
                    host.referrals.link_user(user, commit=False)
                Referral.record_response("BOUGHT", commit=False)
            return "done"

        def receive(app: Flask, response: ReferralResponse) -> None:
            seen.append((response.action, response.user.name, *host.db.session.scalars(sa.select(host.Product.name))))

        seen: list[tuple[str, ...]] = []
        client, _ = visitor_who_logged_in(host)
        with (
            user_linked_to_response.connected_to(receive, host.app),
            response_recorded.connected_to(receive, host.app),
        ):
            assert client.post("/block").text == "done"
        assert seen == [("RESPONDED", "mia", "tea"), ("BOUGHT", "mia", "tea")]
        assert names(host, host.Product) == ["tea"]
        assert rows(host) == [Row("RESPONDED", "mia"), Row("BOUGHT", "mia")]
        assert not has_key(client)
        assert caplog.records == []
