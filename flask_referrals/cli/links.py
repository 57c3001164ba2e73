"""``flask referrals create | list | show | expire``."""

import typing as t
from datetime import datetime

import click
import sqlalchemy as sa
from flask.cli import with_appcontext

from ..actors import parse_user_key
from ..db.conditions import is_exactly, newest_first
from ..db.tables import ReferralColumns
from ..db.transactions import Transaction, write_in_transaction
from ..exceptions import ConfigurationError, ReferralsError
from ..links import create_link
from ..state import AppState, current_state
from ..stats import Totals, totals_of
from ..targets import load_target
from ..times import now
from ..types import CLICK, Amount
from ..web.urls import REDIRECT_ENDPOINT, path_of, referral_url
from .options import as_json, find_link, find_user, has_label, limit, time
from .output import echo_json, echo_table, in_text, printable

_RESPONSE_COLUMNS = (
    "id",
    "created_at",
    "action",
    "user_id",
    "ignored",
    "value",
    "currency",
    "target_type",
    "target_id",
    "ip_address",
    "http_referrer",
)
_LINK_COLUMNS = ("code", "user_id", "label", "redirect_to", "target_type", "target_id", "created_at", "expired_at")


@click.command()
@click.argument("redirect_to")
@click.option("--user", metavar="KEY", help="Make this user the owner. KEY is a primary key of the user table.")
@click.option(
    "--label", default="", help="Tell this link apart from the owner's other links to the same page. None by default."
)
@click.option(
    "--target",
    metavar="TYPE:KEY",
    help="Say which object the link is about, such as 'product:7'. TYPE is a registered target or a table.",
)
@click.option("--code", help="Use this code. It is random by default.")
@click.option("--expires-at", type=time, help="Expire at this time, such as 2026-01-31T12:00Z. Never by default.")
@as_json
@with_appcontext
def create(
    redirect_to: str,
    user: str | None,
    label: str,
    target: str | None,
    code: str | None,
    expires_at: datetime | None,
    as_json: bool,
) -> None:
    """Create a link to REDIRECT_TO and print its URL.

    REDIRECT_TO is a path on this site, or a URL on it or on an allowed host. If the user already has a link with the
    same REDIRECT_TO, label and target, its URL is printed and nothing is created. It is an error if that link has
    another code or time of expiry than the one given.

    Example: flask referrals create /spring --user 7 --code spring
    """
    state = current_state()
    try:
        referral_url(state.settings, "x")  # fail before a link is stored whose URL cannot be printed
        referral = create_link(
            state,
            redirect_to,
            None if user is None else _load_user(state, user),
            label,
            None if target is None else _find_target(state, target),
            code=code,
            expires_at=expires_at,
        )
    except ReferralsError as error:
        raise click.ClickException(str(error)) from error
    if code is not None and referral.code != code:
        raise click.ClickException(
            f"This link already exists with the code {referral.code}. Leave out --code, or give another --label."
        )
    if expires_at is not None and referral.expired_at != expires_at:
        raise click.ClickException(
            f"This link already exists. Set its time of expiry with 'flask referrals expire {referral.code} --at TIME'."
        )
    url = referral_url(state.settings, referral.code)
    if as_json:
        echo_json({**_as_dict(referral), "url": url})
    else:
        click.echo(url)


@click.command("list")
@click.option("--user", metavar="KEY", help="Print only links of this user. KEY is a primary key of the user table.")
@click.option("--label", help="Print only links with this label.")
@click.option(
    "--active/--expired", default=None, help="Print only links that have not, or have, expired. Both by default."
)
@limit(50, "links")
@as_json
@with_appcontext
def list_(user: str | None, label: str | None, active: bool | None, limit: int, as_json: bool) -> None:
    """List links with their counts, newest first.

    Clicks and Actions are the numbers of counted clicks and of counted later actions. The table shows days in UTC;
    --json has the times.
    """
    state = current_state()
    model = state.database.models.referral
    select = sa.select(model).order_by(*newest_first(model)).limit(limit)
    if user is not None:
        select = select.where(is_exactly(model.user_id, find_user(state, user, "--user")))
    if label is not None:
        select = select.where(has_label(state, label, "--label"))
    if active is not None:
        is_active = sa.or_(model.expired_at.is_(None), model.expired_at > now())
        select = select.where(is_active if active else ~is_active)
    referrals = state.reports.objects(select)
    totals = totals_of(state, referrals)
    rows = [{**_as_dict(referral), **_counts(totals[referral.id])} for referral in referrals]
    if as_json:
        for row in rows:
            echo_json(row)
        return
    header = ["Code", "User", "Label", "Redirects to", "Clicks", "Actions", "Created", "Expires"]
    names = ("code", "user_id", "label", "redirect_to", "clicks", "actions")
    days = [[row[name] and row[name].date() for name in ("created_at", "expired_at")] for row in rows]
    lines = [[*(row[name] for name in names), *both] for row, both in zip(rows, days, strict=True)]
    echo_table(header, lines, empty="There are no such links.")


