"""``flask referrals import``."""

import io
import typing as t
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timezone as Timezone
from datetime import tzinfo
from functools import partial
from itertools import chain
from zoneinfo import ZoneInfo

import click
from flask.cli import with_appcontext

from ...cli.options import read_user_keys
from ...cli.output import printable, progress_bar
from ...state import current_state
from ...targets import find_type
from .dumps import LINK, RESPONSE, read_csv, read_json
from .importing import Options, Report, import_pinax

_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


def _zone(name: str) -> tzinfo:
    """Parse an option that is a time zone."""
    try:
        return Timezone.utc if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise click.BadParameter(f"{name!r} is not a time zone. Give a name such as Europe/Berlin.") from None


@click.command("import")
@click.option("--from", "source", type=click.Choice(["pinax"]), required=True, help="Read the files of this project.")
@click.argument("files", nargs=-1, type=_FILE)
@click.option("--referrals", "links", type=_FILE, help="Read the referrals table from this CSV file.")
@click.option("--responses", type=_FILE, help="Read the responses table from this CSV file.")
@click.option(
    "--users", type=_FILE, help="Read old and new keys of users from this CSV file. Without it, users keep their keys."
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="APP.MODEL=NAME",
    help="Store a content type, given by name or id, as a registered target or a table, such as 'shop.item=product'. "
    "Repeatable.",
)
@click.option(
    "--timezone",
    metavar="ZONE",
    type=_zone,
    default="UTC",
    show_default=True,
    help="Take times that name no zone as those of this one, such as Europe/Berlin.",
)
@with_appcontext
@click.pass_context
def import_(
    ctx: click.Context,
    source: str,
    files: tuple[str, ...],
    links: str | None,
    responses: str | None,
    users: str | None,
    targets: tuple[str, ...],
    timezone: tzinfo,
) -> None:
    """Import links and responses from pinax-referrals.

    FILES are dumps that Django's 'dumpdata' wrote, as json or jsonl. Or give both tables as CSV. You can repeat an
    import: only new rows are added. The command exits with status 1 if a record is refused; each refused record is
    printed with the reason.

    Example: flask referrals import --from pinax --users users.csv dump.json
    """
    if not files and links is None:
        raise click.UsageError("There is nothing to import. Give the files of a dump, or --referrals and --responses.")
    if responses is not None and links is None:
        raise click.UsageError("Responses refer to links by id. Give --referrals as well as --responses.")

    readers: list[tuple[str, Callable[..., Iterator[t.Any]]]] = [(path, read_json) for path in files]
    tables = ((links, LINK), (responses, RESPONSE))
    readers += [(path, partial(read_csv, kind=kind)) for path, kind in tables if path is not None]
    with ExitStack() as stack:
        streams = [stack.enter_context(_open(path)) for path, _ in readers]
        named = zip(readers, streams, strict=True)
        records = [read(click.format_filename(path), stream) for (path, read), stream in named]
        options = Options(
            targets=dict(map(_parse_target, targets)),
            users=None if users is None else read_user_keys(stack.enter_context(_open(users))),
            zone=timezone,
            refuse=lambda where, reason: click.echo(f"{where}: refused: {printable(reason)}", err=True),
            note=lambda where, words: click.echo(f"{where}: note: {printable(words)}", err=True),
            progress=stack.enter_context(_byte_progress(streams)),
        )
        report = import_pinax(chain.from_iterable(records), options)
    _echo_report(report)
    if report.refused:
        ctx.exit(1)


def _echo_report(report: Report) -> None:
    click.echo(f"Links: {report.links_added} added, {report.links_present} already imported.")
    click.echo(f"Responses: {report.responses_added} added, {report.responses_present} already imported.")
    for number, words in (
        (report.duplicates, "Duplicate links, each added with its own code and responses"),
        (report.not_allowed, "Links to URLs that are not allowed; they redirect to REFERRALS_FALLBACK_URL"),
        (report.without_user, "Rows of unknown users, added without a user"),
        (report.refused, "Records refused"),
    ):
        if number:
            click.echo(f"{words}: {number}.")


@contextmanager
def _open(path: str) -> Iterator[t.TextIO]:
    with click.open_file(path, "rb") as binary:
        # "surrogateescape", so that invalid UTF-8 breaks one record and not the whole file.
        stream = io.TextIOWrapper(t.cast(t.Any, binary), encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            yield stream
        finally:
            stream.detach()


@contextmanager
def _byte_progress(streams: list[t.TextIO]) -> Iterator[Callable[[], None]]:
    """Show a bar of the bytes read from some files, and yield the function that updates it."""
    buffers: list[t.Any] = [t.cast(t.Any, stream).buffer for stream in streams]
    if not all(buffer.seekable() for buffer in buffers):
        yield lambda: None
        return
    length = 0
    for buffer in buffers:
        length += buffer.seek(0, 2)
        buffer.seek(0)
    done = 0
    with progress_bar(lambda: length) as bar:

        def progress() -> None:
            nonlocal done
            position = sum(buffer.tell() for buffer in buffers)
            bar(position - done)
            done = position

        yield progress


def _parse_target(text: str) -> tuple[str, str]:
    content_type, _, name = text.partition("=")
    if not content_type or find_type(current_state(), name) is None:
        raise click.ClickException(
            f"There is no target {text!r}. Give APP.MODEL=NAME as --target; NAME is a registered target or a table."
        )
    return content_type.lower(), name
