"""Attribution: which referral earns the credit for an action, which one a user is bound to, and why.

A user's first credited action binds them to its referral: it earns all later credit, whatever the window. Without a
binding a touch decides: the last or the first, as ``REFERRALS_ATTRIBUTION`` says, of the touches on links that have
not expired and are not the actor's own, within ``REFERRALS_ATTRIBUTION_WINDOW``. A repeated click is not counted, but
says as well as any other which link the visitor followed last.
"""

import typing as t
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from .db.build import Models
from .db.conditions import (
    USER,
    Condition,
    actor_parameters,
    history_of,
    in_order,
    is_active,
    is_credited,
    is_exactly,
    made_by_each,
    newest_first,
    oldest_first,
    own_reason,
)
from .db.responses import Choice
from .db.tables import ReferralColumns, ResponseColumns
from .db.transactions import get_statement
from .settings import Settings
from .state import AppState
from .times import now
from .types import Actor, Anonymous

#: How many touches a callable of the host's is given.
_MAX_TOUCHES = 1000
#: How many repeats of a visitor are stored within the repeat window, may earn credit, and are joined at a login.
MAX_REPEATS = 100


class TouchQuery(t.NamedTuple):
    """Select the touches that may earn the credit, the preferred one first, with their referrals.

    A repeated click is not counted, but is as good as the first.
    """

    has_user: bool
    has_visitor: bool
    has_window: bool
    newest_first: bool

    @classmethod
    def of(cls, actor: Actor, settings: Settings) -> "TouchQuery":
        """Return the query for an actor. A callable of the host's is given the newest touch first."""
        is_newest_first = settings.attribution != "first"
        has_window = settings.attribution_window is not None
        return cls(actor.user_id is not None, actor.visitor_key is not None, has_window, is_newest_first)

    def build(self, models: Models) -> t.Any:
        response: t.Any = models.response
        found = self._select_nearest(models, _MAX_TOUCHES)
        touches = sa.select(response).join(found, found.c.id == response.id).join(response.referral)
        touches = touches.order_by(*(newest_first(response) if self.newest_first else oldest_first(response)))
        return touches.limit(_MAX_TOUCHES).options(sa.orm.contains_eager(response.referral))

    def build_referral(self, models: Models, *, is_any: bool = False) -> sa.ScalarSelect[t.Any]:
        """Select the key of the first one's referral.

        :param is_any: also of a touch that earns nothing, because its link has expired or is the actor's own.
        """
        found = self._select_nearest(models, 1, is_any=is_any).c
        by_time = newest_first if self.newest_first else oldest_first
        return sa.select(found.referral_id).order_by(*by_time(found)).limit(1).scalar_subquery()

    def _select_nearest(self, models: Models, limit: int, *, is_any: bool = False) -> sa.Subquery:
        """Select the first ones of each range of an index."""
        responses, referrals = models.responses, models.referrals
        conditions = [responses.is_touch == sa.true()]
        if self.has_window:
            conditions.append(responses.created_at >= sa.bindparam("since"))
        is_valid: list[Condition] = [] if is_any else [is_active(referrals)]
        if self.has_user and not is_any:
            is_valid.append(sa.or_(referrals.user_id.is_(None), ~is_exactly(referrals.user_id, USER)))
        names = ("id", "referral_id", "created_at", "ignored", "user_id")
        select = sa.select(*(responses[name].label(name) for name in names)).where(*conditions)
        parts = []
        by_time = newest_first if self.newest_first else oldest_first
        for is_found, is_theirs in made_by_each(has_user=self.has_user, has_visitor=self.has_visitor):
            counted = select.where(is_found(responses), responses.ignored.is_(None)).subquery()
            repeats = select.where(is_found(responses), responses.ignored == "repeat")
            nearest = repeats.order_by(*by_time(responses)).limit(MAX_REPEATS).subquery()
            for near, order in (
                (counted, in_order(counted.c, newest_first=self.newest_first)),
                (nearest, by_time(nearest.c)),
            ):
                part = sa.select(near).join(referrals.id.table, near.c.referral_id == referrals.id)
                part = part.where(is_theirs(near.c), *is_valid).order_by(*order).limit(limit)
                parts.append(part.subquery().select())
        return sa.union_all(*parts).subquery()


class CreditQuery(t.NamedTuple):
    """Select the referral that earns the credit: the user's binding, or else that of the preferred touch."""

    touches: TouchQuery

    def build(self, models: Models) -> t.Any:
        winner: t.Any = self.touches.build_referral(models)
        if self.touches.has_user:
            winner = sa.func.coalesce(_first_credited(models.responses, models.responses.referral_id), winner)
        chosen = _select_choice(models, own_reason(models.referrals) if self.touches.has_user else sa.null())
        return chosen.where(models.referrals.id == winner, is_active(models.referrals))


class KnownQuery(t.NamedTuple):
    """Select a referral by its key. The reason to ignore a response is that a user owns it, or else a parameter."""

    has_user: bool

    def build(self, models: Models) -> t.Any:
        reason: t.Any = sa.bindparam("reason", type_=models.responses.ignored.type)
        chosen = _select_choice(models, own_reason(models.referrals) if self.has_user else reason)
        return chosen.where(models.referrals.id == sa.bindparam("chosen_id"))


class CreditedReferral(t.NamedTuple):
    """Select the object of the referral that one of these queries selects."""

    query: t.Any

    def build(self, models: Models) -> t.Any:
        return sa.select(models.referral).where(models.referral.id == self.query.build(models).subquery().c.referral_id)


def _select_choice(models: Models, ignored: sa.ColumnElement[t.Any]) -> t.Any:
    return sa.select(models.referrals.id.label("referral_id"), ignored.label("ignored"))


