"""``flask referrals purge | anonymize | export-user | forget-user``."""

import typing as t
from collections.abc import Callable
from datetime import timedelta

import click
from flask.cli import with_appcontext
from sqlalchemy.exc import IntegrityError

from .. import retention
from ..identity import user_key
from .output import output_file
from .output import progress_bar
from .output import to_file

F = t.TypeVar("F", bound=Callable[..., t.Any])

#: So that the time before which is still a time.
_MOST_DAYS = 36525


def older_than(command: F) -> F:
    """Give a command the option ``--older-than``, as its parameter ``days``."""
    days = click.IntRange(1, _MOST_DAYS)
    words = "Of more than so many days."
    return click.option("--older-than", "days", type=days, required=True, metavar="DAYS", help=words)(command)


@click.command()
@older_than
@click.confirmation_option(prompt="Delete these responses, and what they count for?")
@with_appcontext
def purge(days: int) -> None:
    """Delete the responses of more than a number of days.

    They are gone from all counts, and so are the bindings of users that rest on them; links stay. If it is interrupted,
    run it again.
    """
    try:
        with progress_bar(retention.span) as bar:
            deleted = retention.purge(timedelta(days=days), progress=bar)
    except IntegrityError as error:
        raise click.ClickException(
            "Rows of another table refer to some of these responses, and its foreign key does not say what is to "
            f"become of them ({str(error.orig).splitlines()[0]}). Give it an 'ondelete', or use 'anonymize'."
        ) from error
    click.echo(f"Deleted: {deleted} responses.")


@click.command()
@older_than
@with_appcontext
def anonymize(days: int) -> None:
    """Take out of the responses of more than a number of days who made them.

    All counts stay. User, visitor's key, address, referrer, agent and key go, and the bindings of users that rest on
    them. If it is interrupted, run it again.
    """
    with progress_bar(retention.span) as bar:
        changed = retention.anonymize(timedelta(days=days), progress=bar)
    click.echo(f"Anonymized: {changed} responses.")


@click.command("export-user")
@click.argument("key")
@to_file
@with_appcontext
def export_user(key: str, output: str) -> None:
    """Write what is stored of the user with the primary key KEY, as JSON.

    Visitors' keys are left out.
    """
    from .. import exporting

    user_id = _user_id(key)
    with output_file(output) as stream, progress_bar(lambda: _count(user_id), hidden=output == "-") as bar:
        counts = exporting.write_user(user_id, stream, progress=lambda: bar(1))
    click.echo(f"Exported: {counts['referrals']} links, {counts['responses']} responses.", err=True)


@click.command("forget-user")
@click.argument("key")
@click.confirmation_option(prompt="Take this user out of all links and responses for good?")
@with_appcontext
def forget_user(key: str) -> None:
    """Take the user with the primary key KEY out of all rows; do so before the account is deleted.

    Counts stay. The user's links lead on, without label, expired. If it is interrupted, run it again.
    """
    user_id = _user_id(key)
    with progress_bar(lambda: _count(user_id)) as bar:
        forgotten = retention.forget_user(user_id, commit=True, progress=bar)
    click.echo(f"Forgotten: {forgotten.referrals} links, {forgotten.responses} responses.")


def _user_id(key: str) -> t.Any:
    """Read a user's key; that it is still a user's is not looked up."""
    user_id = user_key(key)
    if user_id is None:
        raise click.ClickException(f"{key!r} cannot be a user's key.")
    return user_id


def _count(user_id: t.Any) -> int:
    from .. import exporting

    return exporting.count("referrals", user_id=user_id) + exporting.count("responses", user_id=user_id)
