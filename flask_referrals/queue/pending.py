"""A visitor's clicks that a recorder was given, and that the database may not have yet.

The first and the last of them stay with the visitor, behind the visitor key, so that they can be stored at once when
credit is to be chosen. They are signed, and bound to their visitor.
"""

import secrets
import typing as t
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial

from werkzeug.wrappers import Request

from ..db.transactions import Transaction
from ..deferral import defer
from ..failures import log_failure
from ..state import AppState
from ..times import now, parse_time
from ..types import Actor, Anonymous, Event, Recorder
from ..web.client import description
from ..web.signing import new_signer
from .batches import insert_events, store_events
from .events import new_event

#: Between the clicks and the signature, and between the parts of a click. They occur in none of them.
_NEXT, _PART = "~", "."
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)

#: How long a click stays with its visitor. What is older may have been anonymised, and must not come back.
_LIFETIME = timedelta(days=1)


def hand_over(
    state: AppState,
    request: Request,
    code: str,
    actor: Actor | Anonymous,
    ignored: str | None,
    params: Mapping[str, str] | None,
) -> None:
    """Hand a click to the recorder, or store it if that fails.

    :param ignored: the reason to ignore the click, as far as the request tells.
    """
    if ignored is not None and state.settings.ignored == "drop":
        return
    event = {
        **new_event(secrets.token_urlsafe(16), code, now(), actor),
        **description(request, state.settings, state.hooks),
        "ignored": ignored,
        "params": params,
    }
    try:
        t.cast("Recorder", state.recorder)(event)
    except Exception:
        log_failure("A click on the link %r could not be handed over; it is stored at once.", code)
        store, failure = partial(store_events, state, [event]), "A click on the link %r could not be recorded."
        if defer(state, request, store, failure, code, timeout=state.settings.lock_timeout).has_failed:
            return
    if ignored is None and isinstance(actor, Actor):
        _keep(state, request, actor, event)


def _keep(state: AppState, request: Request, actor: Actor, event: Event) -> None:
    """Keep a click with its visitor, and the first one that is kept already."""
    clicks = [
        _PART.join((each["id"], each["code"], str((parse_time(each["time"]) - _EPOCH) // _MICROSECOND)))
        for each in (*_read(state, request, actor)[:1], event)
    ]
    signature = new_signer(state.app, "pending").get_signature(_signed(actor, clicks)).decode()
    state.visitor_keys.set_pending(request, _NEXT.join((*clicks, signature)), actor.visitor_key)


def has_pending(state: AppState, request: Request | None) -> bool:
    """Return whether clicks are kept with the visitor of a request."""
    return state.recorder is not None and state.visitor_keys.get_pending(request) is not None


def read_pending(state: AppState, request: Request | None, actor: Actor | Anonymous) -> Sequence[Event]:
    """Return the events of the clicks that are kept with the visitor of a request."""
    if request is None or not actor or not has_pending(state, request):
        return ()
    # What a visitor did before the login is bound to the visitor key.
    return _read(state, request, Actor(None, actor.visitor_key)) or _read(state, request, Actor(actor.user_id))


def settle_pending(
    state: AppState, transaction: Transaction, request: Request | None, actor: Actor | Anonymous
) -> None:
    """Store the clicks that are kept with the visitor of a request. Their events complete the rows later."""
    events = read_pending(state, request, actor)
    if events:
        insert_events(state, transaction, events)
        transaction.after_commit(partial(state.visitor_keys.drop_pending, t.cast(Request, request)))


def store_pending(state: AppState, request: Request | None, actor: Actor) -> None:
    """Store these clicks as soon as the host's session has no transaction."""
    events = read_pending(state, request, actor)
    if events:
        failure = "The clicks of the user who logged out could not be stored before the recorder's turn."
        defer(state, t.cast(Request, request), partial(store_events, state, events), failure)


def _read(state: AppState, request: Request, owner: Actor) -> Sequence[Event]:
    """Return the events that are kept, if they are this owner's, and young enough."""
    *clicks, signature = (state.visitor_keys.get_pending(request) or "").split(_NEXT)
    if owner == Actor() or not new_signer(state.app, "pending").verify_signature(_signed(owner, clicks), signature):
        return ()
    events = []
    for click in clicks:
        event_id, code, microseconds = click.split(_PART)
        time = _EPOCH + int(microseconds) * _MICROSECOND
        if time > now() - _LIFETIME:
            events.append(new_event(event_id, code, time, owner))
    return events


def _signed(actor: Actor, clicks: Sequence[str]) -> str:
    who = f"visitor {actor.visitor_key}" if actor.visitor_key is not None else f"user {actor.user_id}"
    return _NEXT.join((who, *clicks))
