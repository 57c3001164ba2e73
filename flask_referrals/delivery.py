"""Signals: sent after the commit, when no connection of the extension's is held."""

import typing as t
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from blinker import NamedSignal

from .db.conditions import oldest_first
from .db.transactions import Transaction, object_handle, recover
from .failures import log_failure
from .state import AppState

#: How many responses are loaded at once: PostgreSQL takes 65,535 parameters at most.
_PAGE = 1000


def send_after_commit(
    state: AppState, transaction: Transaction, signal: NamedSignal, ids: Sequence[int], *, payload: str = "response"
) -> None:
    """Send a signal for each of some rows, the ``payload``, after the commit. Errors of receivers are logged."""
    if ids and signal.has_receivers_for(state.app):
        transaction.after_commit(lambda: _send(state, signal, ids, payload))


def _send(state: AppState, signal: NamedSignal, ids: Sequence[int], payload: str) -> None:
    with state.database.usable_session():
        for obj in _objects(state, ids, payload):
            for receiver in signal.receivers_for(state.app):
                try:
                    receiver(state.app, **{payload: obj})
                except Exception:
                    log_failure("A receiver of the signal %r failed.", signal.name)
                    recover(state.database)


def _objects(state: AppState, ids: Sequence[int], payload: str) -> Iterator[t.Any]:
    model: t.Any = getattr(state.database.models, payload)
    if len(ids) == 1:
        yield object_handle(state.database.session, model, ids[0])
        return
    for start in range(0, len(ids), _PAGE):
        page = sa.select(model).where(model.id.in_(ids[start : start + _PAGE])).order_by(*oldest_first(model))
        yield from state.database.objects(page)
