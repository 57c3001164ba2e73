"""Work of a request that waits for the end of the host's transaction."""

from collections.abc import Callable
from datetime import timedelta

from werkzeug.wrappers import Request

from .db.after_commit import call_when_ended
from .db.database import Database
from .db.transactions import (
    ConnectionTransaction,
    Transaction,
    UnflushedTransaction,
    get_deadline,
    is_in_transaction,
)
from .state import AppState
from .web.client import shares_app_context

_DEFERRED = "flask_referrals.deferred"


class Deferred:
    """Work that runs in a transaction of its own: at once if the host's session has none, else when that has ended.

    :param work: does it, logs its own failures, and returns whether it succeeded.
    :param timeout: how long a transaction of its own waits for SQLite's locks; ``None``: as long as the host's.
    """

    def __init__(
        self, database: Database, work: Callable[[Transaction], bool], timeout: timedelta | None = None
    ) -> None:
        self._database = database
        self._work = work
        self._timeout = timeout
        self._is_done = False
        #: Whether the work has failed, as far as it has been done.
        self.has_failed: bool = False
        if is_in_transaction(database):
            call_when_ended(database.session, self._run)
        else:
            self._run()

    def run_in_host(self) -> None:
        """Do the work in the host's transaction, for somebody who reads in it. If it is rolled back, do it again."""
        if self._is_done or not is_in_transaction(self._database):
            return
        transaction = UnflushedTransaction(self._database)
        self._finish()
        if self._work(transaction) and is_in_transaction(self._database):
            self._is_done = False  # until the host commits
            transaction.after_commit(self._finish)

    def _run(self) -> None:
        if not self._is_done:
            self._finish()
            transaction = ConnectionTransaction(self._database, deadline=get_deadline(self._timeout))
            self.has_failed = not self._work(transaction)

    def _finish(self) -> None:
        self._is_done = True


def defer(
    state: AppState, request: Request, work: Callable[[Transaction], bool], timeout: timedelta | None = None
) -> Deferred:
    """Do work in a transaction of its own as soon as the host's session has none.

    In an app context that outlives the request, as a test may push, it is done in the host's transaction as well, so
    that the test sees it.

    :param timeout: how long it waits for SQLite's locks; ``None``: as long as the host's connections.
    """
    deferred = Deferred(state.database, work, timeout)
    request.environ.setdefault(_DEFERRED, []).append(deferred)
    if shares_app_context():
        deferred.run_in_host()
    return deferred


def settle_deferred(request: Request | None) -> None:
    """Do what still waits in the host's transaction, for a caller who reads in it."""
    for deferred in request.environ.get(_DEFERRED, ()) if request is not None else ():
        deferred.run_in_host()
