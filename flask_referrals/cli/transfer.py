"""``flask referrals import | export``."""

import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone as Timezone
from datetime import tzinfo
from functools import partial

import click
from flask.cli import with_appcontext

from .. import targets
from .output import output_file
from .output import printable
from .output import progress_bar
from .output import time
from .output import to_file

_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


def zone(name: str) -> tzinfo:
    """Read an option that is a time zone."""
    from zoneinfo import ZoneInfo

    try:
        return Timezone.utc if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise click.BadParameter(f"{name!r} is not a zone such as Europe/Berlin.") from None


@click.command("import")
@click.option("--from", "source", type=click.Choice(["pinax"]), required=True, help="Where the rows come from.")
@click.argument("files", nargs=-1, type=_FILE)
@click.option("--referrals", "links", type=_FILE, help="The table of links as CSV.")
@click.option("--responses", type=_FILE, help="The table of responses as CSV.")
@click.option("--users", type=_FILE, help="CSV of two columns, old and new key; without it users have the same keys.")
@click.option(
    "--target",
    "target_names",
    multiple=True,
    metavar="APP.MODEL=NAME",
    help="What a content type, by name or number, is called here: a registered target or a table. Repeatable.",
)
@click.option("--timezone", type=zone, default="UTC", show_default=True, help="The zone of times that name none.")
@with_appcontext
@click.pass_context
def import_(
    ctx: click.Context,
    source: str,
    files: tuple[str, ...],
    links: str | None,
    responses: str | None,
    users: str | None,
    target_names: tuple[str, ...],
    timezone: tzinfo,
) -> None:
    """Import the links and responses of pinax-referrals.

    FILES are what Django's 'dumpdata' wrote, as json or jsonl; or give both tables as CSV. It may be run again: only
    what is new is added. Records that cannot be imported are named, and the exit code is then 1.
    """
    from .. import dumps
    from .. import importing

    if not files and links is None:
        raise click.UsageError("Give the files of a dump, or --referrals and --responses.")
    if responses is not None and links is None:
        raise click.UsageError("--responses needs --referrals: responses name their link by its number there.")

    with ExitStack() as stack:

        def opened(path: str) -> t.TextIO:
            return stack.enter_context(_open(path))

        readers = [(dumps.read_json, path, opened(path)) for path in files]
        tables = [
            (path, opened(path), kind) for path, kind in ((links, dumps.LINK), (responses, dumps.RESPONSE)) if path
        ]

        def records() -> Iterator[t.Any]:
            for read, path, stream in readers:
                yield from read(click.format_filename(path), stream)
            for path, stream, kind in tables:
                yield from dumps.read_csv(click.format_filename(path), stream, kind)

        streams = [stream for _, _, stream in readers] + [stream for _, stream, _ in tables]
        pairs = None if users is None else _pairs(opened(users))
        with _bytes_read(streams) as progress:
            report = importing.import_pinax(
                records(),
                importing.Options(
                    targets=dict(_target_name(text) for text in target_names),
                    users=pairs,
                    zone=timezone,
                    refuse=lambda where, reason: click.echo(f"{where}: refused: {printable(reason)}", err=True),
                    note=lambda where, words: click.echo(f"{where}: note: {printable(words)}", err=True),
                    progress=progress,
                ),
            )
    click.echo(f"Links: {report.links_added} added, {report.links_present} here already.")
    click.echo(f"Responses: {report.responses_added} added, {report.responses_present} here already.")
    for number, words in (
        (report.duplicates, "Duplicate links, each with its code and responses"),
        (report.not_allowed, "Links to where a link may not lead now; they lead to the fallback"),
        (report.without_user, "Rows of users who are not here; they have no user"),
        (report.refused, "Records refused"),
    ):
        if number:
            click.echo(f"{words}: {number}.")
    if report.refused:
        ctx.exit(1)


@click.command()
@click.argument("table", type=click.Choice(["referrals", "responses"]))
@click.option("--format", "format_", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True)
@to_file
@click.option("--since", type=time, help="Only rows from this time on, as 2026-01-31T12:00Z.")
@with_appcontext
def export(table: str, format_: str, output: str, since: datetime | None) -> None:
    """Write all links or responses as CSV or JSON lines.

    Visitors' keys are left out. In CSV a text that a spreadsheet would take for a formula gets an apostrophe in front;
    JSON lines hold everything as it is.
    """
    from .. import exporting

    write = exporting.write_csv if format_ == "csv" else exporting.write_json_lines
    length = partial(exporting.count, table, since)
    with output_file(output) as stream, progress_bar(length, hidden=output == "-") as bar:
        write(table, stream, since=since, progress=lambda: bar(1))


@contextmanager
def _open(path: str) -> Iterator[t.TextIO]:
    import io

    # Bytes that are no UTF-8 break the records they are in, and no others.
    with click.open_file(path, "rb") as binary:
        stream = io.TextIOWrapper(t.cast(t.Any, binary), encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            yield stream
        finally:
            stream.detach()


@contextmanager
def _bytes_read(streams: list[t.TextIO]) -> Iterator[Callable[[], None]]:
    """Show how much of some files has been read; yield what looks it up."""
    buffers: list[t.Any] = [t.cast(t.Any, stream).buffer for stream in streams]
    if not all(buffer.seekable() for buffer in buffers):
        yield lambda: None
        return
    lengths = [buffer.seek(0, 2) for buffer in buffers]
    for buffer in buffers:
        buffer.seek(0)
    done = 0
    with progress_bar(lambda: sum(lengths)) as bar:

        def progress() -> None:
            nonlocal done
            position = sum(buffer.tell() for buffer in buffers)
            bar(position - done)
            done = position

        yield progress


def _pairs(stream: t.TextIO) -> Iterator[tuple[str, str]]:
    import csv

    for row in csv.reader(stream):
        if len(row) != 2 or not all(map(str.isprintable, row)):
            raise click.UsageError(f"--users must have two columns, old and new: {row!r}")
        yield row[0].strip(), row[1].strip()


def _target_name(text: str) -> tuple[str, str]:
    content_type, _, name = text.partition("=")
    if not content_type or not targets.is_known(name):
        raise click.UsageError(f"--target {text!r}: give APP.MODEL=NAME, a registered target's or a table's name.")
    return content_type.lower(), name
