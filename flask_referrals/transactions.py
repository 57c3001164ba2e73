"""Writing into the host's session without taking it over."""

import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm import SessionTransaction

T = t.TypeVar("T")

_QUEUE = "flask_referrals.after_commit"


@contextmanager
def savepoint(session: Session, model: type[t.Any]) -> Iterator[None]:
    """Write inside the host's transaction; an error undoes what was written here and nothing else.

    What the host has pending is flushed first, so that its errors stay its own.

    :param session: the host's session.
    :param model: a model of the database that is written to.
    """
    session.flush()
    connection = session.connection(bind_arguments={"mapper": sa.inspect(model)})
    if connection.dialect.name == "sqlite":
        # sqlite3 begins a transaction at the first write only: a savepoint before that would be the transaction, and
        # its release a commit.
        driver_connection = connection.connection.dbapi_connection
        if driver_connection is not None and not driver_connection.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    with session.begin_nested():
        yield


@dataclass
class _AfterCommit:
    callbacks: list[Callable[[], None]] = field(default_factory=list)
    committed: bool = False


def after_commit(session: Session, callback: Callable[[], None]) -> None:
    """Call back once the session's running transaction is durable, and never when it is rolled back.

    :param session: the host's session, inside a transaction.
    :param callback: called with the session ready for new work.
    """
    if _QUEUE not in session.info:
        session.info[_QUEUE] = _AfterCommit()
        event.listen(session, "after_commit", _mark_committed)
        event.listen(session, "after_transaction_end", _call_back)
    session.info[_QUEUE].callbacks.append(callback)


def _mark_committed(session: Session) -> None:
    if not session.in_nested_transaction():
        session.info[_QUEUE].committed = True


def _call_back(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        ended, session.info[_QUEUE] = session.info[_QUEUE], _AfterCommit()
        if ended.committed:
            for callback in ended.callbacks:
                callback()


class Transaction:
    """The transaction a call of ours writes in: its own, or the host's.

    Make it before anything is read: when the host has no transaction running and wants ours committed, what is begun
    from here on is ours, and is committed or rolled back as a whole. In a transaction of the host's every write is
    behind a savepoint.

    :param session: the host's session.
    :param model: a model of the database that is written to.
    :param commit: whether the caller wants the session committed.
    """

    def __init__(self, session: Session, model: type[t.Any], *, commit: bool) -> None:
        self.session = session
        self._model = model
        self._commit = commit
        self._own = commit and not session.in_transaction()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Undo what is written in the block when it raises, and leave the session ready for the next."""
        if not self._own:
            with savepoint(self.session, self._model):
                yield
            return
        try:
            yield
        except BaseException:
            self.session.rollback()
            raise

    def commit(self) -> None:
        """Make it durable, if the caller wants that."""
        if self._commit:
            self.session.commit()

    def get_or_add(self, find: sa.Select[t.Any], make: Callable[[], T], *, attempts: int) -> tuple[T, bool]:
        """Return the row that ``find`` selects, or the one made for it: one row however many callers race.

        :param find: selects the row by a unique key.
        :param make: builds a row with that key.
        :param attempts: how often a row is made, when another unique key of it turns out to be taken.
        :return: the row, and whether it is new.
        :raises sqlalchemy.exc.IntegrityError: the last attempt failed for another reason than this key.
        """
        found: T | None = self.session.scalar(find)
        while found is None:
            attempts -= 1
            try:
                with self.write():
                    made = make()
                    self.session.add(made)
                    self.session.flush()
                return made, True
            except IntegrityError:
                # A locking read: MariaDB's snapshot may be older than the row that was in the way.
                found = self.session.scalar(find.with_for_update(read=True))
                if found is None and attempts == 0:
                    raise
        return found, False
