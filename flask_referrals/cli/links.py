"""``flask referrals create | list | show | expire``."""

import typing as t
from datetime import datetime

import click
import sqlalchemy as sa
from flask.cli import with_appcontext

from ..actors import parse_user_key
from ..db.conditions import is_exactly, newest_first
from ..db.tables import ReferralColumns
from ..db.transactions import open_transaction
from ..exceptions import ConfigurationError, ReferralsError
from ..links import create_link, find_link
from ..reports import counts_of
from ..state import AppState, current_state
from ..targets import load_target
from ..times import now
from ..web.urls import REDIRECT_ENDPOINT, path_of, referral_url
from .output import as_json, echo_json, echo_table, find_user, in_text, printable, time

_LIMIT = click.IntRange(min=1)
_LINK_COLUMNS = ("code", "user_id", "label", "redirect_to", "target_type", "target_id", "created_at", "expired_at")


@click.command()
@click.argument("redirect_to")
@click.option("--user", metavar="KEY", help="Owner of the link, by primary key.")
@click.option("--label", default="", help="Label that distinguishes the owner's links.")
@click.option(
    "--target",
    metavar="TYPE:KEY",
    help="Object that the link is about: name of a registered target or of a table, and primary key.",
)
@click.option("--code", help="Code to use instead of a random one.")
@click.option("--expires-at", type=time, help="Time of expiry, for example 2026-01-31T12:00Z.")
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
    same REDIRECT_TO, label and target, that link's URL is printed and nothing is created; it is an error then if that
    link has another code or time of expiry than the one given.
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
@click.option("--user", metavar="KEY", help="Only links of this user, by primary key.")
@click.option("--label", help="Only links with this label.")
@click.option("--active/--expired", default=None, help="Only links that have not, or have, expired.")
@click.option("--limit", type=_LIMIT, default=50, show_default=True, help="Maximum number of links.")
@as_json
@with_appcontext
def list_(user: str | None, label: str | None, active: bool | None, limit: int, as_json: bool) -> None:
    """List links with their counts, newest first.

    Clicks and Actions are the numbers of counted clicks and of counted later actions.
    """
    state = current_state()
    model = state.database.models.referral
    select = sa.select(model).order_by(*newest_first(model)).limit(limit)
    if user is not None:
        select = select.where(is_exactly(model.user_id, find_user(state, user)))
    if label is not None:
        select = select.where(model.label == label)
    if active is not None:
        is_active = sa.or_(model.expired_at.is_(None), model.expired_at > now())
        select = select.where(is_active if active else ~is_active)
    counts = counts_of(state, select)
    rows = []
    for referral in state.reports.objects(select):
        clicks, actions = counts.get(referral.id, (0, 0))
        rows.append({**_as_dict(referral), "clicks": clicks, "actions": actions})
    if as_json:
        for row in rows:
            echo_json(row)
    else:
        shown = ("code", "user_id", "label", "redirect_to", "clicks", "actions", "created_at", "expired_at")
        header = ["Code", "User", "Label", "Redirects to", "Clicks", "Actions", "Created", "Expires"]
        echo_table(header, [[row[name] for name in shown] for row in rows])


@click.command()
@click.argument("code")
@click.option("--limit", type=_LIMIT, default=20, show_default=True, help="Maximum number of responses.")
@as_json
@with_appcontext
def show(code: str, limit: int, as_json: bool) -> None:
    """Show a link, its URL and counts, and its newest responses.

    Clicks and actions are those that count. The column Ignored holds the reason why a response is not counted.
    """
    state = current_state()
    referral = find_link_or_exit(state, code)
    model, link = state.database.models.response, _as_dict(referral)
    links = state.database.models.referral
    counts = counts_of(state, sa.select(links).where(links.id == referral.id))
    link["clicks"], link["actions"] = counts.get(referral.id, (0, 0))
    try:
        link["url"] = referral_url(state.settings, referral.code)
    except ConfigurationError:  # the site's address is not known here
        link["url"] = path_of(REDIRECT_ENDPOINT, code=referral.code)
    select = sa.select(model).where(model.referral_id == referral.id).order_by(*newest_first(model)).limit(limit)
    names = ("created_at", "action", "user_id", "ignored", "target_type", "target_id", "ip_address", "http_referrer")
    responses = [{name: getattr(response, name) for name in names} for response in state.reports.objects(select)]
    if as_json:
        echo_json({**link, "responses": responses})
        return
    for name, value in link.items():
        if value not in (None, ""):
            click.echo(f"{name}: {printable(value)}")
    click.echo()
    header = ["Time", "Action", "User", "Ignored", "Target type", "Target key", "IP address", "Referrer"]
    echo_table(header, [list(response.values()) for response in responses])


@click.command()
@click.argument("code")
@click.option("--at", type=time, help="Time of expiry, for example 2026-01-31T12:00Z; by default now.")
@with_appcontext
def expire(code: str, at: datetime | None) -> None:
    """Expire a link now or at a given time.

    An expired link still redirects but is no longer tracked, and it earns no credit.
    """
    state = current_state()
    expired_at = at or now()
    transaction = open_transaction(state.database, commit=True)

    def store() -> None:
        referral = find_link_or_exit(state, code)
        with transaction.write():
            referral.expired_at = expired_at
            transaction.session.flush()
        transaction.has_written = True

    transaction.run(store)
    click.echo(f"The link {code} expires at {in_text(expired_at)}.")


def find_link_or_exit(state: AppState, code: str) -> ReferralColumns:
    """Return the link with a code, or exit."""
    referral = find_link(state, code)
    if referral is None:
        raise click.ClickException(
            f"There is no link with the code {code!r}. See the codes with 'flask referrals list'."
        )
    return referral


def _as_dict(referral: ReferralColumns) -> dict[str, t.Any]:
    return {name: getattr(referral, name) for name in _LINK_COLUMNS}


def _load_user(state: AppState, key: str) -> t.Any:
    model = state.database.models.user
    if model is None:
        return key
    found = parse_user_key(state, key)
    user = None if found is None else state.database.session.get(model, found)
    if user is None:
        raise click.ClickException(f"There is no user with the key {key!r}. Give a primary key of the user table.")
    return user


def _find_target(state: AppState, name: str) -> t.Any:
    type_name, _, key = name.partition(":")
    target = load_target(state, type_name, key)
    if target is None:
        raise click.ClickException(
            f"There is no target {name!r}. Write TYPE:KEY; TYPE is a registered target or a table."
        )
    return target
