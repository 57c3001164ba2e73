"""``flask referrals stats | top``."""

import csv
import sys
import typing as t
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal

import click
from flask.cli import with_appcontext

from ..db.keys import stored_key
from ..db.tables import ReferralColumns
from ..exceptions import InvalidValueError
from ..spreadsheets import csv_cell
from ..state import AppState, current_state
from ..stats import Totals, get_leaderboard, get_stats
from ..types import CLICK
from .links import find_link_or_exit
from .output import as_json, echo_json, echo_table, find_user

#: The longest key in a table, in characters.
_MAX_KEY = 28
_LIMIT = click.IntRange(min=1)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a day such as 2026-01-31.") from None


_since = click.option("--since", type=_day, metavar="DAY", help="First day, such as 2026-01-31.")
_until = click.option("--until", type=_day, metavar="DAY", help="Last day; by default today.")


@click.command()
@click.option("--by", help="Count by day, week, month, referral, owner, label, referrer, ignored or a campaign mark.")
@_since
@_until
@click.option("--user", metavar="KEY", help="Only links of this user, by primary key.")
@click.option("--label", help="Only links with this label.")
@click.option("--link", metavar="CODE", help="Only this link.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@as_json
@with_appcontext
def stats(
    by: str | None,
    since: date | None,
    until: date | None,
    user: str | None,
    label: str | None,
    link: str | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Count responses and their values by action.

    Days are those of REFERRALS_TIMEZONE. With --by the table shows the steps of REFERRALS_FUNNEL; --json and --csv
    have all actions.
    """
    state = current_state()
    try:
        found = get_stats(
            state,
            owner_key=None if user is None else find_user(state, user),
            referral=None if link is None else find_link_or_exit(state, link),
            label=label,
            since=since,
            until=until,
            by=by,
        )
    except InvalidValueError as error:
        raise click.ClickException(f"{error}.") from error
    rows = [(None, found.totals)] if by is None else [(_name(key), totals) for key, totals in found.rows]
    if as_json:
        for key, totals in rows:
            echo_json({**({} if by is None else {by: key}), "actions": _as_dict(totals)})
    elif as_csv:
        _write_csv(by, rows)
    elif by is None:
        order = [*state.settings.funnel, *found.totals]
        lines = [
            [action, found.totals[action].count, _values(found.totals[action].value)] for action in dict.fromkeys(order)
        ]
        echo_table(["Action", "Count", "Value"], lines)
    else:
        echo_table(*_table(state, by, rows))


@click.command()
@click.argument("action", default=CLICK)
@_since
@_until
@click.option("--limit", type=_LIMIT, default=10, show_default=True, help="Maximum number of users.")
@as_json
@with_appcontext
def top(action: str, since: date | None, until: date | None, limit: int, as_json: bool) -> None:
    """Show the users whose links bring most.

    ACTION is an action, by default RESPONDED, that is clicks. 'value:EUR' adds up the values in euros.
    """
    try:
        board = get_leaderboard(current_state(), action, since=since, until=until, limit=limit)
    except InvalidValueError as error:
        raise click.ClickException(f"{error}.") from error
    for place, (user, number) in enumerate(board, 1):
        if as_json:
            echo_json({"place": place, "user": _name(user), "number": number})
    if not as_json:
        rows = [[place, _name(user), number] for place, (user, number) in enumerate(board, 1)]
        echo_table(["Place", "User", "Value" if action.startswith("value:") else "Count"], rows)


def _name(key: t.Any) -> t.Any:
    """Return what names a key of the rows in a table: a code, or a user's primary key."""
    if key is None or isinstance(key, (str, int, date)):
        return key.isoformat() if isinstance(key, date) else key
    return key.code if isinstance(key, ReferralColumns) else stored_key(key)


def _table(
    state: AppState, by: str, rows: Sequence[tuple[t.Any, Totals]]
) -> tuple[Sequence[str], Sequence[Sequence[t.Any]]]:
    """Return the header and lines of a table that fits 80 columns with three steps and a currency."""
    steps = state.settings.funnel
    header = [by.capitalize(), *("Clicks" if step == CLICK else step.capitalize().replace("_", " ") for step in steps)]
    lines = [[_shorten(key), *(totals[step].count for step in steps), _values(totals.value)] for key, totals in rows]
    return [*header, "Value"], lines


def _shorten(key: t.Any) -> t.Any:
    text = str(key)
    return "(none)" if key in (None, "") else key if len(text) <= _MAX_KEY else f"{text[: _MAX_KEY - 1]}…"


def _write_csv(by: str | None, rows: Sequence[tuple[t.Any, Totals]]) -> None:
    """Write a line for each key, action and currency. An action without a value has a line without a currency."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([by or "key", "action", "count", "currency", "value"])
    for key, totals in rows:
        for action, total in totals.items():
            for currency, value in total.value.items() or [(None, None)]:
                writer.writerow([csv_cell(each) for each in (key, action, total.count, currency, value)])


def _as_dict(totals: Totals) -> dict[str, t.Any]:
    return {
        action: {"count": each.count, "value": {currency or "": str(amount) for currency, amount in each.value.items()}}
        for action, each in totals.items()
    }


def _values(value: Mapping[str | None, Decimal]) -> str:
    """Return the sums by currency in words."""
    sums = sorted((currency or "", amount) for currency, amount in value.items())
    return ", ".join(f"{amount:,.2f} {currency}".strip() for currency, amount in sums)
