"""A click on a link: who it was, whether it counts, and its row."""

import math
import time
import typing as t
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone

import sqlalchemy as sa
from flask import Flask
from flask import current_app
from werkzeug.wrappers import Request

from . import clients
from . import config
from . import pending
from . import signals
from . import storing
from . import visitors
from .attribution import CLICK
from .attribution import Visitor
from .attribution import made_by
from .attribution import own
from .context import current_state
from .failures import log_failure
from .identity import unwrapped
from .identity import user_id
from .recording import row_values
from .registry import Models
from .storing import Choice
from .storing import Stored
from .times import as_utc
from .transactions import Transaction
from .transactions import core_transaction
from .transactions import lock_deadline

_MAX_MARK = 100


@dataclass(frozen=True)
class Click:
    """What a click on a link that exists would be.

    :param ignored: the reason code why it would not count, or ``None``.
    """

    redirect_to: str
    is_active: bool
    ignored: str | None


def follow(code: str, request: Request) -> str | None:
    """Record a click on a link, if it is alive; what goes wrong with that is logged, and does not reach the visitor.

    :param code: a well-formed code.
    :param request: the current request.
    :return: the link's target, or ``None`` when there is no such link.
    """
    state = current_state()
    before = Transaction(state, state.models.response, commit=True)
    visitor, reason = _who(request, before)
    patience = config.duration("REFERRALS_LOCK_TIMEOUT")
    deadline = math.inf if patience is None else time.monotonic() + patience.total_seconds()
    if state.recorder is not None:
        return _hand_over(before, code, visitor, reason, request, deadline)
    with core_transaction(before) as transaction:
        try:
            stored = _record(transaction, code, visitor, reason, request, deadline)
        except Exception:
            transaction.recover()
            redirect_to = _target(transaction, code, deadline)
            if redirect_to is not None:
                log_failure("A click on the link %r could not be recorded.", code)
            return redirect_to
        if stored is None:
            return _target(transaction, code, deadline)
    _announce(stored, code)
    return stored.redirect_to


def _hand_over(
    before: Transaction, code: str, visitor: Visitor, reason: str | None, request: Request, deadline: float
) -> str | None:
    """Give a click to the recorder, also when it cannot be told where the link leads, or whether there is one."""
    try:
        with core_transaction(before) as transaction:
            link = _link(transaction, code, deadline)
    except Exception:
        pending.hand_over(code, visitor, reason, request, _campaign(request))
        raise
    if link is None:
        return None
    if link.expired_at is None or as_utc(link.expired_at) > datetime.now(timezone.utc):
        # Of whoever opts out the event does not tell who it is.
        is_own = clients.opts_out(request) and visitor.user_id is not None and visitor.user_id == link.user_id
        ignored = "self" if reason is None and is_own else reason
        pending.hand_over(code, visitor, ignored, request, _campaign(request))
    return t.cast(str, link.redirect_to)


def look_up(code: str, request: Request) -> Click | None:
    """Tell what a click on a link would be, and write nothing; the parameters are those of :func:`follow`."""
    state = current_state()
    transaction = Transaction(state, state.models.response, commit=True)
    choice = _choice(code, *_who(request, transaction))
    redirect_to = state.session.scalar(_find_link(state.models), {"code": code})
    if redirect_to is None:
        return None
    chosen = state.session.execute(choice.make(state.models, *choice.arguments), choice.parameters).one_or_none()
    return Click(redirect_to, chosen is not None, chosen.ignored if chosen is not None else None)


def _target(transaction: Transaction, code: str, deadline: float) -> str | None:
    """Return where a link leads on which no click was recorded."""
    link = _link(transaction, code, deadline)
    return link.redirect_to if link is not None else None


def _link(transaction: Transaction, code: str, deadline: float) -> sa.Row[t.Any] | None:
    find = current_state().models.once(_find_link)

    def select() -> sa.Row[t.Any] | None:
        with transaction.read(), lock_deadline(transaction.connection, deadline):
            return transaction.connection.execute(find, {"code": code}).one_or_none()

    try:
        return transaction.run(select)
    except Exception:
        transaction.recover()
        raise


def _find_link(models: Models) -> sa.Select[t.Any]:
    referral = models.referral
    columns = (referral.redirect_to, referral.user_id, referral.expired_at)
    return sa.select(*columns).where(referral.code == sa.bindparam("code"))


def _choice(code: str, visitor: Visitor, reason: str | None) -> Choice:
    """Return how the link is chosen that has a code, if it is alive, and why a click on it does not count."""
    window = config.duration("REFERRALS_REPEAT_WINDOW")
    now = datetime.now(timezone.utc)
    given: dict[str, t.Any] = {"code": code, "now": now}
    if reason is not None:
        given["reason"] = reason
    elif visitor:
        since = now - window if window is not None else None
        known = {"user": visitor.user_id, "visitor": visitor.key, "since": since}
        given |= {name: value for name, value in known.items() if value is not None}
    return Choice(_choose, tuple(given), given)


