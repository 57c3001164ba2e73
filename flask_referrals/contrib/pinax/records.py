"""Check the records of pinax-referrals, and reduce them to what may be stored here."""

import base64
import hashlib
import re
import typing as t
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from ...redirects import MAX_LENGTH
from ...settings import Settings
from ...times import now, parse_time
from ...types import CODE, storable
from ...web.client import parse_address, stored_address, stored_referrer
from .dumps import Record

#: The longest key of a row, in characters. It fits into the key of a response together with a code and a prefix.
_MAX_KEY = 50


#: The scheme of a URL that is not a web address, and what browsers ignore before and in it.
_SCHEME = re.compile(r"(?!https?:)([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_IGNORED_IN_URLS = re.compile(r"^[\x00-\x20]+|[\t\r\n]")
#: The name of a URL with its namespace, as Django has it.
_URL_NAME = re.compile(r"[\w.-]+(:[\w.-]+)+")
_SCRIPTS = {"javascript", "vbscript", "data", "blob", "file", "about"}


class Refused(ValueError):
    """A record that cannot be imported, and the reason."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A checked record. User, content type and target have the keys of the dump."""

    record: Record
    user: str | None
    content_type: str | None
    target_id: str | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Link(Row):
    """A checked referral."""

    code: str
    redirect_to: str
    label: str
    expired_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Response(Row):
    """A checked response. Its personal data is reduced as the settings say."""

    link: str
    action: str
    session_key: str | None
    ip_address: str | None
    http_referrer: str | None


def read_link(record: Record, zone: tzinfo) -> Link:
    """Check a referral.

    :param zone: the zone of times that name none.
    :raises Refused: it cannot be imported. The reason names the column.
    """
    code = read_text(record, "code", 64)
    if not CODE.fullmatch(code):
        raise Refused(f"code {code!r} is not 1 to 64 letters, digits, '-' or '_'")
    redirect_to = read_text(record, "redirect_to", MAX_LENGTH)
    scheme = _SCHEME.match(_IGNORED_IN_URLS.sub("", redirect_to))
    if scheme is not None and (scheme[1].lower() in _SCRIPTS or not _URL_NAME.fullmatch(redirect_to)):
        raise Refused(f"redirect_to {redirect_to!r} is neither a path nor a web address")
    expired_at = _read_time(record, "expired_at", zone)
    return Link(
        code=code,
        redirect_to=redirect_to,
        label=read_text(record, "label", 100),
        expired_at=None if expired_at is not None and expired_at.year > 9998 else expired_at,  # it means never
        **_read_common(record, zone),
    )


def read_response(record: Record, zone: tzinfo, settings: Settings) -> Response:
    """Check a response. The parameters and the error are those of :func:`read_link`."""
    link = _read_key(record, "referral")
    action = read_text(record, "action", 128)
    if link is None or not action:
        raise Refused("has no referral" if link is None else "has no action")
    common = _read_common(record, zone)
    try:
        address = parse_address(_read_leniently(record, "ip_address").strip())
        ip_address = stored_address(address, settings, common["created_at"].date())
    except ValueError:  # pinax stored the header as it came
        ip_address = None
    return Response(
        link=link,
        action=action,
        session_key=_pseudonym(_read_leniently(record, "session_key")),
        ip_address=ip_address,
        http_referrer=stored_referrer(_read_leniently(record, "http_referrer"), settings.referrer_storage),
        **common,
    )


def _read_common(record: Record, zone: tzinfo) -> dict[str, t.Any]:
    """Return the fields of :class:`Row`."""
    if len(record.pk) > _MAX_KEY or not _is_storable(record.pk):
        raise Refused("id is not a key")
    created_at = _read_time(record, "created_at", zone)
    if created_at is None:
        raise Refused("has no created_at")
    if created_at > now() + timedelta(days=1):  # a wrong zone is less than a day
        raise Refused(f"created_at {created_at} is in the future")
    content_type = _read_key(record, "target_content_type")
    target_id = _read_key(record, "target_object_id")
    if content_type is None or target_id is None:
        content_type = target_id = None
    return {
        "record": record,
        "user": _read_key(record, "user"),
        "content_type": content_type,
        "target_id": target_id,
        "created_at": created_at,
    }


def read_text(record: Record, name: str, length: int) -> str:
    """Return the text of a column; NULL is the empty string.

    :param length: the longest text, in characters.
    :raises Refused: it is not text, is too long, or cannot be stored.
    """
    value = record.fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(f"{name} is not text")
    if len(value) > length:
        raise Refused(f"{name} is longer than {length} characters")
    if not _is_storable(value):
        raise Refused(f"{name} has a NUL in it, or is not UTF-8")
    return value


def _read_leniently(record: Record, name: str) -> str:
    """Return the text of a column that may lose characters."""
    value = record.fields.get(name)
    return storable(value, MAX_LENGTH) if isinstance(value, str) else ""


def _read_time(record: Record, name: str, zone: tzinfo) -> datetime | None:
    value = record.fields.get(name)
    if value is None:
        return None
    try:
        return parse_time(str(value), zone)
    except ValueError:
        raise Refused(f"{name} {value!r} is not a time") from None


def _read_key(record: Record, name: str) -> str | None:
    """Return the key of another row as text. Django's natural keys are lists, whose parts are joined."""
    value = record.fields.get(name)
    if type(value) is int and value.bit_length() < 64:  # nearly all keys are
        return str(value)
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, (bool, float, dict, list)) for part in parts):
        raise Refused(f"{name} is not a key")
    key = ".".join(str(part) for part in parts if part is not None)
    if len(key) > _MAX_KEY or not _is_storable(key):
        raise Refused(f"{name} is not a key")
    return key or None


def _is_storable(text: str) -> bool:
    return text.isprintable() or text == storable(text, len(text))


def _pseudonym(session_key: str) -> str | None:
    """Return what is stored instead of the key of a Django session, which is a login to the old site.

    It is the same for all rows of a visitor. No visitor key begins with ``~``, so it never identifies a visitor here.
    """
    if not session_key:
        return None
    digest = hashlib.sha256(f"flask-referrals.pinax-session:{session_key}".encode()).digest()
    return "~" + base64.urlsafe_b64encode(digest).decode()[:42]
