"""What waits until the host's transaction is durable."""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field

from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.orm import SessionTransaction

_QUEUE = "flask_referrals.after_commit"


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
