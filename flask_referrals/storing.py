"""How the row of a response is written: no ORM object, and where the database can, in one statement.

Which referral it is for is part of the statement. PostgreSQL and SQLite choose and write at once. Elsewhere that is a
SELECT and an INSERT: MySQL does not return what it wrote, and MariaDB locks all that an INSERT … SELECT reads.
"""

import typing as t
from collections.abc import Callable
from collections.abc import Hashable

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import attributes
from sqlalchemy.orm import make_transient_to_detached

from .context import current_state
from .transactions import Transaction

if t.TYPE_CHECKING:
    from .models import ReferralResponseMixin
    from .registry import Models

#: What tells a row from all others, where its connection was lost before it was known whether it is there. A visitor's
#: key is random, and nobody does two things in the same microsecond.
_TELLING = ("action", "is_touch", "session_key", "user_id", "created_at")


class Choice(t.NamedTuple):
    """Which referral a response is for.

    :param make: makes a SELECT of the referral's key and of why the response does not count, as ``referral_id`` and
        ``ignored``, given the models and the arguments.
    :param arguments: what else that depends on.
    :param parameters: the SELECT's.
    """

    make: Callable[..., sa.Select[t.Any]]
    arguments: tuple[Hashable, ...]
    parameters: dict[str, t.Any]


class Stored(t.NamedTuple):
    """A row that was written.

    :param redirect_to: where its referral leads.
    """

    id: int
    ignored: str | None
    redirect_to: str


def columns_of(models: "Models") -> dict[str, sa.Column[t.Any]]:
    """Return the columns of a response by their attributes; a host may have renamed some."""
    properties = sa.inspect(models.response).column_attrs
    return {each.key: t.cast("sa.Column[t.Any]", each.columns[0]) for each in properties}


def writes_what_it_selects(dialect: Dialect) -> bool:
    """Whether a database takes an INSERT … SELECT without locking what it reads, and returns what it wrote."""
    return dialect.name in ("postgresql", "sqlite") and dialect.insert_returning


def store(transaction: Transaction, choice: Choice, row: dict[str, t.Any]) -> Stored | None:
    """Write a response; ``None`` when no referral is chosen.

    :param transaction: within its ``write()``.
    :param choice: which referral it is for.
    :param row: all other columns, by their attributes.
    """
    models, connection = current_state().models, transaction.connection
    if writes_what_it_selects(connection.dialect):
        # A parameter costs its way through two libraries; half of a row is empty.
        given = {_parameter(name): value for name, value in row.items() if value is not None} | choice.parameters
        shape = tuple([(name, value is None) for name, value in row.items()])
        insert = models.once(_insert_chosen, connection.dialect, shape, choice.make, *choice.arguments)
        written = connection.execute(insert, given).one_or_none()
        return Stored(*written) if written is not None else None
    chosen = connection.execute(models.once(_choose, choice.make, *choice.arguments), choice.parameters).one_or_none()
    if chosen is None:
        return None
    columns = models.once(columns_of)
    values = {columns[name].key: value for name, value in (row | chosen._asdict()).items() if name in columns}
    (key,) = t.cast(t.Any, connection.execute(models.once(_insert), values)).inserted_primary_key
    return Stored(key, chosen.ignored, chosen.redirect_to)


def find(transaction: Transaction, row: dict[str, t.Any], code: str | None = None) -> Stored | None:
    """Return a row that was perhaps written.

    :param row: what it was to be.
    :param code: that of its referral, for rows that name neither a visitor nor a user.
    """
    names = tuple(name for name in _TELLING if row[name] is not None)
    statement = current_state().models.once(_find, names, code is not None)
    given = {_parameter(name): row[name] for name in names} | {"code": code}
    with transaction.read():
        found = transaction.connection.execute(statement, given).first()
    return Stored(*found) if found is not None else None


def handle(transaction: Transaction, key: int) -> "ReferralResponseMixin":
    """Return the object for a row, in the host's session; it is read when it is asked for more than its key.

    :param transaction: the row is written, or found, in it.
    :param key: the row's primary key.
    """
    session, mapper = transaction.session, sa.inspect(transaction.model)
    response: ReferralResponseMixin | None = session.identity_map.get(mapper.identity_key_from_primary_key((key,)))
    if response is None:
        response = t.cast("ReferralResponseMixin", mapper.class_manager.new_instance())
        attributes.set_committed_value(response, "id", key)
        make_transient_to_detached(response)
        session.add(response)
    return response


def _parameter(name: str) -> str:
    return f"new_{name}"


def _insert(models: "Models") -> sa.Insert:
    return sa.insert(t.cast(sa.Table, sa.inspect(models.response).local_table))


def _choose(models: "Models", make: Callable[..., sa.Select[t.Any]], *arguments: Hashable) -> sa.Select[t.Any]:
    return make(models, *arguments).add_columns(models.referral.redirect_to.label("redirect_to"))


def _insert_chosen(
    models: "Models",
    dialect: Dialect,
    shape: tuple[tuple[str, bool], ...],
    make: Callable[..., sa.Select[t.Any]],
    *arguments: Hashable,
) -> t.Any:
    columns = models.once(columns_of)
    target, values = [columns["referral_id"], columns["ignored"]], []
    for name, is_empty in shape:
        target.append(columns[name])
        value = sa.null() if is_empty else sa.bindparam(_parameter(name), type_=columns[name].type)
        values.append(value.label(None))
    # As text, for SQLAlchemy takes it for another table of the subquery's.
    of_row: sa.ColumnElement[int] = sa.literal_column(
        dialect.identifier_preparer.format_column(columns["referral_id"], use_table=True)
    )
    referral = sa.orm.aliased(models.referral)
    redirect_to = sa.select(referral.redirect_to).where(referral.id == of_row).scalar_subquery()
    insert = models.once(_insert).from_select(target, make(models, *arguments).add_columns(*values))
    return insert.returning(columns["id"], columns["ignored"], redirect_to)


def _find(models: "Models", names: tuple[str, ...], has_code: bool) -> sa.Select[t.Any]:
    referral, response = models.referral, models.response
    same = [
        getattr(response, name) == sa.bindparam(_parameter(name))
        if name in names
        else getattr(response, name).is_(None)
        for name in _TELLING
    ]
    if has_code:
        same.append(referral.code == sa.bindparam("code"))
    found = sa.select(response.id, response.ignored, referral.redirect_to)
    return t.cast("sa.Select[t.Any]", found.join(referral, response.referral_id == referral.id).where(*same))
