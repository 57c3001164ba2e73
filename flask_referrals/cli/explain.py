"""``flask referrals explain | simulate``: why there is credit, and what a click would be."""

import typing as t

import click
import flask
from flask import current_app
from flask.cli import with_appcontext

from .. import clicks
from .. import clients
from .. import explaining
from .. import urls
from ..attribution import Visitor
from ..context import current_state
from ..creation import CODE
from ..identity import unwrapped
from ..identity import user_key
from .output import as_json
from .output import echo_json
from .output import echo_table

if t.TYPE_CHECKING:
    from ..models import ReferralResponseMixin

_BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@click.command()
@click.option("--user", metavar="KEY", help="Explain this user's credit, by primary key.")
@click.option("--response", "response_id", type=int, metavar="ID", help="Explain that of whoever made this response.")
@as_json
@with_appcontext
def explain(user: str | None, response_id: int | None, as_json: bool) -> None:
    """Tell of every touch of a user or visitor which rule took or refused it."""
    if (user is None) == (response_id is None):
        raise click.UsageError("Give either --user or --response.")
    visitor = Visitor(user_key(user)) if user is not None else _visitor_of(t.cast(int, response_id))
    verdicts = explaining.explain_visitor(visitor) if visitor else []
    rows = [_as_dict(verdict) for verdict in verdicts]
    if as_json:
        for row in rows:
            echo_json(row)
    elif rows:
        header = ["Time", "Response", "Action", "Link", "Rule"]
        echo_table(header, [list(row.values()) for row in rows])
    else:
        click.echo("No link was ever followed.")


@click.command()
@click.argument("code")
@click.option("--user-agent", default=_BROWSER, show_default=True, help="Who follows the link.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header of the request; repeatable.")
@click.option("--address", default="127.0.0.1", show_default=True, help="The client's address.")
@click.option("--method", type=click.Choice(["GET", "HEAD"]), default="GET", show_default=True)
@click.option("--query", default="", metavar="NAME=VALUE&…", help="The link's query.")
@as_json
@with_appcontext
def simulate(
    code: str, user_agent: str, headers: tuple[str, ...], address: str, method: str, query: str, as_json: bool
) -> None:
    """Try a stranger's click on the link with CODE, and write nothing."""
    if not CODE.fullmatch(code):
        raise click.ClickException(f"{code!r} is no code: the answer is 404.")
    given = [_parsed(header) for header in headers]
    path = urls.path_of(urls.REDIRECT_ENDPOINT, code=code)
    with current_app.test_request_context(
        path,
        method=method,
        query_string=query,
        headers=[("User-Agent", user_agent), *given],
        environ_overrides={"REMOTE_ADDR": address},
    ):
        outcome = _outcome(code, t.cast(flask.Request, unwrapped(flask.request)))
    current_state().session.rollback()
    if as_json:
        echo_json(outcome)
    else:
        for name, value in outcome.items():
            click.echo(f"{name}: {'-' if value is None else value}")


def _outcome(code: str, request: flask.Request) -> dict[str, t.Any]:
    if clients.is_prefetch(request):
        return {"status": 503, "counts": False, "reason": "prefetch", "location": None}
    found = clicks.look_up(code, request)
    if found is None:
        raise click.ClickException(f"There is no link with the code {code!r}: the answer is 404.")
    reason = found.ignored if found.is_active else "expired"
    location = urls.location_of(request, found.redirect_to)
    return {"status": 302, "counts": reason is None, "reason": reason, "location": location}


def _parsed(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    if not colon or not name.strip():
        raise click.BadParameter(f"{header!r} is not NAME:VALUE", param_hint="--header")
    return name.strip(), value.strip()


def _visitor_of(response_id: int) -> Visitor:
    state = current_state()
    response: ReferralResponseMixin | None = state.session.get(state.models.response, response_id)
    if response is None:
        raise click.ClickException(f"There is no response with the id {response_id}.")
    if response.user_id is not None:
        return Visitor(response.user_id)
    return Visitor(key=response.session_key)


def _as_dict(verdict: explaining.Verdict) -> dict[str, t.Any]:
    response = verdict.response
    return {
        "created_at": response.created_at,
        "response": response.id,
        "action": response.action,
        "code": response.referral.code,
        "rule": verdict.rule,
    }
