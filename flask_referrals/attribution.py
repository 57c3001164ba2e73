"""Which referral gets credit for what a visitor does."""

import typing as t
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from datetime import timezone

import sqlalchemy as sa
from flask import current_app
from werkzeug.wrappers import Request

from . import config
from . import visitors
from .context import current_state
from .identity import user_id
from .replica import objects_of
from .storing import Choice

if t.TYPE_CHECKING:
    from .models import ReferralMixin
    from .models import ReferralResponseMixin
    from .registry import Models


#: The parameters for who asks.
_USER: sa.BindParameter[t.Any] = sa.bindparam("user")
_VISITOR: sa.BindParameter[t.Any] = sa.bindparam("visitor")


#: The action of a click.
CLICK = "RESPONDED"


@dataclass(frozen=True)
class Visitor:
    """Who acts: a user's key, a visitor's key, both at the first request after a login, or neither."""

    user_id: t.Any = None
    key: t.Any = None

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
    """Tell a visitor's responses from others'. A key counts only for rows that no user has claimed.

    :param visitor: who, or what the statement's parameters for it are.
    """
    of_user = model.user_id == visitor.user_id
    of_key = sa.and_(model.session_key == visitor.key, unclaimed(model))
    if visitor.user_id is None:
        return of_key
    return of_user if visitor.key is None else sa.or_(of_user, of_key)


def unclaimed(model: "type[ReferralResponseMixin]") -> sa.ColumnElement[bool]:
    """Tell the responses that are no user's."""
    # In this form the users' index is no answer: without statistics PostgreSQL would read all strangers' rows by it.
    return sa.case((model.user_id.is_(None), 1), else_=0) == 1


def credit(visitor: Visitor) -> Choice | None:
    """Return how the referral is chosen that gets credit now, in one statement; ``None``: none does.

    A user's first credited action binds them to its referral; later actions follow it, whatever the window. Else a
    touch decides (a click, or what :meth:`.ReferralMixin.respond` recorded): the last or the first, as
    ``REFERRALS_ATTRIBUTION`` says, of those on links that have not expired and are not the visitor's own, within
    ``REFERRALS_ATTRIBUTION_WINDOW``. A repeated click is not counted, but says as well as any other whom the visitor
    followed last. A policy of the host's own is asked for a touch, with a statement more.

    :param visitor: somebody, not nobody.
    """
    if callable(current_app.config["REFERRALS_ATTRIBUTION"]):
        bound = referrer_of(visitor.user_id) if visitor.user_id is not None else None
        if bound is not None:
            return choice_of(bound.id, visitor) if bound.is_active() else None
        touch = winning_touch(visitor)
        return choice_of(touch.referral_id, visitor) if touch is not None else None
    return Choice(_credited, _who(visitor), _parameters(visitor))


def choice_of(referral_id: int, visitor: Visitor) -> Choice:
    """Return the choice of a referral that is known.

    :param visitor: who responds to it.
    """
    has_user = visitor.user_id is not None
    user = {_USER.key: visitor.user_id} if has_user else {}
    return Choice(_known, (has_user,), {"chosen_id": referral_id, **user})


def credited(visitor: Visitor) -> "ReferralMixin | None":
    """Return the referral that gets credit now: what :func:`credit` chooses.

    :param visitor: somebody, not nobody.
    """
    state = current_state()
    choice = credit(visitor)
    if choice is None:
        return None
    found = state.session.scalar(state.models.once(_entity, choice.make, *choice.arguments), choice.parameters)
    return t.cast("ReferralMixin | None", found)


def _entity(models: "Models", make: t.Any, *arguments: t.Any) -> sa.Select[t.Any]:
    return t.cast("sa.Select[t.Any]", make(models, *arguments).with_only_columns(models.referral))


def _credited(models: "Models", *who: bool) -> sa.Select[t.Any]:
    response = models.response
    winner: sa.ColumnElement[t.Any] = _winner(models, *who).with_only_columns(response.referral_id).scalar_subquery()
    has_user = who[0]
    if has_user:
        winner = sa.func.coalesce(_binding(response, response.referral_id), winner)
    return _chosen(models, has_user).where(models.referral.id == winner, _is_active(models.referral))


def _known(models: "Models", has_user: bool) -> sa.Select[t.Any]:
    return _chosen(models, has_user).where(models.referral.id == sa.bindparam("chosen_id"))


def _chosen(models: "Models", has_user: bool) -> sa.Select[t.Any]:
    """Select a referral, and why a response to it does not count: it is its owner's."""
    ignored = own(models.referral) if has_user else sa.null()
    return sa.select(models.referral.id.label("referral_id"), ignored.label("ignored"))


