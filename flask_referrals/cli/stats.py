"""``flask referrals stats | top``."""

import csv
import sys
import typing as t
from collections.abc import Sequence
from datetime import date
from decimal import Decimal

import click
from flask.cli import with_appcontext

from ..db.keys import stored_key
from ..db.tables import ReferralColumns
from ..exceptions import InvalidValueError
from ..spreadsheets import csv_cell
from ..state import AppState, current_state
from ..stats import Totals, get_leaderboard, get_stats, step_label
from ..types import CLICK, Amount, amounts_of
from .options import as_json, find_link, find_user, has_label, limit
from .output import echo_json, echo_table, printable


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a day such as 2026-01-31.") from None


_since = click.option("--since", type=_day, metavar="DAY", help="Begin with this day. The beginning by default.")
_until = click.option("--until", type=_day, metavar="DAY", help="End with this day. Today by default.")


@click.command()
@click.option(
    "--by",
    metavar="NAME",
    help="Print a line for each day, week, month, referral, owner, label, referrer, or value of a campaign argument "
    "such as utm_source; with 'ignored' for each reason why responses are not counted. By default, for each action.",
)
@_since
@_until
@click.option("--user", metavar="KEY", help="Count only links of this user. KEY is a primary key of the user table.")
@click.option("--label", help="Count only links with this label.")
@click.option("--link", metavar="CODE", help="Count only the link with this code.")
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

    DAY is a day such as 2026-01-31 in REFERRALS_TIMEZONE. With --by, the table shows the steps of REFERRALS_FUNNEL and
    the values of all actions; --json and --csv have every action, and no text is cut.

    Example: flask referrals stats --since 2026-01-01 --by week
    """
    if as_csv and as_json:
        raise click.UsageError("Give either --csv or --json.")
    state = current_state()
    if label is not None:
        has_label(state, label, "--label")
    try:
        found = get_stats(
            state,
            owner_key=None if user is None else find_user(state, user, "--user"),
            referral=None if link is None else find_link(state, link, "--link"),
            label=label,
            since=since,
            until=until,
            by=by,
        )
    except InvalidValueError as error:
        raise click.ClickException(f"--{error}.") from error
    rows = [(None, found.totals)] if by is None else [(_name(key), totals) for key, totals in found.rows]
    if as_json:
        for key, totals in rows:
            echo_json({**({} if by is None else {by: key}), "actions": _as_dict(totals)})
    elif as_csv:
        _write_csv(by, rows)
    elif by is None:
        order = dict.fromkeys([*state.settings.funnel, *found.totals])
        lines = [[action, found.totals[action].count, amounts_of(found.totals[action].value)] for action in order]
        echo_table(["Action", "Count", "Value"], lines, empty="")
    else:
        header, lines = _table(state, by, rows)
        echo_table(header, lines, empty="There are no such responses.")


@click.command()
@click.argument("action", default=CLICK)
@_since
@_until
@limit(10, "users")
@as_json
@with_appcontext
def top(action: str, since: date | None, until: date | None, limit: int, as_json: bool) -> None:
    """Rank users by what their links bring.

    ACTION is the action to count, by default RESPONDED, that is clicks. 'value:EUR' adds up the values in euros. DAY is
    a day such as 2026-01-31 in REFERRALS_TIMEZONE.

    Example: flask referrals top PURCHASED --since 2026-01-01
    """
    try:
        board = get_leaderboard(current_state(), action, since=since, until=until, limit=limit)
    except InvalidValueError as error:
        raise click.ClickException(f"--{error}.") from error
    rows = [(place, _name(user), number) for place, (user, number) in enumerate(board, 1)]
    if as_json:
        for place, name, number in rows:
            echo_json({"place": place, "user": name, "number": number})
        return
    currency = action.removeprefix("value:")
    shown = [[*row[:2], Amount(row[2], currency) if isinstance(row[2], Decimal) else row[2]] for row in rows]
    header = ["Place", "User", "Count" if currency == action else "Value"]
    echo_table(header, shown, empty=f"Nobody's links brought {printable(action)}.")


def _name(key: t.Any) -> t.Any:
    """Return what names a key of the rows in a table: a code, or a user's primary key."""
    if key is None or isinstance(key, (str, int, date)):
        return key.isoformat() if isinstance(key, date) else key
    return key.code if isinstance(key, ReferralColumns) else stored_key(key)


def _table(state: AppState, by: str, rows: Sequence[tuple[t.Any, Totals]]) -> tuple[list[str], list[list[t.Any]]]:
    """Return the header and the lines of a table of the steps."""
    steps = state.settings.funnel
    lines = [
        [
            "(none)" if key in (None, "") else key,
            *(totals[step].count for step in steps),
            amounts_of(totals.value),
        ]
        for key, totals in rows
    ]
    name = by if by in state.settings.campaign_params else by.capitalize()
    return [name, *(step_label(state.settings, step) for step in steps), "Value"], lines


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
