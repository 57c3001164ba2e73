"""Work of a request that waits for the end of the host's transaction."""

from collections.abc import Callable
from datetime import timedelta

from werkzeug.wrappers import Request

from .db.transactions import Deferred, Transaction
from .state import AppState
from .web.client import shares_app_context

_DEFERRED = "flask_referrals.deferred"


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
