"""The counts of responses: rolled up for the days that are over, counted from the rows for those since.

``flask referrals rollup`` adds one row per referral and action for the time since the last roll-up. Rows are never
changed, so that nobody waits for a counter: a change in a time that is rolled up adds a correcting row. One row is the
watermark: everything before its time is rolled up. A roll-up locks it, and so does a correction, so that no change
falls between the two. MariaDB also writes to it: the nodes of a cluster do not see each other's locks, but one of two
transactions that write to the same row is given up.
"""

import typing as t
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..times import as_utc, now
from .build import Models
from .database import Database
from .transactions import Transaction, open_transaction

_DAY = timedelta(days=1)
#: How long after midnight a day is over: by then, what was recorded before it has been committed.
_MARGIN = timedelta(hours=1)
_NEVER = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: The key of the watermark, which no sequence reaches.
_WATERMARK = -1

_PAGE = 1000

#: A response that has come to be counted, or is no longer: its referral's key, its action, its time.
Counted = tuple[int, str, datetime]


def watermark(models: Models) -> sa.Select[t.Any]:
    """Select the time before which everything is rolled up, if anything is."""
    return sa.select(models.total.c.day).where(models.total.c.id == _WATERMARK)


def counts(models: Models, links: sa.Select[t.Any], until: datetime | None) -> sa.Select[t.Any]:
    """Select referral, action and number of the counted responses, in up to two rows for each.

    :param until: what :func:`watermark` selects. As a part of this statement PostgreSQL would not know that hardly any
        response of a busy link is younger, and would read all of them.
    """
    total, responses = models.total, models.responses
    since = as_utc(until) if until is not None else _NEVER
    chosen = links.subquery()
    by_total = total.c.referral_id, total.c.action
    rolled_up = sa.select(*by_total, sa.func.sum(total.c.count).label("number")).group_by(*by_total)
    rolled_up = rolled_up.join(chosen, chosen.c.id == total.c.referral_id).where(total.c.day < since)
    by_response = responses.referral_id, responses.action
    counted_since = sa.select(*by_response, sa.func.count().label("number")).group_by(*by_response)
    counted_since = counted_since.join(chosen, chosen.c.id == responses.referral_id)
    counted_since = counted_since.where(responses.created_at >= since, responses.ignored.is_(None))
    return sa.union_all(rolled_up, counted_since).subquery().select()


def correct_totals(transaction: Transaction, changes: Iterable[Counted], by: int) -> None:
    """Add the correcting rows for responses that have come to be counted, or are no longer.

    :param changes: the responses; those after the watermark are skipped.
    """
    total = transaction.database.models.total
    _place_watermark(transaction)
    if transaction.database.dialect.name in ("mysql", "mariadb"):
        transaction.execute(sa.update(total).where(total.c.id == _WATERMARK).values(count=total.c.count + 1))
    until = transaction.execute(watermark(transaction.database.models).with_for_update(read=True)).scalar_one()
    of_days = Counter(
        (referral_id, action, _midnight(time)) for referral_id, action, time in changes if as_utc(time) < as_utc(until)
    )
    if of_days:
        rows = [
            {"referral_id": referral_id, "action": action, "day": day, "count": by * number}
            for (referral_id, action, day), number in of_days.items()
        ]
        transaction.execute(sa.insert(total), rows)


def _place_watermark(transaction: Transaction) -> None:
    """Insert the watermark if there is none. One of two transactions that do so waits for the other.

    It is read without a lock first: MariaDB would lock the gap, and two transactions would deadlock.
    """
    if transaction.scalar(watermark(transaction.database.models)) is None:
        first = sa.insert(transaction.database.models.total).values(id=_WATERMARK, action="", day=_NEVER, count=0)
        with suppress(IntegrityError), transaction.savepoint():
            transaction.execute(first)


def roll_up(database: Database) -> int:
    """Count the responses of the days that are over since the last roll-up. Return the number of days."""

    def place() -> None:
        with transaction.write():
            transaction.lock()
            _place_watermark(transaction)
        transaction.has_written = True

    # In a transaction of its own: MariaDB must not count in a snapshot that is older than the lock.
    transaction: Transaction = open_transaction(database, commit=True)
    transaction.run(place)
    transaction = open_transaction(database, commit=True)
    return transaction.run(lambda: _roll_up(transaction))


def _roll_up(transaction: Transaction) -> int:
    total, responses = transaction.database.models.total, transaction.database.models.responses
    with transaction.write():
        transaction.lock()
        until = transaction.execute(watermark(transaction.database.models).with_for_update()).scalar_one()
        start, end = as_utc(until), _midnight(now() - _MARGIN)
        if start == _NEVER:
            oldest = transaction.scalar(sa.select(sa.func.min(responses.created_at)))
            start = _midnight(oldest) if oldest is not None else end
        if start >= end:
            return 0
        counted = (
            sa.select(
                responses.referral_id.label("referral_id"),
                responses.action.label("action"),
                sa.literal(end - _DAY, total.c.day.type).label("day"),
                sa.func.count().label("count"),
            )
            .where(responses.created_at >= start, responses.created_at < end, responses.ignored.is_(None))
            .group_by(responses.referral_id, responses.action)
        )
        if transaction.database.can_insert_selected:
            transaction.execute(sa.insert(total).from_select(counted.selected_columns.keys(), counted))
        else:
            for rows in transaction.execute(counted).mappings().partitions(_PAGE):
                transaction.execute(sa.insert(total), [dict(row) for row in rows])
        transaction.execute(sa.update(total).where(total.c.id == _WATERMARK).values(day=end))
    transaction.has_written = True
    return (end - start).days


def _midnight(time: datetime) -> datetime:
    return as_utc(time).replace(hour=0, minute=0, second=0, microsecond=0)
