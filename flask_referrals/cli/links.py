"""``flask referrals create | list | show | expire``."""

import typing as t
from datetime import datetime

import click
import sqlalchemy as sa
from flask.cli import with_appcontext

from .. import creation
from .. import reporting
from .. import targets
from .. import urls
from ..attribution import newest_first
from ..context import current_state
from ..exceptions import ReferralsError
from ..identity import user_key
from ..models.records import now
from ..replica import objects_of
from ..transactions import Transaction
from .output import as_json
from .output import echo_json
from .output import echo_table
from .output import in_text
from .output import printable
from .output import time

if t.TYPE_CHECKING:
    from ..models import ReferralMixin

_LIMIT = click.IntRange(min=1)


@click.command()
@click.argument("redirect_to")
@click.option("--user", metavar="KEY", help="Whose link it is, by primary key.")
@click.option("--label", default="", help="Tells a user's links apart.")
@click.option(
    "--target", metavar="TYPE:KEY", help="What it is about: a registered target's or table's name, and a key."
)
@click.option("--code", help="Its code, instead of a random one.")
@click.option("--expires-at", type=time, help="When it expires, as 2026-01-31T12:00Z.")
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
    """Make a link to REDIRECT_TO, or find the one there is, and print its address."""
    try:
        urls.referral_url("x")  # rather no link than one that cannot be told
        referral = creation.create(
            redirect_to,
            None if user is None else _user(user),
            label,
            None if target is None else _target(target),
            code=code,
            expires_at=expires_at,
        )
    except ReferralsError as error:
        raise click.ClickException(str(error)) from error
    if code is not None and referral.code != code:
        click.echo(f"The link was there already, with the code {referral.code}.", err=True)
    if as_json:
        echo_json({**_as_dict(referral), "url": referral.url})
    else:
        click.echo(referral.url)


@click.command("list")
@click.option("--user", metavar="KEY", help="Only this user's, by primary key.")
@click.option("--label", help="Only with this label.")
@click.option("--active/--expired", default=None, help="Only those that have not, or have, expired.")
@click.option("--limit", type=_LIMIT, default=50, show_default=True, help="The most to list.")
@as_json
@with_appcontext
def list_(user: str | None, label: str | None, active: bool | None, limit: int, as_json: bool) -> None:
    """List links, newest first, with how many clicks and later actions count."""
    model = current_state().models.referral
    select = sa.select(model).order_by(model.created_at.desc(), model.id.desc()).limit(limit)
    if user is not None:
        key = user_key(user)
        select = select.where(model.user_id == key if key is not None else sa.false())
    if label is not None:
        select = select.where(model.label == label)
    if active is not None:
        is_active = sa.or_(model.expired_at.is_(None), model.expired_at > now())
        select = select.where(is_active if active else ~is_active)
    counts = reporting.counts_of(select)
    rows = []
    for referral in objects_of(select):
        clicks, actions = counts.get(referral.id, (0, 0))
        rows.append({**_as_dict(referral), "clicks": clicks, "actions": actions})
    if as_json:
        for row in rows:
            echo_json(row)
    else:
        shown = ("code", "user_id", "label", "redirect_to", "clicks", "actions", "created_at", "expired_at")
        header = ["Code", "User", "Label", "Leads to", "Clicks", "Actions", "Created", "Expires"]
        echo_table(header, [[row[name] for name in shown] for row in rows])


@click.command()
@click.argument("code")
@click.option("--limit", type=_LIMIT, default=20, show_default=True, help="The most responses to list.")
@as_json
@with_appcontext
def show(code: str, limit: int, as_json: bool) -> None:
    """Show the link with CODE, and its newest responses, with the reason where one does not count."""
    referral = _find(code)
    model = current_state().models.response
    select = sa.select(model).where(model.referral_id == referral.id).order_by(*newest_first(model)).limit(limit)
    names = ("created_at", "action", "user_id", "ignored", "target_type", "target_id", "ip_address", "http_referrer")
    responses = [{name: getattr(each, name) for name in names} for each in objects_of(select)]
    link = _as_dict(referral)
    if as_json:
        echo_json({**link, "responses": responses})
        return
    for name, value in link.items():
        if value not in (None, ""):
            click.echo(f"{name}: {printable(value)}")
    click.echo()
    header = ["Time", "Action", "User", "Ignored", "About", "Key", "Address", "From"]
    echo_table(header, [list(each.values()) for each in responses])


@click.command()
@click.argument("code")
@click.option("--at", type=time, help="When, as 2026-01-31T12:00Z; by default now.")
@with_appcontext
def expire(code: str, at: datetime | None) -> None:
    """Let the link with CODE expire: it leads on, but records nothing and earns nothing."""
    state = current_state()
    transaction = Transaction(state, state.models.referral, commit=True)
    referral = _find(code)
    with transaction.write():
        referral.expired_at = at or now()
        state.session.flush()
    transaction.commit()
    click.echo(f"The link {referral.code} expires at {in_text(referral.expired_at)}.")


def _find(code: str) -> "ReferralMixin":
    state = current_state()
    model = state.models.referral
    referral = (
        state.session.scalar(sa.select(model).where(model.code == code)) if creation.CODE.fullmatch(code) else None
    )
    if referral is None:
        raise click.ClickException(f"There is no link with the code {code!r}.")
    return referral


def _as_dict(referral: "ReferralMixin") -> dict[str, t.Any]:
    names = ("code", "user_id", "label", "redirect_to", "target_type", "target_id", "created_at", "expired_at")
    return {name: getattr(referral, name) for name in names}


def _user(key: str) -> t.Any:
    state = current_state()
    if state.models.user is None:
        return key
    found = user_key(key)
    user = None if found is None else state.session.get(state.models.user, found)
    if user is None:
        raise click.ClickException(f"There is no user with the key {key!r}.")
    return user


def _target(name: str) -> t.Any:
    type_name, _, key = name.partition(":")
    target = targets.load(type_name, key)
    if target is None:
        raise click.ClickException(
            f"There is no target {name!r}: give its type's or table's name, a colon, and its key."
        )
    return target