def _first_credited(response: t.Any, column: t.Any) -> sa.ScalarSelect[t.Any]:
    """Select a column of the action that binds a user; the user is a parameter."""
    actions = sa.select(column).where(is_exactly(response.user_id, USER), is_credited(response))
    return actions.order_by(*in_order(response, newest_first=False)).limit(1).scalar_subquery()


def choose_referral(state: AppState, actor: Actor) -> Choice | None:
    """Return how the referral that earns the credit is chosen, in one statement; ``None`` if none does.

    A callable in ``REFERRALS_ATTRIBUTION`` is asked here, with a statement more.
    """
    if callable(state.settings.attribution):
        binding = find_referrer(state, actor.user_id) if actor.user_id is not None else None
        if binding is not None:
            return choose_known(binding.id, actor) if binding.is_active() else None
        touch = _find_winning_touch(state, actor)
        return choose_known(touch.referral_id, actor) if touch is not None else None
    return Choice(CreditQuery(TouchQuery.of(actor, state.settings)), _parameters(actor, state.settings))


def choose_known(referral_id: int, actor: Actor | Anonymous, reason: str | None = None) -> Choice:
    parameters = {"chosen_id": referral_id, "user": actor.user_id, "reason": reason}
    return Choice(KnownQuery(actor.user_id is not None), parameters)


def find_credited_referral(state: AppState, actor: Actor) -> ReferralColumns | None:
    choice = choose_referral(state, actor)
    if choice is None:
        return None
    statement = get_statement(state.database.models, CreditedReferral(choice.query))
    return t.cast("ReferralColumns | None", state.database.first_object(statement, choice.parameters))


def _parameters(actor: Actor, settings: Settings) -> dict[str, t.Any]:
    parameters = {"now": now(), "user": actor.user_id, "visitor": actor.visitor_key}
    if settings.attribution_window is not None:
        parameters["since"] = parameters["now"] - settings.attribution_window
    return parameters


def _find_winning_touch(state: AppState, actor: Actor) -> t.Any:
    """Return the touch that the policy prefers, for an actor who is not bound."""
    policy = state.settings.attribution
    touches = get_statement(state.database.models, TouchQuery.of(actor, state.settings))
    parameters = _parameters(actor, state.settings)
    if callable(policy):
        with state.database.without_flush():
            return policy(state.database.objects(touches, parameters))
    return state.database.first_object(touches.limit(1), parameters)


def find_referrer(state: AppState, user_id: t.Any) -> ReferralColumns | None:
    """Return the referral that a user is bound to, in one statement."""
    referral, response = state.database.models.referral, state.database.models.response
    found = sa.select(referral).where(referral.id == _first_credited(response, response.referral_id))
    return t.cast("ReferralColumns | None", state.database.first_object(found, {"user": user_id}))


def find_referred_users(state: AppState, user_id: t.Any) -> Sequence[t.Any]:
    """Return the users who are bound to a user's referrals, in the order in which they came, in one statement."""
    models = state.database.models
    referral, response = models.referral, models.response
    earlier: t.Any = sa.orm.aliased(response)
    is_earlier = sa.tuple_(earlier.created_at, earlier.id) < sa.tuple_(response.created_at, response.id)
    is_bound_before = sa.exists().where(is_exactly(earlier.user_id, response.user_id), is_credited(earlier), is_earlier)
    bound = (
        sa.select(response.user_id)
        .join(referral, response.referral_id == referral.id)
        .where(is_exactly(referral.user_id, user_id), response.user_id.is_not(None), is_credited(response))
        .where(~is_bound_before)
        .order_by(*oldest_first(response))
    )
    if models.user is not None:
        bound = bound.join(response.user).with_only_columns(models.user)
    return state.reports.objects(bound)


R = t.TypeVar("R", bound=ResponseColumns)


@dataclass(frozen=True)
class Verdict(t.Generic[R]):
    """What attribution says of a response.

    :param response: the touch; or the action that binds a user.
    :param rule: ``won``: it earns the credit. Else why it does not: the response's own reason code; ``self``: the link
        is the actor's own; ``expired``: the link has expired; ``window``: the touch is too old; ``bound``: an action
        has bound the user, so touches no longer decide; ``lost``: another touch was preferred.
    """

    response: R
    rule: str


def explain_credit(state: AppState, actor: Actor) -> list[Verdict[t.Any]]:
    """Explain why each touch of an actor earns the credit or not. The first verdict is about the binding, if any."""
    response = state.database.models.response
    history = history_of(response, actor).where(response.is_touch == sa.true())
    history = history.options(sa.orm.joinedload(response.referral))
    touches = state.database.objects(history, actor_parameters(actor))
    binding: t.Any = None
    if actor.user_id is not None:
        first = sa.select(response).where(response.id == _first_credited(response, response.id))
        binding = state.database.first_object(first, {"user": actor.user_id})
    if binding is None:
        winner = _find_winning_touch(state, actor)
        return [Verdict(each, "won" if each is winner else _refusal(state, each, actor) or "lost") for each in touches]
    verdicts = [Verdict(binding, "won" if binding.referral.is_active() else "expired")]
    return verdicts + [Verdict(each, _refusal(state, each, actor) or "bound") for each in touches]


def _refusal(state: AppState, touch: t.Any, actor: Actor) -> str | None:
    if touch.ignored is not None and touch.ignored != "repeat":
        return str(touch.ignored)
    if actor.user_id is not None and touch.referral.user_id == actor.user_id:
        return "self"
    if not touch.referral.is_active():
        return "expired"
    window = state.settings.attribution_window
    return "window" if window is not None and touch.created_at < now() - window else None
