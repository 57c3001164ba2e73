"""Tombstones: users and visitors who were forgotten, and whose events may still be in a queue or a cookie.

A tombstone is a row of the totals without a referral: its action is a digest of the user or the visitor key.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

import sqlalchemy as sa

from ..times import as_utc, now
from ..types import Actor
from .keys import digest
from .transactions import Transaction

#: How long an event may be on its way.
LIFETIME = timedelta(days=30)

_PREFIX = "FORGOTTEN "


def place_tombstones(transaction: Transaction, actors: Iterable[Actor]) -> None:
    """Remember for a while that some actors were forgotten now."""
    total, time = transaction.database.models.total, now()
    is_old = sa.and_(total.c.referral_id.is_(None), total.c.action.startswith(_PREFIX), total.c.day < time - LIFETIME)
    transaction.execute(sa.delete(total).where(is_old))
    rows = [{"action": _name(actor), "day": time, "count": 0} for actor in actors]
    if rows:
        transaction.execute(sa.insert(total), rows)


def find_tombstones(transaction: Transaction, actors: Iterable[Actor]) -> dict[Actor, datetime]:
    """Return those of some actors who were forgotten, and when."""
    total, names = transaction.database.models.total, {_name(actor): actor for actor in actors}
    rows = sa.select(total.c.action, sa.func.max(total.c.day)).where(total.c.referral_id.is_(None))
    rows = rows.where(total.c.action.in_(list(names))).group_by(total.c.action)
    return {names[name]: as_utc(time) for name, time in transaction.execute(rows)} if names else {}


def _name(actor: Actor) -> str:
    return _PREFIX + digest(actor.user_id, actor.visitor_key)
