"""The extension's own transactions are retried after a conflict; the host's are not."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from flask_referrals import Referral
from tests.host import Host, follow, make_host

TRIES = 5

on_servers = pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True, scope="session")

GiveUp = Callable[[str, str, int], None]


@pytest.fixture
def give_up(host: Host) -> Iterator[GiveUp]:
    """Let a table's next writes fail with the database's own errors, one after the other, raised by a trigger."""

    def install(table: str, operation: str, times: int) -> None:
        send = host.db.session.connection().exec_driver_sql
        if host.db.engine.dialect.name == "postgresql":
            # A sequence counts on through rollbacks.
            send("CREATE SEQUENCE conflicts")
            send(
                "CREATE FUNCTION give_up() RETURNS trigger LANGUAGE plpgsql AS $$ "
                "DECLARE number integer := nextval('conflicts'); "
                f"BEGIN IF number <= {times} THEN "
                "RAISE 'given up' USING ERRCODE = (ARRAY['40001', '40P01'])[1 + mod(number, 2)]; "
                "END IF; RETURN NEW; END $$"
            )
            send(f"CREATE TRIGGER give_up BEFORE {operation} ON {table} FOR EACH ROW EXECUTE FUNCTION give_up()")
        else:
            # A variable belongs to the connection, and does so too.
            send("SET @conflicts = 0")
            send(
                f"CREATE TRIGGER give_up BEFORE {operation} ON {table} FOR EACH ROW BEGIN "
                "DECLARE number INTEGER; SET @conflicts = @conflicts + 1; "
                "SET number = ELT(1 + MOD(@conflicts, 3), 1213, 1205, 1020); "
                f"IF @conflicts <= {times} THEN SIGNAL SQLSTATE '40001' "
                "SET MYSQL_ERRNO = number, MESSAGE_TEXT = 'given up'; END IF; END"
            )
        host.db.session.commit()

    yield install
    with host.app.app_context(), host.db.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("DROP FUNCTION IF EXISTS give_up CASCADE")
            connection.exec_driver_sql("DROP SEQUENCE IF EXISTS conflicts")


@on_servers
def test_click_is_recorded_at_the_last_try(host: Host, client: FlaskClient, give_up: GiveUp) -> None:
    with host.app.app_context():
        code = Referral.create("/").code
        give_up("referral_response", "INSERT", TRIES - 1)
    assert "Set-Cookie" in client.get(f"/referrals/{code}").headers
    with host.app.app_context():
        assert len(host.responses()) == 1


@on_servers
def test_tries_are_bounded_and_the_visitor_arrives(
    host: Host, client: FlaskClient, give_up: GiveUp, caplog: pytest.LogCaptureFixture
) -> None:
    with host.app.app_context():
        code = Referral.create("/").code
        give_up("referral_response", "INSERT", TRIES)
    assert client.get(f"/referrals/{code}").status_code == 302
    assert len(caplog.records) == 1
    client.get(f"/referrals/{code}")
    with host.app.app_context():
        assert len(host.responses()) == 1


@on_servers
def test_action_is_recorded_at_a_later_try(host: Host, give_up: GiveUp) -> None:
    with host.app.app_context():
        mia = host.user("mia")
        Referral.create("/").respond("CAME", user=mia)
        host.db.session.rollback()
        give_up("referral_response", "INSERT", TRIES - 1)
        paid = Referral.record_response("PAID", user=mia, key="order 1")
        assert paid is not None
        assert [response.action for response in host.responses()] == ["CAME", "PAID"]


@on_servers
def test_link_is_made_at_a_later_try(host: Host, give_up: GiveUp) -> None:
    with host.app.app_context():
        give_up("referral", "INSERT", TRIES - 1)
        first = Referral.create("/").id
        assert Referral.create("/").id == first


@on_servers
def test_history_is_joined_at_a_later_try(host: Host, client: FlaskClient, give_up: GiveUp) -> None:
    @host.app.post("/link")
    def link() -> str:
        user = host.user("mia")
        host.referrals.link_user(user)
        return ""

    follow(host, client)
    with host.app.app_context():
        give_up("referral_response", "UPDATE", TRIES - 1)
    client.post("/link")
    with host.app.app_context():
        assert [response.user.name for response in host.responses()] == ["mia"]


@on_servers
def test_hosts_transaction_is_never_repeated(host: Host, give_up: GiveUp) -> None:
    with host.app.app_context():
        mia = host.user("mia")
        Referral.create("/").respond("CAME", user=mia)
        host.db.session.rollback()
        give_up("referral_response", "INSERT", 1)
        host.db.session.add(host.User(name="pending"))
        with pytest.raises(OperationalError):
            Referral.record_response("BOUGHT", user=mia)
        host.db.session.rollback()
        assert len(host.responses()) == 1


def number_of(connection: sa.Connection) -> int:
    """Return what the server calls a connection."""
    is_postgresql = connection.dialect.name == "postgresql"
    number: int = connection.exec_driver_sql(
        "SELECT pg_backend_pid()" if is_postgresql else "SELECT CONNECTION_ID()"
    ).scalar_one()
    return number


def close_from_outside(engine: sa.Engine, number: int) -> None:
    """Let the server close a connection, as when it is started anew."""
    is_postgresql = engine.dialect.name == "postgresql"
    other_engine = sa.create_engine(engine.url, poolclass=sa.NullPool)
    with other_engine.connect() as other:
        other.exec_driver_sql(f"SELECT pg_terminate_backend({number})" if is_postgresql else f"KILL {number}")


@on_servers
def test_click_after_the_server_closed_all_connections_is_recorded(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        code = Referral.create("/").code
        host.db.session.remove()
        with host.db.engine.connect() as pooled:
            number = number_of(pooled)
        close_from_outside(host.db.engine, number)
    client.get(f"/referrals/{code}")
    with host.app.app_context():
        assert len(host.responses()) == 1


@on_servers
def test_history_is_joined_at_login_though_the_connection_is_lost(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with host.app.app_context():
        host.user("mia")
        engine = host.db.engine
    follow(host, client)
    closes = iter([1])

    def close(conn: sa.Connection, cursor: Any, statement: str, *args: Any) -> None:
        if statement.startswith("UPDATE referral_response") and next(closes, None):
            close_from_outside(engine, number_of(conn))

    event.listen(engine, "before_cursor_execute", close)
    assert client.post("/login", data={"name": "mia"}).status_code == 302
    event.remove(engine, "before_cursor_execute", close)
    with host.app.app_context():
        assert [response.user.name for response in host.responses()] == ["mia"]
    assert caplog.records == []


@on_servers
def test_first_action_joins_what_the_login_could_not(host: Host, client: FlaskClient, give_up: GiveUp) -> None:
    """The view had cleared the session, and the visitor's key with it."""
    with host.app.app_context():
        host.user("mia")
    code = follow(host, client)
    with host.app.app_context():
        give_up("referral_response", "UPDATE", 1)
    client.post("/login", data={"name": "mia"})
    assert client.post("/act/PAID").text == code
    with host.app.app_context():
        assert [response.user.name for response in host.responses()] == ["mia", "mia"]