@click.command()
@click.argument("code")
@limit(20, "responses")
@as_json
@with_appcontext
def show(code: str, limit: int, as_json: bool) -> None:
    """Show a link, its URL and counts, and its newest responses.

    CODE is the code of the link, as 'flask referrals list' prints it. Clicks and actions are those that are counted.

    'flask referrals void' and 'explain --response' take the Id. Action also has the value and the target, From the IP
    address and the referring page, Ignored the reason why a response is not counted. Long text is cut; --json has all
    of it.
    """
    state = current_state()
    referral = find_link(state, code, "CODE")
    model, link = state.database.models.response, _as_dict(referral)
    link |= _counts(totals_of(state, [referral])[referral.id])
    try:
        link["url"] = referral_url(state.settings, referral.code)
    except ConfigurationError:  # the site's address is not known here
        link["url"] = path_of(REDIRECT_ENDPOINT, code=referral.code)
    select = sa.select(model).where(model.referral_id == referral.id).order_by(*newest_first(model)).limit(limit)
    responses = state.reports.objects(select)
    if as_json:
        rows = [{name: getattr(response, name) for name in _RESPONSE_COLUMNS} for response in responses]
        echo_json({**link, "responses": rows})
        return
    for name, value in link.items():
        if value not in (None, ""):
            click.echo(f"{name}: {printable(value)}")
    click.echo()
    header = ["Id", "Time", "Action", "User", "Ignored", "From"]
    echo_table(header, [_as_cells(response) for response in responses], empty="There are no responses.")


@click.command()
@click.argument("code")
@click.option("--at", type=time, help="Expire at this time, such as 2026-01-31T12:00Z. Now by default.")
@with_appcontext
def expire(code: str, at: datetime | None) -> None:
    """Expire a link now or at a given time.

    CODE is the code of the link, as 'flask referrals list' prints it. An expired link still redirects but is no longer
    tracked, and it earns no credit.
    """
    state = current_state()
    expired_at = at or now()

    def store(transaction: Transaction) -> str:
        link = find_link(state, code, "CODE")
        link.expired_at = expired_at
        transaction.session.flush()
        return link.code

    found = write_in_transaction(state.database, store)
    click.echo(f"The link {found} expires at {in_text(expired_at)}.")


def _as_cells(response: t.Any) -> list[t.Any]:
    amount = None if response.value is None else Amount(response.value, response.currency)
    target = ":".join(name for name in (response.target_type, response.target_id) if name)
    action = [response.action, amount, target]
    return [
        response.id,
        response.created_at,
        action,
        response.user_id,
        response.ignored,
        [response.ip_address, response.http_referrer],
    ]


def _as_dict(referral: ReferralColumns) -> dict[str, t.Any]:
    return {name: getattr(referral, name) for name in _LINK_COLUMNS}


def _counts(totals: Totals) -> dict[str, int]:
    return {"clicks": totals[CLICK].count, "actions": sum(totals[each].count for each in totals.keys() - {CLICK})}


def _load_user(state: AppState, key: str) -> t.Any:
    model = state.database.models.user
    if model is None:
        return key
    found = parse_user_key(state, key)
    user = None if found is None else state.database.session.get(model, found)
    if user is None:
        raise click.ClickException(
            f"There is no user with the key {key!r}. Give a primary key of the user table as --user."
        )
    return user


def _find_target(state: AppState, name: str) -> t.Any:
    type_name, _, key = name.partition(":")
    target = load_target(state, type_name, key)
    if target is None:
        raise click.ClickException(
            f"There is no target {name!r}. Give TYPE:KEY as --target; TYPE is a registered target or a table."
        )
    return target
