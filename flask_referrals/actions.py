"""Actions: record, respond to and void a response."""

import re
import typing as t
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import attributes
from werkzeug.wrappers import Request

from .actors import current_actor
from .credit import choose_known, choose_referral
from .db.conditions import is_exactly, oldest_first, unclaimed
from .db.keys import digest, once_key, primary_key
from .db.responses import Choice, find_response, insert_response, new_row
from .db.tables import ReferralColumns, ResponseColumns
from .db.totals import Counted, correct_totals
from .db.transactions import HostTransaction, Transaction, get_statement, object_handle, open_transaction
from .delivery import send_after_commit
from .exceptions import InvalidValueError
from .logins import join_history
from .signals import response_recorded
from .state import AppState
from .targets import reference
from .types import VOID, Actor, Anonymous
from .web.client import description
from .web.visitor_key import new_key

_MAX_ACTION = _MAX_KEY = 128
#: The longest reason of a voiding, in characters.
MAX_REASON = 200
_CURRENCY = re.compile(r"[A-Z]{3}")
_SMALLEST, _CONTEXT = Decimal("0.0001"), Context(prec=14, traps=[])
_TARGET = ("target_type", "target_id")


@dataclass(frozen=True)
class Action:
    """What is recorded. A value that cannot be stored raises an error before anything is read or written."""

    name: str
    target: t.Any = None
    key: str | None = None
    value: Decimal | int | None = None
    currency: str | None = None
    once: bool = False
    #: A database failure may be logged instead of raised.
    may_fail: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _check_word("action", self.name, _MAX_ACTION))
        if self.key is not None:
            object.__setattr__(self, "key", _check_word("key", self.key, _MAX_KEY))
            if self.once:
                raise InvalidValueError("once", "creates a key of its own: give either once or key")
        if self.value is not None:
            _check_value(self.value)
        if self.currency is not None and not (isinstance(self.currency, str) and _CURRENCY.fullmatch(self.currency)):
            raise InvalidValueError("currency", "must be three capital letters, as in ISO 4217")


def _check_word(field: str, value: t.Any, length: int) -> str:
    """Return a name or a sentence as the database stores it: printable text of 1 to ``length`` characters."""
    if not isinstance(value, str):
        raise InvalidValueError(field, f"must be a string, not {type(value).__name__}")
    if not value.strip() or not value.isprintable():
        raise InvalidValueError(field, "must be printable text, and not empty")
    if len(value) > length:
        raise InvalidValueError(field, f"is longer than {length} characters")
    return str.__str__(value)


def _check_value(value: t.Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (Decimal, int)):
        raise InvalidValueError("value", f"must be a Decimal or an int, not {type(value).__name__}")
    number = Decimal(value)
    # Comparisons are exact; arithmetic would follow the caller's decimal context.
    is_small = number.is_finite() and -(10**10) < number < 10**10
    if not is_small or number != number.quantize(_SMALLEST, context=_CONTEXT):
        raise InvalidValueError("value", "must have at most 10 digits before the point and 4 after it")


def record_action(
    state: AppState, request: Request | None, action: Action, *, user: t.Any, join: bool, commit: bool
) -> ResponseColumns | None:
    """Store an action under the referral that earns the credit. Return ``None`` if none does."""
    transaction = open_transaction(state.database, commit=commit)
    actor = current_actor(state, request, user, join=join)
    if not isinstance(actor, Actor):
        return None
    recording = _Recording(state, request, transaction, action, actor)
    return recording.run(partial(recording.record_under_credit, actor))


def respond(
    state: AppState,
    request: Request | None,
    referral: ReferralColumns,
    action: Action,
    user: t.Any,
    join: bool,
    commit: bool,
) -> ResponseColumns | None:
    """Store a touch of one referral, whichever earns the credit otherwise."""
    transaction = open_transaction(state.database, commit=commit)
    actor = current_actor(state, request, user, join=join)
    reason = None
    if not actor and request is not None:
        if not state.visitor_keys.has_consent(request):
            reason = "no-consent"
        elif state.visitor_keys.may_recognise(request):
            actor = Actor(None, new_key())
    choice = choose_known(referral.id, actor, reason)
    return record_touch(state, request, transaction, action, actor, choice)


