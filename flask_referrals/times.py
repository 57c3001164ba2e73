"""Times as people and databases write them."""

import re
from datetime import datetime
from datetime import timezone
from datetime import tzinfo

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[T ](\d\d:\d\d)(:\d\d)?(?:\.(\d{1,6})\d*)?)?"
    r"\s*(?:(Z)|([+-]\d\d)(?::?(\d\d))?)?",
    re.ASCII,
)


def as_utc(time: datetime) -> datetime:
    """Return a time in UTC; one without a zone is UTC, as databases give it back."""
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)


def parse_time(text: str, zone: tzinfo = timezone.utc) -> datetime:
    """Read an ISO 8601 time, in all forms that Django, PostgreSQL, MariaDB and SQLite write.

    :param text: a date, or date and time, with or without a zone.
    :param zone: the zone of a time that names none.
    :return: the time, aware, in UTC.
    :raises ValueError: it is no time.
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
        raise ValueError(f"{text!r} is not a time that there is") from None
