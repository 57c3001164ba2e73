"""Why a touch earns credit, or why not."""

import typing as t
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone

import sqlalchemy as sa
from werkzeug.wrappers import Request

from . import attribution
from . import config
from . import pending
from . import visitors
from .context import current_state
from .identity import unwrapped
from .identity import user_id

if t.TYPE_CHECKING:
    from .models import ReferralResponseMixin


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a response.

    :param response: the touch; or the action that binds a user.
    :param rule: ``won``: it earns the credit. Else what took it away: the response's own reason code; ``self``: the
        visitor's own link; ``expired``: the link has; ``window``: too long ago; ``bound``: the user is bound to another
        referral; ``lost``: another touch was preferred.
    """

    response: "ReferralResponseMixin"
    rule: str


def explain(who: t.Any) -> list[Verdict]:
    """Do what :meth:`.ReferralMixin.explain` promises."""
    who = unwrapped(who)
    if who is None or isinstance(who, Request):
        visitor = pending.identify(visitors.resolve_request(who))
    else:
        visitor = attribution.Visitor(user_id(who))
    return explain_visitor(visitor) if visitor else []


def explain_visitor(visitor: attribution.Visitor) -> list[Verdict]:
    """Tell of every touch of a visitor why it earns the credit now, or why not.

    :param visitor: somebody, not nobody.
    """
    state = current_state()
    response = state.models.response
    newest_first = attribution.newest_first(response)
    history = attribution.responses_of(visitor).options(sa.orm.joinedload(response.referral))
    touches = state.session.scalars(history.where(response.is_touch).order_by(*newest_first)).all()
    binding = attribution.binding_of(visitor.user_id) if visitor.user_id is not None else None
    verdicts = []
    if binding is not None:
        verdicts.append(Verdict(binding, "won" if binding.referral.is_active() else "expired"))
    winner = attribution.winning_touch(visitor) if binding is None else None
    for touch in touches:
        rule = "won" if touch is winner else _refusal(touch, visitor)
        verdicts.append(Verdict(touch, rule or ("bound" if binding is not None else "lost")))
    return verdicts


def _refusal(touch: "ReferralResponseMixin", visitor: attribution.Visitor) -> str | None:
    if touch.ignored is not None and touch.ignored != "repeat":
        return touch.ignored
    if visitor.user_id is not None and touch.referral.user_id == visitor.user_id:
        return "self"
    if not touch.referral.is_active():
        return "expired"
    window = config.duration("REFERRALS_ATTRIBUTION_WINDOW")
    if window is not None and touch.created_at < datetime.now(timezone.utc) - window:
        return "window"
    return None