def record_touch(
    state: AppState,
    request: Request | None,
    transaction: Transaction,
    action: Action,
    actor: Actor | Anonymous,
    choice: Choice,
) -> ResponseColumns | None:
    """Store a touch of a chosen referral. An action that may fail need not be stored."""
    recording = _Recording(state, request, transaction, action, actor, is_touch=True)
    return recording.run(partial(recording.record_under, choice))


@dataclass
class _Recording:
    state: AppState
    request: Request | None
    transaction: Transaction
    action: Action
    actor: Actor | Anonymous
    is_touch: bool = False

    def __post_init__(self) -> None:
        action, actor, state = self.action, self.actor, self.state
        self.is_joining = actor.user_id is not None and actor.visitor_key is not None
        more: dict[str, t.Any] = {"value": action.value, "currency": action.currency, "key": action.key}
        if action.target is not None:
            more["target_type"], more["target_id"] = reference(state, action.target)
        if action.once and isinstance(actor, Actor):
            more["key"] = once_key(actor)
        client = description(self.request, state.settings, state.hooks)
        self.row = new_row(action.name, actor, client, is_touch=self.is_touch, **more)

    def run(self, work: Callable[[], ResponseColumns | None]) -> ResponseColumns | None:
        """Do the work in the transaction. If it may fail, a database failure may be logged instead of raised."""
        find = self._find_again if "key" not in self.row else None
        return self.transaction.run(work, find, on_failure=self._log if self.action.may_fail else None)

    def _log(self) -> None:
        """Log the database failure, or raise it for a webhook or a worker, which retries."""
        if self.action.key is not None:
            raise
        self.state.log_or_raise("The action %r could not be recorded.", self.action.name)

    def record_under_credit(self, actor: Actor) -> ResponseColumns | None:
        if self.is_joining or self.state.recorder is not None:
            join_history(self.state, self.transaction, self.request, actor)
        # Once they are joined, all of the visitor's responses are the user's.
        has_reading = callable(self.state.settings.attribution)  # of the touches that the callable is given
        with self.transaction.read() if has_reading else nullcontext():
            choice = choose_referral(self.state, Actor(actor.user_id) if self.is_joining else actor)
        if choice is None:
            return None
        if isinstance(self.transaction, HostTransaction) and self.state.database.dialect.name == "sqlite":
            # A write keeps others out until the host ends its transaction.
            statement = get_statement(self.state.database.models, choice.query)
            if self.transaction.execute(statement, choice.parameters).first() is None:
                return None
        return self._record(choice)

    def record_under(self, choice: Choice) -> ResponseColumns | None:
        actor, keys = self.actor, self.state.visitor_keys
        join_history(self.state, self.transaction, self.request, actor)
        response = self._record(choice)
        if response is None and not self.action.may_fail:
            raise InvalidValueError("referral", "is not in the database")
        if response is not None and actor.user_id is None and actor.visitor_key is not None:
            self.transaction.after_commit(partial(keys.set, self.request, actor.visitor_key))
        return response

    def _record(self, choice: Choice) -> ResponseColumns | None:
        """Write the response, or return the one that has the same key."""
        if "key" in self.row:
            return self._record_once(choice)
        with self.transaction.write():
            stored = insert_response(self.transaction, choice, self.row)
        return None if stored is None else self._announce(stored.id)

    def _record_once(self, choice: Choice) -> ResponseColumns | None:
        transaction, responses = self.transaction, self.transaction.database.models.responses
        has_key: sa.ColumnElement[bool] = responses.identity == self.row["identity"]
        is_once = self.action.once and self.actor.user_id is not None
        first = sa.select(responses.id).where(has_key)
        if is_once:  # the user may have done it as a visitor
            has_done = sa.or_(has_key, is_exactly(responses.action, self.action.name))
            is_theirs = sa.and_(is_exactly(responses.user_id, self.actor.user_id), responses.is_touch == sa.false())
            first = sa.select(responses.id).where(is_theirs, has_done)
        first = first.order_by(*oldest_first(responses)).limit(1)

        def insert() -> int | None:
            stored = insert_response(transaction, choice, self.row)
            return None if stored is None else stored.id

        def find(select: t.Any) -> int | None:
            found: int | None = transaction.scalar(select)
            if found is None and select is not first and is_once:
                # A deleted user did it, whose key the database has reused.
                free = sa.update(transaction.database.models.response_table).where(has_key, responses.user_id.is_(None))
                transaction.execute(free.values({responses.identity: None, responses.key: None}))
            return found

        key, is_new = transaction.get_or_insert(first, find, insert, attempts=2 if is_once else 1)
        return None if key is None else self._announce(key, is_new=is_new)

    def _find_again(self) -> ResponseColumns | None:
        found = find_response(self.transaction, self.row)
        return None if found is None else self._announce(found.id)

    def _announce(self, key: int, *, is_new: bool = True) -> ResponseColumns:
        """Return the object of a row. If it was just written, its signal is sent after the commit."""
        if is_new and response_recorded.receivers:
            send_after_commit(self.state, self.transaction, response_recorded, [key])
        return object_handle(self.transaction.session, self.transaction.database.models.response, key)


