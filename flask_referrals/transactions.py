"""Writing into the host's session without taking it over."""

import math
import random
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from functools import cached_property

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

if t.TYPE_CHECKING:
    from .context import AppState

T = t.TypeVar("T")

#: How often a transaction of ours is tried, and for how many seconds after it failed first: who waited for a lock twice
#: in vain waits no more.
_TRIES = 5
_TIME = 1.0
#: The longest pause before the second try, in seconds; it doubles with each.
_PAUSE = 0.01

# What says that the database gave a transaction up in favour of another, and that it may work when it is tried again:
# by the SQL standard and PostgreSQL, a serialization failure and a deadlock; by MariaDB a deadlock, a lock wait
# timeout, a changed record, and a savepoint that went with its transaction; by SQLite a snapshot that is too old to be
# written to.
_CONFLICT_STATES = {"40001", "40P01"}
_CONFLICT_NUMBERS = {1213, 1205, 1020, 1305}
_SQLITE_BUSY_SNAPSHOT = 517


def _is_conflict(error: BaseException) -> bool:
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    number = error.args[0] if error.args else None
    snapshot = getattr(error, "sqlite_errorcode", None) == _SQLITE_BUSY_SNAPSHOT
    return state in _CONFLICT_STATES or number in _CONFLICT_NUMBERS or snapshot


def is_passing(error: BaseException) -> bool:
    """Whether what failed may work when it is tried once more."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    return error.connection_invalidated or _is_conflict(error.orig)


@contextmanager
def lock_deadline(connection: sa.Connection, deadline: float) -> Iterator[Callable[[], None]]:
    """Let SQLite wait for others' locks until then at most; what the host set is back after the block.

    The other databases have settings of their own for it, on the server or the engine.

    :param connection: where the statements in the block are sent; it must still be open at the end.
    :param deadline: a time of ``time.monotonic()``; one that is later than the host's timeout changes nothing.
    :return: called before each further statement: SQLite counts the time of each by itself, that of a COMMIT too.
    """
    if deadline == math.inf or connection.dialect.name != "sqlite":
        yield lambda: None
        return
    driver_connection = t.cast(t.Any, connection.connection.dbapi_connection)
    # A connection that is lost says so to the statement, whose error SQLAlchemy knows.
    lost = suppress(t.cast(t.Any, connection.dialect.loaded_dbapi).Error)
    before = 0

    def wait_no_longer() -> None:
        with lost:
            milliseconds = min(before, max(0, round((deadline - time.monotonic()) * 1000)))
            driver_connection.execute(f"PRAGMA busy_timeout = {milliseconds}")

    with lost:
        (before,) = driver_connection.execute("PRAGMA busy_timeout").fetchone()
    wait_no_longer()
    try:
        yield wait_no_longer
    finally:
        with lost:
            driver_connection.execute(f"PRAGMA busy_timeout = {before}")


def recover(session: Session, model: type[t.Any]) -> None:
    """Make a session usable after an error that nobody hears of; its transaction is kept if the database still has it.

    :param session: the host's session.
    :param model: a model of the database that failed.
    """
    if not session.in_transaction():
        return
    if session.is_active:
        try:
            with session.connection(bind_arguments={"mapper": sa.inspect(model)}).begin_nested():
                return
        except Exception:  # noqa: S110 (then there is nothing left to keep)
            pass
    session.rollback()


class Transaction:
    """The transaction a call of ours works in: its own, or the host's.

    Make it before anything is read: when the host has no transaction running and wants ours committed, what is begun
    from here on is ours, and is committed or rolled back as a whole. In a transaction of the host's every write is
    behind a savepoint.

    :param state: whose session it is.
    :param model: a model of the database that is written to.
    :param commit: whether the caller wants the session committed.
    """

    def __init__(self, state: "AppState", model: type[t.Any], *, commit: bool) -> None:
        self._state = state
        self.model = model
        self._commit = commit
        #: Whether it is committed, or rolled back, as a whole.
        self.is_own: bool = commit and not state.is_in_transaction

    @cached_property
    def session(self) -> Session:
        """The host's session, which is made when it is asked for first."""
        return self._state.session

    @property
    def connection(self) -> sa.Connection:
        """The connection on which the session's statements for the model are sent."""
        return self.session.connection(bind_arguments={"mapper": sa.inspect(self.model)})

    def run(self, work: Callable[[], T], find: Callable[[], T | None] | None = None) -> T:
        """Do a piece of work, which may end with :meth:`commit`.

        In a transaction of our own it is done again, up to four times within a second, when the database gave the
        transaction up in favour of another, or when its connection turns out to be lost. The host's transaction holds
        what is not ours to repeat: there the error is the host's.

        :param work: called until it succeeds.
        :param find: looks for what the work came to, for it may be durable though its connection was lost before the
            answer came; left out when the work finds that itself.
        :return: what it returns.
        """
        failures, latest, is_lost = 0, math.inf, False
        while True:
            try:
                found = find() if is_lost and find is not None else None
                return work() if found is None else found
            except BaseException as error:
                if self.is_own:
                    self._rollback()
                failures += 1
                is_last = failures == _TRIES or time.monotonic() > latest
                if is_last or not self.is_own or not is_passing(error):
                    raise
                is_lost = is_lost or t.cast(DBAPIError, error).connection_invalidated
            latest = min(latest, time.monotonic() + _TIME)
            # Of a random length, so that two that were in each other's way are not so again.
            time.sleep(random.uniform(0, _PAUSE * 2 ** (failures - 1)))  # noqa: S311

    @contextmanager
    def write(self) -> Iterator[None]:
        """Undo what is written in the block when it raises, and leave the session ready for the next.

        In the host's transaction, what the host has pending is flushed first, so that its errors stay its own.
        """
        if self.is_own:
            try:
                yield
            except BaseException:
                self._rollback()
                raise
            return
        self.session.flush()
        self.begin()
        with self.session.begin_nested():
            yield

    def begin(self) -> None:
        """Make sure that a transaction is running in SQLite too, and that nobody else writes while it does.

        The driver begins one at the first write only: a savepoint before that would be the transaction, and its release
        a commit.
        """
        connection = self.connection
        if connection.dialect.name == "sqlite":
            driver_connection = connection.connection.dbapi_connection
            if driver_connection is not None and not driver_connection.in_transaction:
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make it durable, if the caller wants that; what cannot be committed lets go of its locks."""
        if self._commit:
            try:
                self.session.commit()
            except BaseException:
                self.session.rollback()
                raise

    @contextmanager
    def read(self) -> Iterator[None]:
        """Read so that an error leaves the host's transaction as it was: PostgreSQL takes nothing more after one."""
        if self.is_own or self.connection.dialect.name != "postgresql":
            yield
            return
        with self.connection.begin_nested():
            yield

    def recover(self) -> None:
        """Make the session usable after an error that the host does not hear of.

        In the host's transaction, that is kept if the database still knows of it.
        """
        if self.is_own:
            self._rollback()
        else:
            recover(self.session, self.model)

    def _rollback(self) -> None:
        self.session.rollback()

    def get_or_add(self, find: sa.Select[t.Any], add: Callable[[], T], *, attempts: int) -> tuple[T, bool]:
        """Return the row that ``find`` selects, or the one added for it: one row however many callers race.

        :param find: selects the row by a unique key.
        :param add: writes a row with that key, and returns it.
        :param attempts: how often a row is made, when another unique key of it turns out to be taken.
        :return: the row, and whether it is new.
        :raises sqlalchemy.exc.IntegrityError: the last attempt failed for another reason than this key.
        """
        found: T | None = self.session.scalar(find)
        while found is None:
            attempts -= 1
            try:
                with self.write():
                    added = add()
                return added, True
            except IntegrityError as error:
                if not (error.statement or "").startswith("INSERT"):
                    raise  # nobody was in the way
                # A locking read: MariaDB's snapshot may be older than the row that was in the way.
                found = self.session.scalar(find.with_for_update(read=True))
                if found is None and attempts == 0:
                    raise
        return found, False


