"""Plain values that pass between the modules."""

import re
import typing as t
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from .exceptions import InvalidValueError

#: The actions that the extension itself records: a click, a typed code, and the voiding of a response.
CLICK, ATTACH, VOID = "RESPONDED", "ATTACHED", "VOIDED"

#: The form of a code, in a URL and in the database.
CODE: re.Pattern[str] = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: What the key of a click begins with that a recorder took.
EVENT_PREFIX = "click:"

#: A click that a recorder takes: a dict that can be written as JSON. The recorder returns once it is safe.
Event = dict[str, t.Any]
Recorder = Callable[[Event], None]


class Actor(t.NamedTuple):
    """Who acts: a user, a visitor, or both right after a login. Without either it is :data:`ANONYMOUS`."""

    #: The user's key, as the database stores it.
    user_id: t.Any = None
    visitor_key: str | None = None
    #: The time of the login that the visitor key is reserved for; later responses are not the user's.
    until: datetime | None = None


class Amount(t.NamedTuple):
    """What actions are worth in one currency, or without one, in words: ``1,234.50 EUR``."""

    number: Decimal
    currency: str | None

    def __str__(self) -> str:
        cents = round(self.number, 2)
        return f"{cents if cents == self.number else self.number:,f} {self.currency or ''}".rstrip()


def amounts_of(sums: Mapping[str | None, Decimal]) -> list[Amount]:
    """Return sums by currency as amounts, in the order of their currencies."""
    return [Amount(sums[currency], currency) for currency in sorted(sums, key=lambda currency: currency or "")]


class Anonymous:
    """Nobody is logged in, and the browser has no visitor key. False as a condition."""

    user_id: None = None
    visitor_key: None = None

    def __bool__(self) -> t.Literal[False]:
        return False


ANONYMOUS = Anonymous()


@dataclass
class Hooks:
    """The host's own callables. ``None`` means the extension's default."""

    user_loader: Callable[[], t.Any] | None = None
    code_generator: Callable[[t.Any], str] | None = None
    client_ip: Callable[[t.Any], str | None] | None = None
    responses_filter: Callable[..., t.Any] | None = None
    classifier: Callable[[t.Any], str | None] | None = None
    consent: Callable[[t.Any], bool] | None = None
    display_name: Callable[[t.Any], str | None] | None = None


@dataclass(frozen=True)
class TargetType:
    """A model that was registered with :meth:`.Referrals.register_target`."""

    model: type[t.Any]
    load: Callable[[str], t.Any] | None
    can_refer: Callable[[t.Any, t.Any], bool] | None


def storable(text: str, length: int) -> str:
    """Cut a text to a number of characters, without NUL and lone surrogates, which some databases refuse."""
    text = text.replace("\0", "")
    return (text if text.isascii() else text.encode("utf-8", "ignore").decode())[:length]


def plain_text(field: str, value: t.Any, length: int) -> str:
    """Return a text as the database stores it: a member of a ``str`` enum becomes its value."""
    if not isinstance(value, str):
        raise InvalidValueError(field, f"must be a string, not {type(value).__name__}")
    text = str.__str__(value)
    if len(text) > length:
        raise InvalidValueError(field, f"is longer than {length} characters")
    if text != storable(text, length):
        raise InvalidValueError(field, "has a NUL or half of a surrogate pair in it")
    return text
