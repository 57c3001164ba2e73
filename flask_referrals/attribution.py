"""Which referral gets credit for what a visitor does, and whose a visitor's history becomes at login."""

import typing as t
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone

import sqlalchemy as sa
from flask import Flask
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.wrappers import Request

from . import config
from . import signals
from . import visitors
from .context import current_state
from .identity import unwrapped
from .identity import user_id
from .transactions import Transaction
from .transactions import after_commit

if t.TYPE_CHECKING:
    from .models import ReferralMixin
    from .models import ReferralResponseMixin


@dataclass(frozen=True)
class Visitor:
    """Who acts: a user's key, a visitor's key, both at the first request after a login, or neither."""

    user_id: t.Any = None
    key: str | None = None

    def __bool__(self) -> bool:
        return self.user_id is not None or self.key is not None


def identify(request: Request | None, user: t.Any = None) -> Visitor:
    """Find out who acts.

    :param request: the request, or ``None`` outside of one.
    :param user: who it is, when the caller knows; else the user who is logged in.
    """
    present = user_id(visitors.current_user(request))
    if user is None:
        return Visitor(present, visitors.get_key(request))
    given = user_id(user)
    if present is not None and present != given:
        return Visitor(given)  # somebody acts for another: the browser's key is not theirs
    return Visitor(given, visitors.get_key(request))


def responses_of(visitor: Visitor) -> sa.Select[t.Any]:
    """Select all responses of a visitor. A key counts only for rows that no user has claimed."""
    model = current_state().models.response
    of_user = model.user_id == visitor.user_id
    of_key = sa.and_(model.session_key == visitor.key, model.user_id.is_(None))
    if visitor.user_id is None:
        return sa.select(model).where(of_key)
    if visitor.key is None:
        return sa.select(model).where(of_user)
    return sa.select(model).where(sa.or_(of_user, of_key))


def credited(visitor: Visitor) -> "ReferralMixin | None":
    """Return the referral that gets credit now: one statement.

    Candidates are the visitor's own touches (clicks, and what :meth:`.ReferralMixin.respond` recorded) on links that
    have not expired and are not the visitor's own, as long as ``REFERRALS_ATTRIBUTION_WINDOW`` says; a repeated click
    is not counted, but says as well as any other whom the visitor followed last.

    :param visitor: somebody, not nobody.
    """
    state = current_state()
    referral, response = state.models.referral, state.models.response
    now = datetime.now(timezone.utc)
    touches = (
        responses_of(visitor)
        .join(referral, response.referral_id == referral.id)
        .where(response.is_touch, sa.or_(response.ignored.is_(None), response.ignored == "repeat"))
        .where(sa.or_(referral.expired_at.is_(None), referral.expired_at > now))
    )
    if visitor.user_id is not None:
        touches = touches.where(sa.or_(referral.user_id.is_(None), referral.user_id != visitor.user_id))
    window = config.duration("REFERRALS_ATTRIBUTION_WINDOW")
    if window is not None:
        touches = touches.where(response.created_at >= now - window)

    policy = current_app.config["REFERRALS_ATTRIBUTION"]
    if callable(policy):
        candidates = touches.options(sa.orm.contains_eager(response.referral)).order_by(*newest_first(response))
        touch = policy(state.session.scalars(candidates).all())
        return touch.referral if touch is not None else None
    order = newest_first(response) if policy == "last" else (response.created_at, response.id)
    return state.session.scalar(touches.with_only_columns(referral).order_by(*order).limit(1))


def newest_first(model: "type[ReferralResponseMixin]") -> Sequence[sa.ColumnElement[t.Any]]:
    """Order by time; the id only breaks ties: on a cluster ids do not follow time."""
    return model.created_at.desc(), model.id.desc()


def claim(transaction: Transaction, visitor: Visitor, *, referral_id: int | None = None) -> None:
    """Give a user the responses that nobody has claimed, in one UPDATE: the first claim wins.

    Clicks on the user's own links turn out to be their own. ``user_linked_to_response`` is sent for each row that was
    won here, once it is durable.

    :param transaction: what to write in.
    :param visitor: a user, with the key they had as a visitor.
    :param referral_id: claim the responses to this referral alone.
    """
    state = current_state()
    referral, response = state.models.referral, state.models.response
    session = transaction.session
    unclaimed = [response.session_key == visitor.key, response.user_id.is_(None)]
    if referral_id is not None:
        unclaimed.append(response.referral_id == referral_id)
    own_link = sa.exists().where(referral.id == response.referral_id, referral.user_id == visitor.user_id)
    update = (
        sa.update(response)
        .where(*unclaimed)
        .values(
            user_id=visitor.user_id,
            ignored=sa.case((sa.and_(response.ignored.is_(None), own_link), "self"), else_=response.ignored),
        )
        .execution_options(synchronize_session=False)
    )
    app = t.cast(Flask, unwrapped(current_app))
    won: Sequence[int] = ()
    with transaction.write():
        if signals.user_linked_to_response.has_receivers_for(app):
            won = session.scalars(sa.select(response.id).where(*unclaimed).with_for_update()).all()
        session.execute(update)

    def announce() -> None:
        linked = sa.select(response).where(response.id.in_(won)).order_by(response.created_at, response.id)
        for each in session.scalars(linked).all():
            signals.send(signals.user_linked_to_response, app, response=each)

    if won:
        after_commit(session, announce)


def join(transaction: Transaction, visitor: Visitor) -> None:
    """Make a visitor's history that of the user they turned out to be, and then forget the key."""
    claim(transaction, visitor)
    after_commit(transaction.session, visitors.drop_key)


def link_user(user: t.Any, *, commit: bool) -> None:
    """Do what :meth:`.Referrals.link_user` promises."""
    key = visitors.get_key(visitors.resolve_request())
    if key is not None:
        state = current_state()
        transaction = Transaction(state.session, state.models.response, commit=commit)
        join(transaction, Visitor(user_id(user), key))
        transaction.commit()


def link_at_login(app: Flask, user: t.Any, **extra: t.Any) -> None:
    """Receive Flask-Login's signals: link the user, and never break the login.

    The host's transaction is committed, unless it has changes of its own waiting: then the link becomes durable with
    them, or at the first recorded action.
    """
    if visitors.get_key(visitors.resolve_request()) is None:
        return
    session = current_state().session
    host_is_writing = bool(session.new or session.dirty or session.deleted)
    session.flush()  # the host's own errors stay the host's
    try:
        link_user(user, commit=not host_is_writing)
    except SQLAlchemyError:
        app.logger.exception("A visitor's responses could not be linked to the user who logged in.")


def forget_at_logout(app: Flask, **extra: t.Any) -> None:
    """Receive Flask-Login's signal: what the next person on this browser does is not this user's."""
    visitors.drop_key()
