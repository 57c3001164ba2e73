"""The transactions that the extension works in: the host's, or its own."""

import math
import random
import sys
import time
import typing as t
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from functools import cached_property
from operator import attrgetter

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session, attributes, make_transient_to_detached, sessionmaker
from sqlalchemy.util import ScopedRegistry

from .after_commit import Callback, call_after_commit
from .build import Models, Query
from .database import Database

T = t.TypeVar("T")
Work = Callable[[], T]
Find = Callable[[], T | None]

#: How often a transaction of the extension's own is tried, and for how many seconds after its first failure.
MAX_ATTEMPTS = 5
RETRY_SECONDS = 1.0
#: The longest pause before the second attempt, in seconds. It doubles with each further one.
FIRST_PAUSE = 0.01

# SQL standard and PostgreSQL: serialization failure and deadlock. MariaDB: deadlock, lock wait timeout, changed record,
# and a savepoint that was lost with its transaction. SQLite: a snapshot that is too old to be written to.
_CONFLICT_STATES = {"40001", "40P01"}
_CONFLICT_NUMBERS = {1213, 1205, 1020, 1305}
_SQLITE_BUSY_SNAPSHOT = 517
# MariaDB and MySQL have ended the whole transaction: deadlock, also with another node of a cluster; changed record; a
# savepoint that was lost with it.
_ROLLBACK_NUMBERS = {1213, 1020, 1305}
# MariaDB: a number out of range, a character that the column's set lacks, a text that is too long; MySQL: the second.
_REFUSAL_NUMBERS = {1264, 1366, 1406, 3988}

# Listeners by which a host follows what its sessions do. If there is one, clicks go through a session too.
_get_listeners = attrgetter(
    "after_begin", "after_transaction_create", "do_orm_execute", "before_commit", "after_commit"
)

_NO_SAVEPOINT: AbstractContextManager[t.Any] = nullcontext()


def is_transient(error: BaseException) -> bool:
    """Return whether the same work may succeed when it is tried again."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    cause = error.orig
    return (
        error.connection_invalidated
        or (getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)) in _CONFLICT_STATES
        or _has_number(error, _CONFLICT_NUMBERS)
        or getattr(cause, "sqlite_errorcode", None) == _SQLITE_BUSY_SNAPSHOT
    )


def is_refusal(error: BaseException) -> bool:
    """Return whether the database refused a value, and will do so again."""
    # Some drivers for MySQL report a value that is too long, or outside the character set, as an OperationalError.
    return isinstance(error, (DataError, IntegrityError)) or _has_number(error, _REFUSAL_NUMBERS)


def _has_number(error: BaseException | None, numbers: set[int]) -> bool:
    """Return whether MariaDB or MySQL has given an error one of some numbers."""
    return not numbers.isdisjoint(getattr(getattr(error, "orig", None), "args", ())[:1])


def get_deadline(timeout: timedelta | None) -> float:
    """Return when a wait that begins now ends, as a time of ``time.monotonic()``."""
    return math.inf if timeout is None else time.monotonic() + timeout.total_seconds()


def is_in_transaction(database: Database) -> bool:
    """Return whether the host's session has a transaction. No session is created to find out."""
    registry: ScopedRegistry[Session] = database.host.extension.session.registry
    return registry.has() and registry().in_transaction()


def get_statement(models: Models, query: Query) -> t.Any:
    """Return the statement of a query. It is built once, because that takes longer than to store a click."""
    key = query.__class__, query  # queries are tuples, which are equal if their values are
    statement = models.statements.get(key)
    if statement is None:
        statement = models.statements[key] = query.build(models)
    return statement


