"""Removing personal data: by age, or of one user. Each batch has a transaction; a repeated call continues."""

import secrets
import time
import typing as t
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

import sqlalchemy as sa

from .db.conditions import Condition, is_exactly
from .db.keys import once_key, table_name
from .db.tombstones import place_tombstones
from .db.totals import note_purge
from .db.transactions import Transaction, open_transaction, write_in_transaction
from .state import AppState
from .times import now
from .types import EVENT_PREFIX, VOID, Actor

_BATCH = 1000

#: The longest time that SQLite's busy handler sleeps before it looks again, in seconds.
_SQLITE_POLL = 0.1

#: Columns that say who made a response. Its key may as well: an order's number, or a digest of the user.
_PERSONAL = ("user_id", "session_key", "ip_address", "http_referrer", "user_agent")

#: Called after each batch with the number of rows that it changed, or of ids of :func:`id_span` that it covered.
Progress = Callable[[int], None]
T = t.TypeVar("T")


def purge(state: AppState, older_than: timedelta, *, progress: Progress = lambda steps: None) -> int:
    """Delete responses that are older than some days. Return how many were deleted."""
    responses, before = state.database.models.responses, now() - older_than
    _in_transaction(state, lambda transaction: note_purge(transaction, before))
    delete = sa.delete(responses.id.table).where(responses.created_at < before)
    return _execute_by_page(state, delete, progress)


def anonymize(state: AppState, older_than: timedelta, *, progress: Progress = lambda steps: None) -> int:
    """Remove personal data from responses that are older than some days. Return how many were changed."""
    responses = state.database.models.responses
    has_key = sa.and_(responses.key.is_not(None), responses.action != VOID)
    is_personal = sa.or_(has_key, *(responses[name].is_not(None) for name in _PERSONAL))
    update = sa.update(responses.id.table).where(responses.created_at < now() - older_than, is_personal)
    return _execute_by_page(state, _anonymize(update, responses), progress)


def id_span(state: AppState) -> int:
    """Return how many ids there are from the first response to the last."""
    first, last = _first_and_last(state)
    return 0 if first is None else last - first + 1


def _anonymize(update: sa.Update, responses: t.Any) -> sa.Update:
    """Make the responses of an update anonymous. The record of a voiding is still found by its key.

    A recorder's click is still found by the digest of its random key: its event may come, or come again.
    """
    is_void = responses.action == VOID
    is_click = sa.or_(responses.key.is_(None), responses.key.startswith(EVENT_PREFIX))
    identity = sa.case((sa.or_(is_void, is_click), responses.identity), else_=sa.null())
    key = sa.case((is_void, responses.key), else_=sa.null())
    # In this order: MariaDB takes the new key for what follows it.
    kept = ((responses.identity, identity), (responses.key, key))
    return update.ordered_values(*kept, *((responses[name], None) for name in _PERSONAL))


def _first_and_last(state: AppState) -> tuple[int | None, int]:
    key = state.database.models.responses.id
    ids, transaction = sa.select(sa.func.min(key), sa.func.max(key)), open_transaction(state.database, commit=True)
    row: t.Any = transaction.run(lambda: transaction.execute(ids).one())
    return row[0], row[1]


def _execute_by_page(state: AppState, statement: t.Any, progress: Progress) -> int:
    """Execute a statement for all responses, page by page: no index leads to their age. Return how many it changed."""
    key, changed = state.database.models.responses.id, 0
    first, last = _first_and_last(state)

    def change_page(first: int, transaction: Transaction) -> tuple[int, int]:
        end = transaction.scalar(sa.select(key).where(key >= first).order_by(key).offset(_BATCH - 1).limit(1))
        end = last if end is None else min(end, last)
        return end, transaction.execute(statement.where(key.between(first, end))).rowcount

    while first is not None and first <= last:
        end, changed_now = _in_transaction(state, partial(change_page, first))
        changed += changed_now
        progress(end - first + 1)
        first = end + 1
    return changed


def _in_transaction(state: AppState, work: Callable[[Transaction], T], *, commit: bool = True) -> T:
    """Do one batch of the work in a transaction."""
    started = time.monotonic()
    done = write_in_transaction(state.database, work, commit=commit)
    if commit and state.database.dialect.name == "sqlite":
        # SQLite has one writer at a time and no queue of the others: leave them time to try again.
        time.sleep(min(time.monotonic() - started, _SQLITE_POLL))
    return done


