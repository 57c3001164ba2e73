"""The host's transaction is left alone, and one connection is enough for the host and the extension."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host, follow, make_host
from tests.site.helpers import DEADLOCK, failing, find_user

#: How an SQLite database can be set up: as SQLAlchemy does by default, as its documentation says for savepoints, and as
#: Python's own module does since 3.12.
SQLITE_MODES = ["default", "BEGIN hook", "autocommit off"]


def begin_explicitly(engine: sa.Engine) -> None:
    """Let every transaction of SQLite's begin with the first statement, be it a SELECT."""

    @event.listens_for(engine, "connect")
    def leave_it_to_the_hook(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.fixture(params=SQLITE_MODES)
def sqlite_host(request: pytest.FixtureRequest, sqlite_url: str) -> Iterator[Host]:
    """The site on SQLite, set up in each way."""
    options: dict[str, Any] = {}
    if request.param == "autocommit off":
        if sys.version_info < (3, 12):
            pytest.skip("sqlite3 has no autocommit before Python 3.12")
        options["connect_args"] = {"autocommit": False}
    host = make_host(sqlite_url, SQLALCHEMY_ENGINE_OPTIONS=options)
    with host.app.app_context():
        if request.param == "BEGIN hook":
            begin_explicitly(host.db.engine)
        host.db.create_all()
    yield host
    with host.app.app_context():
        host.db.session.remove()
        host.db.engine.dispose()


def rows(host: Host) -> list[str]:
    """Return what is stored: actions, and the names of users."""
    with host.app.app_context():
        names = host.db.session.scalars(sa.select(host.User.name)).all()
        labels = host.db.session.scalars(sa.select(Referral.label)).all()
        return sorted([*(response.action for response in host.responses()), *names, *filter(None, labels)])


def check_view_that_raises_stores_nothing(host: Host) -> None:
    """Record, make a link and join a visitor in a view that fails afterwards, and in one that does not."""
    host.app.config["PROPAGATE_EXCEPTIONS"] = False

    @host.app.post("/order/<outcome>")
    def order(outcome: str) -> str:
        session = host.db.session
        Referral.create("/", label="first", commit=False)  # the first write is not the host's
        user = host.User(name="mia")
        session.add(user)
        host.referrals.link_user(user, commit=False)
        assert Referral.record_response("ORDERED", user=user, commit=False) is not None
        Referral.create("/", user=user, label="thanks", commit=False)
        if outcome == "fails":
            raise RuntimeError("the host's fault")
        session.commit()
        return ""

    client = host.client()
    follow(host, client)
    assert client.post("/order/fails").status_code == 500
    assert rows(host) == ["RESPONDED"]
    assert client.post("/order/succeeds").status_code == 200
    assert rows(host) == ["ORDERED", "RESPONDED", "first", "mia", "thanks"]


def check_failing_record_leaves_the_hosts_rows(host: Host, *, commit: bool) -> None:
    """Fail to record after the host has written something, and commit that."""

    def refuse(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
        if statement.startswith("INSERT INTO referral_response"):
            raise RuntimeError("the disk is full")

    with host.app.app_context():
        Referral.create("/").respond("CAME", user=host.user("mia"))
        host.db.session.rollback()
        mia = host.db.session.scalars(sa.select(host.User)).one()
        event.listen(host.db.engine, "before_cursor_execute", refuse)
        try:
            host.db.session.add(host.User(name="written"))
            host.db.session.flush()
            host.db.session.add(host.User(name="pending"))
            with pytest.raises(RuntimeError, match="the disk is full"):
                Referral.record_response("BOUGHT", user=mia, commit=commit)
            host.db.session.commit()
        finally:
            event.remove(host.db.engine, "before_cursor_execute", refuse)
    assert rows(host) == ["CAME", "mia", "pending", "written"]


def test_view_that_raises_stores_nothing(host: Host) -> None:
    check_view_that_raises_stores_nothing(host)


def test_view_that_raises_stores_nothing_however_sqlite_begins(sqlite_host: Host) -> None:
    check_view_that_raises_stores_nothing(sqlite_host)


@pytest.mark.parametrize("commit", [True, False])
def test_failing_record_leaves_what_the_host_wrote(host: Host, commit: bool) -> None:
    check_failing_record_leaves_the_hosts_rows(host, commit=commit)


@pytest.mark.parametrize("commit", [True, False])
def test_failing_record_leaves_what_the_host_wrote_however_sqlite_begins(sqlite_host: Host, commit: bool) -> None:
    check_failing_record_leaves_the_hosts_rows(sqlite_host, commit=commit)


def test_one_connection_is_enough_while_the_host_holds_a_write(new_host: MakeHost) -> None:
    """On SQLite a second one would wait for the first, which waits for it."""
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 1})

    @host.app.before_request
    def write() -> None:
        host.db.session.add(host.Product(name="seen"))
        host.db.session.flush()

    client = host.client()
    code = follow(host, client)
    with host.app.app_context():
        host.user("mia")
    assert client.post("/act/LOOKED").text == code
    assert client.post("/login", data={"name": "mia"}).status_code == 302
    assert client.post("/act/BOUGHT").text == code
    assert client.post("/referrals/", json={"redirect_to": "/"}).status_code == 200
    assert rows(host) == ["BOUGHT", "LOOKED", "RESPONDED", "mia"]
    with (
        host.app.app_context()
    ):  # actions and the form commit what the host has written; the click and the login do not
        assert host.db.session.scalar(sa.select(sa.func.count()).select_from(host.Product)) == 3


def test_everything_goes_over_the_connection_on_which_the_host_has_written(new_host: MakeHost) -> None:
    # There is no second one; on SQLite it would wait for the first until the lock timeout.
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 1})
    client = host.client()

    @host.app.before_request
    def write_and_do_not_commit() -> None:
        host.db.session.add(host.Product(name="written first"))
        host.db.session.flush()

    follow(host, client)
    client.post("/signup", data={"name": "mia"})
    client.post("/act/PURCHASED")
    made = client.post("/referrals/", json={"redirect_to": "/"})

    assert made.status_code == 200
    with host.app.app_context():
        responses = host.responses()
        assert [response.action for response in responses] == ["RESPONDED", "SIGNED_UP", "PURCHASED"]
        assert len({response.user_id for response in responses}) == 1
        assert host.db.session.scalar(sa.select(sa.func.count(host.Product.id))) == 3  # the click does not commit


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True, scope="session")
def test_error_is_raised_if_a_savepoint_finds_the_transaction_rolled_back(new_host: MakeHost) -> None:
    """A node of a cluster rolls back a transaction at any statement, in favour of one from another node."""
    host = new_host(TESTING=False, REFERRALS_BASE_URL="http://localhost")
    client = host.client()
    code = follow(host, client)
    savepoints: list[str] = []

    def is_second_savepoint(statement: str) -> bool:
        savepoints.extend([statement] if statement.startswith("SAVEPOINT") else [])
        return statement.startswith("SAVEPOINT") and len(savepoints) == 2

    with failing(host, is_second_savepoint, DEADLOCK) as failed:
        assert client.post("/signup", data={"name": "mia"}).status_code == 500
    assert len(failed) == 1
    with host.app.app_context():
        mia = find_user(host, "mia").id
        assert [(response.action, response.user_id) for response in host.responses()] == [("RESPONDED", mia)]
    assert client.post("/act/BOUGHT").text == code