@on_servers
def test_link_for_the_logged_in_user_is_made_at_a_later_try(host: Host, client: FlaskClient, give_up: GiveUp) -> None:
    client.post("/signup", data={"name": "mia"})
    with host.app.app_context():
        give_up("referral", "INSERT", TRIES - 1)
    assert client.post("/referrals/", json={"redirect_to": "/"}).status_code == 200


def test_snapshot_that_is_too_old_to_write_is_left_for_a_new_one(sqlite_url: str) -> None:
    host = make_host(sqlite_url)
    with host.app.app_context():
        host.db.create_all()
        engine = host.db.engine
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        code = Referral.create("/").code
        host.db.session.remove()

        # Transactions as SQLAlchemy's documentation sets them up for SQLite: a SELECT begins one.
        @event.listens_for(engine, "connect")
        def leave_transactions_to_us(connection: Any, record: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        engine.dispose()
        other = sa.create_engine(engine.url)
        writes = iter([1])

        @event.listens_for(engine, "before_cursor_execute")
        def write_in_between(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
            if statement.startswith("INSERT INTO referral_response") and next(writes, None):
                with other.begin() as connection:
                    connection.exec_driver_sql("INSERT INTO product (name) VALUES ('tea')")

    host.client().get(f"/referrals/{code}")
    with host.app.app_context():
        assert len(host.responses()) == 1
        host.db.session.remove()
        engine.dispose()
    other.dispose()
