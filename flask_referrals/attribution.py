"""Which referral gets credit for what a visitor does."""

import typing as t
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone

import sqlalchemy as sa
from flask import current_app
from werkzeug.wrappers import Request

from . import config
from . import visitors
from .context import current_state
from .identity import user_id

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
    """Select all responses of a visitor."""
    model = current_state().models.response
    return sa.select(model).where(made_by(visitor, model))


def made_by(visitor: Visitor, model: "type[ReferralResponseMixin]") -> sa.ColumnElement[bool]:
    """Tell a visitor's responses from others'. A key counts only for rows that no user has claimed."""
    of_user = model.user_id == visitor.user_id
    of_key = sa.and_(model.session_key == visitor.key, model.user_id.is_(None))
    if visitor.user_id is None:
        return of_key
    return of_user if visitor.key is None else sa.or_(of_user, of_key)


def credited(visitor: Visitor) -> "ReferralMixin | None":
    """Return the referral that gets credit now: one statement, and a second with a policy of the host's own.

    A user's first credited action binds them to its referral; later actions follow it, whatever the window. Else a
    touch decides (a click, or what :meth:`.ReferralMixin.respond` recorded): the last or the first, as
    ``REFERRALS_ATTRIBUTION`` says, of those on links that have not expired and are not the visitor's own, within
    ``REFERRALS_ATTRIBUTION_WINDOW``. A repeated click is not counted, but says as well as any other whom the visitor
    followed last.

    :param visitor: somebody, not nobody.
    """
    state = current_state()
    referral = state.models.referral
    if callable(current_app.config["REFERRALS_ATTRIBUTION"]):
        bound = referrer_of(visitor.user_id) if visitor.user_id is not None else None
        if bound is not None:
            return bound if bound.is_active() else None
        touch = winning_touch(visitor)
        return touch.referral if touch is not None else None
    winner_id: sa.ColumnElement[t.Any] = _first_choice(visitor, state.models.response.referral_id).scalar_subquery()
    if visitor.user_id is not None:
        winner_id = sa.func.coalesce(_binding(visitor.user_id, state.models.response.referral_id), winner_id)
    return state.session.scalar(sa.select(referral).where(referral.id == winner_id, _is_active(referral)))


def winning_touch(visitor: Visitor) -> "ReferralResponseMixin | None":
    """Return the touch that the policy prefers, for somebody who is not bound."""
    state = current_state()
    response = state.models.response
    policy = current_app.config["REFERRALS_ATTRIBUTION"]
    if not callable(policy):
        return t.cast("ReferralResponseMixin | None", state.session.scalar(_first_choice(visitor, response)))
    candidates = _touches(visitor).options(sa.orm.contains_eager(response.referral)).order_by(*newest_first(response))
    chosen: ReferralResponseMixin | None = policy(state.session.scalars(candidates).all())
    return chosen


def binding_of(user_id: t.Any) -> "ReferralResponseMixin | None":
    """Return the action that binds a user: the first that was credited.

    :param user_id: the user's key.
    """
    state = current_state()
    return state.session.scalar(
        sa.select(state.models.response).where(state.models.response.id == _binding(user_id, state.models.response.id))
    )


def referrer_of(user_id: t.Any) -> "ReferralMixin | None":
    """Return the referral a user is bound to: that of their first credited action. One statement.

    :param user_id: the user's key.
    """
    state = current_state()
    referral = state.models.referral
    return state.session.scalar(
        sa.select(referral).where(referral.id == _binding(user_id, state.models.response.referral_id))
    )


def referred_by(user_id: t.Any) -> Sequence[t.Any]:
    """Return the users who are bound to a user's referrals, in the order in which they came. One statement.

    :param user_id: the key of the user who passed the links on.
    :return: the users; in an app without a user model what is stored for them.
    """
    state = current_state()
    referral, response, user = state.models.referral, state.models.response, state.models.user
    earlier = sa.orm.aliased(response)
    is_earlier = sa.or_(
        earlier.created_at < response.created_at,
        sa.and_(earlier.created_at == response.created_at, earlier.id < response.id),
    )
    bound_before = sa.exists().where(earlier.user_id == response.user_id, _is_credited(earlier), is_earlier)
    bound = (
        sa.select(response.user_id)
        .join(referral, response.referral_id == referral.id)
        .where(referral.user_id == user_id, response.user_id.is_not(None), _is_credited(response), ~bound_before)
        .order_by(*_oldest_first(response))
    )
    if user is not None:
        bound = bound.join(response.user).with_only_columns(user)
    return state.session.scalars(bound).all()


def _touches(visitor: Visitor) -> sa.Select[t.Any]:
    """Select the touches that may earn credit now."""
    models = current_state().models
    referral, response = models.referral, models.response
    touches = (
        responses_of(visitor)
        .join(referral, response.referral_id == referral.id)
        .where(response.is_touch == sa.true(), sa.or_(response.ignored.is_(None), response.ignored == "repeat"))
        .where(_is_active(referral))
    )
    if visitor.user_id is not None:
        touches = touches.where(sa.or_(referral.user_id.is_(None), referral.user_id != visitor.user_id))
    window = config.duration("REFERRALS_ATTRIBUTION_WINDOW")
    if window is not None:
        touches = touches.where(response.created_at >= datetime.now(timezone.utc) - window)
    return touches


def _first_choice(visitor: Visitor, what: t.Any) -> sa.Select[t.Any]:
    """Select something of the touch that the policy "last" or "first" prefers."""
    response = current_state().models.response
    is_last = current_app.config["REFERRALS_ATTRIBUTION"] == "last"
    order = newest_first(response) if is_last else _oldest_first(response)
    return _touches(visitor).with_only_columns(what).order_by(*order).limit(1)


def _binding(user_id: t.Any, what: t.Any) -> sa.ScalarSelect[t.Any]:
    """Select a column of the action that binds a user."""
    response = current_state().models.response
    credited_actions = sa.select(what).where(response.user_id == user_id, _is_credited(response))
    return credited_actions.order_by(*_oldest_first(response)).limit(1).scalar_subquery()


def _is_credited(model: "type[ReferralResponseMixin]") -> sa.ColumnElement[bool]:
    # Compared, for no index finds what IS true or false.
    return sa.and_(model.is_touch == sa.false(), model.ignored.is_(None))


def _is_active(model: "type[ReferralMixin]") -> sa.ColumnElement[bool]:
    return sa.or_(model.expired_at.is_(None), model.expired_at > datetime.now(timezone.utc))


def _oldest_first(model: "type[ReferralResponseMixin]") -> Sequence[sa.ColumnElement[t.Any]]:
    return model.created_at.asc(), model.id.asc()


def newest_first(model: "type[ReferralResponseMixin]") -> Sequence[sa.ColumnElement[t.Any]]:
    """Order by time; the id only breaks ties: on a cluster ids do not follow time."""
    return model.created_at.desc(), model.id.desc()
