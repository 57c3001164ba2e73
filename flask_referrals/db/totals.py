"""The counts of responses: rolled up for the days that are over, counted from the rows for those since.

One row is the watermark: everything before its time is rolled up. A roll-up locks it, and so does a correction. Each
total is stored twice: with its referral, and negated in a row of the site, which has no referral. The chapter *Tables*
of ``docs/design.rst`` gives the reasons.

A day is stored as the time at which it begins in the site's time zone. The roll-up of a time zone that has changed
since begins within a day: then that time is stored.
"""

import typing as t
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..times import EPOCH, as_utc, load_zone, now
from .after_commit import call_before_commit
from .build import Models
from .database import Database
from .transactions import HostTransaction, Transaction, write_in_transaction

#: How long after midnight a day is over: by then, what was recorded before it has been committed.
_MARGIN = timedelta(hours=1)
#: The keys of two rows that hold no totals, and that no sequence reaches. The watermark has the time zone's name as its
#: action. The other one says before which time responses were deleted.
_WATERMARK, _PURGED = -1, -2

#: How many days are rolled up in one transaction, each time in one pass over the responses.
_CHUNK = 100
_PAGE = 1000


class Counted(t.NamedTuple):
    """A response that has come to be counted, or is no longer."""

    referral_id: int
    action: str
    created_at: datetime
    value: Decimal | None = None
    currency: str | None = None


def watermark(models: Models) -> sa.Select[t.Any]:
    """Select the time before which everything is rolled up, if anything is."""
    total = models.total.c
    return sa.select(total.day).where(total.id == _WATERMARK, total.day > EPOCH)


def is_of_site(total: t.Any) -> sa.ColumnElement[bool]:
    """Return the condition for the rows of the site. Other rows without a referral have no value."""
    return sa.and_(total.referral_id.is_(None), total.value.is_not(None))


def count_responses(models: Models, referral_id: int, action: str, since: datetime) -> sa.Select[t.Any]:
    """Select the number of the counted responses to a referral with an action.

    :param since: what :func:`watermark` selects. As a part of this statement PostgreSQL would not know that hardly any
        response of a busy link is younger, and would read all of them.
    """
    total, responses = models.total.c, models.responses
    rolled_up = sa.select(sa.func.coalesce(sa.func.sum(total["count"]), 0))
    rolled_up = rolled_up.where(total.referral_id == referral_id, total.action == action, total.day < since)
    younger = sa.select(sa.func.count()).where(responses.referral_id == referral_id, responses.action == action)
    younger = younger.where(responses.created_at >= since, responses.ignored.is_(None))
    return sa.select(rolled_up.scalar_subquery() + younger.scalar_subquery())


def is_day_over(database: Database, moment: datetime) -> bool:
    """Return whether a time is on a day that has ended, so that it may be rolled up."""
    return moment < day_start(now(), database.zone)


def correct_totals(transaction: Transaction, changes: Iterable[Sequence[t.Any]], by: int) -> None:
    """Add the correcting rows for responses that have come to be counted, or are no longer.

    :param changes: the responses, as in :class:`Counted`; those after the watermark are skipped.
    """
    database, total = transaction.database, transaction.database.models.total
    _place(transaction, _WATERMARK)
    if database.dialect.name in ("mysql", "mariadb"):
        transaction.execute(sa.update(total).where(total.c.id == _WATERMARK).values(count=total.c.count + 1))
    until, zone = _lock_watermark(transaction, read=True)
    rows: dict[t.Any, dict[str, t.Any]] = {}
    for change in (Counted(*each) for each in changes):
        if as_utc(change.created_at) < until:
            for referral_id, sign in ((change.referral_id, by), (None, -by)):
                key = referral_id, change.action, day_start(change.created_at, zone), change.currency
                names = "referral_id", "action", "day", "currency"
                row = rows.setdefault(key, dict(zip(names, key, strict=True)) | {"count": 0, "value": Decimal(0)})
                row["count"] += sign
                row["value"] += sign * (change.value or 0)
    if rows:
        transaction.execute(sa.insert(total), list(rows.values()))


