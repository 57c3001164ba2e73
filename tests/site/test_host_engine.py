"""The host's engines: locks, routing, session events, isolation levels and retries."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from flask import g, request
from flask.testing import FlaskClient
from flask_login import current_user
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import event
from sqlalchemy.orm import scoped_session, sessionmaker

from flask_referrals import CodeTakenError, ConfigurationError, Referral
from tests.conftest import MakeHost
from tests.host import Host, follow, in_parallel
from tests.site.helpers import CONFLICT, Row, declare_on, engine_of, failing, find_user, on_connect, rows

READ_ONLY = {
    "sqlite": "PRAGMA query_only = ON",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}


def add_typed_code(host: Host) -> None:
    """Add a page that attaches the code of a link, tea."""

    @host.app.post("/typed")
    def typed() -> str:
        response = Referral.attach("tea")
        return "" if response is None else response.action

    with host.app.app_context():
        Referral.create("/", code="tea")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True, scope="session")
class TestWriteLock:
    """SQLite has one write lock for the whole database."""

    @pytest.fixture
    def host(self, host: Host, database_url: str) -> Iterator[Host]:
        others = sa.create_engine(database_url, connect_args={"timeout": 0}, poolclass=sa.NullPool)

        def write() -> str:
            with others.begin() as connection:
                connection.execute(sa.insert(host.Product).values(name="another's"))
            return "written"

        @host.app.post("/look/<arguments>")
        def look(arguments: str) -> str:
            if "read" in request.args:
                assert current_user.name == "mia"
            assert Referral.record_response("LOOKED", **ARGUMENTS[arguments]) is None
            return write()

        @host.app.post("/choose")
        def choose() -> str:
            assert current_user.name == "mia"
            with pytest.raises(CodeTakenError):
                Referral.create("/other", code="tea")
            return write()

        yield host
        others.dispose()

    @pytest.mark.parametrize("query", ["", "?read"])
    @pytest.mark.parametrize("arguments", ["plain", "key", "once", "uncommitted"])
    def test_action_without_a_referral_leaves_no_lock(self, client: FlaskClient, arguments: str, query: str) -> None:
        client.post("/signup", data={"name": "mia"})
        assert client.post(f"/look/{arguments}{query}").text == "written"

    def test_code_that_is_taken_leaves_no_lock(self, host: Host, client: FlaskClient) -> None:
        client.post("/signup", data={"name": "mia"})
        with host.app.app_context():
            Referral.create("/", code="tea")
        assert client.post("/choose").text == "written"


ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "key": {"key": "order 1"},
    "once": {"once": True},
    "uncommitted": {"commit": False},
}


class RoutingSession(FlaskSession):
    """Sends reads to the follower, as SQLAlchemy's documentation shows."""

    def get_bind(self, mapper: Any = None, clause: Any = None, bind: Any = None, **arguments: Any) -> Any:
        """Return the engine for a statement."""
        is_write = self._flushing or isinstance(clause, (sa.Insert, sa.Update, sa.Delete))
        return self._db.engines[None if is_write else "follower"]


class TestLeaderAndFollower:
    """The host's session sends writes to the leader, and reads to the follower, which is read-only."""

    @pytest.fixture
    def host(self, new_host: MakeHost, database_url: str) -> Host:
        host = new_host(SQLALCHEMY_BINDS={"follower": database_url})
        host.db.session.session_factory.class_ = RoutingSession
        on_connect(host, READ_ONLY[engine_of(host).dialect.name], bind="follower")

        add_typed_code(host)
        with host.app.app_context():
            host.user("mia")
        return host

    def test_click_and_action_are_written_to_the_leader(
        self, host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert "Set-Cookie" in client.get("/referrals/tea").headers
        assert client.post("/act/BOUGHT").text == "tea"
        assert caplog.records == []
        assert rows(host) == [Row("RESPONDED"), Row("BOUGHT")]

    def test_typed_code_and_history_are_written_to_the_leader(
        self, host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert client.post("/typed").text == "ATTACHED"
        client.post("/login", data={"name": "mia"})
        assert client.post("/act/BOUGHT").text == "tea"
        assert caplog.records == []
        assert rows(host) == [Row("ATTACHED", "mia"), Row("BOUGHT", "mia")]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True, scope="session")
class TestSchemaPerTenant:
    """The host's session sets the schema when a transaction begins: docs/hosts.rst."""

    TENANTS = ("north", "south")

    @pytest.fixture
    def host(self, host: Host) -> Iterator[Host]:
        with engine_of(host).begin() as connection:
            for tenant in self.TENANTS:
                connection.exec_driver_sql(f"CREATE SCHEMA {tenant}")
                connection.exec_driver_sql(f"SET LOCAL search_path TO {tenant}")
                host.db.metadata.create_all(connection, checkfirst=False)
        with host.app.app_context():
            event.listen(host.db.session, "after_begin", self.set_tenant)

        @host.app.before_request
        def find_tenant() -> None:
            if "X-Tenant" in request.headers:
                g.tenant = request.headers["X-Tenant"]
            if "X-Read" in request.headers:
                assert host.db.session.scalars(sa.select(Referral.redirect_to)).all() == [f"/{g.tenant}"]

        yield host
        with engine_of(host).begin() as connection:
            for tenant in self.TENANTS:
                connection.exec_driver_sql(f"DROP SCHEMA {tenant} CASCADE")

    def set_tenant(self, session: Any, transaction: Any, connection: sa.Connection) -> None:
        """Receive SQLAlchemy's event."""
        if "tenant" in g:
            connection.exec_driver_sql(f"SET LOCAL search_path TO {g.tenant}")

    def make_link(self, host: Host, tenant: str, path: str) -> None:
        """Store a link in a tenant's schema."""
        with host.app.app_context():
            g.tenant = tenant
            Referral.create(path, code="tea")

    @pytest.mark.parametrize("headers", [{}, {"X-Read": "1"}], ids=["at once", "after the host's transaction"])
    @pytest.mark.parametrize("has_default", [False, True])
    def test_click_is_the_tenants(self, host: Host, has_default: bool, headers: dict[str, str]) -> None:
        for tenant in self.TENANTS:
            self.make_link(host, tenant, f"/{tenant}")
        if has_default:
            self.make_link(host, "public", "/public")
        for tenant in self.TENANTS:
            client = host.client()
            client.environ_base["HTTP_X_TENANT"] = tenant
            answer = client.get("/referrals/tea", headers=headers)
            assert (answer.status_code, answer.location) == (302, f"/{tenant}")
            assert client.post("/act/BOUGHT").text == "tea"
        with engine_of(host).connect() as connection:
            for tenant in self.TENANTS:
                stored = connection.exec_driver_sql(f"SELECT action FROM {tenant}.referral_response ORDER BY id")
                assert stored.scalars().all() == ["RESPONDED", "BOUGHT"]


class TestAutocommit:
    """The extension needs transactions."""

    @pytest.mark.parametrize(
        "options",
        [{"isolation_level": "AUTOCOMMIT"}, {"execution_options": {"isolation_level": "AUTOCOMMIT"}}],
        ids=["engine", "execution options"],
    )
    def test_engine_is_refused(self, new_host: MakeHost, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="isolation_level"):
            new_host(SQLALCHEMY_ENGINE_OPTIONS=options)

    def test_bind_of_the_referrals_is_refused(self, new_host: MakeHost, database_url: str) -> None:
        binds = {"stats": {"url": database_url, "isolation_level": "AUTOCOMMIT"}}
        with pytest.raises(ConfigurationError, match="isolation_level"):
            new_host(declare=declare_on("stats"), SQLALCHEMY_BINDS=binds)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True, scope="session")
