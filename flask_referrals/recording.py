"""Recording what visitors do: a later action, and the click itself."""

import hashlib
import re
import typing as t
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from decimal import Decimal
from functools import partial

import sqlalchemy as sa
from flask import current_app
from werkzeug.wrappers import Request

from . import clients
from . import pending
from . import signals
from . import storing
from . import targets
from . import totals
from . import visitors
from .after_commit import after_commit
from .attribution import Visitor
from .attribution import choice_of
from .attribution import credit
from .attribution import identify
from .context import current_state
from .creation import identity_digest
from .exceptions import InvalidValueError
from .joining import join
from .transactions import Transaction
from .transactions import core_transaction

if t.TYPE_CHECKING:
    from .models import ReferralMixin
    from .models import ReferralResponseMixin

R = t.TypeVar("R", bound="ReferralResponseMixin | None")

#: The action of what takes another response out of the counts.
VOID = "VOIDED"

_MAX_ACTION = _MAX_KEY = 128
_MAX_REASON = 200
_CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True)
class Action:
    """What is recorded, checked before anything is read or written.

    :raises InvalidValueError: one of them cannot be stored; it is named.
    """

    name: str
    target: t.Any = None
    key: str | None = None
    value: Decimal | int | None = None
    currency: str | None = None
    once: bool = False

    def __post_init__(self) -> None:
        _check_word("action", self.name, _MAX_ACTION)
        if self.key is not None:
            _check_word("key", self.key, _MAX_KEY)
            if self.once:
                raise InvalidValueError("once", "makes a key of its own: give one or the other")
        if self.value is not None:
            _check_value(self.value)
        if self.currency is not None and not (isinstance(self.currency, str) and _CURRENCY.fullmatch(self.currency)):
            raise InvalidValueError("currency", "must be three capital letters, as in ISO 4217")


def _check_word(field: str, word: t.Any, length: int) -> None:
    if not isinstance(word, str):
        raise InvalidValueError(field, f"must be a string, not {type(word).__name__}")
    if not word.strip() or not word.isprintable():
        raise InvalidValueError(field, "must be printable text, and not empty")
    if len(word) > length:
        raise InvalidValueError(field, f"is longer than {length} characters")


def _check_value(value: t.Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (Decimal, int)):
        raise InvalidValueError("value", f"must be a Decimal or an int, not {type(value).__name__}")
    number = Decimal(value)
    if not number.is_finite() or abs(number) >= 10**10 or number != round(number, 4):
        raise InvalidValueError("value", "must have at most 10 digits before the point and 4 behind it")


def record_action(
    action: Action, *, user: t.Any, request: Request | None, commit: bool
) -> "ReferralResponseMixin | None":
    """Record an action for whoever acts; ``None`` when nobody gets credit."""
    request = visitors.resolve_request(request)
    state = current_state()
    before = Transaction(state, state.models.response, commit=commit)
    visitor = identify(request, user)
    if not visitor:
        return None
    joining = visitor.user_id is not None and visitor.key is not None
    # Once they are joined, all of the visitor's responses are the user's.
    actor = Visitor(visitor.user_id) if joining else visitor
    row = _row(action, visitor, request, is_touch=False)

    def record(transaction: Transaction) -> "ReferralResponseMixin | None":
        has_settled = pending.settle(transaction, request, visitor)
        if joining:
            join(transaction, visitor)
        choice = credit(actor)
        response = _record(transaction, choice, row, action, visitor) if choice is not None else None
        if has_settled or joining or response is not None:
            transaction.commit()
        return response

    has_policy = callable(current_app.config["REFERRALS_ATTRIBUTION"])
    if joining or row["key"] is not None or has_policy or pending.has_any(request):
        return _run(before, record, row)
    with core_transaction(before) as transaction:
        return _run(transaction, record, row)


def respond(
    referral: "ReferralMixin", action: Action, *, user: t.Any, request: Request | None, commit: bool
) -> "ReferralResponseMixin":
    """Record a response to one referral, whoever else may deserve credit."""
    request = visitors.resolve_request(request)
    state = current_state()
    transaction = Transaction(state, state.models.response, commit=commit)
    visitor = identify(request, user)
    if not visitor and request is not None:
        visitor = Visitor(key=visitors.new_key())
    choice = choice_of(referral.id, visitor)
    row = _row(action, visitor, request, is_touch=True)

    def record(transaction: Transaction) -> "ReferralResponseMixin":
        pending.settle(transaction, request, visitor)
        if visitor.user_id is not None and visitor.key is not None:
            join(transaction, visitor)
        response = _record(transaction, choice, row, action, visitor)
        if response is None:
            raise InvalidValueError("referral", "is not in the database")
        if visitor.user_id is None and visitor.key is not None:
            after_commit(transaction.session, partial(visitors.set_key, visitor.key))
        transaction.commit()
        return response

    return _run(transaction, record, row)


