"""Writing the two tables out, row by row: CSV for spreadsheets, JSON lines for programs, one user's rows for the user.

The visitors' keys stay here. A key is what a visitor is recognised by, and an export leaves the house.
"""

import csv
import json
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa

from .context import current_state
from .replica import result_of
from .times import as_utc

#: Columns that mean something to us alone.
_NOT_EXPORTED = {"identity", "session_key", "referral_id"}
_PAGE = 1000
#: What makes a spreadsheet take a text for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Row = dict[str, t.Any]


def count(table: str, since: datetime | None = None, *, user_id: t.Any = None) -> int:
    """Return how many rows will be exported.

    :param table: ``"referrals"`` or ``"responses"``.
    :param since: only rows from this time on.
    :param user_id: only those of the user with this key.
    """
    rows = _select(table, since, user_id).order_by(None).subquery()
    with result_of(sa.select(sa.func.count()).select_from(rows)) as found:
        number: int = found.scalar_one()
    return number


def rows(table: str, since: datetime | None = None, *, user_id: t.Any = None) -> Iterator[Row]:
    """Yield the rows of a table, in the order of their keys, as the database hands them out.

    A response comes with the code of its referral. A host's own columns are there too.

    :param table: ``"referrals"`` or ``"responses"``.
    :param since: only rows from this time on.
    :param user_id: only those of the user with this key.
    """
    with result_of(_select(table, since, user_id).execution_options(yield_per=_PAGE)) as result, closing(result):
        for row in result.mappings():
            yield {name: _plain(value) for name, value in row.items()}


def columns(table: str) -> list[str]:
    """Return the names of the columns of an export."""
    return list(_select(table).selected_columns.keys())


def write_csv(table: str, stream: t.TextIO, *, since: datetime | None, progress: Callable[[], None]) -> None:
    """Write a table as CSV; a text that a spreadsheet would take for a formula gets an apostrophe in front.

    :param table: ``"referrals"`` or ``"responses"``.
    :param stream: where to.
    :param since: only rows from this time on.
    :param progress: called after every row.
    """
    # Lines end as RFC 4180 says. Before Python 3.13 the writer quotes no other line ends than its own.
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(columns(table))
    for row in rows(table, since):
        writer.writerow([_cell(value) for value in row.values()])
        progress()


def write_json_lines(table: str, stream: t.TextIO, *, since: datetime | None, progress: Callable[[], None]) -> None:
    """Write a table as one JSON object a line; the parameters are those of :func:`write_csv`."""
    for row in rows(table, since):
        stream.write(json.dumps(row, default=str) + "\n")
        progress()


def write_user(user_id: t.Any, stream: t.TextIO, *, progress: Callable[[], None]) -> dict[str, int]:
    """Write what is stored of a user as one JSON object, ``{"referrals": […], "responses": […]}``.

    :param user_id: the user's key.
    :param stream: where to.
    :param progress: called after every row.
    :return: how many rows there are of each.
    """
    counts = {}
    for before, table in (("{", "referrals"), (",\n", "responses")):
        stream.write(f'{before}"{table}": [')
        counts[table] = 0
        for row in rows(table, user_id=user_id):
            stream.write(f"{',' if counts[table] else ''}\n{json.dumps(row, default=str)}")
            counts[table] += 1
            progress()
        stream.write("]")
    stream.write("}\n")
    return counts


def _select(table: str, since: datetime | None = None, user_id: t.Any = None) -> sa.Select[t.Any]:
    models = current_state().models
    model: type[t.Any] = models.referral if table == "referrals" else models.response
    mapper = sa.inspect(model)
    attributes = [(column.name, mapper.get_property_by_column(column)) for column in mapper.local_table.columns]
    wanted = [each.class_attribute.label(name) for name, each in attributes if each.key not in _NOT_EXPORTED]
    if model is models.response:
        wanted.insert(1, models.referral.code.label("referral"))
    select = sa.select(*wanted).select_from(model)
    if model is models.response:
        select = select.join(models.referral, models.response.referral_id == models.referral.id)
    if since is not None:
        select = select.where(model.created_at >= since)
    if user_id is not None:
        select = select.where(model.user_id == user_id)
    return select.order_by(model.id)


def _plain(value: t.Any) -> t.Any:
    """Return a value as it is written; times in UTC."""
    if isinstance(value, datetime):
        return as_utc(value).isoformat()
    return value if value is None or isinstance(value, (bool, int, float, str, Decimal, dict, list)) else str(value)


def _cell(value: t.Any) -> t.Any:
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