class TestOldSnapshot:
    """At REPEATABLE READ, the host's snapshot is older than the row that another request stored."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host(SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": "REPEATABLE READ"})
        with host.app.app_context():
            mia = host.user("mia")
            Referral.create("/welcome").respond("CAME", user=mia)
        return host

    def test_link_that_was_made_meanwhile_is_found(self, host: Host) -> None:
        with host.app.app_context():
            mia = find_user(host, "mia")
            with host.app.app_context():
                code = Referral.create("/", user=find_user(host, "mia")).code
            assert Referral.create("/", user=mia).code == code
            assert mia.name == "mia"

    def test_racing_callers_make_one_link(self, host: Host) -> None:
        def create() -> None:
            with host.app.app_context():
                codes.append(Referral.create("/", user=find_user(host, "mia")).code)

        codes: list[str] = []
        in_parallel([create] * 8)
        assert len(set(codes)) == 1

    @pytest.mark.parametrize("arguments", [{"key": "order 1"}, {"once": True}], ids=["key", "once"])
    def test_action_that_was_stored_meanwhile_is_found(self, host: Host, arguments: dict[str, Any]) -> None:
        def pay(mia: Any) -> Any:
            return Referral.record_response("PAID", user=mia, **arguments)

        with host.app.app_context():
            mia = find_user(host, "mia")
            with host.app.app_context():
                paid = pay(find_user(host, "mia")).id
            assert pay(mia).id == paid
        assert rows(host) == [Row("CAME", "mia"), Row("PAID", "mia")]


class TestRetry:
    """The database rolls back a transaction of the extension because of a conflict."""

    @contextmanager
    def conflict(self, host: Host) -> Iterator[None]:
        """Make the next INSERT of a response fail once."""
        with failing(host, lambda statement: statement.startswith("INSERT INTO referral_response"), CONFLICT) as failed:
            yield
        assert len(failed) == 1

    @pytest.fixture
    def host(self, host: Host) -> Host:
        add_typed_code(host)
        return host

    def test_typed_code_of_a_visitor_is_retried(self, host: Host, client: FlaskClient) -> None:
        with self.conflict(host):
            assert client.post("/typed").text == "ATTACHED"
        assert rows(host) == [Row("ATTACHED")]

    def test_typed_code_of_a_user_is_retried(self, host: Host) -> None:
        with host.app.app_context():
            mia = host.user("mia")
            with self.conflict(host):
                response = Referral.attach("tea", user=mia)
                assert response is not None and response.action == "ATTACHED"
        assert rows(host) == [Row("ATTACHED", "mia")]


@pytest.mark.parametrize("is_session", [False, True], ids=["engine", "session"])
def test_click_joins_the_transaction_of_a_test(host: Host, monkeypatch: pytest.MonkeyPatch, is_session: bool) -> None:
    """The host's tests give the session a connection, and roll its transaction back: docs/testing.rst."""
    with host.app.app_context():
        engines: Any = host.db.engines
        host.db.session.configure(join_transaction_mode="create_savepoint")
    with engines[None].connect() as connection, monkeypatch.context() as replaced:
        transaction = connection.begin()
        connection.execute(sa.insert(host.Product).values(name="tea"))  # SQLite's driver begins with a write
        if is_session:
            factory = sessionmaker(connection, join_transaction_mode="create_savepoint")
            replaced.setattr(host.db, "session", scoped_session(factory))
        else:
            replaced.setitem(engines, None, connection)
        client = host.client()
        follow(host, client)
        client.post("/signup", data={"name": "mia"})
        assert rows(host) == [Row("RESPONDED", "mia"), Row("SIGNED_UP", "mia")]
        transaction.rollback()
    assert rows(host) == []
