"""Sums of responses over a period: from the totals for whole days that are rolled up, else from the rows."""

import typing as t
from collections.abc import Callable, Sequence
from datetime import datetime

import sqlalchemy as sa

from .build import Models
from .conditions import Condition, newest_first

#: Returns the value to group by, given the columns of totals or of responses.
Key = Callable[[t.Any], sa.ColumnElement[t.Any]]


class Span(t.NamedTuple):
    """A half-open stretch of time, ``since <= time < until``; ``None`` is no limit."""

    since: datetime | None
    until: datetime | None

    def contains(self, time: t.Any) -> list[Condition]:
        """Return the conditions that a column is in it."""
        after = [time >= self.since] if self.since is not None else []
        return after + ([time < self.until] if self.until is not None else [])


class Parts(t.NamedTuple):
    """How a period is read: from the totals of whole days, and from the rows of the time before and after them."""

    rolled_up: Span | None
    rows: Sequence[Span]


def sum_up(models: Models, parts: Parts, key: Key, narrowed: Sequence[Condition]) -> sa.Select[t.Any]:
    """Select ``key``, ``action``, ``currency``, ``number`` and ``value`` of the counted responses.

    :param key: of the columns of totals and of responses.
    :param narrowed: conditions on the columns of the referrals.
    :return: a select of up to one row for each part.
    """
    total, responses = models.total.c, models.responses
    selects = [
        _sum(models, responses, sa.literal(1), key, [responses.ignored.is_(None), *span.contains(responses.created_at)])
        for span in parts.rows
    ]
    if parts.rolled_up is not None:
        is_total = [total.referral_id.is_not(None), *parts.rolled_up.contains(total.day)]
        selects.append(_sum(models, total, total["count"], key, is_total))
    return _all(selects, narrowed)


def sum_up_ignored(models: Models, span: Span, narrowed: Sequence[Condition]) -> sa.Select[t.Any]:
    """Select the same of the ignored responses. The key is the reason code."""
    responses = models.responses
    is_ignored = [responses.ignored.is_not(None), *span.contains(responses.created_at)]
    return _all([_sum(models, responses, sa.literal(1), lambda columns: columns.ignored, is_ignored)], narrowed)


def _sum(models: Models, columns: t.Any, number: t.Any, key: Key, conditions: Sequence[Condition]) -> sa.Select[t.Any]:
    each = sa.select(
        key(columns).label("key"),
        columns.action.label("action"),
        columns.currency.label("currency"),
        number.label("number"),
        columns.value.label("value"),
    )
    return each.join(models.referrals.id.table, columns.referral_id == models.referrals.id).where(*conditions)


def _all(selects: Sequence[sa.Select[t.Any]], narrowed: Sequence[Condition]) -> sa.Select[t.Any]:
    # Grouped outside: PostgreSQL takes an expression with parameters for another one where it is repeated.
    sums = []
    for select in selects:
        each = select.where(*narrowed).subquery().c
        groups = each.key, each.action, each.currency
        sums.append(
            sa.select(
                *groups, sa.func.sum(each.number).label("number"), sa.func.sum(each.value).label("value")
            ).group_by(*groups)
        )
    return sa.union_all(*sums).subquery().select()


def of_touch(models: Models, pick: Key) -> Key:
    """Return the key of responses that is a column of the touch: of an action, the actor's last touch of its link."""

    def key(columns: t.Any) -> sa.ColumnElement[t.Any]:
        touch: t.Any = sa.orm.aliased(models.response)
        before = sa.select(pick(touch)).where(
            touch.referral_id == columns.referral_id,
            touch.is_touch == sa.true(),
            touch.ignored.is_(None),
            touch.created_at <= columns.created_at,
        )
        before = before.order_by(*newest_first(touch)).limit(1)
        of_user = before.where(touch.user_id == columns.user_id).scalar_subquery()
        of_visitor = before.where(touch.session_key == columns.session_key, touch.user_id.is_(None)).scalar_subquery()
        of_action = sa.case((columns.user_id.is_not(None), of_user), else_=of_visitor)
        return sa.case((columns.is_touch == sa.true(), pick(columns)), else_=of_action)

    return key


def count_people(models: Models, span: Span, actions: Sequence[str], narrowed: Sequence[Condition]) -> sa.Select[t.Any]:
    """Select ``action`` and the ``number`` of distinct people who did it and are counted."""
    responses = models.responses
    of_user = sa.literal("user ").concat(sa.cast(responses.user_id, sa.String(255)))
    person = sa.case((responses.user_id.is_not(None), of_user), else_=responses.session_key)
    each = sa.select(responses.action.label("action"), person.label("person"))
    each = each.join(models.referrals.id.table, responses.referral_id == models.referrals.id)
    each = each.where(responses.ignored.is_(None), responses.action.in_(actions), *span.contains(responses.created_at))
    people = each.where(*narrowed).subquery().c
    return sa.select(people.action, sa.func.count(people.person.distinct()).label("number")).group_by(people.action)
