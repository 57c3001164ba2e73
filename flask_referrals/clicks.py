"""A click on a link: who it was, whether it counts, and its row. One SELECT and one INSERT, no ORM object."""

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
from . import signals
from . import visitors
from .attribution import Visitor
from .attribution import made_by
from .context import current_state
from .failures import log_failure
from .identity import unwrapped
from .identity import user_id
from .recording import CLICK
from .recording import row_values
from .registry import Models
from .times import as_utc
from .transactions import Transaction
from .transactions import core_transaction
from .transactions import lock_deadline

_MAX_MARK = 100


@dataclass(frozen=True)
class Click:
    """A click on a link that exists.

    :param visitor: who clicks.
    :param redirect_to: the link's target.
    :param ignored: the reason code why it does not count, or ``None``.
    """

    visitor: Visitor
    referral_id: int
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
    session = state.session
    before = Transaction(session, state.models.response, commit=True)
    visitor, reason = _who(request, before)
    patience = config.duration("REFERRALS_LOCK_TIMEOUT")
    deadline = math.inf if patience is None else time.monotonic() + patience.total_seconds()
    with core_transaction(before) as transaction:
        click = _look_up(transaction, code, visitor, reason, deadline)
        response_id = None
        if click is not None and click.is_active:
            try:
                response_id = _record(transaction, click, request, deadline)
            except Exception:
                log_failure("A click on the link %r could not be recorded.", code)
                transaction.recover()
    app = t.cast(Flask, unwrapped(current_app))
    if response_id is not None and signals.response_recorded.has_receivers_for(app):
        try:
            response = session.get(state.models.response, response_id)
        except Exception:
            log_failure("A click on the link %r could not be announced.", code)
            session.rollback()
        else:
            signals.send(signals.response_recorded, app, response=response)
    return click.redirect_to if click is not None else None


def look_up(code: str, request: Request) -> Click | None:
    """Tell what a click on a link would be, and write nothing; the parameters are those of :func:`follow`."""
    state = current_state()
    before = Transaction(state.session, state.models.response, commit=True)
    visitor, reason = _who(request, before)
    with core_transaction(before) as transaction:
        return _look_up(transaction, code, visitor, reason, math.inf)


def _look_up(
    transaction: Transaction, code: str, visitor: Visitor, ignored: str | None, deadline: float
) -> Click | None:
    window = config.duration("REFERRALS_REPEAT_WINDOW")
    parameters: dict[str, t.Any] = {"code": code}
    if visitor and window is not None:
        parameters |= {"since": datetime.now(timezone.utc) - window, "user_id": visitor.user_id, "key": visitor.key}
        parameters = {name: value for name, value in parameters.items() if value is not None}
    find = current_state().models.once(_find, *parameters)

    def select() -> sa.Row[t.Any] | None:
        with transaction.read(), lock_deadline(transaction.connection, deadline):
            return transaction.connection.execute(find, parameters).one_or_none()

    try:
        link = transaction.run(select)
    except Exception:
        transaction.recover()
        raise
    if link is None:
        return None
    if ignored is None and visitor.user_id is not None and visitor.user_id == link.user_id:
        ignored = "self"
    if ignored is None and link.is_repeat:
        ignored = "repeat"
    is_active = link.expired_at is None or as_utc(link.expired_at) > datetime.now(timezone.utc)
    return Click(visitor, link.id, link.redirect_to, is_active, ignored)


def _find(models: Models, *parameters: str) -> sa.Select[t.Any]:
    """Make the SELECT of a link, and of whether the visitor has clicked on it lately."""
    referral, response = models.referral, models.response
    is_repeat: sa.ColumnElement[bool] = sa.false()
    if "since" in parameters:
        who: t.Any = {name: sa.bindparam(name) for name in ("user_id", "key") if name in parameters}
        is_repeat = sa.exists().where(
            made_by(Visitor(**who), response),
            response.is_touch == sa.true(),
            response.created_at > sa.bindparam("since"),
            # In this form the link's index is no answer: a busy link's would have everybody's late clicks read.
            sa.func.coalesce(response.referral_id, 0) == referral.id,
            response.action == CLICK,
            response.ignored.is_(None),
        )
    columns = (referral.id, referral.user_id, referral.redirect_to, referral.expired_at)
    return sa.select(*columns, is_repeat.label("is_repeat")).where(referral.code == sa.bindparam("code"))


def _columns(models: Models) -> dict[str, str]:
    """Return what the columns are called, by the attributes; a host may have renamed some."""
    return {each.key: t.cast(str, each.columns[0].key) for each in sa.inspect(models.response).column_attrs}


def _insert(models: Models) -> sa.Insert:
    return sa.insert(t.cast(sa.Table, sa.inspect(models.response).local_table))


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
    try:
        with transaction.read():
            return user_id(visitors.current_user(request))
    except Exception:  # a token that has expired, for one: the visitor's history must outlive it
        log_failure("It could not be told which user follows a link; it is taken for nobody.")
        transaction.recover()
        return None


def _record(transaction: Transaction, click: Click, request: Request, deadline: float) -> int | None:
    """Store a click on a link that has not expired, give a stranger whose click counts a key, and return the row's."""
    if click.ignored is not None and current_app.config["REFERRALS_IGNORED"] == "drop":
        return None
    visitor = click.visitor
    if clients.opts_out(request):
        visitor = Visitor()
    elif click.ignored is None and not visitor:
        visitor = Visitor(key=visitors.new_key())
    models = current_state().models
    columns = models.once(_columns)
    row = row_values(
        click.referral_id,
        CLICK,
        visitor,
        request,
        is_touch=True,
        ignored=click.ignored,
        params=_campaign(request),
    )
    values = {columns[name]: value for name, value in row.items()}

    def insert() -> int:
        with lock_deadline(transaction.connection, deadline), transaction.write():
            result = transaction.connection.execute(models.once(_insert), values)
            (response_id,) = t.cast(t.Any, result).inserted_primary_key
        transaction.commit()
        return t.cast(int, response_id)

    response_id = transaction.run(insert)
    if click.ignored is None and visitor.user_id is None and visitor.key is not None:
        visitors.set_key(visitor.key)
    return response_id


def _campaign(request: Request) -> dict[str, str] | None:
    """Return the marks that ``REFERRALS_CAMPAIGN_PARAMS`` lets a link carry, at most 100 characters each."""
    names = current_app.config["REFERRALS_CAMPAIGN_PARAMS"]
    arguments = clients.arguments(request)
    marks = {name: clients.storable(arguments[name], _MAX_MARK) for name in names if arguments.get(name)}
    return marks or None
