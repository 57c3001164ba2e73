"""How many responses count: rolled up for the days that are over, counted for those since.

The days since the last time are rolled up by ``flask referrals rollup``. Rows of the table are added and never changed,
so that nobody waits for a counter; what changes in a day that is rolled up already adds a row that corrects it. One row
is the bookmark: all days before its own are rolled up. Who rolls up locks it, and so does who corrects: no change falls
between the two. The first of either places it, and in MariaDB it is also written to: the nodes of a cluster know
nothing of each other's locks, but of two that write to the same row at the same time one is given up.
"""

import typing as t
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from datetime import timedelta
from datetime import timezone

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from .columns import KEY
from .columns import TIME
from .columns import exact
from .context import current_state
from .storing import writes_what_it_selects
from .times import as_utc
from .transactions import Transaction

if t.TYPE_CHECKING:
    from .registry import Models

_DAY = timedelta(days=1)
#: How long after midnight a day is over: what was recorded before it is durable then.
_MARGIN = timedelta(hours=1)
_NEVER = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: The key of the bookmark, which no sequence reaches.
_BOOKMARK = -1

_PAGE = 1000

#: A response that counts, or no longer does: its referral's key, its action, its time.
Counted = tuple[int, str, datetime]


def new_table(referrals: sa.Table) -> sa.Table:
    """Declare the table of totals beside that of the referrals."""
    return sa.Table(
        _name(referrals),
        referrals.metadata,
        sa.Column("id", KEY, primary_key=True),
        sa.Column("referral_id", sa.ForeignKey(referrals.c.id, ondelete="CASCADE")),
        sa.Column("action", exact(128), nullable=False),
        sa.Column("day", TIME, nullable=False),
        sa.Column("count", KEY, nullable=False),
        sa.Index(None, "referral_id", "action", "day"),
        schema=referrals.schema,
        sqlite_autoincrement=True,
    )


def table_of(referrals: sa.Table) -> sa.Table:
    """Return the table of totals that belongs to a table of referrals."""
    key = _name(referrals) if referrals.schema is None else f"{referrals.schema}.{_name(referrals)}"
    return referrals.metadata.tables[key]


def _name(referrals: sa.Table) -> str:
    return f"{referrals.name}_total"


def bookmark(models: "Models") -> sa.Select[t.Any]:
    """Select the time up to which everything is rolled up, if anything is."""
    return sa.select(models.total.c.day).where(models.total.c.id == _BOOKMARK)


def counts(models: "Models", links: sa.Select[t.Any], until: datetime | None) -> sa.Select[t.Any]:
    """Select referral, action and number of the responses that count, in a few rows for each.

    :param models: the models of a database.
    :param links: selects the keys of the referrals.
    :param until: what :func:`bookmark` selects. As a part of this statement PostgreSQL would not know that hardly any
        response of a busy link is younger, and would read all of them.
    """
    total, response = models.total, models.response
    since = as_utc(until) if until is not None else _NEVER
    chosen = links.subquery()
    rolled_up = (
        sa.select(total.c.referral_id, total.c.action, sa.func.sum(total.c.count).label("number"))
        .join(chosen, chosen.c.id == total.c.referral_id)
        .where(total.c.day < since)
        .group_by(total.c.referral_id, total.c.action)
    )
    counted_since = (
        sa.select(response.referral_id, response.action, sa.func.count().label("number"))
        .join(chosen, chosen.c.id == response.referral_id)
        .where(response.created_at >= since, response.ignored.is_(None))
        .group_by(response.referral_id, response.action)
    )
    return sa.union_all(rolled_up, counted_since).subquery().select()


def correct(session: Session, changes: Iterable[Counted], by: int) -> None:
    """Say that responses of days that are rolled up have come to count, or count no longer.

    :param session: the host's session, in which the change was made.
    :param changes: the responses; those of later days are left alone.
    :param by: 1 or -1.
    """
    models = current_state().models
    total = models.total
    _place_bookmark(session)
    if session.get_bind(**_bind()).dialect.name in ("mysql", "mariadb"):
        mark = sa.update(total).where(total.c.id == _BOOKMARK).values(count=total.c.count + 1)
        session.execute(mark, bind_arguments=_bind())
    until = session.scalars(bookmark(models).with_for_update(read=True), bind_arguments=_bind()).one()
    of_days = Counter(
        (referral_id, action, _midnight(time)) for referral_id, action, time in changes if as_utc(time) < as_utc(until)
    )
    if of_days:
        rows = [
            {"referral_id": referral_id, "action": action, "day": day, "count": by * number}
            for (referral_id, action, day), number in of_days.items()
        ]
        session.execute(sa.insert(total), rows, bind_arguments=_bind())


def _place_bookmark(session: Session) -> None:
    """Make sure that there is one; of two transactions that place it, one waits for the other.

    It is read without a lock first: MariaDB would lock the gap where it is to go, and two would be in each other's way.
    """
    models = current_state().models
    if session.scalar(bookmark(models), bind_arguments=_bind()) is None:
        first = sa.insert(models.total).values(id=_BOOKMARK, action="", day=_NEVER, count=0)
        with suppress(IntegrityError), session.begin_nested():
            session.execute(first, bind_arguments=_bind())


def roll_up() -> int:
    """Count the responses of the days that are over since the last time, in one transaction and one pass.

    :return: how many days were rolled up.
    """
    models = current_state().models
    total, response = models.total, models.response
    state = current_state()
    session = state.session
    transaction = Transaction(state, response, commit=True)

    def prepare() -> None:
        # In a transaction of its own: what MariaDB counts in is not to be older than what was waited for.
        with transaction.write():
            transaction.begin()
            _place_bookmark(session)
        transaction.commit()

    def work() -> int:
        with transaction.write():
            transaction.begin()
            until = session.scalars(bookmark(models).with_for_update(), bind_arguments=_bind()).one()
            start, end = as_utc(until), _over()
            if start == _NEVER:
                oldest = session.scalar(sa.select(sa.func.min(response.created_at)))
                start = _midnight(oldest) if oldest is not None else end
            if start >= end:
                return 0
            counted = (
                sa.select(
                    response.referral_id,
                    response.action,
                    sa.literal(end - _DAY, TIME).label("day"),
                    sa.func.count().label("count"),
                )
                .where(response.created_at >= start, response.created_at < end, response.ignored.is_(None))
                .group_by(response.referral_id, response.action)
            )
            if writes_what_it_selects(transaction.connection.dialect):
                names = counted.selected_columns.keys()
                session.execute(sa.insert(total).from_select(names, counted), bind_arguments=_bind())
            else:
                for rows in session.execute(counted).mappings().partitions(_PAGE):
                    session.execute(sa.insert(total), [dict(row) for row in rows], bind_arguments=_bind())
            moved = sa.update(total).where(total.c.id == _BOOKMARK).values(day=end)
            session.execute(moved, bind_arguments=_bind())
        transaction.commit()
        return (end - start).days

    transaction.run(prepare)
    return transaction.run(work)


def _over() -> datetime:
    return _midnight(datetime.now(timezone.utc) - _MARGIN)


def _midnight(time: datetime) -> datetime:
    return as_utc(time).replace(hour=0, minute=0, second=0, microsecond=0)


def _bind() -> dict[str, t.Any]:
    """Send what is about the table alone to the database of the models."""
    return {"mapper": sa.inspect(current_state().models.response)}
