"""What commands print or write."""

import json
import os
import stat
import sys
import tempfile
import typing as t
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from itertools import zip_longest
from unicodedata import category, east_asian_width

import click

from ..types import Amount

#: The widest a table gets, in columns of a terminal.
_MAX_WIDTH = 80
#: The width below which a column of text does not shrink.
_MIN_WIDTH = 6
#: The joiners of Persian and Indic words and of emoji, which are not printable by themselves.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
#: Values that are never cut, because half of them would say something else.
_NEVER_CUT = (int, Decimal, date, Amount)


def echo_json(row: t.Any) -> None:
    """Print a value as one line of JSON, with times in ISO 8601 and keys of users as text unless they are numbers."""
    click.echo(json.dumps(row, default=lambda value: value.isoformat() if isinstance(value, datetime) else str(value)))


def in_text(value: t.Any) -> str:
    """Format a value for people; times are in UTC."""
    if value is None:
        return ""
    return f"{value:%Y-%m-%d %H:%M:%S}Z" if isinstance(value, datetime) else str(value)


def echo_table(header: Sequence[str], rows: Sequence[Sequence[t.Any]], *, empty: str) -> None:
    """Print a table that fits 80 columns, or a sentence if it has no rows.

    Text is cut where there is no room, in the first column last, because that names the row. Numbers, times and amounts
    are never cut.

    :param rows: the values. One that is a list has a line for each of its own values.
    :param empty: the sentence.
    """
    if not rows:
        click.echo(empty)
        return
    table = [[[each for each in _list(value) if each not in (None, "")] for value in row] for row in rows]
    columns = [[value for cell in column for value in cell] for column in zip(*table, strict=True)]
    widths = _fit(header, columns)
    is_number = [bool(column) and all(isinstance(each, (int, Amount)) for each in column) for column in columns]
    lines: list[Sequence[t.Any]] = [header]
    for row in table:
        lines += zip_longest(*row)
    for line in lines:
        cells = [_cut(printable(value), width) for value, width in zip(line, widths, strict=True)]
        spaces = [" " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
        aligned = zip(cells, spaces, is_number, strict=True)
        click.echo("  ".join(space + cell if right else cell + space for cell, space, right in aligned).rstrip())


def _list(value: t.Any) -> list[t.Any]:
    return value if isinstance(value, list) else [value]


def _fit(header: Sequence[str], columns: Sequence[Sequence[t.Any]]) -> list[int]:
    """Return the widths of the columns of a table, given their values."""
    widths, least = [], []
    for name, values in zip(header, columns, strict=True):
        widths.append(max(_width(printable(value)) for value in (name, *values)))
        whole = (_width(printable(value)) for value in values if isinstance(value, _NEVER_CUT))
        least.append(max(min(widths[-1], _MIN_WIDTH), *whole, 0))
    room = _MAX_WIDTH - 2 * (len(widths) - 1)
    for candidates in (range(1, len(widths)), range(1)):
        while sum(widths) > room and (wide := [each for each in candidates if widths[each] > least[each]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _width(text: str) -> int:
    """Return how many columns a text takes on a terminal: Chinese characters take two, accents and joiners none."""
    return sum(0 if category(each) in ("Mn", "Me", "Cf") else 1 + (east_asian_width(each) in "WF") for each in text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    kept = ""
    for character in text:
        if _width(kept + character) >= width:
            break
        kept += character
    return f"{kept}…"


def printable(value: t.Any) -> str:
    """Format a value without control characters: visitors wrote it, and a terminal obeys them."""
    return "".join(
        character if character.isprintable() or character in _JOINERS else "\N{REPLACEMENT CHARACTER}"
        for character in in_text(value)
    )


@contextmanager
def output_file(path: str, *, may_replace: bool = True) -> Iterator[t.TextIO]:
    """Open a file that only its owner can read, and that stays only if it is complete; ``-`` is the standard output.

    An existing path must be a regular file: a symbolic link is never followed, a device never replaced.
    """
    if path == "-":
        with click.open_file("-", "w", encoding="utf-8") as stdout:
            yield t.cast(t.TextIO, stdout)
        return
    unfinished = None
    try:
        if may_replace and os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise click.FileError(path, "It is not a regular file. Use '-' for the standard output.")
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
