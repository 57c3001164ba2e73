"""What commands read: options that several of them have, and the rows that options name."""

import csv
import typing as t
from collections.abc import Callable, Iterator
from datetime import datetime

import click
import sqlalchemy as sa

from ..actors import parse_user_key
from ..db.conditions import is_exactly
from ..db.tables import ReferralColumns, ResponseColumns
from ..links import find_link as find_link_or_none
from ..state import AppState
from ..times import parse_time, require_aware
from ..types import storable

F = t.TypeVar("F", bound=Callable[..., t.Any])

#: The id of a response, within what every database takes as one.
RESPONSE_ID = click.IntRange(1, 2**63 - 1)
_MAX_LIMIT = 1_000_000


def as_json(command: F) -> F:
    """Add the option ``--json`` to a command, as its parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")(command)


def limit(default: int, things: str) -> Callable[[F], F]:
    """Return a decorator that adds the option ``--limit`` to a command."""
    words = f"Print at most N {things}."
    number = click.IntRange(1, _MAX_LIMIT)
    return click.option("--limit", metavar="N", type=number, default=default, show_default=True, help=words)


def to_file(command: F) -> F:
    """Add the option ``--output`` to a command, for :func:`.output_file`."""
    path = click.Path(dir_okay=False, allow_dash=True)
    words = "Write to this file. '-' is the standard output."
    return click.option("-o", "--output", type=path, default="-", show_default=True, help=words)(command)


def time(text: str) -> datetime:
    """Parse an option that is a time; a time without a zone is in UTC."""
    try:
        return t.cast(datetime, require_aware("time", parse_time(text)))
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def find_user(state: AppState, text: str, option: str) -> t.Any:
    """Return the key of a user as it is stored, or exit. A deleted user is known by the rows that are left.

    :param option: the option or argument that names the user, for the error message; likewise below.
    """
    key, models = parse_user_key(state, text), state.database.models
    selects = [sa.select(rows.id).where(is_exactly(rows.user_id, key)) for rows in (models.referrals, models.responses)]
    if models.user is not None:
        selects.append(sa.select(models.user).where(sa.inspect(models.user).primary_key[0] == key))
    if key is not None:
        with state.database.new_session() as session:
            if any(session.execute(select.limit(1)).first() for select in selects):
                return key
    raise click.ClickException(
        f"There is no user with the key {text!r}, nor anything stored of one. Give a primary key of the user table as "
        f"{option}."
    )


def find_link(state: AppState, code: str, option: str) -> ReferralColumns:
    """Return the link with a code, or exit."""
    referral = find_link_or_none(state, code)
    if referral is None:
        raise click.ClickException(
            f"There is no link with the code {code!r}. Give a code that 'flask referrals list' shows as {option}."
        )
    return referral


def find_response(state: AppState, response_id: int, option: str) -> ResponseColumns:
    """Return the response with an id, or exit."""
    response = state.database.session.get(state.database.models.response, response_id)
    if response is None:
        raise click.ClickException(
            f"There is no response with the id {response_id}. Give an id that 'flask referrals show CODE' shows as "
            f"{option}."
        )
    return response


def has_label(state: AppState, label: str, option: str) -> sa.ColumnElement[bool]:
    """Return the condition that a link has a label, or exit if none has."""
    referrals = state.database.models.referrals
    condition = is_exactly(referrals.label, label)
    is_storable = label == storable(label, len(label))
    if is_storable and state.reports.rows(sa.select(referrals.id).where(condition).limit(1)):
        return condition
    raise click.ClickException(
        f"No link has the label {label!r}. Give a label that 'flask referrals list' shows as {option}."
    )


def read_user_keys(stream: t.TextIO) -> Iterator[tuple[str, str]]:
    """Yield the rows of a file of the option ``--users``: an old and a new key each."""
    for row in csv.reader(stream):
        if len(row) != 2 or not all(map(str.isprintable, row)):
            raise click.UsageError(f"A row of --users is not an old and a new key: {row!r}. Give two columns.")
        yield row[0].strip(), row[1].strip()
