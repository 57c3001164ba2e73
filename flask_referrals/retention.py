"""Taking personal data out of the two tables again: by its age, or of one user.

It goes batch by batch, each a transaction: what was interrupted is run again, and goes on where it stopped.
"""

import secrets
import time
import typing as t
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from functools import partial

import sqlalchemy as sa

from . import targets
from .attribution import Visitor
from .context import current_state
from .exceptions import InvalidValueError
from .recording import VOID
from .recording import once_key
from .transactions import Transaction

_BATCH = 1000

#: The longest that SQLite's busy handler sleeps before it looks again, in seconds.
_SQLITE_POLL = 0.1

#: What tells who made a response. Its key may as well: an order's number, or a digest of the user.
_PERSONAL = ("user_id", "session_key", "ip_address", "http_referrer", "user_agent")

_NO_TARGET = {"target_type": None, "target_id": None}

Progress = Callable[[int], None]
Condition = sa.ColumnElement[bool]
T = t.TypeVar("T")


class _Table:
    """A model's own table, and its columns by the names that they have in the model."""

    def __init__(self, model: type[t.Any]) -> None:
        self._mapper = sa.inspect(model)
        self.table = t.cast(sa.Table, self._mapper.local_table)
        self._columns = {self._mapper.get_property_by_column(column).key: column for column in self.table.columns}

    def __getitem__(self, name: str) -> sa.Column[t.Any]:
        return self._columns[name]

    def execute(self, statement: sa.Executable, values: t.Any = None) -> sa.CursorResult[t.Any]:
        bind = {"mapper": self._mapper}
        return t.cast("sa.CursorResult[t.Any]", current_state().session.execute(statement, values, bind_arguments=bind))

    def update(self, condition: Condition, values: dict[str, t.Any]) -> int:
        """Set columns where a condition holds; return in how many rows."""
        update = sa.update(self.table).where(condition)
        return self.execute(update.values({self[name]: value for name, value in values.items()})).rowcount


def _responses() -> _Table:
    return _Table(current_state().models.response)


def _in_transaction(work: Callable[[], T], *, commit: bool = True) -> T:
    state = current_state()
    transaction = Transaction(state, state.models.response, commit=commit)

    def attempt() -> T:
        with transaction.write():
            done = work()
        transaction.commit()
        return done

    started = time.monotonic()
    done = transaction.run(attempt)
    if commit and state.session.get_bind(sa.inspect(state.models.response)).dialect.name == "sqlite":
        # There, one writes at a time, and those who wait are not let in by turns: leave them time to look again.
        time.sleep(min(time.monotonic() - started, _SQLITE_POLL))
    return done


def _anonymous(responses: _Table) -> dict[str, t.Any]:
    """Return the columns of a response that tells nobody's name. By the key of a voiding it is found again."""
    kept = {
        name: sa.case((responses["action"] == VOID, responses[name]), else_=sa.null()) for name in ("key", "identity")
    }
    return {**dict.fromkeys(_PERSONAL), **kept}


# By age.


def purge(older_than: timedelta, *, progress: Progress = lambda steps: None) -> int:
    """Delete the responses of more than a certain age.

    :param older_than: the age.
    :param progress: told after each batch how far it went, of :func:`span`.
    :return: how many were deleted.
    """
    responses = _responses()
    delete = sa.delete(responses.table).where(_is_old(responses, older_than))
    return _walk(responses, lambda page: responses.execute(delete.where(page)).rowcount, progress)


def anonymize(older_than: timedelta, *, progress: Progress = lambda steps: None) -> int:
    """Take out of the responses of more than a certain age who made them; all counts stay.

    :param older_than: the age.
    :param progress: told after each batch how far it went, of :func:`span`.
    :return: how many were changed.
    """
    responses = _responses()
    is_old, values = _is_old(responses, older_than), _anonymous(responses)
    tells: list[Condition] = [responses[name].is_not(None) for name in _PERSONAL]
    tells.append(sa.and_(responses["key"].is_not(None), responses["action"] != VOID))
    return _walk(responses, lambda page: responses.update(sa.and_(page, is_old, sa.or_(*tells)), values), progress)


def span() -> int:
    """Return how far it is from the first response to the last one, by their ids."""
    before, last = _ends(_responses())
    return last - before


def _is_old(responses: _Table, older_than: timedelta) -> Condition:
    return responses["created_at"] < datetime.now(timezone.utc) - older_than


def _ends(responses: _Table) -> tuple[int, int]:
    """Return the id before the first response, and that of the last."""
    ids = sa.select(sa.func.min(responses["id"]), sa.func.max(responses["id"]))
    row: t.Any = _in_transaction(lambda: responses.execute(ids).one())
    first, last = row
    return (0, 0) if first is None else (first - 1, last)


def _walk(responses: _Table, change: Callable[[Condition], int], progress: Progress) -> int:
    """Change all responses, page by page in the order of their ids: there is no index on their age alone.

    :param change: given what tells the rows of a page, changes some and returns how many.
    :return: how many were changed.
    """
    changed = 0
    before, last = _ends(responses)
    while before < last:
        page_end, changed_here = _in_transaction(partial(_change_page, responses, before, last, change))
        changed += changed_here
        progress(page_end - before)
        before = page_end
    return changed


