"""What a database, a callable of the host's or a signal's receiver may do to us, without doing it to the visitor."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event

from flask_referrals import Referral, ReferralResponse, response_recorded, user_linked_to_response
from tests.conftest import MakeHost
from tests.databases import NAMES, new_database
from tests.faults.statements import FLOWS, Site, new_site, run_flow
from tests.host import Host

READ_ONLY = {
    "sqlite": "PRAGMA query_only = ON",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}


@pytest.fixture(scope="module", params=NAMES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that uses every feature, in a separate database."""
    with new_database(request.param, tmp_path_factory.mktemp("database")) as url, new_site(url) as site:
        yield site


@pytest.mark.slow
@pytest.mark.parametrize("flow", FLOWS)
def test_no_statement_harms_anybody_by_failing(site: Site, flow: str) -> None:
    report = run_flow(site, flow, lasting=())
    assert report.statements
    assert report.faults == []


@contextmanager
def on_each_connection(engine: sa.Engine, statement: str) -> Iterator[None]:
    """Let the host's connections begin with a statement."""

    def send(connection: Any, record: Any) -> None:
        connection.cursor().execute(statement)
        connection.commit()

    engine.dispose()
    event.listen(engine, "connect", send)
    try:
        yield
    finally:
        event.remove(engine, "connect", send)
        engine.dispose()


def engine_of(host: Host) -> sa.Engine:
    with host.app.app_context():
        return host.db.engine


