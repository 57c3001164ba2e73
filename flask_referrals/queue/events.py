"""Events: what a recorder is given for each click.

An event is a dict that can be written as JSON: its own random ``id``, the link's ``code``, the ``time`` in UTC, the
``user`` as text, the ``visitor`` key, the reason code ``ignored`` as far as the request tells, what is stored of the
request, and the link's ``params``. Whether it is a repeat, or the owner's own, is decided when it is stored.
"""

import typing as t
from datetime import datetime

from ..db.keys import digest
from ..db.tables import MAX_USER_ID
from ..exceptions import InvalidValueError
from ..times import parse_time
from ..types import CLICK, EVENT_PREFIX, Actor, Anonymous, Event, plain_text

#: What describes the client. Unknown for a click that is stored before its event comes.
DESCRIPTION = ("ip_address", "http_referrer", "user_agent")

#: The longest texts that the columns take.
_LENGTHS = {
    **{"id": 100, "code": 64, "user": MAX_USER_ID, "visitor": 43, "ignored": 20},
    **dict(zip(DESCRIPTION, (45, 1024, 255), strict=True)),
}


def new_event(event_id: str, code: str, time: datetime, actor: Actor | Anonymous) -> Event:
    """Return the event of a click of which nothing else is known. No other event has its id."""
    return {
        "id": event_id,
        "code": code,
        "time": time.isoformat(),
        "user": str(actor.user_id) if actor.user_id is not None else None,
        "visitor": actor.visitor_key,
        "ignored": None,
        "params": None,
        **dict.fromkeys(DESCRIPTION),
    }


def check_event(event: t.Any) -> Event:
    """Return an event that has come from a queue, if it can be stored.

    :raises InvalidValueError: it is malformed.
    """
    if not isinstance(event, dict) or not event.keys() >= _LENGTHS.keys() | {"time", "params"}:
        raise InvalidValueError("event", "must be a dict with all fields")
    for name, length in _LENGTHS.items():
        if event[name] is not None or name in ("id", "code"):
            plain_text(name, event[name], length)
    params = event["params"]
    if not isinstance(params, (dict, type(None))):
        raise InvalidValueError("params", "must be a dict")
    for name, value in (params or {}).items():
        plain_text("params", f"{name}{value}", 1000)
    try:
        parse_time(event["time"])
    except (AttributeError, ValueError) as error:
        raise InvalidValueError("time", f"cannot be read: {error}") from None
    return event


def event_key(event: Event) -> str:
    """Return the key under which the click of an event is stored once."""
    return f"{EVENT_PREFIX}{event['id']}"


def event_digest(event: Event) -> str:
    return digest(CLICK, event_key(event))
