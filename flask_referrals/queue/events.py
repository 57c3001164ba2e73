"""Events: what a recorder is given for each click.

An event is a dict that can be written as JSON: its own random ``id``, the link's ``code``, the ``time`` in UTC, the
``user`` as text, the ``visitor`` key, the reason code ``ignored`` as far as the request tells, what is stored of the
request, and the link's ``params``. What other clicks and the link's owner say of it is found out when it is stored.
"""

from datetime import datetime

from ..db.keys import digest
from ..types import CLICK, EVENT_PREFIX, Actor, Anonymous, Event

#: What describes the client. Unknown for a click that is stored before its event comes.
DESCRIPTION = ("ip_address", "http_referrer", "user_agent")


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


def event_key(event: Event) -> str:
    """Return the key under which the click of an event is stored once."""
    return f"{EVENT_PREFIX}{event['id']}"


def event_digest(event: Event) -> str:
    """Return the digest of the row of an event."""
    return digest(CLICK, event_key(event))
