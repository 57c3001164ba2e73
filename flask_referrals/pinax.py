"""What a record of pinax-referrals says, checked, and without what must not be kept."""

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from datetime import tzinfo

from . import clients
from .creation import CODE
from .dumps import Record
from .redirects import MAX_LENGTH
from .times import parse_time

#: With the code and a prefix it fits into a response's key, and by itself into a target's.
_LONGEST_KEY = 50


class Refused(ValueError):
    """A record that cannot be imported, and why."""


@dataclass(frozen=True)
class Row:
    """A record that has been read, with what it names still as pinax's keys."""

    record: Record
    user: str | None
    content_type: str | None
    target_id: str | None
    created_at: datetime


@dataclass(frozen=True)
class Link(Row):
    """A referral of pinax, checked."""

    code: str
    redirect_to: str
    label: str
    expired_at: datetime | None


@dataclass(frozen=True)
class Response(Row):
    """A response of pinax, checked, with what is personal cut as everywhere."""

    link: str
    action: str
    session_key: str | None
    ip_address: str | None
    http_referrer: str | None


def read_link(record: Record, zone: tzinfo) -> Link:
    """Check a referral.

    :param record: a record of a dump.
    :param zone: the zone of times that name none.
    :raises Refused: it cannot be one of ours; the reason names the column.
    """
    code = text_of(record, "code", 64)
    if not CODE.fullmatch(code):
        raise Refused(f"code {code!r} is not 1 to 64 letters, digits, '-' or '_'")
    return Link(
        *_read_row(record, zone),
        code=code,
        redirect_to=text_of(record, "redirect_to", MAX_LENGTH),
        label=text_of(record, "label", 100),
        expired_at=_time(record, "expired_at", zone),
    )


def read_response(record: Record, zone: tzinfo) -> Response:
    """Check a response; the parameters and the error are those of :func:`read_link`."""
    link = _key(record, "referral")
    action = text_of(record, "action", 128)
    if link is None or not action:
        raise Refused("has no referral" if link is None else "has no action")
    session_key = _lenient(record, "session_key")
    row = _read_row(record, zone)
    try:
        address = clients.parse_address(_lenient(record, "ip_address").strip())
        kept_address = clients.kept_address(address, row[-1].date())
    except ValueError:
        kept_address = None  # pinax stored whatever a header said
    return Response(
        *row,
        link=link,
        action=action,
        session_key=_pseudonym(session_key) if session_key else None,
        ip_address=kept_address,
        http_referrer=clients.kept_referrer(_lenient(record, "http_referrer")),
    )


def _read_row(record: Record, zone: tzinfo) -> tuple[Record, str | None, str | None, str | None, datetime]:
    if len(record.pk) > _LONGEST_KEY or not _is_storable(record.pk):
        raise Refused("id is not a key")
    created_at = _time(record, "created_at", zone)
    if created_at is None:
        raise Refused("has no created_at")
    content_type = _key(record, "target_content_type")
    target_id = _key(record, "target_object_id")
    if content_type is None or target_id is None:
        content_type = target_id = None
    return record, _key(record, "user"), content_type, target_id, created_at


def _time(record: Record, name: str, zone: tzinfo) -> datetime | None:
    text = record.fields.get(name)
    if text is None:
        return None
    try:
        return parse_time(text, zone)
    except (TypeError, ValueError):
        raise Refused(f"{name} {text!r} is not a time") from None


def _pseudonym(session_key: str) -> str:
    """Return what stands for a visitor whose session's key pinax stored.

    That key is a login to the old site: only a digest is kept, the same for all rows of one visitor. No visitor's key
    of ours begins with ``~``, so it can never be one.
    """
    digest = hashlib.sha256(f"flask-referrals.pinax-session:{session_key}".encode("utf-8", "ignore")).digest()
    return "~" + base64.urlsafe_b64encode(digest).decode()[:42]


def text_of(record: Record, name: str, longest: int) -> str:
    """Return a column's text; nothing is ``""``.

    :param longest: the most characters it may have.
    :raises Refused: it is no text, too long, or cannot be stored.
    """
    value = record.fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(f"{name} is not text")
    if len(value) > longest:
        raise Refused(f"{name} is longer than {longest} characters")
    if not _is_storable(value):
        raise Refused(f"{name} has a NUL in it, or is not UTF-8")
    return value


def _lenient(record: Record, name: str) -> str:
    """Return a text of which losing something does not matter."""
    value = record.fields.get(name)
    return clients.storable(value, MAX_LENGTH) if isinstance(value, str) else ""


def _key(record: Record, name: str) -> str | None:
    """Return another row's key as text: a number, or the parts of Django's natural key."""
    value = record.fields.get(name)
    if type(value) is int and value.bit_length() < 64:  # nearly all of them
        return str(value)
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, (bool, float, dict, list)) for part in parts):
        raise Refused(f"{name} is not a key")
    key = ".".join(str(part) for part in parts if part is not None)
    if len(key) > _LONGEST_KEY or not _is_storable(key):
        raise Refused(f"{name} is not a key")
    return key or None


def _is_storable(text: str) -> bool:
    return text.isprintable() or text == clients.storable(text, len(text))