def void_response(state: AppState, response: ResponseColumns, reason: str, *, commit: bool) -> ResponseColumns:
    """Take a response and its repeats out of all counts and credit. Return the record of the voiding."""
    reason = _check_word("reason", reason, MAX_REASON)
    model: t.Any = state.database.models.response
    transaction = open_transaction(state.database, commit=commit)

    def work() -> ResponseColumns:
        key = primary_key(response, "response")
        select = sa.select(model).where(model.identity == digest(VOID, f"response:{key}"))
        insert = partial(_void, transaction, key, reason)
        record, is_new = transaction.get_or_insert(select, state.database.first_object, insert, attempts=1)
        attributes.set_committed_value(response, "ignored", "void")
        if is_new:
            transaction.has_written = True
            send_after_commit(state, transaction, response_recorded, [record.id])
        return t.cast("ResponseColumns", record)

    return transaction.run(work)


def _void(transaction: Transaction, key: int, reason: str) -> ResponseColumns:
    """Void a row as it is in the database; the host's object may be stale."""
    models, responses, session = transaction.database.models, transaction.database.models.responses, transaction.session
    transaction.lock()
    names = ("user_id", "session_key", "is_touch", "ignored", *Counted._fields, *_TARGET)
    columns = [responses[name].label(name) for name in names]
    row = transaction.execute(sa.select(*columns).where(responses.id == key).with_for_update()).one_or_none()
    if row is None:
        raise InvalidValueError("response", "is not in the database")
    transaction.execute(sa.update(models.response_table).where(responses.id == key).values({responses.ignored: "void"}))
    if row.ignored is None:
        correct_totals(transaction, [[getattr(row, name) for name in Counted._fields]], -1)
        if row.is_touch and (row.user_id is not None or row.session_key is not None):
            _void_repeats(transaction, row)
    record = models.response(
        referral_id=row.referral_id,
        user_id=row.user_id,
        action=VOID,
        key=f"response:{key}",
        identity=digest(VOID, f"response:{key}"),
        ignored="void",
        params={"response": key, "reason": reason, "ignored": row.ignored},
        **{name: getattr(row, name) for name in _TARGET},
    )
    session.add(record)
    session.flush()
    for each in session.identity_map.values():
        if isinstance(each, models.response):
            session.expire(each, ["ignored"])
    return record


def _void_repeats(transaction: Transaction, row: t.Any) -> None:
    """Void the repeats of a touch: those of its actor up to the next one of the same link that is counted."""
    models, responses = transaction.database.models, transaction.database.models.responses
    if row.user_id is not None:
        is_theirs = is_exactly(responses.user_id, row.user_id)
    else:
        is_theirs = sa.and_(responses.session_key == row.session_key, unclaimed(responses))
    same = [is_theirs, responses.is_touch == sa.true(), responses.referral_id == row.referral_id]
    same.append(responses.action == row.action)
    later = sa.select(sa.func.min(responses.created_at)).where(*same, responses.ignored.is_(None))
    until = transaction.scalar(later.where(responses.created_at > row.created_at))
    update = sa.update(models.response_table).values({responses.ignored: "void"})
    update = update.where(*same, responses.ignored == "repeat", responses.created_at >= row.created_at)
    transaction.execute(update.where(responses.created_at < until) if until is not None else update)
