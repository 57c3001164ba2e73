"""Conditions and orders that several statements share. A host may have renamed columns: attributes are named here."""

import typing as t
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from ..types import Actor, Anonymous

Condition = sa.ColumnElement[bool]
#: Returns a condition on the columns of responses.
Make = Callable[[t.Any], Condition]

USER: sa.BindParameter[t.Any] = sa.bindparam("user")
VISITOR: sa.BindParameter[t.Any] = sa.bindparam("visitor")
NOW: sa.BindParameter[t.Any] = sa.bindparam("now")


def is_exactly(column: t.Any, value: t.Any) -> Condition:
    """Return the condition that a column has a value. MariaDB ignores trailing spaces unless a character follows."""
    if not isinstance(column.type, sa.String):
        return t.cast(Condition, column == value)
    if isinstance(value, str):
        value = sa.literal(value, column.type)
    return sa.and_(column == value, column.concat("|") == sa.type_coerce(value, column.type).concat("|"))


def made_by(responses: t.Any, *, has_user: bool, has_visitor: bool) -> Condition:
    """Return the condition for the responses of an actor. Those of a visitor are unclaimed."""
    makers = made_by_each(has_user=has_user, has_visitor=has_visitor)
    return sa.or_(*(sa.and_(is_found(responses), is_theirs(responses)) for is_found, is_theirs in makers))


def made_by_each(*, has_user: bool, has_visitor: bool) -> Sequence[tuple[Make, Make]]:
    """Return two conditions for the responses of the user, and two for those of the visitor.

    The first finds rows by an index, the second checks them. PostgreSQL takes the second as rare: inside a LIMIT it
    would rather read the table than the index.
    """
    user: tuple[Make, Make] = (lambda each: each.user_id == USER, lambda each: is_exactly(each.user_id, USER))
    visitor: tuple[Make, Make] = (lambda each: each.session_key == VISITOR, unclaimed)
    return [maker for maker, has in ((user, has_user), (visitor, has_visitor)) if has]


def actor_parameters(actor: Actor | Anonymous) -> dict[str, t.Any]:
    """Return the parameters of :func:`made_by`."""
    return {"user": actor.user_id, "visitor": actor.visitor_key}


def history_of(response: t.Any, actor: Actor) -> sa.Select[t.Any]:
    """Select the responses of an actor, newest first; the parameters are those of :func:`actor_parameters`."""
    is_theirs = made_by(response, has_user=actor.user_id is not None, has_visitor=actor.visitor_key is not None)
    return sa.select(response).where(is_theirs).order_by(*newest_first(response))


def unclaimed(responses: t.Any) -> Condition:
    """Return the condition for the responses that belong to no user."""
    # CASE keeps PostgreSQL off the index on users: without statistics it would read every anonymous row.
    return sa.case((responses.user_id.is_(None), 1), else_=0) == 1


def is_credited(responses: t.Any) -> Condition:
    """Return the condition for the counted actions, of which a user's first one binds."""
    return sa.and_(responses.is_touch == sa.false(), responses.ignored.is_(None))


def is_active(referrals: t.Any) -> Condition:
    """Return the condition for the referrals that have not expired."""
    return sa.or_(referrals.expired_at.is_(None), referrals.expired_at > NOW)


def own_reason(referrals: t.Any) -> sa.ColumnElement[t.Any]:
    """Return the reason code of a response by the referral's own owner."""
    return sa.case((is_exactly(referrals.user_id, USER), "self"))


def oldest_first(responses: t.Any) -> Sequence[sa.ColumnElement[t.Any]]:
    """Order by time. The id only breaks ties: on a cluster ids do not follow time."""
    return responses.created_at.asc(), responses.id.asc()


def newest_first(responses: t.Any) -> Sequence[sa.ColumnElement[t.Any]]:
    return responses.created_at.desc(), responses.id.desc()


def in_order(responses: t.Any, *, newest_first: bool) -> Sequence[sa.ColumnElement[t.Any]]:
    """Order counted rows as the indexes do: PostgreSQL does not see that IS NULL means one value."""
    direction = sa.desc if newest_first else sa.asc
    return [direction(column) for column in (responses.ignored, responses.created_at, responses.id)]
