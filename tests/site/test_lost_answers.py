"""The database is lost in the moment in which something becomes durable: it is done once, whether it was or not."""

import re
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.logging import default_handler
from flask.testing import FlaskClient

from flask_referrals import Referral, ReferralResponse, response_recorded
from flask_referrals.db.transactions import MAX_ATTEMPTS
from tests.cluster.run import kind_of_error
from tests.host import Host, follow, make_host

pytestmark = pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True, scope="session")


class Line:
    """A line to a database's server, which can be cut: at the next messages with some words in them.

    :param address: the server's.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._words = re.compile(b"")
        self._arrives = False
        self._times = 0
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at(self, words: bytes, *, arrives: bool, times: int = 1) -> None:
        """Cut the next connections that send them.

        :param words: an expression.
        :param arrives: whether the server gets the message, and answers; the answer is lost.
        """
        self._words, self._arrives, self._times = re.compile(words), arrives, times

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._address) as server, selectors.DefaultSelector() as selector:
            for one, other in ((client, server), (server, client)):
                selector.register(one, selectors.EVENT_READ, other)
            while True:
                for key, _ in selector.select():
                    source: socket.socket = key.fileobj  # type: ignore[assignment]
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is client and self._times and self._words.search(data):
                        self._times -= 1
                        self.cuts += 1
                        if self._arrives:
                            server.sendall(data)
                            server.recv(65536)
                        return
                    key.data.sendall(data)


@pytest.fixture
def line(database_url: str) -> Iterator[Line]:
    """The line to the server."""
    url = sa.make_url(database_url)
    with closing(
        Line((url.host or "127.0.0.1", url.port or {"postgresql": 5432}.get(url.get_backend_name(), 3306)))
    ) as line:
        yield line


@pytest.fixture
def config() -> dict[str, Any]:
    """The site's settings."""
    return {}


@pytest.fixture
def host(line: Line, database_url: str, config: dict[str, Any]) -> Iterator[Host]:
    """The site, at the other end of the line."""
    url = sa.make_url(database_url).set(host="127.0.0.1", port=line.port)
    host = make_host(url.render_as_string(hide_password=False), **config)
    with host.app.app_context():
        host.db.create_all()
    yield host
    with host.app.app_context():
        host.db.session.remove()
        host.db.drop_all()
        host.db.engine.dispose()


def cut(host: Host, line: Line, arrives: bool, *, own: bool = True) -> None:
    """Cut the line when something becomes durable next.

    :param own: whether that is sent over a connection of its own: PostgreSQL has the row durable with the INSERT then.
    """
    with host.app.app_context():
        in_autocommit = own and host.db.engine.dialect.name == "postgresql"
    line.cut_at(b"INSERT INTO referral_response" if in_autocommit else rb"COMMIT(\0|$)", arrives=arrives)