def test_database_that_cannot_be_written_to_stops_no_visitor(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with host.app.app_context():
        code = Referral.create("/welcome", user=host.user("mia")).code
    client.get(f"/referrals/{code}")
    engine = engine_of(host)
    with on_each_connection(engine, READ_ONLY[engine.dialect.name]):
        assert host.client().get(f"/referrals/{code}").headers["Location"] == "/welcome"
        assert client.post("/login", data={"name": "mia"}).status_code == 302
        assert len(caplog.records) == 2
        assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records)
        answer = client.post("/referrals/", json={"redirect_to": "/tea"})
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
    host.client().get(f"/referrals/{code}")
    assert client.post("/referrals/", json={"redirect_to": "/tea"}).status_code == 200
    with host.app.app_context():
        assert [response.action for response in host.responses()] == ["RESPONDED"] * 2


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True, scope="session")
def test_row_that_postgresql_quotes_in_its_error_is_not_logged(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with host.app.app_context():
        code = Referral.create("/").code
        host.db.session.execute(sa.text("ALTER TABLE referral_response ADD CHECK (action <> 'RESPONDED') NOT VALID"))
        host.db.session.commit()
    client.get(f"/referrals/{code}", headers={"User-Agent": "Mozilla/5.0 Agent"})
    (record,) = caplog.records
    assert "violates check constraint" in record.getMessage()
    assert len(caplog.text.splitlines()) == 1
    assert "Agent" not in caplog.text and "127.0.0" not in caplog.text


class TestLostTransaction:
    """The database rolls back the transaction of a click: the host loses nothing with it."""

    def assert_visitor_arrives(self, site: Site, client: FlaskClient, *, logged: int) -> None:
        page, pending = site.name(), site.name()
        assert client.get(f"/page?ref=second&name={page}", headers={"X-Pending": pending}).text == "page"
        assert (site.has(page), site.has(pending)) == (True, True)
        assert len(site.log.records) == logged

    def test_sqlite_rolls_it_back(self, sqlite_url: str) -> None:
        with new_site(sqlite_url) as site:
            with site.engine.begin() as connection:
                connection.exec_driver_sql(
                    "CREATE TRIGGER full BEFORE INSERT ON referral_response "
                    "BEGIN SELECT RAISE(ROLLBACK, 'the disk is full'); END"
                )
            client = site.client()
            self.assert_visitor_arrives(site, client, logged=1)
            answer = client.get("/referrals/first", headers={"X-Pending": site.name()})
            assert answer.location == "/target"

    @pytest.mark.parametrize("site", ["mariadb"], indirect=True)
    def test_rival_that_waits_for_the_host_is_no_deadlock(self, site: Site) -> None:
        """Another transaction has the link, and waits for what the host has written."""
        site.log.records.clear()
        users = [site.user()[0] for _ in range(50)]
        rival = site.engine.connect()
        threads: list[Thread] = []

        def change_everything() -> None:
            rival.exec_driver_sql("UPDATE product SET name = CONCAT(name, '!')")
            rival.rollback()

        def wait_for_the_host(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
            if statement.startswith("INSERT INTO referral_response") and not threads:
                thread = Thread(target=change_everything)
                thread.start()
                threads.append(thread)
                thread.join(timeout=0.3)

        # Who has changed less is given up.
        rival.execute(
            sa.update(site.host.User).where(site.host.User.id.in_(users)).values(name=site.host.User.name + "x")
        )
        rival.exec_driver_sql("UPDATE referral SET label = CONCAT(label, '!')")
        event.listen(site.engine, "before_cursor_execute", wait_for_the_host)
        try:
            self.assert_visitor_arrives(site, site.client(), logged=0)
        finally:
            event.remove(site.engine, "before_cursor_execute", wait_for_the_host)
            threads[0].join()
            rival.close()


class TestFullDisk:
    """SQLite rolls back a transaction for which there is no room."""

    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        """The one database."""
        return sqlite_url

    def test_visitors_arrive_until_there_is_room_again(
        self, new_host: MakeHost, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = new_host(REFERRALS_REFERRER_STORAGE="full")
        with host.app.app_context():
            code = Referral.create("/welcome").code
            pages = host.db.session.scalar(sa.text("PRAGMA page_count"))

        def click() -> str | None:
            page = f"https://blog.example/{'x' * 1000}"
            return host.client().get(f"/referrals/{code}", headers={"Referer": page}).location

        with on_each_connection(engine_of(host), f"PRAGMA max_page_count = {pages}"):
            assert {click() for _ in range(12)} == {"/welcome"}
        lost = len(caplog.records)
        assert lost > 0 and "full" in caplog.text
        assert len(caplog.text.splitlines()) == lost
        click()
        with host.app.app_context():
            assert len(host.responses()) == 12 - lost + 1


class TestHostsOwnFault:
    """A callable or a receiver of the host's raises."""

    @pytest.fixture
    def code(self, site: Site) -> str:
        """A link's code."""
        site.log.records.clear()
        return "first"

    @pytest.mark.parametrize("hook", ["user_loader", "classifier", "consent", "client_ip"])
    def test_page_with_a_code_is_shown(self, site: Site, code: str, hook: str) -> None:
        def fail(*args: object) -> None:
            raise RuntimeError("the host's fault")

        name = site.name()
        hooks = site.host.referrals.hooks
        setattr(hooks, hook, fail)
        try:
            assert site.client().get(f"/page?ref={code}&name={name}").text == "page"
        finally:
            setattr(hooks, hook, None)
        assert site.has(name)
        assert len(site.log.records) == 1

    def test_receiver_that_breaks_the_session_breaks_no_page(self, site: Site, code: str) -> None:
        name = site.name()
        with response_recorded.connected_to(self.break_session(site), site.host.app):
            assert site.client().get(f"/page?ref={code}&name={name}").text == "page"
        assert site.has(name)
        assert len(site.log.records) == 1

    def test_receiver_that_breaks_the_session_breaks_no_action(self, site: Site, code: str) -> None:
        client, name = site.visitor(), site.name()
        with response_recorded.connected_to(self.break_session(site), site.host.app):
            answer = client.post("/call/record", data={"name": name})
        assert answer.json == {"error": None, "is_told": False}
        assert site.has(name)
        assert len(site.log.records) == 1

    def test_receiver_that_breaks_the_session_breaks_no_login(self, site: Site, code: str) -> None:
        client, name = site.visitor(), site.name()
        with user_linked_to_response.connected_to(self.break_session(site), site.host.app):
            assert client.post("/enter", data={"user": site.user()[1], "name": name}).text == "entered"
        assert site.has(name)
        assert len(site.log.records) == 1

    def break_session(self, site: Site) -> Any:
        """Return a receiver whose statement the database refuses."""

        def receive(app: Flask, response: ReferralResponse) -> None:
            site.host.db.session.execute(sa.text("SELECT nothing FROM nowhere"))

        return receive
