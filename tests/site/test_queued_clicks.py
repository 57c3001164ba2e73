"""Clicks that a recorder takes: their user, and the host's transaction."""

import json
from contextlib import suppress
from typing import Any

import pytest
from flask.testing import FlaskClient
from flask_login import logout_user
from sqlalchemy import event

from flask_referrals import Referral, response_recorded
from flask_referrals.queue import store
from tests.conftest import MakeHost
from tests.host import Host
from tests.site.helpers import CONFLICT, ONE_CONNECTION, REFUSAL, Row, engine_of, failing, names, rows


class Queue(list[dict[str, Any]]):
    """A recorder that keeps the events until the test stores them."""

    def __call__(self, event: dict[str, Any]) -> None:
        self.append(json.loads(json.dumps(event)))

    def deliver(self, host: Host) -> None:
        """Store all events, as a worker does."""
        with host.app.app_context():
            store(self)
        self.clear()


class Undo(Exception):
    """Rolls a savepoint back."""


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def host(new_host: MakeHost, queue: Queue) -> Host:
    """A site with the recorder, some links and a user."""
    host = new_host(make_recorder=lambda app: queue)
    fill(host)
    return host


def fill(host: Host) -> None:
    with host.app.app_context():
        for code in ("tea", "coffee", "milk", "cake"):
            Referral.create(f"/{code}", code=code)
        host.user("mia")


def users_of_links(host: Host) -> dict[str, str | None]:
    """Return the user of each click by the code of its link."""
    with host.app.app_context():
        return {each.referral.code: each.user.name if each.user else None for each in host.responses()}


class TestReplayedKey:
    """A cookie is sent again after its key was joined to a user."""

    @pytest.fixture
    def thief(self, host: Host, client: FlaskClient) -> FlaskClient:
        """A browser with the cookie that the user's browser had before the login."""
        for code in ("tea", "coffee", "milk"):
            client.get(f"/referrals/{code}")
        cookie = client.get_cookie("session")
        assert cookie is not None
        client.post("/login", data={"name": "mia"})
        thief = host.client()
        thief.set_cookie("session", cookie.value)
        return thief

    def test_clicks_after_the_join_are_not_the_users(
        self, host: Host, client: FlaskClient, thief: FlaskClient, queue: Queue
    ) -> None:
        thief.get("/referrals/cake")
        queue.deliver(host)
        assert users_of_links(host) == {"tea": "mia", "coffee": "mia", "milk": "mia", "cake": None}
        assert client.post("/act/BOUGHT").text == "milk"

    def test_clicks_after_the_join_are_those_of_the_next_user(
        self, host: Host, thief: FlaskClient, queue: Queue
    ) -> None:
        thief.get("/referrals/cake")
        thief.post("/signup", data={"name": "otto"})
        queue.deliver(host)
        assert users_of_links(host) == {"tea": "mia", "coffee": "mia", "milk": "mia", "cake": "otto"}


class TestAnnouncementFails:
    """The clicks are durable, but the SELECT that loads them for the receivers fails."""

    @pytest.mark.parametrize("error", [CONFLICT, REFUSAL])
    def test_store_does_not_raise(
        self, host: Host, client: FlaskClient, queue: Queue, caplog: pytest.LogCaptureFixture, error: str
    ) -> None:
        committed: list[str] = []
        client.get("/referrals/tea")
        event.listen(engine_of(host), "commit", lambda connection: committed.append("COMMIT"))
        with (
            response_recorded.connected_to(lambda app, response: response.action, host.app),
            failing(host, lambda statement: bool(committed) and statement.startswith("SELECT"), error) as failed,
        ):
            queue.deliver(host)
        assert len(failed) == 1
        assert rows(host) == [Row("RESPONDED")]
        assert len(caplog.records) == 1


def test_click_stays_with_the_visitor_when_the_savepoint_is_rolled_back(host: Host, client: FlaskClient) -> None:
    @host.app.post("/try")
    def record_and_roll_back() -> str:
        with suppress(Undo), host.db.session.begin_nested():
            Referral.record_response("TRIED", commit=False)
            raise Undo
        host.db.session.commit()
        return ""

    client.get("/referrals/tea")
    client.post("/try")
    assert client.post("/act/BOUGHT").text == "tea"
    assert rows(host) == [Row("RESPONDED"), Row("BOUGHT")]


def test_logout_does_not_commit_the_work_of_the_host(host: Host, client: FlaskClient, queue: Queue) -> None:
    @host.app.post("/leave")
    def leave() -> str:
        host.db.session.add(host.Product(name="half"))
        host.db.session.flush()
        logout_user()
        host.db.session.rollback()
        return ""

    client.post("/login", data={"name": "mia"})
    client.get("/referrals/tea")
    client.post("/leave")
    assert names(host, host.Product) == []
    queue.deliver(host)
    assert rows(host) == [Row("RESPONDED", "mia")]


def test_reading_does_not_flush_what_the_host_has_not_completed(host: Host, client: FlaskClient) -> None:
    @host.app.post("/add")
    def add() -> str:
        product = host.Product()
        host.db.session.add(product)
        referral = Referral.referral_for_request()
        product.name = "half"
        host.db.session.commit()
        return referral.code if referral is not None else ""

    client.get("/referrals/tea")
    assert client.post("/add").text == "tea"
    assert names(host, host.Product) == ["half"]


def test_click_that_the_recorder_refuses_does_not_commit_the_work_of_the_host(new_host: MakeHost) -> None:
    def refuse(event: dict[str, Any]) -> None:
        raise ConnectionError("no broker")

    host = new_host(make_recorder=lambda app: refuse, SQLALCHEMY_ENGINE_OPTIONS=ONE_CONNECTION)

    @host.app.before_request
    def write() -> None:
        host.db.session.add(host.Product(name="half"))
        host.db.session.flush()

    fill(host)
    assert host.client().get("/referrals/tea").location == "/tea"
    assert names(host, host.Product) == []
    assert rows(host) == [Row("RESPONDED")]
