"""Sums of responses over a period: from the totals for whole days that are rolled up, else from the rows."""

import typing as t
from collections.abc import Callable, Sequence
from datetime import datetime

import sqlalchemy as sa

from .build import Models
from .conditions import Condition, newest_first
from .totals import is_of_site

#: Returns the value to group by, given the columns of totals or of responses.
Key = Callable[[t.Any], sa.ColumnElement[t.Any]]

#: The columns of a select that are summed up. It is grouped by all others.
_SUMMED = ("number", "value")


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


class Links(t.NamedTuple):
    """The links whose responses are counted.

    :param conditions: on the columns of the referrals.
    :param is_key: whether the responses are grouped by a column of the referrals.
    """

    conditions: Sequence[Condition]
    is_key: bool = False

    @property
    def is_site(self) -> bool:
        """Whether all links count, and it does not matter for which one."""
        return not self.conditions and not self.is_key

    def join(self, models: Models, select: sa.Select[t.Any], referral_id: t.Any) -> sa.Select[t.Any]:
        """Return the select for these links only.

        All links are joined as well: PostgreSQL then finds the responses of today by the index of each link.
        """
        return select.join(models.referrals.id.table, referral_id == models.referrals.id).where(*self.conditions)


def sum_up(models: Models, parts: Parts, key: Key, links: Links) -> sa.Select[t.Any]:
    """Select ``key``, ``action``, ``currency``, ``number`` and ``value`` of the counted responses.

    :param key: of the columns of totals and of responses.
    :return: a select of up to one row for each part.
    """
    total = models.total.c
    selects = [_of_rows(models, key, links, [models.responses.ignored.is_(None)], span) for span in parts.rows]
    if parts.rolled_up is not None:
        sign, is_wanted = (-1, is_of_site(total)) if links.is_site else (1, total.referral_id.is_not(None))
        each = sa.select(
            key(total).label("key"),
            total.action.label("action"),
            total.currency.label("currency"),
            (sign * total["count"]).label("number"),
            (sign * total.value).label("value"),
        )
        each = each.where(is_wanted, *parts.rolled_up.contains(total.day))
        selects.append(each if links.is_site else links.join(models, each, total.referral_id))
    return _sum(selects)


def sum_up_ignored(models: Models, span: Span, links: Links) -> sa.Select[t.Any]:
    """Select the same of the ignored responses. The key is the reason code."""
    is_ignored = [models.responses.ignored.is_not(None)]
    return _sum([_of_rows(models, lambda columns: columns.ignored, links, is_ignored, span)])


def sum_up_touches(models: Models, span: Span, pick: Key, links: Links) -> sa.Select[t.Any]:
    """Select the same by a column of the touch: of an action, the actor's last touch of its link.

    :return: a select of up to two rows for each key. In one select, PostgreSQL would plan as if each row needed the
        subqueries.
    """
    responses = models.responses
    selects = [
        _of_rows(models, key, links, [responses.ignored.is_(None), responses.is_touch == is_touch], span)
        for is_touch, key in ((sa.true(), pick), (sa.false(), _of_touch(models, pick)))
    ]
    return _sum(selects)


def sum_up_owners(models: Models, parts: Parts, action: str | None, currency: str | None) -> sa.Select[t.Any]:
    """Select the ``key`` of each owner and a ``number``: of an action, or without one the value in a currency."""
    referrals, responses, total = models.referrals, models.responses, models.total.c
    sources: list[tuple[t.Any, t.Any, Sequence[Condition]]] = [
        (responses, sa.literal(1), [responses.ignored.is_(None), *span.contains(responses.created_at)])
        for span in parts.rows
    ]
    if parts.rolled_up is not None:
        is_total = [total.referral_id.is_not(None), *parts.rolled_up.contains(total.day)]
        sources.append((total, total["count"], is_total))
    selects = []
    for columns, count, conditions in sources:
        number = columns.value if action is None else count
        is_wanted = columns.currency == currency if action is None else columns.action == action
        each = sa.select(columns.referral_id.label("referral_id"), number.label("number"))
        each = each.where(is_wanted, *conditions)
        selects.append(Links([]).join(models, each, columns.referral_id) if columns is responses else each)
    # There are far fewer links than rows: they are joined to the sums.
    of_links = _sum(selects).subquery().c
    sums = sa.select(referrals.user_id.label("key"), sa.func.sum(of_links.number).label("number"))
    sums = sums.where(of_links.referral_id == referrals.id, referrals.user_id.is_not(None))
    return sums.group_by(referrals.user_id)


def _of_rows(models: Models, key: Key, links: Links, conditions: Sequence[Condition], span: Span) -> sa.Select[t.Any]:
    responses = models.responses
    each = sa.select(
        key(responses).label("key"),
        responses.action.label("action"),
        responses.currency.label("currency"),
        sa.literal(1).label("number"),
        responses.value.label("value"),
    )
    each = each.where(*conditions, *span.contains(responses.created_at))
    return links.join(models, each, responses.referral_id)


def _sum(selects: Sequence[sa.Select[t.Any]]) -> sa.Select[t.Any]:
    # Grouped outside: PostgreSQL takes an expression with parameters for another one where it is repeated.
    sums = []
    for select in selects:
        each = select.subquery().c
        groups = [column for column in each if column.key not in _SUMMED]
        summed = [sa.func.sum(each[name]).label(name) for name in _SUMMED if name in each]
        sums.append(sa.select(*groups, *summed).group_by(*groups))
    return sa.union_all(*sums).subquery().select()


def _of_touch(models: Models, pick: Key) -> Key:
    """Return the key of actions that is a column of the actor's last touch of the link."""

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
        return sa.case((columns.user_id.is_not(None), of_user), else_=of_visitor)

    return key


def count_people(models: Models, span: Span, actions: Sequence[str], links: Links) -> sa.Select[t.Any]:
    """Select ``action`` and the ``number`` of distinct people who did it and are counted."""
    responses = models.responses
    visitor = sa.case((responses.user_id.is_(None), responses.session_key))
    each = sa.select(responses.action.label("action"), responses.user_id.label("user_id"), visitor.label("visitor"))
    each = each.where(responses.ignored.is_(None), responses.action.in_(actions), *span.contains(responses.created_at))
    each = each.where(sa.or_(responses.user_id.is_not(None), responses.session_key.is_not(None)))
    people = links.join(models, each, responses.referral_id).distinct().subquery().c
    return sa.select(people.action, sa.func.count().label("number")).group_by(people.action)
