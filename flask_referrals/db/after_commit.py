"""Callbacks that wait for the end of a session's transaction. Those after it must not raise."""

import typing as t
from collections.abc import Callable
from contextvars import ContextVar

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

Callback = Callable[[], None]

_WAITING = "flask_referrals.waiting"

_IS_CLOSING: ContextVar[bool] = ContextVar("flask_referrals.is_closing", default=False)


class _Waiting:
    """What waits for the transactions of one session."""

    def __init__(self, session: Session) -> None:
        self.after_commit: dict[SessionTransaction, list[Callback]] = {}
        self.when_ended: list[Callback] = []
        self.before_commit: list[Callback] = []
        self._committed: SessionTransaction | None = None
        event.listen(session, "before_commit", self._prepare)
        event.listen(session, "after_commit", self._note_commit)
        event.listen(session, "after_transaction_end", self._end)

    def _prepare(self, session: Session) -> None:
        if not session.in_nested_transaction():
            callbacks, self.before_commit = self.before_commit, []
            for callback in callbacks:
                callback()

    def _note_commit(self, session: Session) -> None:
        self._committed = session.get_nested_transaction() or session.get_transaction()

    def _end(self, session: Session, transaction: SessionTransaction) -> None:
        """Hand the callbacks of a released savepoint to the transaction around it; run those of the outermost one."""
        is_committed = self._committed is transaction
        callbacks = self.after_commit.pop(transaction, []) if is_committed else []
        if transaction.parent is not None:
            self.after_commit.setdefault(transaction.parent, []).extend(callbacks)
            return
        callbacks += self.when_ended
        self.after_commit, self.when_ended, self.before_commit = {}, [], []
        self._committed = None
        token = _IS_CLOSING.set(not is_committed)
        try:
            for callback in callbacks:
                callback()
        finally:
            _IS_CLOSING.reset(token)


def _waiting(session: Session) -> _Waiting:
    if _WAITING not in session.info:
        session.info[_WAITING] = _Waiting(session)
    return t.cast(_Waiting, session.info[_WAITING])


def call_after_commit(session: Session, callback: Callback) -> None:
    """Call back after the session commits. The callback is discarded with its savepoint or transaction."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    _waiting(session).after_commit.setdefault(t.cast(SessionTransaction, transaction), []).append(callback)


def call_before_commit(session: Session, callback: Callback) -> None:
    """Call back when the session is about to commit its transaction. The callback may write."""
    _waiting(session).before_commit.append(callback)


def call_when_ended(session: Session, callback: Callback) -> None:
    """Call back when the session's transaction has ended, committed or not: its connection is free then."""
    _waiting(session).when_ended.append(callback)


def is_closing() -> bool:
    """Return whether callbacks run without a commit: the session may be closing, and then takes no more work."""
    return _IS_CLOSING.get()
