"""Options that commands share, and what commands print or write."""

import csv
import json
import os
import sys
import tempfile
import typing as t
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import click
import sqlalchemy as sa

from ..actors import parse_user_key
from ..db.conditions import is_exactly
from ..state import AppState
from ..times import parse_time, require_aware

_MAX_CELL = 48

F = t.TypeVar("F", bound=Callable[..., t.Any])


def as_json(command: F) -> F:
    """Add the option ``--json`` to a command, as its parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")(command)


def to_file(command: F) -> F:
    """Add the option ``--output`` to a command, for :func:`output_file`."""
    path = click.Path(dir_okay=False, allow_dash=True)
    words = "File to write; '-' is the standard output."
    return click.option("-o", "--output", type=path, default="-", show_default=True, help=words)(command)


def time(text: str) -> datetime:
    """Parse an option that is a time; a time without a zone is in UTC."""
    try:
        return t.cast(datetime, require_aware("time", parse_time(text)))
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def find_user(state: AppState, text: str) -> t.Any:
    """Return the key of a user as it is stored, or exit. A deleted user is known by the rows that are left."""
    key, models = parse_user_key(state, text), state.database.models
    if key is None:
        raise click.ClickException(f"{text!r} cannot be the key of a user. Give a primary key of the user table.")
    selects = [sa.select(rows.id).where(is_exactly(rows.user_id, key)) for rows in (models.referrals, models.responses)]
    if models.user is not None:
        selects.append(sa.select(models.user).where(sa.inspect(models.user).primary_key[0] == key))
    with state.database.new_session() as session:
        if not any(session.execute(select.limit(1)).first() for select in selects):
            raise click.ClickException(f"There is no user with the key {text!r}, nor anything stored of one.")
    return key


def echo_json(row: t.Any) -> None:
    """Print a value as one line of JSON, with times in ISO 8601 and keys of users as text unless they are numbers."""
    click.echo(json.dumps(row, default=lambda value: value.isoformat() if isinstance(value, datetime) else str(value)))


def in_text(value: t.Any) -> str:
    """Format a value for people; times are in UTC."""
    if value is None:
        return ""
    return f"{value:%Y-%m-%d %H:%M:%S}Z" if isinstance(value, datetime) else str(value)


def echo_table(header: Sequence[str], rows: Sequence[Sequence[t.Any]]) -> None:
    """Print a table; long cells are cut, and control characters are replaced."""
    cells = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_number = [bool(rows) and all(isinstance(row[index], int) for row in rows) for index in range(len(header))]
    for line in cells:
        columns = zip(line, widths, is_number, strict=True)
        click.echo(
            "  ".join(text.rjust(width) if right else text.ljust(width) for text, width, right in columns).rstrip()
        )


def printable(value: t.Any) -> str:
    """Format a value without control characters: visitors wrote it, and a terminal obeys them."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in in_text(value)
    )


def _cell(value: t.Any) -> str:
    text = printable(value)
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"


@contextmanager
def output_file(path: str, *, may_replace: bool = True) -> Iterator[t.TextIO]:
    """Open a file that only its owner can read, and that stays only if it is complete; ``-`` is the standard output.

    A symbolic link is never followed. It is replaced, or refused like any file if ``may_replace`` is false.
    """
    if path == "-":
        with click.open_file("-", "w", encoding="utf-8") as stdout:
            yield t.cast(t.TextIO, stdout)
        return
    unfinished = None
    try:
        if may_replace:
            number, unfinished = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".referrals-")
        else:
            number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            unfinished = path
        with open(number, "w", encoding="utf-8", newline="") as stream:
            yield stream
        os.replace(unfinished, path)
        unfinished = None
    except OSError as error:
        raise click.FileError(path, error.strerror) from error
    finally:
        if unfinished is not None:
            os.remove(unfinished)


def read_user_keys(stream: t.TextIO) -> Iterator[tuple[str, str]]:
    """Yield the rows of a file of the option ``--users``: an old and a new key each."""
    for row in csv.reader(stream):
        if len(row) != 2 or not all(map(str.isprintable, row)):
            raise click.UsageError(f"A row of --users is not an old and a new key: {row!r}. Give two columns.")
        yield row[0].strip(), row[1].strip()


@contextmanager
def progress_bar(length: Callable[[], int], *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal, and yield the function that advances it.

    ``length`` counts the steps and is called only for a visible bar. Hide the bar when the output goes to the terminal.
    """
    if hidden or not sys.stderr.isatty():
        yield lambda steps: None
        return
    steps = length()
    with click.progressbar(length=steps, file=sys.stderr, update_min_steps=max(1, steps // 200)) as bar:
        yield bar.update