@dataclass(eq=False)
class Transaction:
    """A transaction to read and write in. Make it before anything else is read: it notes whose transaction runs."""

    database: Database
    _: KW_ONLY
    #: Whether the work is committed at its end. Otherwise the host does it, at any later time.
    commit: bool = True
    #: Set by whatever writes a row. Without it the host's transaction is not committed.
    has_written: bool = False

    @cached_property
    def session(self) -> Session:
        return t.cast(Session, self.database.host.extension.session())

    @property
    def connection(self) -> sa.Connection:
        """The connection on which the session sends statements about the responses."""
        return self.session.connection(bind_arguments=self.database.route)

    def execute(self, statement: t.Any, parameters: t.Any = None) -> t.Any:
        """Send a statement about columns to where INSERTs go. The host's pending changes are not flushed for it."""
        return self.session.connection(bind_arguments=self.database.route).execute(statement, parameters)

    def scalar(self, statement: t.Any) -> t.Any:
        return self.execute(statement).scalar()

    def run(self, work: Work[T], find: Find[T] | None = None, *, on_failure: Callback | None = None) -> T:
        """Do a piece of work, commit it if that is asked for, and then call what waits for the commit.

        :param find: looks for the result before a retry after a lost connection, for the work may have been committed.
        :param on_failure: called while a database error is handled. Unless it raises, the result is ``None``.
        """
        raise NotImplementedError

    def write(self) -> AbstractContextManager[t.Any]:
        """Undo what is written in the block if it raises."""
        raise NotImplementedError

    def read(self) -> AbstractContextManager[t.Any]:
        """Keep the host's transaction usable if a read in the block fails."""
        return _NO_SAVEPOINT

    def lock(self) -> None:
        """Take SQLite's write lock before anything is read: a reader cannot always become a writer there."""
        if self.database.dialect.name == "sqlite":
            connection = self.connection
            driver_connection = connection.connection.dbapi_connection
            if driver_connection is not None and not driver_connection.in_transaction:
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    def after_commit(self, callback: Callback) -> None:
        """Call back after the commit, when the work's connection is free. Errors are logged."""
        raise NotImplementedError

    def get_or_insert(
        self, select: sa.Select[t.Any], find: Callable[[t.Any], T | None], insert: Work[T], *, attempts: int
    ) -> tuple[T, bool]:
        """Return the row that a select by a unique key finds, or the one inserted for it, and whether it is new.

        There is one row, however many callers race.

        :param attempts: how many rows are tried when another unique key of theirs is taken.
        """
        with self.read():
            found = find(select)
        while found is None:
            attempts -= 1
            try:
                with self.write():
                    return insert(), True
            except IntegrityError as error:
                if not (error.statement or "").startswith("INSERT"):
                    raise
                # A locking read: MariaDB's snapshot may be older than the row that was in the way.
                found = find(select.with_for_update(read=True))
                if found is None and attempts == 0:
                    self.leave_snapshot()
                    found = find(select)
                    if found is None:
                        raise
        return found, False

    def leave_snapshot(self) -> None:
        """End the host's transaction, if the call is to commit it, to see newer rows."""


@dataclass(eq=False)
class HostTransaction(Transaction):
    """Work in a transaction of the host's: never repeated, with a savepoint around each write."""

    _: KW_ONLY
    commit: bool = False
    #: Whether to flush what the host has pending, so that its errors reach the host unchanged. Otherwise nothing
    #: flushes it, and a savepoint is around all of the work.
    flush: bool = True

    def run(self, work: Work[T], find: Find[T] | None = None, *, on_failure: Callback | None = None) -> T:
        if self.flush:
            self.session.flush()
        result = self.run_guarded(work, nullcontext if self.flush else self.write, on_failure)
        if self.commit and self.has_written:
            self._commit_session()
        return t.cast(T, result)

    def run_guarded(
        self, work: Work[T], guard: Callable[[], AbstractContextManager[t.Any]], on_failure: Callback | None
    ) -> T | None:
        """Do a piece of work within a guard, and keep the host's transaction usable if it fails. Nothing is flushed."""
        hosts = self.session.get_transaction()
        was_open = hosts is not None and self._is_open()
        try:
            with guard():
                return work()
        except SQLAlchemyError:
            if was_open and not self._is_open():
                self.session.rollback()
            else:
                recover(self.database)
            is_lost = hosts is not None and self.session.get_transaction() is not hosts
            if on_failure is None or is_lost:  # the host's work is lost with it
                raise
            on_failure()
            self.has_written = True  # what the host has written is to be committed
        return None

    def _is_open(self) -> bool:
        """Return whether the database has the transaction. Of the drivers, only SQLite's tells."""
        if self.database.dialect.name != "sqlite":
            return True
        try:
            connection: t.Any = self.connection.connection.dbapi_connection
        except SQLAlchemyError:
            return False
        return connection is not None and bool(connection.in_transaction)

    def _commit_session(self) -> None:
        try:
            self.session.commit()
        except BaseException:
            self.session.rollback()
            raise

    def write(self) -> AbstractContextManager[t.Any]:
        self.lock()
        return self.session.begin_nested() if self.flush else self.connection.begin_nested()

    def read(self) -> AbstractContextManager[t.Any]:
        # PostgreSQL accepts nothing more after an error.
        return self.connection.begin_nested() if self.database.dialect.name == "postgresql" else _NO_SAVEPOINT

    def after_commit(self, callback: Callback) -> None:
        call_after_commit(self.session, self.database.guard(callback))

    def leave_snapshot(self) -> None:
        if self.commit:
            self._commit_session()