def count_at_commit(transaction: Transaction, written: sa.ColumnElement[bool], oldest: datetime) -> None:
    """Correct the totals for responses that the host commits only when their day may be rolled up."""
    database, responses = transaction.database, transaction.database.models.responses
    counted = sa.select(*(responses[name] for name in Counted._fields))
    counted = counted.where(written, responses.ignored.is_(None))

    def correct() -> None:
        if is_day_over(database, oldest):
            late = HostTransaction(database, flush=False)
            late.run(lambda: correct_totals(late, late.execute(counted).all(), 1), on_failure=log)

    def log() -> None:
        database.log_failure("Responses were stored, but not counted: run 'flask referrals rollup --rebuild'.")

    call_before_commit(transaction.session, correct)


def note_purge(transaction: Transaction, before: datetime) -> None:
    """Note that responses before a time are deleted: a rebuild keeps the totals of their days."""
    total = transaction.database.models.total
    _place(transaction, _PURGED)
    transaction.execute(sa.update(total).where(total.c.id == _PURGED, total.c.day < before).values(day=before))


def _place(transaction: Transaction, key: int) -> None:
    """Insert the row with a key if there is none. One of two transactions that do so waits for the other.

    It is read without a lock first: MariaDB would lock the gap, and two transactions would deadlock.
    """
    total = transaction.database.models.total
    if transaction.scalar(sa.select(total.c.id).where(total.c.id == key)) is None:
        row = {"id": key, "action": str(transaction.database.zone), "day": EPOCH, "count": 0}
        with suppress(IntegrityError), transaction.connection.begin_nested():
            transaction.execute(sa.insert(total).values(row))


def roll_up(database: Database, *, rebuild: bool = False) -> int:
    """Count the responses of the days that are over since the last roll-up. Return the number of days.

    :param rebuild: begin again with the first day whose responses are still stored.
    """
    # In a transaction of its own: MariaDB must not count in a snapshot that is older than the lock.
    write_in_transaction(database, partial(_place, key=_WATERMARK))
    write_in_transaction(database, partial(_begin_again, rebuild=rebuild))
    days = 0
    while True:
        done = write_in_transaction(database, _roll_up_days)
        days += done
        if done < _CHUNK:
            return days


def _lock_watermark(transaction: Transaction, *, read: bool = False) -> tuple[datetime, tzinfo]:
    """Return the time of the watermark, and the time zone of the days before it."""
    total = transaction.database.models.total
    row = transaction.execute(sa.select(total).where(total.c.id == _WATERMARK).with_for_update(read=read)).one()
    return as_utc(row.day), load_zone(row.action or "UTC")


def _begin_again(transaction: Transaction, rebuild: bool) -> None:
    """Move the watermark back to the first day whose responses are all stored, if that is needed.

    Until they are rolled up again, the responses since then are counted from the rows.
    """
    models, name = transaction.database.models, str(transaction.database.zone)
    total = models.total
    until, zone = _lock_watermark(transaction)
    if not rebuild and str(zone) == name:
        return
    oldest = transaction.scalar(sa.select(sa.func.min(models.responses.created_at)))
    purged = transaction.scalar(sa.select(total.c.day).where(total.c.id == _PURGED))
    start = until if oldest is None else min(until, day_start(oldest, zone))
    if purged is not None:
        day = day_start(purged, zone)
        whole = day if day == as_utc(purged) else day_start(day + timedelta(hours=26), zone)
        start = min(until, max(start, whole))
    stale = sa.and_(total.c.referral_id.is_not(None), total.c.day >= start)
    transaction.execute(sa.delete(total).where(sa.or_(stale, is_of_site(total.c))))
    _add_site_totals(transaction, EPOCH, start)
    transaction.execute(sa.update(total).where(total.c.id == _WATERMARK).values(day=start, action=name))
    kept = sa.select(total.c.id).where(total.c.referral_id.is_not(None), total.c.day < start)
    if transaction.scalar(kept.limit(1)) is not None:
        note_purge(transaction, start)  # in another time zone, a day that is kept may overlap with a later one