def _run(transaction: Transaction, record: Callable[[Transaction], R], row: dict[str, t.Any]) -> R:
    """Record a response; one without a key is looked for before that is done again."""

    def find_again() -> R | None:
        found = storing.find(transaction, row)
        if found is None:
            return None
        response = _announced(transaction, found.id)
        transaction.commit()
        return t.cast(R, response)

    return transaction.run(partial(record, transaction), find_again if row["key"] is None else None)


def _row(action: Action, visitor: Visitor, request: Request | None, *, is_touch: bool) -> dict[str, t.Any]:
    target_type, target_id = targets.reference(action.target)
    return row_values(
        action.name,
        visitor,
        request,
        is_touch=is_touch,
        target_type=target_type,
        target_id=target_id,
        key=once_key(visitor) if action.once else action.key,
        value=action.value,
        currency=action.currency,
    )


def _record(
    transaction: Transaction, choice: storing.Choice, row: dict[str, t.Any], action: Action, visitor: Visitor
) -> "ReferralResponseMixin | None":
    """Write a response, or return the one that its key says was written already."""

    def add() -> int | None:
        stored = storing.store(transaction, choice, row)
        return stored.id if stored is not None else None

    if row["key"] is None:
        with transaction.write():
            written, is_new = add(), True
    else:
        model = transaction.model
        same: sa.ColumnElement[bool] = model.identity == row["identity"]
        if action.once and visitor.user_id is not None:  # done already, as a visitor
            same = sa.or_(same, sa.and_(model.user_id == visitor.user_id, model.action == action.name))
        find = sa.select(model.id).where(same).order_by(model.created_at, model.id).limit(1)
        written, is_new = transaction.get_or_add(find, add, attempts=1)
    if written is None:
        return None
    return _announced(transaction, written) if is_new else storing.handle(transaction, written)


def _announced(transaction: Transaction, key: int) -> "ReferralResponseMixin":
    """Return the object for a row that was just written, of which the receivers hear once it is durable."""
    response = storing.handle(transaction, key)
    signals.send_after_commit(transaction.session, signals.response_recorded, response=response)
    return response


def once_key(visitor: Visitor) -> str:
    """Return the key of what a user, or a visitor, does once; it gives neither away."""
    who = f"user {visitor.user_id}" if visitor.user_id is not None else f"visitor {visitor.key}"
    return f"once:{hashlib.sha256(who.encode()).hexdigest()}"


def key_identity(action: str, key: str) -> str:
    """Return what makes a keyed action the one it is."""
    return identity_digest(action, key)


def void(response: "ReferralResponseMixin", reason: str, *, commit: bool) -> "ReferralResponseMixin":
    """Do what :meth:`.ReferralResponseMixin.void` promises."""
    _check_word("reason", reason, _MAX_REASON)
    model = current_state().models.response
    transaction = Transaction(current_state(), model, commit=commit)
    key = f"response:{response.id}"
    identity = key_identity(VOID, key)

    def add() -> "ReferralResponseMixin":
        params = {"response": response.id, "reason": reason, "ignored": response.ignored}
        transaction.begin()
        if response.ignored is None:
            totals.correct(transaction.session, [(response.referral_id, response.action, response.created_at)], -1)
        response.ignored = "void"
        record = model(
            referral_id=response.referral_id,
            user_id=response.user_id,
            action=VOID,
            key=key,
            identity=identity,
            target_type=response.target_type,
            target_id=response.target_id,
            ignored="void",
            params=params,
        )
        transaction.session.add(record)
        transaction.session.flush()
        return record

    find = sa.select(model).where(model.identity == identity)

    def work() -> "ReferralResponseMixin":
        record, is_new = transaction.get_or_add(find, add, attempts=1)
        if is_new:
            signals.send_after_commit(transaction.session, signals.response_recorded, response=record)
            transaction.commit()
        return record

    return transaction.run(work)


def row_values(
    action: str, visitor: Visitor, request: Request | None, *, is_touch: bool, key: str | None = None, **more: t.Any
) -> dict[str, t.Any]:
    """Return the columns of a response, but for those that depend on its referral.

    :param action: what was done.
    :param visitor: who did it.
    :param request: where address, referrer and agent are read; ``None`` outside a request.
    :param is_touch: whether it is the visitor's own answer to the link, on which later credit rests.
    :param key: what it is stored under, once.
    :param more: further columns.
    """
    return {
        "action": action,
        "is_touch": is_touch,
        "session_key": visitor.key,
        "user_id": visitor.user_id,
        "created_at": datetime.now(timezone.utc),
        "key": key,
        "identity": key_identity(action, key) if key is not None else None,
        **clients.description(request),
        **more,
    }