class Forgotten(t.NamedTuple):
    """How many rows belonged to a user, or were about them."""

    referrals: int
    responses: int


def forget_user(state: AppState, user_id: t.Any, *, commit: bool, progress: Progress = lambda rows: None) -> Forgotten:
    if state.recorder is not None:
        _in_transaction(state, partial(place_tombstones, actors=[Actor(user_id)]), commit=commit)
    run = _Forgetting(state, user_id, commit, progress)
    forgotten = Forgotten(run.forget_links(), run.forget_responses())
    session, models = state.database.session, state.database.models
    for record in session.identity_map.values():
        if isinstance(record, (models.referral, models.response)):
            session.expire(record)
    return forgotten


class _Forgetting(t.NamedTuple):
    state: AppState
    user_id: t.Any
    commit: bool
    progress: Progress

    def forget_links(self) -> int:
        """Remove the owner and the label of their links, which expire. Remove them as a target."""
        links, time_now = self.state.database.models.referrals, now()
        is_theirs, is_about = is_exactly(links.user_id, self.user_id), self._is_about(links)
        is_active = sa.or_(links.expired_at.is_(None), links.expired_at > time_now)
        rename = sa.update(links.id.table).where(links.id == sa.bindparam("of"))
        rename = rename.values({links.identity: sa.bindparam("new")})

        def change(transaction: Transaction, ids: Sequence[int]) -> int:
            update = sa.update(links.id.table).where(links.id.in_(ids))
            transaction.execute(update.where(is_theirs, is_active).values({links.expired_at: time_now}))
            transaction.execute(update.where(is_theirs).values({links.user_id: None, links.label: ""}))
            transaction.execute(update.where(is_about).values({links.target_type: None, links.target_id: None}))
            # It is a digest of these columns.
            transaction.execute(rename, [{"of": key, "new": secrets.token_hex(32)} for key in ids])
            return len(ids)

        return self._change(links.id, sa.or_(is_theirs, is_about), change)

    def forget_responses(self) -> int:
        """Make their responses anonymous, and those of the same browsers that are unclaimed."""
        responses = self.state.database.models.responses
        is_about = self._is_about(responses)
        was_once = responses.key == once_key(Actor(self.user_id))
        is_theirs = sa.or_(is_exactly(responses.user_id, self.user_id), was_once)
        visitor = responses.session_key

        def change(transaction: Transaction, ids: Sequence[int]) -> int:
            are_these, update = responses.id.in_(ids), sa.update(responses.id.table)
            as_visitors = sa.select(visitor).where(are_these, is_theirs, visitor.is_not(None)).distinct()
            visitors = transaction.execute(as_visitors).scalars().all()
            transaction.execute(_anonymize(update.where(are_these, is_theirs), responses))
            no_target = {responses.target_type: None, responses.target_id: None}
            transaction.execute(update.where(are_these, is_about).values(no_target))
            if not visitors:
                return len(ids)
            if self.state.recorder is not None:
                place_tombstones(transaction, [Actor(None, each) for each in visitors])
            # coalesce() keeps SQLite off the index on users, by which it would read every anonymous row.
            has_no_user = sa.func.coalesce(responses.user_id, sa.null()).is_(None)
            unclaimed = _anonymize(update.where(visitor.in_(visitors), has_no_user), responses)
            return len(ids) + int(transaction.execute(unclaimed).rowcount)

        return self._change(responses.id, sa.or_(is_theirs, is_about), change)

    def _is_about(self, columns: t.Any) -> Condition:
        users = self.state.database.models.user
        if users is None:
            return sa.false()
        kinds = self.state.target_types.items()
        names = {name for name, kind in kinds if issubclass(users, kind.model) or issubclass(kind.model, users)}
        names.add(table_name(users))
        return sa.and_(columns.target_type.in_(names), columns.target_id == str(self.user_id))

    def _change(self, key: t.Any, condition: Condition, change: Callable[[Transaction, Sequence[int]], int]) -> int:
        """Change the rows that match a condition, in the order of their ids. Return how many."""
        select = sa.select(key).where(condition).order_by(key).limit(_BATCH)

        def change_batch(last: int, transaction: Transaction) -> tuple[Sequence[int], int]:
            ids = transaction.execute(select.where(key > last)).scalars().all()
            return ids, change(transaction, ids) if ids else 0

        total = last = 0
        while True:
            ids, changed = _in_transaction(self.state, partial(change_batch, last), commit=self.commit)
            if not ids:
                return total
            total += changed
            self.progress(changed)
            last = ids[-1]