def own(referral: "type[ReferralMixin]") -> sa.ColumnElement[t.Any]:
    """Return the reason code of a response that is the referral's owner's; the user is a parameter."""
    return sa.case((referral.user_id == _USER, "self"))


def _who(visitor: Visitor) -> tuple[bool, ...]:
    """Return what a statement about a visitor depends on."""
    is_last = current_app.config["REFERRALS_ATTRIBUTION"] != "first"  # a policy of the host's is given the last first
    return visitor.user_id is not None, visitor.key is not None, _window() is not None, is_last


def _parameters(visitor: Visitor) -> dict[str, t.Any]:
    now, window = datetime.now(timezone.utc), _window()
    given = {"user": visitor.user_id, "visitor": visitor.key, "since": None if window is None else now - window}
    return {name: value for name, value in given.items() if value is not None} | {"now": now}


def _window() -> timedelta | None:
    return config.duration("REFERRALS_ATTRIBUTION_WINDOW")


def winning_touch(visitor: Visitor) -> "ReferralResponseMixin | None":
    """Return the touch that the policy prefers, for somebody who is not bound."""
    state = current_state()
    policy = current_app.config["REFERRALS_ATTRIBUTION"]
    make = _touches if callable(policy) else _winner
    touches = state.session.scalars(state.models.once(make, *_who(visitor)), _parameters(visitor)).all()
    chosen: ReferralResponseMixin | None = policy(touches) if callable(policy) else next(iter(touches), None)
    return chosen


def binding_of(user_id: t.Any) -> "ReferralResponseMixin | None":
    """Return the action that binds a user: the first that was credited.

    :param user_id: the user's key.
    """
    state = current_state()
    response = state.models.response
    found = sa.select(response).where(response.id == _binding(response, response.id))
    return state.session.scalar(found, {_USER.key: user_id})


def referrer_of(user_id: t.Any) -> "ReferralMixin | None":
    """Return the referral a user is bound to: that of their first credited action. One statement.

    :param user_id: the user's key.
    """
    state = current_state()
    referral = state.models.referral
    response = state.models.response
    found = sa.select(referral).where(referral.id == _binding(response, response.referral_id))
    return state.session.scalar(found, {_USER.key: user_id})


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
    return objects_of(bound)


def _touches(models: "Models", *who: bool) -> sa.Select[t.Any]:
    """Select the touches that may earn credit now, the preferred one first, with their referrals."""
    has_user, has_key, has_window, is_last = who
    referral, response = models.referral, models.response
    visitor = Visitor(_USER if has_user else None, _VISITOR if has_key else None)
    touches = (
        sa.select(response)
        .join(referral, response.referral_id == referral.id)
        .where(made_by(visitor, response), response.is_touch == sa.true(), _is_active(referral))
        .where(sa.or_(response.ignored.is_(None), response.ignored == "repeat"))
        .options(sa.orm.contains_eager(response.referral))
        .order_by(*(newest_first(response) if is_last else _oldest_first(response)))
    )
    if has_user:
        touches = touches.where(sa.or_(referral.user_id.is_(None), referral.user_id != _USER))
    return touches.where(response.created_at >= sa.bindparam("since")) if has_window else touches


def _winner(models: "Models", *who: bool) -> sa.Select[t.Any]:
    """Select the touch that the policy "last" or "first" prefers."""
    return _touches(models, *who).limit(1)


def _binding(response: "type[ReferralResponseMixin]", what: t.Any) -> sa.ScalarSelect[t.Any]:
    """Select a column of the action that binds a user, who is a parameter."""
    credited_actions = sa.select(what).where(response.user_id == _USER, _is_credited(response))
    return credited_actions.order_by(*_oldest_first(response)).limit(1).scalar_subquery()


def _is_credited(model: "type[ReferralResponseMixin]") -> sa.ColumnElement[bool]:
    # Compared, for no index finds what IS true or false.
    return sa.and_(model.is_touch == sa.false(), model.ignored.is_(None))


def _is_active(model: "type[ReferralMixin]") -> sa.ColumnElement[bool]:
    return sa.or_(model.expired_at.is_(None), model.expired_at > sa.bindparam("now"))


def _oldest_first(model: "type[ReferralResponseMixin]") -> Sequence[sa.ColumnElement[t.Any]]:
    return model.created_at.asc(), model.id.asc()


def newest_first(model: "type[ReferralResponseMixin]") -> Sequence[sa.ColumnElement[t.Any]]:
    """Order by time; the id only breaks ties: on a cluster ids do not follow time."""
    return model.created_at.desc(), model.id.desc()