@pytest.mark.parametrize("arrives", [True, False])
def test_click_is_recorded_once(
    host: Host, client: FlaskClient, line: Line, arrives: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with host.app.app_context():
        code = Referral.create("/welcome").code
    cut(host, line, arrives)
    answer = client.get(f"/referrals/{code}")
    assert (answer.location, "Set-Cookie" in answer.headers, line.cuts) == ("/welcome", True, 1)
    with host.app.app_context():
        assert [response.action for response in host.responses()] == ["RESPONDED"]
    assert client.post("/act/BOUGHT").text == code
    assert not caplog.records


def test_click_asks_for_another_connection(
    host: Host, client: FlaskClient, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """The line is cut while a connection is made over it, as when it leads to a node that has just died."""
    with host.app.app_context():
        if host.db.engine.dialect.name == "postgresql":
            pytest.skip("psycopg does not tell such a line from a server that is away")
        code = Referral.create("/welcome").code
        host.db.session.remove()
        host.db.engine.dispose()
    line.cut_at(b"", arrives=False)
    assert client.get(f"/referrals/{code}").location == "/welcome"
    assert line.cuts == 1
    with host.app.app_context():
        assert len(host.responses()) == 1
    assert not caplog.records


@pytest.mark.parametrize("arrives", [True, False])
def test_programs_click_is_recorded_once(host: Host, client: FlaskClient, line: Line, arrives: bool) -> None:
    with host.app.app_context():
        code = Referral.create("/welcome").code
    cut(host, line, arrives)
    assert client.get(f"/referrals/{code}", headers={"User-Agent": "curl/8"}).location == "/welcome"
    with host.app.app_context():
        assert [response.ignored for response in host.responses()] == ["bot"]


@pytest.mark.parametrize("arrives", [True, False])
def test_action_is_recorded_once(host: Host, client: FlaskClient, line: Line, arrives: bool) -> None:
    code = follow(host, client)
    heard: list[str] = []

    def hear(app: Flask, response: ReferralResponse) -> None:
        heard.append(response.action)

    cut(host, line, arrives)
    with response_recorded.connected_to(hear, host.app):
        assert (client.post("/act/BOUGHT").text, line.cuts) == (code, 1)
    assert heard == ["BOUGHT"]
    with host.app.app_context():
        assert [response.action for response in host.responses()] == ["RESPONDED", "BOUGHT"]


@pytest.mark.parametrize("arrives", [True, False])
def test_action_with_a_key_is_recorded_once(host: Host, client: FlaskClient, line: Line, arrives: bool) -> None:
    @host.app.post("/pay")
    def pay() -> str:
        response = Referral.record_response("PAID", key="order 1")
        return "" if response is None else str(response.key)

    follow(host, client)
    cut(host, line, arrives, own=False)
    assert (client.post("/pay").text, line.cuts) == ("order 1", 1)
    with host.app.app_context():
        assert [response.action for response in host.responses()] == ["RESPONDED", "PAID"]


@pytest.mark.parametrize("arrives", [True, False])
def test_link_is_made_once(host: Host, line: Line, arrives: bool) -> None:
    cut(host, line, arrives, own=False)
    with host.app.app_context():
        first = Referral.create("/").id
        assert (Referral.create("/").id, line.cuts) == (first, 1)


@pytest.mark.parametrize("arrives", [True, False])
def test_visitor_is_joined(host: Host, client: FlaskClient, line: Line, arrives: bool) -> None:
    @host.app.post("/link/<int:user>")
    def link(user: int) -> str:
        mia = host.db.session.get(host.User, user)
        host.db.session.rollback()
        host.referrals.link_user(mia)
        return ""

    code = follow(host, client)
    with host.app.app_context():
        mia = host.user("mia").id
    cut(host, line, arrives, own=False)
    client.post(f"/link/{mia}")
    assert line.cuts == 1
    with host.app.app_context():
        assert [response.user_id for response in host.responses()] == [mia]
        user = host.db.session.get(host.User, mia)
        response = Referral.record_response("BOUGHT", user=user)
        assert response is not None and response.referral.code == code


@pytest.mark.parametrize("config", [{"TESTING": False, "REFERRALS_BASE_URL": "http://localhost"}], ids=["live"])
class TestHostsTransaction:
    """The view's own transaction is lost while the extension works in it: the view has to repeat it."""

    def test_error_reaches_the_view(
        self, host: Host, client: FlaskClient, line: Line, caplog: pytest.LogCaptureFixture
    ) -> None:
        code = follow(host, client)
        line.cut_at(b"INSERT INTO referral_response", arrives=False)
        assert (client.post("/signup", data={"name": "mia"}).status_code, line.cuts) == (500, 1)
        (record,) = caplog.records
        assert kind_of_error(default_handler.format(record)).startswith("host: Exception on /signup [POST]")
        assert client.post("/act/BOUGHT").text == code
        with host.app.app_context():
            assert [(response.action, response.user_id) for response in host.responses()] == [
                ("RESPONDED", 1),
                ("BOUGHT", 1),
            ]

    def test_failure_of_an_own_transaction_is_no_error_of_the_host(
        self, host: Host, client: FlaskClient, line: Line, caplog: pytest.LogCaptureFixture
    ) -> None:
        follow(host, client)
        line.cut_at(b"INSERT INTO referral_response", arrives=False, times=MAX_ATTEMPTS)
        assert client.post("/act/PAID", data={"key": "order 1"}).status_code == 500
        (record,) = caplog.records
        assert kind_of_error(default_handler.format(record)).startswith("ours: Exception on /act/PAID [POST]")
