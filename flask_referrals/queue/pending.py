"""A visitor's clicks that a recorder was given, and that the database may not have yet.

They stay with the visitor, behind the visitor key, so that they can be stored at once when credit is to be chosen. They
are signed, and bound to the visitor key; those of a user begin with the user's key.
"""

import secrets
import typing as t
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial

from werkzeug.wrappers import Request

from ..db.transactions import Transaction
from ..deferral import defer
from ..failures import log_failure
from ..state import AppState
from ..times import EPOCH, now, parse_time
from ..types import Actor, Anonymous, Event, Recorder
from ..web.signing import new_signer
from .batches import insert_events, store_events
from .events import new_event

#: Between user, clicks and signature, and between the parts of a click. They occur in none of them.
_NEXT, _PART = "~", "."
_MICROSECOND = timedelta(microseconds=1)

#: How long a click stays with its visitor. What is older may have been deleted, and must not come back.
_LIFETIME = timedelta(days=1)

#: How many clicks stay with a visitor. With one more, they are stored at once.
_MAX_PENDING = 8


def hand_over(
    state: AppState,
    request: Request,
    code: str,
    actor: Actor | Anonymous,
    ignored: str | None,
    client: Mapping[str, str | None],
    params: Mapping[str, str] | None,
) -> None:
    """Hand a click to the recorder, or store it if that fails."""
    if ignored is not None and state.settings.ignored == "drop":
        return
    event = {
        **new_event(secrets.token_urlsafe(16), code, now(), actor),
        **client,
        "ignored": ignored,
        "params": params,
    }
    try:
        t.cast("Recorder", state.recorder)(event)
    except Exception:
        log_failure("A click on the link %r could not be queued; it is stored at once.", code)
        store, failure = partial(store_events, state, [event]), "A click on the link %r could not be recorded."
        if defer(state, request, store, failure, code, timeout=state.settings.lock_timeout).has_failed:
            return
    if ignored is None and isinstance(actor, Actor):
        _keep(state, request, actor, event)


def _keep(state: AppState, request: Request, actor: Actor, event: Event) -> None:
    """Keep a click with its visitor, after those that are kept already."""
    kept = [each for each in read_pending(state, request) if each["user"] == event["user"]]
    if [each["code"] for each in kept[-2:]] == [event["code"]] * 2:
        kept.pop()  # of clicks on one link in a row, the first and the last can earn credit
    kept.append(event)
    if len(kept) > _MAX_PENDING:
        kept = kept[-1:] if store_pending(state, request, kept) else kept[1:]
    parts = [] if event["user"] is None else [urlsafe_b64encode(event["user"].encode()).decode()]
    for each in kept:
        microseconds = (parse_time(each["time"]) - EPOCH) // _MICROSECOND
        parts.append(_PART.join((each["id"], each["code"], str(microseconds))))
    signature = new_signer(state.app, "pending").get_signature(_signed(actor.visitor_key, parts)).decode()
    state.visitor_keys.set_pending(request, _NEXT.join((*parts, signature)), actor.visitor_key)


def read_pending(state: AppState, request: Request | None) -> Sequence[Event]:
    """Return the events of the clicks that are kept with the visitor of a request, if they are young enough."""
    text = state.visitor_keys.get_pending(request) if state.recorder is not None else None
    if text is None:
        return ()
    *parts, signature = text.split(_NEXT)
    visitor_key = state.visitor_keys.get(request)
    if not parts or not new_signer(state.app, "pending").verify_signature(_signed(visitor_key, parts), signature):
        return ()
    user = None if _PART in parts[0] else urlsafe_b64decode(parts.pop(0)).decode()
    events = []
    for part in parts:
        event_id, code, microseconds = part.split(_PART)
        time = EPOCH + int(microseconds) * _MICROSECOND
        if time > now() - _LIFETIME:
            events.append(new_event(event_id, code, time, Actor(user, visitor_key)))
    return events


def settle_pending(state: AppState, transaction: Transaction, request: Request | None) -> None:
    """Store the clicks that are kept with the visitor of a request. Their events complete the rows later."""
    events = read_pending(state, request)
    if events:
        insert_events(state, transaction, events)
        transaction.after_commit(partial(state.visitor_keys.drop_pending, t.cast(Request, request)))


def store_pending(state: AppState, request: Request, events: Sequence[Event]) -> bool:
    """Store such events as soon as the host's session has no transaction. Return whether this has not failed."""
    failure = "A visitor's queued clicks could not be stored early."
    return not events or not defer(state, request, partial(store_events, state, events), failure).has_failed


def _signed(visitor_key: str | None, parts: Sequence[str]) -> str:
    return _NEXT.join((f"visitor {visitor_key}", *parts))
