"""How a response is written: without an ORM object, by a statement that also chooses the referral.

PostgreSQL and SQLite choose and write in one INSERT … SELECT. Other databases need a SELECT and an INSERT.
"""

import typing as t

import sqlalchemy as sa

from ..times import now
from ..types import Actor, Anonymous
from .build import Models, Query
from .keys import digest
from .totals import count_at_commit
from .transactions import Transaction, get_statement

# The columns that tell a row from all others: a visitor key is random, and nobody acts twice in one microsecond.
_IDENTIFYING = ("action", "is_touch", "session_key", "user_id", "created_at")


class Choice(t.NamedTuple):
    """How the referral of a response is chosen."""

    #: Selects ``referral_id`` and ``ignored``, the reason code of a response to it.
    query: Query
    parameters: dict[str, t.Any]


class Stored(t.NamedTuple):
    """A row that was written, and where its referral leads."""

    id: int
    ignored: str | None
    redirect_to: str


def new_row(
    action: str, actor: Actor | Anonymous, description: dict[str, str | None], *, is_touch: bool, **more: t.Any
) -> dict[str, t.Any]:
    """Return the columns of a new response that have a value, without those that depend on its referral."""
    row = {
        "action": action,
        "is_touch": is_touch,
        "session_key": actor.visitor_key,
        "user_id": actor.user_id,
        "created_at": now(),
        **description,
        **more,
    }
    if row.get("key") is not None:
        row["identity"] = digest(action, row["key"])
    return {name: value for name, value in row.items() if value is not None}


def insert_response(transaction: Transaction, choice: Choice, row: dict[str, t.Any]) -> Stored | None:
    """Write a response to the referral that is chosen. Return ``None`` if none is."""
    database, kind = transaction.database, choice.query.__class__
    if database.can_insert_selected:
        statement = get_statement(database.models, _InsertChosen(kind, choice.query, database.dialect, tuple(row)))
        values = {f"new_{name}": value for name, value in row.items()}
        inserted = transaction.execute(statement, values | choice.parameters).first()
        stored = Stored(*inserted) if inserted is not None else None
    else:
        statement = get_statement(database.models, _SelectChosen(kind, choice.query))
        chosen = transaction.execute(statement, choice.parameters).first()
        stored = _insert(transaction, chosen, row) if chosen is not None else None
    transaction.has_written |= stored is not None
    if stored is not None and stored.ignored is None and not transaction.commit:
        count_at_commit(transaction, database.models.responses.id == stored.id, row["created_at"])
    return stored


def _insert(transaction: Transaction, chosen: t.Any, row: dict[str, t.Any]) -> Stored:
    models = transaction.database.models
    row = row | {"referral_id": chosen.referral_id, "ignored": chosen.ignored}
    values = {models.responses[name].key: value for name, value in row.items()}
    result = transaction.execute(sa.insert(models.response_table), values)
    return Stored(result.inserted_primary_key[0], chosen.ignored, chosen.redirect_to)


def find_response(transaction: Transaction, row: dict[str, t.Any], code: str | None = None) -> Stored | None:
    """Return a row that may have been written before its connection was lost.

    :param code: the code of its referral, for rows with neither a visitor key nor a user.
    """
    names = tuple(name for name in _IDENTIFYING if name in row)
    values = {f"new_{name}": row[name] for name in names}
    statement = get_statement(transaction.database.models, _FindRow(names, code is not None))
    found = transaction.execute(statement, values | ({"code": code} if code is not None else {})).first()
    return Stored(*found) if found is not None else None


class _SelectChosen(t.NamedTuple):
    kind: type[t.Any]  # without the class, queries of two classes could be equal
    query: Query

    def build(self, models: Models) -> t.Any:
        return self.query.build(models).add_columns(models.referrals.redirect_to.label("redirect_to"))


class _InsertChosen(t.NamedTuple):
    """Insert a response to the chosen referral. Return its key, its reason code, and where the referral leads."""

    kind: type[t.Any]
    query: Query
    dialect: sa.Dialect
    columns: tuple[str, ...]

    def build(self, models: Models) -> t.Any:
        columns = models.responses
        targets = [columns.referral_id, columns.ignored, *(columns[name] for name in self.columns)]
        values = [sa.bindparam(f"new_{name}", type_=columns[name].type).label(None) for name in self.columns]
        # As text: SQLAlchemy would add the column's table to the subquery.
        of_row: sa.ColumnElement[int] = sa.literal_column(
            self.dialect.identifier_preparer.format_column(columns.referral_id, use_table=True)
        )
        referral = sa.orm.aliased(models.referral)
        redirect_to = sa.select(referral.redirect_to).where(referral.id == of_row).scalar_subquery()
        insert = sa.insert(models.response_table).from_select(targets, self.query.build(models).add_columns(*values))
        return insert.returning(columns.id, columns.ignored, redirect_to)


class _FindRow(t.NamedTuple):
    names: tuple[str, ...]
    has_code: bool

    def build(self, models: Models) -> t.Any:
        referrals, responses = models.referrals, models.responses
        same = [
            responses[name] == sa.bindparam(f"new_{name}") if name in self.names else responses[name].is_(None)
            for name in _IDENTIFYING
        ]
        if self.has_code:
            same.append(referrals.code == sa.bindparam("code"))
        found = sa.select(responses.id, responses.ignored, referrals.redirect_to).where(*same)
        return found.join_from(responses.id.table, referrals.id.table, responses.referral_id == referrals.id)
