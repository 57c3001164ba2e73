"""What the commands print or write, for people and for programs, and what they are given."""

import json
import os
import sys
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from datetime import datetime

import click

from ..times import parse_time

#: The widest column of a table, in characters.
_WIDEST = 48

F = t.TypeVar("F", bound=Callable[..., t.Any])


def as_json(command: F) -> F:
    """Give a command the option ``--json``, as its parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")(command)


def to_file(command: F) -> F:
    """Give a command the option ``--output``, for :func:`output_file`."""
    path = click.Path(dir_okay=False, allow_dash=True)
    return click.option("-o", "--output", type=path, default="-", help="A file to write.")(command)


def time(text: str) -> datetime:
    """Read an option that is a time; without a zone it is UTC."""
    try:
        return parse_time(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def echo_json(row: t.Any) -> None:
    """Print a line of JSON; times in ISO 8601, other keys than numbers as text."""
    click.echo(json.dumps(row, default=lambda value: value.isoformat() if isinstance(value, datetime) else str(value)))


def in_text(value: t.Any) -> str:
    """Return a value as people read it; times are in UTC."""
    if value is None:
        return ""
    return f"{value:%Y-%m-%d %H:%M:%S}Z" if isinstance(value, datetime) else str(value)


def echo_table(header: Sequence[str], rows: Sequence[Sequence[t.Any]]) -> None:
    """Print a table; cells are cut to a width, and what could steer a terminal is taken out of them."""
    cells = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_number = [bool(rows) and all(isinstance(row[index], int) for row in rows) for index in range(len(header))]
    for line in cells:
        columns = zip(line, widths, is_number, strict=True)
        click.echo(
            "  ".join(text.rjust(width) if right else text.ljust(width) for text, width, right in columns).rstrip()
        )


def printable(value: t.Any) -> str:
    """Return a value as text without control characters: others wrote it."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in in_text(value)
    )


def _cell(value: t.Any) -> str:
    text = printable(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


@contextmanager
def output_file(path: str) -> Iterator[t.TextIO]:
    """Write a file that appears, or takes the old one's place, when it is complete; ``-`` is the standard output."""
    if path == "-":
        with click.open_file("-", "w", encoding="utf-8") as stdout:
            yield t.cast(t.TextIO, stdout)
        return
    unfinished = f"{path}.part"
    try:
        with open(unfinished, "w", encoding="utf-8", newline="") as stream:
            yield stream
        os.replace(unfinished, path)
    except OSError as error:
        raise click.FileError(path, error.strerror) from error
    finally:
        with suppress(FileNotFoundError):
            os.remove(unfinished)


@contextmanager
def progress_bar(length: Callable[[], int], *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; yield what moves it on.

    :param length: tells how many steps there are; asked only for a bar.
    :param hidden: show none, for what is written goes to the terminal too.
    """
    if hidden or not sys.stderr.isatty():
        yield lambda steps: None
        return
    steps = length()
    with click.progressbar(length=steps, file=sys.stderr, update_min_steps=max(1, steps // 200)) as bar:
        yield bar.update
