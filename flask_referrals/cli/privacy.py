"""``flask referrals purge | anonymize | export-user | forget-user``."""

import typing as t
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import click
from flask.cli import with_appcontext
from sqlalchemy.exc import IntegrityError

from .. import privacy
from ..failures import reason_of
from ..state import AppState, current_state
from .export import count_rows, write_user
from .options import find_user, to_file
from .output import output_file, progress_bar

F = t.TypeVar("F", bound=Callable[..., t.Any])

#: A hundred years: the current time minus these days must still be a valid time.
_MAX_DAYS = 36525


def older_than(command: F) -> F:
    """Add the option ``--older-than`` to a command, as its parameter ``days``."""
    days = click.IntRange(1, _MAX_DAYS)
    words = "Take responses that are older than this number of days."
    return click.option("--older-than", "days", type=days, required=True, metavar="DAYS", help=words)(command)


@click.command()
@older_than
@click.confirmation_option(prompt="Delete these responses? Only days that are rolled up keep their counts.")
@with_appcontext
def purge(days: int) -> None:
    """Delete responses older than DAYS days.

    The rows leave the table. Days that are rolled up keep their counts; the counts of other days shrink, so run 'flask
    referrals rollup' first. Bindings that rest on deleted rows end, and an action with a unique key can be recorded
    again. Links stay. If the command is interrupted, run it again.
    """
    state = current_state()
    try:
        with progress_bar(partial(privacy.id_span, state)) as bar:
            deleted = privacy.purge(state, timedelta(days=days), progress=bar)
    except IntegrityError as error:
        raise click.ClickException(
            "Rows of another table refer to some of these responses, so that these cannot be deleted "
            f"({reason_of(error)}). Add an 'ondelete' rule to that foreign key, or use 'anonymize'."
        ) from error
    click.echo(f"Deleted: {deleted} responses.")


@click.command()
@older_than
@with_appcontext
def anonymize(days: int) -> None:
    """Remove personal data from responses older than DAYS days.

    User, visitor key, address, referrer, user agent and unique key go. Rows, counts, values, targets and campaign
    arguments stay. Bindings that rest on these responses end, and an action with a unique key can be recorded again. If
    the command is interrupted, run it again.
    """
    state = current_state()
    with progress_bar(partial(privacy.id_span, state)) as bar:
        changed = privacy.anonymize(state, timedelta(days=days), progress=bar)
    click.echo(f"Anonymized: {changed} responses.")


@click.command("export-user")
@click.argument("key")
@to_file
@with_appcontext
def export_user(key: str, output: str) -> None:
    """Write the links and responses of a user as JSON.

    KEY is a primary key of the user table. Visitor keys are left out. An existing file is not replaced.
    """
    state = current_state()
    user_id = find_user(state, key, "KEY")
    length = partial(_count_rows, state, user_id)
    with output_file(output, may_replace=False) as stream, progress_bar(length, hidden=output == "-") as bar:
        counts = write_user(state, user_id, stream, progress=lambda: bar(1))
    click.echo(f"Exported: {counts['referrals']} links, {counts['responses']} responses.", err=True)


@click.command("forget-user")
@click.argument("key")
@click.confirmation_option(prompt="Remove this user from all links and responses for good?")
@with_appcontext
def forget_user(key: str) -> None:
    """Remove a user from all links and responses.

    KEY is a primary key of the user table. Run this before you delete the account. All rows and counts stay. The user's
    responses lose what 'anonymize' removes. The user's links expire and lose owner and label; they still redirect, and
    users who came by them stay bound to them. The user is removed as a target. If the command is interrupted, run it
    again.
    """
    state = current_state()
    user_id = find_user(state, key, "KEY")
    with progress_bar(partial(_count_rows, state, user_id)) as bar:
        forgotten = privacy.forget_user(state, user_id, commit=True, progress=bar)
    click.echo(f"Forgotten: {forgotten.referrals} links, {forgotten.responses} responses.")


def _count_rows(state: AppState, user_id: t.Any) -> int:
    return count_rows(state, "referrals", user_id=user_id) + count_rows(state, "responses", user_id=user_id)