class _ConnectionTransaction(Transaction):
    """A transaction of ours on a connection of its own, which the session knows nothing of."""

    def __init__(self, transaction: Transaction, connection: sa.Connection) -> None:
        super().__init__(transaction._state, transaction.model, commit=True)
        self._connection = connection

    @property
    def connection(self) -> sa.Connection:
        return self._connection

    @contextmanager
    def write(self) -> Iterator[None]:
        """Undo what is written in the block when it raises; else it is durable at the end."""
        try:
            yield
            self._connection.commit()
        except BaseException:
            self._rollback()
            raise

    def commit(self) -> None:
        """Let the session know what is durable, if it was given something of it."""
        if self._state.is_in_transaction:
            super().commit()

    def _rollback(self) -> None:
        self._connection.rollback()


@contextmanager
def core_transaction(transaction: Transaction) -> Iterator[Transaction]:
    """Yield a transaction for what is sent on its ``connection``, without the session where that has none running.

    :param transaction: the one that our work began with, joined when something was read in the session meanwhile, or
        when the caller does not want it committed.
    """
    state = transaction._state
    bind = state.bind_of(transaction.model)
    if not transaction.is_own or state.is_in_transaction or not isinstance(bind, sa.Engine):
        yield transaction
        return
    with transaction.run(bind.connect) as connection:
        if connection.dialect.name == "postgresql":  # where BEGIN and COMMIT are a way to the server and back, each
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        yield _ConnectionTransaction(transaction, connection)
