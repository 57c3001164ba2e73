"""Clicks that are stored after the response. A recorder takes each as an event; a worker calls :func:`store` later.

``events`` says what an event holds, ``pending`` keeps a visitor's clicks until ``batches`` has stored them.
"""

from collections.abc import Sequence

from ..db.transactions import open_transaction
from ..state import current_state
from ..types import Event, Recorder
from .batches import store_events
from .events import check_event

__all__ = ["Event", "Recorder", "check_event", "store"]


def store(events: Sequence[Event]) -> None:
    """Store clicks in a few statements, and commit. Each is stored once, however often it comes.

    Call it in an app context.

    :param events: what the recorder was given.
    :raises InvalidValueError: an event is malformed, and will never be stored. None of the events is stored.
    :raises Exception: none of the events is stored; all of them may be tried again.
    """
    for event in events:
        check_event(event)
    state = current_state()
    store_events(state, events, open_transaction(state.database, commit=True))