@dataclass(eq=False)
class OwnTransaction(Transaction):
    """Work in a transaction that the extension begins and ends. It is retried after a conflict or a lost connection.

    It runs in the host's session, which had no transaction.
    """

    _: KW_ONLY
    #: How long SQLite waits for locks at most, as a time of ``time.monotonic()``. Servers have settings for that.
    deadline: float = math.inf

    _callbacks: list[Callback] = field(default_factory=list)

    def run(self, work: Work[T], find: Find[T] | None = None, *, on_failure: Callback | None = None) -> T:
        retry_until, is_connection_lost = math.inf, False
        for attempt in range(1, MAX_ATTEMPTS + 1):
            self._callbacks = []
            try:
                result = self._attempt(work, find if is_connection_lost else None)
                break
            except BaseException as error:
                self.roll_back()
                if attempt == MAX_ATTEMPTS or time.monotonic() > retry_until or not is_transient(error):
                    if on_failure is None or not isinstance(error, SQLAlchemyError):
                        raise
                    on_failure()
                    return t.cast(T, None)
                is_connection_lost |= t.cast(DBAPIError, error).connection_invalidated
            retry_until = min(retry_until, time.monotonic() + RETRY_SECONDS)
            # A random pause, so that two transactions that were in each other's way are not so again.
            time.sleep(random.uniform(0, FIRST_PAUSE * 2 ** (attempt - 1)))  # noqa: S311
        for callback in self._callbacks:
            callback()
        return result

    def _attempt(self, work: Work[T], find: Find[T] | None) -> T:
        is_limited = self.deadline != math.inf and self.database.dialect.name == "sqlite"
        with _limit_waiting(self.connection, self.deadline) if is_limited else _NO_SAVEPOINT:
            found = find() if find is not None else None
            if found is None:
                found = work()
        self.session.commit()
        return found

    @contextmanager
    def write(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.roll_back()
            raise

    def after_commit(self, callback: Callback) -> None:
        self._callbacks.append(self.database.guard(callback))

    def roll_back(self) -> None:
        self.session.rollback()


@dataclass(eq=False)
class ConnectionTransaction(OwnTransaction):
    """An own transaction on a connection of its own, which the host's session knows nothing of.

    Where the host's sessions route statements, have listeners or share one connection, it is a session of the host's
    kind.
    """

    _: KW_ONLY
    #: Whether the work is one statement, which PostgreSQL can commit by itself: BEGIN and COMMIT are a way to the
    #: server and back, each.
    is_single: bool = False

    _carrier: t.Any = None

    @property
    def connection(self) -> sa.Connection:
        if isinstance(self._carrier, Session):
            return self._carrier.connection(bind_arguments=self.database.route)
        return t.cast(sa.Connection, self._carrier)

    def execute(self, statement: t.Any, parameters: t.Any = None) -> t.Any:
        if isinstance(self._carrier, Session):
            return self._carrier.execute(statement, parameters, bind_arguments=self.database.route)
        return self._carrier.execute(statement, parameters)

    def _attempt(self, work: Work[T], find: Find[T] | None) -> T:
        self._carrier = self._open()
        is_limited = self.deadline != math.inf and self.database.dialect.name == "sqlite"
        with self._carrier, _limit_waiting(self.connection, self.deadline) if is_limited else _NO_SAVEPOINT as shorten:
            try:
                found = find() if find is not None else None
                if found is None:
                    found = work()
                if shorten is not None:
                    shorten()  # a COMMIT waits for readers
                self._carrier.commit()
            except BaseException:
                self._carrier.rollback()  # close() does not do that after a failed COMMIT
                raise
        return found

    def _open(self) -> t.Any:
        database, factory = self.database, self.database.host.extension.session.session_factory
        kind = (factory.class_, factory.kw["bind"]) if isinstance(factory, sessionmaker) else None
        probe = database.probes.get(kind)
        if probe is None or kind is None:
            database.probes.clear()
            probe = database.probes[kind] = factory()
        is_routed = type(probe).get_bind is not database.host.plain_get_bind
        bind = probe.get_bind(**database.route)
        # A connection in the place of an engine has a transaction of the host's tests, which only sessions can join. So
        # has the one that an engine returns each time in Flask-SQLAlchemy-Lite's test_isolation().
        if is_routed or any(_get_listeners(probe.dispatch)) or isinstance(bind, sa.Connection):
            return database.new_session()
        connection = bind.connect()
        if connection.in_transaction():
            return database.new_session()
        if self.is_single and database.dialect.name == "postgresql":
            return connection.execution_options(isolation_level="AUTOCOMMIT")
        return connection

    def roll_back(self) -> None:
        if self._carrier is not None:
            self._carrier.rollback()


@contextmanager
def _limit_waiting(connection: sa.Connection, deadline: float) -> Iterator[Callback]:
    """Let SQLite wait for others' locks until the deadline at most. The host's own timeout is back after the block.

    :return: reduces the timeout to the time that is left: SQLite counts the time of each statement by itself.
    """
    driver_connection: t.Any = connection.connection.dbapi_connection
    # A lost connection reports that to the statement, whose error SQLAlchemy understands.
    ignore_loss = suppress(t.cast(t.Any, connection.dialect.loaded_dbapi).Error)
    hosts = 0

    def shorten() -> None:
        left = max(0, round((deadline - time.monotonic()) * 1000))
        with ignore_loss:
            driver_connection.execute(f"PRAGMA busy_timeout = {min(hosts, left)}")

    with ignore_loss:
        (hosts,) = driver_connection.execute("PRAGMA busy_timeout").fetchone()
    shorten()
    try:
        yield shorten
    finally:
        with ignore_loss:
            driver_connection.execute(f"PRAGMA busy_timeout = {hosts}")


def recover(database: Database) -> None:
    """Make the host's session usable after the error that is being handled.

    It is rolled back only if the database has ended its transaction.
    """
    session = database.session
    if not session.in_transaction():
        return
    if session.is_active and not _has_number(sys.exc_info()[1], _ROLLBACK_NUMBERS):
        try:
            connection = session.connection(bind_arguments=database.route)
        except Exception:
            return  # the database of the referrals has no part in the transaction
        with suppress(Exception), connection.begin_nested():
            return
    session.rollback()


def object_handle(session: Session, model: type[T], key: int) -> T:
    """Return the object of a row in a session. It is read from the database when more than its key is asked for."""
    mapper = sa.inspect(model)
    obj: T | None = session.identity_map.get(mapper.identity_key_from_primary_key((key,)))
    if obj is None:
        id_attribute = mapper.attrs["id"].key  # configures the mappers, should this be their first use
        obj = t.cast("T", mapper.class_manager.new_instance())
        attributes.set_committed_value(obj, id_attribute, key)
        make_transient_to_detached(obj)
        session.add(obj)
    return obj


def open_transaction(database: Database, *, commit: bool) -> HostTransaction | OwnTransaction:
    """Return the extension's own transaction if the host's session has none and the call is to commit."""
    if commit and not is_in_transaction(database):
        return OwnTransaction(database)
    return HostTransaction(database, commit=commit)


def write_in_transaction(database: Database, work: Callable[[Transaction], T], *, commit: bool = True) -> T:
    """Do a piece of work that writes, in a transaction: all of it or nothing."""
    transaction = open_transaction(database, commit=commit)

    def write() -> T:
        with transaction.write():
            transaction.lock()
            result = work(transaction)
        transaction.has_written = True
        return result

    return transaction.run(write)