def _choose(models: Models, *given: str) -> sa.Select[t.Any]:
    referral, response = models.referral, models.response
    reasons: list[sa.ColumnElement[t.Any]] = []
    if "reason" in given:
        reasons.append(sa.bindparam("reason", type_=response.ignored.type))
    if "user" in given:
        reasons.append(own(referral))
    if "since" in given:
        who: t.Any = {name: sa.bindparam(name) if name in given else None for name in ("user", "visitor")}
        is_repeat = sa.exists().where(
            made_by(Visitor(who["user"], who["visitor"]), response),
            response.is_touch == sa.true(),
            response.created_at > sa.bindparam("since"),
            # In this form the link's index is no answer: a busy link's would have everybody's late clicks read.
            sa.func.coalesce(response.referral_id, 0) == referral.id,
            response.action == CLICK,
            response.ignored.is_(None),
        )
        reasons.append(sa.case((is_repeat, "repeat")))
    ignored = sa.func.coalesce(*reasons, sa.null()) if reasons else sa.null()
    is_active = sa.or_(referral.expired_at.is_(None), referral.expired_at > sa.bindparam("now"))
    chosen = sa.select(referral.id.label("referral_id"), ignored.label("ignored"))
    return chosen.where(referral.code == sa.bindparam("code"), is_active)


def _who(request: Request, transaction: Transaction) -> tuple[Visitor, str | None]:
    """Tell who clicks, and why it is no click if it is none. A program is nobody: it gets no key, and no session."""
    reason = _not_a_click(request) or clients.lacks_consent(request)
    if reason is not None:
        return Visitor(), reason
    return Visitor(_present_user(request, transaction), visitors.get_key(request)), None


def _not_a_click(request: Request) -> str | None:
    try:
        return clients.not_a_click(request)
    except Exception:
        log_failure("It could not be told whether a person follows a link; it is taken for one.")
        return None


def _present_user(request: Request, transaction: Transaction) -> t.Any:
    def read() -> t.Any:
        with transaction.read():
            return user_id(visitors.current_user(request))

    try:
        return transaction.run(read)
    except Exception:  # a token that has expired, for one: the visitor's history must outlive it
        log_failure("It could not be told which user follows a link; it is taken for nobody.")
        transaction.recover()
        return None


def _record(
    transaction: Transaction, code: str, visitor: Visitor, reason: str | None, request: Request, deadline: float
) -> Stored | None:
    """Store a click on a link that is alive, and give a stranger whose click counts a key.

    :return: the row; ``None`` when none was written: the link has expired, or there is none, or the click does not
        count and is dropped.
    """
    drops = current_app.config["REFERRALS_IGNORED"] == "drop"
    if reason is not None and drops:
        return None
    choice = _choice(code, visitor, reason)
    if drops:
        choice = Choice(_choose_counted, choice.arguments, choice.parameters)
    if clients.opts_out(request):
        visitor = Visitor()
    elif reason is None and not visitor:
        visitor = Visitor(key=visitors.new_key())
    row = row_values(CLICK, visitor, request, is_touch=True, params=_campaign(request))

    def store() -> Stored | None:
        with lock_deadline(transaction.connection, deadline) as wait_no_longer, transaction.write():
            stored = storing.store(transaction, choice, row)
            wait_no_longer()  # a COMMIT waits for readers
        transaction.commit()
        return stored

    stored = transaction.run(store, lambda: storing.find(transaction, row, code))
    if stored is not None and stored.ignored is None and visitor.user_id is None and visitor.key is not None:
        visitors.set_key(visitor.key)
    return stored


def _choose_counted(models: Models, *given: str) -> sa.Select[t.Any]:
    chosen = _choose(models, *given)
    return chosen.where(chosen.selected_columns.ignored.is_(None))


def _announce(stored: Stored, code: str) -> None:
    app = t.cast(Flask, unwrapped(current_app))
    if not signals.response_recorded.has_receivers_for(app):
        return
    state = current_state()
    try:
        response = state.session.get(state.models.response, stored.id)
    except Exception:
        log_failure("A click on the link %r could not be announced.", code)
        state.session.rollback()
    else:
        signals.send(signals.response_recorded, app, response=response)


def _campaign(request: Request) -> dict[str, str] | None:
    """Return the marks that ``REFERRALS_CAMPAIGN_PARAMS`` lets a link carry, at most 100 characters each."""
    arguments = clients.arguments(request)
    if not arguments:
        return None
    names = current_app.config["REFERRALS_CAMPAIGN_PARAMS"]
    marks = {name: clients.storable(arguments[name], _MAX_MARK) for name in names if arguments.get(name)}
    return marks or None
