"""The rows of the tables: who they are about, and all of them as CSV."""

import csv
import io
import typing as t
from collections.abc import Sequence

from ...db.keys import stored_key
from ...spreadsheets import csv_cell
from ...state import AppState
from ...stats import Totals, load_users

Rows = Sequence[tuple[t.Any, Totals]]


def table_names(state: AppState) -> list[str]:
    """Return what the operator's tables are by."""
    return [*dict.fromkeys(["referral", "owner", "label", *state.settings.campaign_params, "referrer", "ignored"])]


def display_name(state: AppState, user: t.Any) -> str | None:
    """Return the name of a user to show to other users, if the host's ``display_name`` returns one.

    :param user: the user, ``None``, or the key of a deleted user; in an app without a user model always the key.
    """
    function, model = state.hooks.display_name, state.database.models.user
    is_user = user is not None and (model is None or isinstance(user, model))
    return function(user) if function is not None and is_user else None


def name_user(state: AppState, user: t.Any) -> str:
    """Return what an operator reads for a user, or for the key of a deleted one."""
    return display_name(state, user) or str(user)


def name_owners(state: AppState, links: Sequence[t.Any]) -> dict[t.Any, str]:
    """Return the names of the owners of some links by their keys, in one statement."""
    keys = {link.user_id for link in links if link.user_id is not None}
    users = load_users(state, [*keys])
    return {key: name_user(state, users.get(key, key)) for key in keys}


def write_csv(state: AppState, by: str, rows: Rows, *, with_owner: bool = True) -> str:
    """Return a table as CSV, with a column for each action and for each currency of its values.

    :param by: what the rows are by.
    :param with_owner: name the owners of links.
    """
    names, keys = _write_keys(state, by, [key for key, _ in rows], with_owner=with_owner)
    totals = [each for _, each in rows]
    columns: list[tuple[str, str | None, bool]] = []
    for action in dict.fromkeys([*state.settings.funnel, *(action for each in totals for action in each)]):
        currencies = {currency for each in totals for currency in each[action].value}
        columns.append((action, None, False))
        columns += [(action, currency, True) for currency in sorted(currencies, key=lambda name: name or "")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    heads = [f"{action} {currency or 'value'}" if is_value else action for action, currency, is_value in columns]
    writer.writerow([csv_cell(name) for name in (*names, *heads)])
    for key, each in zip(keys, totals, strict=True):
        numbers = [
            each[action].value.get(currency) if is_value else each[action].count
            for action, currency, is_value in columns
        ]
        writer.writerow([csv_cell(cell) for cell in (*key, *numbers)])
    return stream.getvalue()


def _write_keys(
    state: AppState, by: str, keys: Sequence[t.Any], *, with_owner: bool
) -> tuple[Sequence[str], Sequence[Sequence[t.Any]]]:
    """Return the names and the cells of the columns that say what a row is about."""
    if by == "owner":
        owners = ((name_user(state, user), stored_key(user) or user) if user is not None else ("", "") for user in keys)
        return ["owner", "key"], [*owners]
    if by != "referral":
        return [by], [[key] for key in keys]
    names = name_owners(state, keys) if with_owner else {}
    links = [[link.code, link.url, link.label, link.redirect_to, link.created_at.isoformat()] for link in keys]
    heads = ["code", "url", "label", "redirect_to", "created_at"]
    if not with_owner:
        return heads, links
    return [*heads, "owner"], [[*cells, names.get(link.user_id)] for cells, link in zip(links, keys, strict=True)]
