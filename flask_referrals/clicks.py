"""A click on a link: who it was, whether it counts, and its row. One SELECT and one INSERT, no ORM object."""

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
from .times import as_utc
from .transactions import Transaction
from .transactions import lock_timeout

_MAX_MARK = 100


@dataclass(frozen=True)
class Click:
    """A click on a link that exists.

    :param visitor: who clicks.
    :param is_anonymous: whether it is stored without saying who.
    :param redirect_to: the link's target.
    :param ignored: the reason code why it does not count, or ``None``.
    """

    transaction: Transaction
    request: Request
    visitor: Visitor
    is_anonymous: bool
    referral_id: int
    redirect_to: str
    is_active: bool
    ignored: str | None


def receive(code: str, request: Request) -> Click | None:
    """Look a click's link up, and class the click.

    :param code: a well-formed code.
    :param request: the current request.
    :return: the click, or ``None`` when there is no such link.
    """
    state = current_state()
    transaction = Transaction(state.session, state.models.response, commit=True)
    visitor, ignored = _who(request)
    link = transaction.run(lambda: _execute(transaction, _find(code, visitor)).one_or_none())
    if link is None:
        return None
    if ignored is None and visitor.user_id is not None and visitor.user_id == link.user_id:
        ignored = "self"
    if ignored is None and link.is_repeat:
        ignored = "repeat"
    is_active = link.expired_at is None or as_utc(link.expired_at) > datetime.now(timezone.utc)
    is_anonymous = clients.opts_out(request)
    return Click(transaction, request, visitor, is_anonymous, link.id, link.redirect_to, is_active, ignored)


def _execute(transaction: Transaction, statement: sa.Executable) -> sa.Result[t.Any]:
    """Send a statement of a click, which does not wait long for others: somebody is waiting for the page."""
    with lock_timeout(transaction.connection, config.duration("REFERRALS_LOCK_TIMEOUT")):
        return transaction.session.execute(statement)


def _who(request: Request) -> tuple[Visitor, str | None]:
    """Tell who clicks, and why it is no click if it is none. A program is nobody: it gets no key, and no session."""
    try:
        reason = clients.not_a_click(request) or clients.lacks_consent(request)
        if reason is not None:
            return Visitor(), reason
        return Visitor(_present_user(request), visitors.get_key(request)), None
    except Exception:
        log_failure("It could not be told who follows a link; the click is taken for a stranger's.")
        return Visitor(), None


def _present_user(request: Request) -> t.Any:
    try:
        return user_id(visitors.current_user(request))
    except Exception:  # a token that has expired, for one: the visitor's history must outlive it
        log_failure("It could not be told which user follows a link; it is taken for nobody.")
        return None


def _find(code: str, visitor: Visitor) -> sa.Select[t.Any]:
    state = current_state()
    referral, response = state.models.referral, state.models.response
    is_repeat: sa.ColumnElement[bool] = sa.false()
    window = config.duration("REFERRALS_REPEAT_WINDOW")
    if visitor and window is not None:
        is_repeat = sa.exists().where(
            made_by(visitor),
            response.referral_id == referral.id,
            response.created_at > datetime.now(timezone.utc) - window,
            response.action == CLICK,
            response.ignored.is_(None),
        )
    columns = (referral.id, referral.user_id, referral.redirect_to, referral.expired_at)
    return sa.select(*columns, is_repeat.label("is_repeat")).where(referral.code == code)


def record(click: Click) -> None:
    """Store a click, and give a stranger whose click counts a key.

    :param click: a click on a link that has not expired.
    """
    if click.ignored is not None and current_app.config["REFERRALS_IGNORED"] == "drop":
        return
    model = current_state().models.response
    transaction, visitor = click.transaction, click.visitor
    if click.is_anonymous:
        visitor = Visitor()
    elif click.ignored is None and not visitor:
        visitor = Visitor(key=visitors.new_key())
    values = row_values(
        click.referral_id,
        CLICK,
        visitor,
        click.request,
        is_touch=True,
        ignored=click.ignored,
        params=_campaign(click.request),
    )

    def insert() -> int:
        with transaction.write():
            result = _execute(transaction, sa.insert(sa.inspect(model).local_table).values(values))
            (response_id,) = t.cast(t.Any, result).inserted_primary_key
        transaction.commit()
        return t.cast(int, response_id)

    response_id = transaction.run(insert)
    if click.ignored is None and visitor.user_id is None and visitor.key is not None:
        visitors.set_key(visitor.key)
    app = t.cast(Flask, unwrapped(current_app))
    if signals.response_recorded.has_receivers_for(app):
        signals.send(signals.response_recorded, app, response=transaction.session.get(model, response_id))


def _campaign(request: Request) -> dict[str, str] | None:
    """Return the marks that ``REFERRALS_CAMPAIGN_PARAMS`` lets a link carry, at most 100 characters each."""
    names = current_app.config["REFERRALS_CAMPAIGN_PARAMS"]
    marks = {name: clients.storable(request.args[name], _MAX_MARK) for name in names if request.args.get(name)}
    return marks or None