def _roll_up_days(transaction: Transaction) -> int:
    """Count some of the days that are over. Return how many."""
    database, zone = transaction.database, transaction.database.zone
    total, responses = database.models.total, database.models.responses
    start, _ = _lock_watermark(transaction)
    end = day_start(now() - _MARGIN, zone)
    if start == EPOCH:
        oldest = transaction.scalar(sa.select(sa.func.min(responses.created_at)))
        start = end if oldest is None else day_start(oldest, zone)
    if start >= end:
        return 0
    *days, end = split_days(start, end, zone)[: _CHUNK + 1]
    names = "referral_id", "action", "currency", "value"
    day = day_of(responses.created_at, days, total.c.day.type)
    counted = sa.select(*(responses[name].label(name) for name in names), day.label("day"))
    is_counted = responses.created_at >= start, responses.created_at < end, responses.ignored.is_(None)
    rows = counted.where(*is_counted).subquery().c
    groups = rows.referral_id, rows.action, rows.currency, rows.day
    value = sa.func.coalesce(sa.func.sum(rows.value), 0).label("value")
    sums = sa.select(*groups, sa.func.count().label("count"), value).group_by(*groups)
    # Links that were deleted while their responses were counted are left out, and the others locked.
    links = database.models.referrals.id
    if database.can_insert_selected:
        by_link = sums.subquery()
        sums = sa.select(by_link).join(links.table, links == by_link.c.referral_id)
        sums = sums.with_for_update(read=True, key_share=True, of=links.table)
        transaction.execute(sa.insert(total).from_select(sums.selected_columns.keys(), sums))
    else:
        for page in transaction.execute(sums).mappings().partitions(_PAGE):
            found = sa.select(links).where(links.in_({row["referral_id"] for row in page})).with_for_update(read=True)
            left = set(transaction.execute(found).scalars())
            if new := [dict(row) for row in page if row["referral_id"] in left]:
                transaction.execute(sa.insert(total), new)
    _add_site_totals(transaction, start, end)
    transaction.execute(sa.update(total).where(total.c.id == _WATERMARK).values(day=end))
    return len(days)


def _add_site_totals(transaction: Transaction, start: datetime, end: datetime) -> None:
    """Add the rows of the site for the totals of the referrals on some days."""
    total = transaction.database.models.total
    groups = total.c.action, total.c.currency, total.c.day
    sums = sa.select(
        *groups,
        -sa.func.sum(total.c["count"]).label("count"),
        -sa.func.coalesce(sa.func.sum(total.c.value), 0).label("value"),
    )
    sums = sums.where(total.c.referral_id.is_not(None), total.c.day >= start, total.c.day < end).group_by(*groups)
    rows = [dict(row) for row in transaction.execute(sums).mappings()]
    for first in range(0, len(rows), _PAGE):
        transaction.execute(sa.insert(total), rows[first : first + _PAGE])


def day_of(moment: t.Any, days: Sequence[datetime], type_: t.Any) -> t.Any:
    """Return the day of a time, as a tree of CASEs: few comparisons for each row."""
    if len(days) == 1:
        return sa.literal(days[0], type_)
    middle = len(days) // 2
    earlier, later = (day_of(moment, half, type_) for half in (days[:middle], days[middle:]))
    return sa.case((moment < days[middle], earlier), else_=later)


def split_days(start: datetime, end: datetime, zone: tzinfo) -> list[datetime]:
    """Return two times, and the beginnings of all days between them. Zones have skipped days, so that two are equal."""
    first, last = (moment.astimezone(zone).date().toordinal() for moment in (start, end))
    days = {midnight(date.fromordinal(number), zone) for number in range(first, last + 1)}
    return [start, *sorted(day for day in days if start < day < end), end]


def day_start(moment: datetime, zone: tzinfo) -> datetime:
    return midnight(as_utc(moment).astimezone(zone).date(), zone)


def midnight(day: date, zone: tzinfo) -> datetime:
    """Return when a day begins. Where the clocks skip midnight, that is when they do."""
    return datetime.combine(day, time.min, zone).astimezone(timezone.utc)