def _change_page(responses: _Table, before: int, last: int, change: Callable[[Condition], int]) -> tuple[int, int]:
    key = responses["id"]
    full_page = sa.select(key).where(key > before).order_by(key).offset(_BATCH - 1).limit(1)
    page_end = responses.execute(full_page).scalar()
    page_end = last if page_end is None else min(page_end, last)
    return page_end, change(sa.and_(key > before, key <= page_end))


# Of one user.


@dataclass
class Forgotten:
    """How many rows were a user's, or about them."""

    referrals: int = 0
    responses: int = 0


def forget_user(user_id: t.Any, *, commit: bool, progress: Progress = lambda rows: None) -> Forgotten:
    """Do what :meth:`.Referrals.forget_user` promises.

    :param user_id: the user's key.
    :param progress: told after each batch of how many rows it was.
    :param commit: commit after each batch.
    :return: how many rows there were.
    :raises InvalidValueError: it is nobody's key.
    """
    if user_id is None:
        raise InvalidValueError("user", "is nobody")
    state = current_state()
    run = _Forgetting(user_id, commit=commit, progress=progress)
    forgotten = Forgotten(run.forget_links(), run.forget_responses())
    for record in state.session.identity_map.values():
        if isinstance(record, (state.models.referral, state.models.response)):
            state.session.expire(record)
    return forgotten


class _Forgetting:
    """One run of :func:`forget_user`."""

    def __init__(self, user_id: t.Any, *, commit: bool, progress: Progress) -> None:
        self._user_id = user_id
        self._commit = commit
        self._progress = progress

    def forget_links(self) -> int:
        links = _Table(current_state().models.referral)
        is_theirs, is_about = links["user_id"] == self._user_id, self._is_about(links)
        now = datetime.now(timezone.utc)
        has_not_expired = sa.or_(links["expired_at"].is_(None), links["expired_at"] > now)
        rename = sa.update(links.table).where(links["id"] == sa.bindparam("of"))
        rename = rename.values({links["identity"]: sa.bindparam("new")})

        def change(ids: Sequence[int]) -> int:
            are_these = links["id"].in_(ids)
            links.update(sa.and_(are_these, is_theirs, has_not_expired), {"expired_at": now})
            links.update(sa.and_(are_these, is_theirs), {"user_id": None, "label": ""})
            links.update(sa.and_(are_these, is_about), _NO_TARGET)
            # It is a digest of all that.
            links.execute(rename, [{"of": key, "new": secrets.token_hex(32)} for key in ids])
            return len(ids)

        return self._change(links, is_about, change)

    def forget_responses(self) -> int:
        responses = _responses()
        is_about = self._is_about(responses)
        was_once = responses["key"] == once_key(Visitor(self._user_id))
        is_theirs = sa.or_(responses["user_id"] == self._user_id, was_once)
        visitor, values = responses["session_key"], _anonymous(responses)

        def change(ids: Sequence[int]) -> int:
            are_these = responses["id"].in_(ids)
            as_visitors = sa.select(visitor).where(are_these, is_theirs, visitor.is_not(None)).distinct()
            visitors = responses.execute(as_visitors).scalars().all()
            responses.update(sa.and_(are_these, is_theirs), values)
            responses.update(sa.and_(are_these, is_about), _NO_TARGET)
            # Nobody has claimed it, but the same browser left it. By the plain column, SQLite would look at all that
            # nobody has claimed.
            has_no_user = sa.func.coalesce(responses["user_id"], sa.null()).is_(None)
            unclaimed = sa.and_(visitor.in_(visitors), has_no_user)
            return len(ids) + (responses.update(unclaimed, values) if visitors else 0)

        return self._change(responses, sa.or_(is_about, was_once), change)

    def _is_about(self, records: _Table) -> Condition:
        """Tell the rows whose target is the user."""
        state = current_state()
        users = state.models.user
        if users is None:
            return sa.false()
        kinds = state.extension.targets.items()
        names = {name for name, kind in kinds if issubclass(users, kind.model) or issubclass(kind.model, users)}
        names.add(targets.table_name(users))
        return sa.and_(records["target_type"].in_(names), records["target_id"] == str(self._user_id))

    def _change(self, records: _Table, others: Condition, change: Callable[[Sequence[int]], int]) -> int:
        """Change the user's rows, and others that a condition tells; return how many."""
        key = records["id"]
        select = sa.select(key).limit(_BATCH)
        # What has been changed is theirs no more. The others are looked for in one pass: no index leads to them.
        theirs = select.where(records["user_id"] == self._user_id).order_by(records["created_at"], key)
        rest = select.where(others).order_by(key)
        changed = self._batches(records, lambda ids: theirs, change)
        return changed + self._batches(records, lambda ids: rest.where(key > ids[-1]) if ids else rest, change)

    def _batches(
        self,
        records: _Table,
        following: Callable[[Sequence[int]], sa.Select[tuple[int]]],
        change: Callable[[Sequence[int]], int],
    ) -> int:
        def batch(select: sa.Select[tuple[int]]) -> tuple[Sequence[int], int]:
            ids = records.execute(select).scalars().all()
            return ids, change(ids) if ids else 0

        total = 0
        ids: Sequence[int] = ()
        while True:
            ids, changed = _in_transaction(partial(batch, following(ids)), commit=self._commit)
            if not ids:
                return total
            total += changed
            self._progress(changed)
