"""``flask referrals explain | simulate``."""

import typing as t
from collections.abc import Sequence

import click
from flask.cli import with_appcontext
from werkzeug.wrappers import Request

from ..clicks import preview_click
from ..credit import Verdict, explain_credit
from ..state import AppState, current_state
from ..types import ANONYMOUS, Actor, Anonymous
from ..web.agents import MAX_READ, OFFICE
from ..web.client import is_prefetch, resolve_request
from ..web.codes import find_codes
from ..web.urls import REDIRECT_ENDPOINT, location_of, path_of
from .options import RESPONSE_ID, as_json, find_response, find_user
from .output import echo_json, echo_table, printable

_BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@click.command()
@click.option("--user", metavar="KEY", help="Explain the credit of this user. KEY is a primary key of the user table.")
@click.option(
    "--response",
    "response_id",
    type=RESPONSE_ID,
    metavar="ID",
    help="Explain the credit of the user or visitor of this response. 'flask referrals show CODE' prints the ids.",
)
@as_json
@with_appcontext
def explain(user: str | None, response_id: int | None, as_json: bool) -> None:
    """Explain why each touch was or was not credited.

    Give either --user or --response.

    The column Rule says "won" for the response that earns the credit. The other rules are: bound (an action has bound
    the user, so touches no longer decide), lost (another touch was preferred), self (the visitor's own link), expired
    (the link has expired), window (too long ago), or the reason why the response is ignored.
    """
    if (user is None) == (response_id is None):
        raise click.UsageError("Give either --user or --response.")
    state = current_state()
    if user is not None:
        actor = _new_actor(find_user(state, user, "--user"))
    else:
        response = find_response(state, t.cast(int, response_id), "--response")
        actor = _new_actor(response.user_id, response.session_key if response.user_id is None else None)
    verdicts = explain_credit(state, actor) if isinstance(actor, Actor) else []
    rows = [_as_dict(verdict) for verdict in verdicts]
    if as_json:
        for row in rows:
            echo_json(row)
    else:
        header = ["Time", "Response", "Action", "Link", "Rule"]
        echo_table(header, [list(row.values()) for row in rows], empty="This user or visitor has no touches.")


@click.command()
@click.argument("code")
@click.option("--user-agent", default=_BROWSER, show_default=True, help="Send this User-Agent header.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME:VALUE",
    help="Send this header, such as 'Sec-GPC: 1'. Repeatable.",
)
@click.option("--address", default="127.0.0.1", show_default=True, help="Click from this IP address.")
@click.option(
    "--method",
    type=click.Choice(["GET", "HEAD"]),
    default="GET",
    show_default=True,
    help="Use this method.",
)
@click.option("--query", default="", metavar="NAME=VALUE&…", help="Add this query, such as 'utm_source=news'.")
@as_json
@with_appcontext
def simulate(
    code: str, user_agent: str, headers: tuple[str, ...], address: str, method: str, query: str, as_json: bool
) -> None:
    """Show what a click on CODE would do.

    CODE is the code of a link, as 'flask referrals list' prints it, or a mistyped one. Nothing is stored. The click is
    the first one of an anonymous visitor.
    """
    codes = find_codes(code, current_state().settings)
    if not codes:
        raise click.ClickException(
            f"{code!r} cannot be a code, so a click gets 404. Codes are 1 to 64 letters, digits, '-' or '_'."
        )
    sent_headers = [_parse_header(header) for header in (f"User-Agent: {user_agent}", *headers)]
    state = current_state()
    with state.app.test_request_context(
        path_of(REDIRECT_ENDPOINT, code=code),
        method=method,
        query_string=query,
        headers=sent_headers,
        environ_overrides={"REMOTE_ADDR": address},
    ):
        outcome = _outcome_of(state, codes, t.cast(Request, resolve_request()))
    state.database.session.rollback()
    if as_json:
        echo_json(outcome)
    else:
        for name, value in outcome.items():
            click.echo(f"{name}: {'-' if value is None else printable(value)}")


def _outcome_of(state: AppState, codes: Sequence[str], request: Request) -> dict[str, t.Any]:
    if is_prefetch(request):
        return {"status": 503, "counts": False, "reason": "prefetch", "location": None}
    preview = preview_click(state, request, codes)
    if preview is None:
        raise click.ClickException(
            f"There is no link with the code {codes[0]!r}, so a click gets 404. "
            "Give a code that 'flask referrals list' shows as CODE."
        )
    target, reason = preview
    location = location_of(state.settings, request, target)
    is_office = OFFICE.search(request.environ.get("HTTP_USER_AGENT", "")[:MAX_READ]) is not None
    return {"status": 200 if is_office else 302, "counts": reason is None, "reason": reason, "location": location}


def _parse_header(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    if not colon or not name.strip() or "\n" in header or "\r" in header:
        raise click.BadParameter(f"{header!r} is not a header. Write NAME:VALUE, on one line.", param_hint="--header")
    return name.strip(), value.strip()


def _new_actor(user_id: t.Any, visitor_key: str | None = None) -> Actor | Anonymous:
    return ANONYMOUS if user_id is None and visitor_key is None else Actor(user_id, visitor_key)


def _as_dict(verdict: Verdict[t.Any]) -> dict[str, t.Any]:
    response = verdict.response
    return {
        "created_at": response.created_at,
        "response": response.id,
        "action": response.action,
        "code": response.referral.code,
        "rule": verdict.rule,
    }
