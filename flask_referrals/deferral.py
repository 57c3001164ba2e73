"""Work of a request that waits for the end of the host's transaction."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from werkzeug.wrappers import Request

from .db.after_commit import call_when_ended
from .db.database import Database
from .db.transactions import ConnectionTransaction, HostTransaction, Transaction, get_deadline, is_in_transaction
from .failures import log_failure
from .state import AppState
from .web.client import shares_app_context

_DEFERRED = "flask_referrals.deferred"


@dataclass(eq=False)
class Deferred:
    """Work that is done in a transaction of its own, as soon as the host's session has none."""

    database: Database
    work: Callable[[Transaction], object]
    failure: tuple[str, ...]
    timeout: timedelta | None
    is_done: bool = False
    has_failed: bool = False

    def run(self) -> None:
        if not self.is_done:
            self._finish()
            self.has_failed = not self._try(ConnectionTransaction(self.database, deadline=get_deadline(self.timeout)))

    def run_in_host(self) -> None:
        """Do the work in the host's transaction, for a caller who reads in it. Repeat it if that is rolled back."""
        if not self.is_done and is_in_transaction(self.database):
            self._finish()
            transaction = HostTransaction(self.database, flush=False)
            if self._try(transaction) and is_in_transaction(self.database):
                self.is_done = False  # until the host commits
                transaction.after_commit(self._finish)

    def _try(self, transaction: Transaction) -> bool:
        try:
            self.work(transaction)
        except Exception:
            log_failure(*self.failure)
            return False
        return True

    def _finish(self) -> None:
        self.is_done = True


def defer(
    state: AppState,
    request: Request,
    work: Callable[[Transaction], object],
    *failure: str,
    timeout: timedelta | None = None,
) -> Deferred:
    """Do work in a transaction of its own: at once if the host's session has none, else when that has ended.

    In an app context that outlives the request, as a test may push, it is done in the host's transaction as well, so
    that the test sees it.

    :param failure: what is logged if the work raises: a message, and the values of its placeholders.
    :param timeout: for SQLite's locks; ``None``: as long as the host's connections wait.
    """
    deferred = Deferred(state.database, work, failure, timeout)
    if is_in_transaction(state.database):
        call_when_ended(state.database.session, deferred.run)
    else:
        deferred.run()
    request.environ.setdefault(_DEFERRED, []).append(deferred)
    if shares_app_context():
        deferred.run_in_host()
    return deferred


def settle_deferred(request: Request | None) -> None:
    """Do what still waits in the host's transaction, for a caller who reads in it."""
    for deferred in request.environ.get(_DEFERRED, ()) if request is not None else ():
        deferred.run_in_host()
