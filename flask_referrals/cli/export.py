"""``flask referrals export``: both tables as CSV for spreadsheets or JSON Lines for programs, or one user's rows.

Visitor keys are left out. They recognise a visitor, and an export leaves the site.
"""

import csv
import json
import typing as t
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from functools import partial

import click
import sqlalchemy as sa
from flask.cli import with_appcontext

from ..spreadsheets import csv_cell
from ..state import AppState, current_state
from ..times import as_utc
from .options import time, to_file
from .output import output_file, progress_bar

#: Columns that have a meaning in the database only.
_NOT_EXPORTED = {"identity", "folded_code", "session_key", "referral_id"}
_PAGE = 1000

Row = dict[str, t.Any]


@click.command()
@click.argument("table", type=click.Choice(["referrals", "responses"]))
@click.option(
    "--format",
    "format_",
    type=click.Choice(["csv", "jsonl"]),
    default="csv",
    show_default=True,
    help="Write this format: CSV or JSON Lines.",
)
@to_file
@click.option("--since", type=time, help="Write only rows from this time on, such as 2026-01-31T12:00Z.")
@with_appcontext
def export(table: str, format_: str, output: str, since: datetime | None) -> None:
    """Write all links or responses as CSV or JSON Lines.

    'referrals' are the links. 'responses' are the clicks and the later actions, each with the code of its link.
    Visitor keys are left out. In CSV, an apostrophe precedes what a spreadsheet would read as a formula, and control
    characters are replaced. JSON Lines contain every value unchanged.
    """
    state = current_state()
    write = write_csv if format_ == "csv" else write_json_lines
    length = partial(count_rows, state, table, since)
    with output_file(output) as stream, progress_bar(length, hidden=output == "-") as bar:
        write(state, table, stream, since=since, progress=lambda: bar(1))


def count_rows(state: AppState, table: str, since: datetime | None = None, *, user_id: t.Any = None) -> int:
    """Return the number of rows that an export with these parameters has."""
    rows = _select(state, table, since, user_id).order_by(None).subquery()
    ((number,),) = state.reports.rows(sa.select(sa.func.count()).select_from(rows))
    return int(number)


def rows_of(state: AppState, table: str, since: datetime | None = None, *, user_id: t.Any = None) -> Iterator[Row]:
    """Yield the rows of a table in the order of their keys, as the database returns them.

    A response has the code of its referral. The host's own columns are included.

    :param table: ``"referrals"`` or ``"responses"``.
    :param since: only rows from this time on.
    :param user_id: only the rows of the user with this key.
    """
    select = _select(state, table, since, user_id).execution_options(yield_per=_PAGE)
    with state.reports.stream(select) as result, closing(result):
        for row in result.mappings():
            yield {name: _plain(value) for name, value in row.items()}


def write_csv(
    state: AppState, table: str, stream: t.TextIO, *, since: datetime | None, progress: Callable[[], None]
) -> None:
    """Write a table as CSV. What a spreadsheet would take for a formula gets an apostrophe in front.

    :param progress: called after each row.
    """
    # Lines end as RFC 4180 says. Before Python 3.13 the writer quotes no other line ends than its own.
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(_select(state, table).selected_columns.keys())
    for row in rows_of(state, table, since):
        writer.writerow([csv_cell(value) for value in row.values()])
        progress()


def write_json_lines(
    state: AppState, table: str, stream: t.TextIO, *, since: datetime | None, progress: Callable[[], None]
) -> None:
    """Write a table as one JSON object a line."""
    for row in rows_of(state, table, since):
        stream.write(json.dumps(row, default=str) + "\n")
        progress()


def write_user(state: AppState, user_id: t.Any, stream: t.TextIO, *, progress: Callable[[], None]) -> dict[str, int]:
    """Write what is stored of a user as one JSON object, ``{"referrals": […], "responses": […]}``.

    :return: the number of rows of each table.
    """
    counts = {}
    for before, table in (("{", "referrals"), (",\n", "responses")):
        stream.write(f'{before}"{table}": [')
        counts[table] = 0
        for row in rows_of(state, table, user_id=user_id):
            stream.write(f"{',' if counts[table] else ''}\n{json.dumps(row, default=str)}")
            counts[table] += 1
            progress()
        stream.write("]")
    stream.write("}\n")
    return counts


def _select(state: AppState, table: str, since: datetime | None = None, user_id: t.Any = None) -> sa.Select[t.Any]:
    models = state.database.models
    model: t.Any = models.referral if table == "referrals" else models.response
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
    """Return a value as it is written, times in UTC."""
    if isinstance(value, datetime):
        return as_utc(value).isoformat()
    return value if value is None or isinstance(value, (bool, int, float, str, Decimal, dict, list)) else str(value)
