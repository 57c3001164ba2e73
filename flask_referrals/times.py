"""Times: the current one, conversion to UTC, and parsing."""

import re
from collections.abc import Callable
from datetime import datetime, timezone, tzinfo
from functools import partial

from .exceptions import InvalidValueError

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[T ](\d\d:\d\d)(:\d\d)?(?:\.(\d{1,6})\d*)?)?"
    r"\s*(?:(Z)|([+-]\d\d)(?::?(\d\d))?)?",
    re.ASCII,
)

#: A time before all others.
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

#: Returns the current time, aware, in UTC.
now: Callable[[], datetime] = partial(datetime.now, timezone.utc)


def as_utc(time: datetime) -> datetime:
    """Return a time in UTC. A time without a zone is UTC already, as SQLite and MariaDB return it."""
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)


def require_aware(name: str, value: datetime | None) -> datetime | None:
    """Return a host's time in UTC. SQLite and MariaDB would drop the zone without converting."""
    if value is None:
        return None
    if value.tzinfo is None:
        raise InvalidValueError(name, "must be an aware time: datetime.now(timezone.utc), not utcnow()")
    if not 1 < value.year < 9999:  # PostgreSQL's drivers cannot return it in each zone
        raise InvalidValueError(name, "must be in a year from 2 to 9998")
    return value.astimezone(timezone.utc)


def load_zone(name: str) -> tzinfo:
    """Return the time zone with an IANA name.

    :raises ValueError: there is none.
    """
    if name == "UTC":  # needs no database of time zones
        return timezone.utc
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, OSError, TypeError, AttributeError):  # unknown, a folder, or no text
        raise ValueError(f"{name!r} is not a time zone") from None


def parse_time(text: str, zone: tzinfo = timezone.utc) -> datetime:
    """Parse an ISO 8601 time in any form that Django and the databases write. Return it in UTC.

    :param zone: the zone of a time that names none.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time such as 2026-01-31T12:00:00Z")
    date, minutes, seconds, fraction, zulu, hours, rest = match.groups(default="")
    offset = "+00:00" if zulu else f"{hours}:{rest or '00'}" if hours else ""
    try:
        time = datetime.fromisoformat(f"{date}T{minutes or '00:00'}{seconds or ':00'}.{fraction:0<6}{offset}")
        return (time if time.tzinfo is not None else time.replace(tzinfo=zone)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a valid date and time") from None
