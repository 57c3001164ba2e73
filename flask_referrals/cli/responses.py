"""``flask referrals void``."""

import click
from flask.cli import with_appcontext

from ..actions import void_response
from ..exceptions import InvalidValueError
from ..state import current_state
from ..types import Amount
from .options import RESPONSE_ID, find_response
from .output import in_text, printable


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=RESPONSE_ID)
@click.option("--reason", required=True, help="Keep this reason, such as 'refund of order 17': at most 200 characters.")
@with_appcontext
def void(ids: tuple[int, ...], reason: str) -> None:
    """Take responses out of all counts and credit.

    ID is the id of a response, as 'flask referrals show CODE' prints it. Nothing is deleted: the response is marked as
    void, and another response with the action VOIDED keeps the reason. The repeats of a click are voided with it.

    If an id is unknown, no response is voided. A response that is void already is left as it is, which is no error: if
    the command is interrupted, run it again.

    Example: flask referrals void 17 18 --reason "refund of order 2026-17"
    """
    state = current_state()
    found = []
    for response in (find_response(state, each, "ID") for each in dict.fromkeys(ids)):
        amount = "" if response.value is None else f", {Amount(response.value, response.currency)}"
        words = f"{response.action}{amount}, at {in_text(response.created_at)} on the link {response.referral.code}"
        found.append((response, response.ignored == "void", f"{response.id} ({printable(words)})"))
    state.database.session.rollback()  # so that each is voided in a transaction of its own
    for response, is_void, words in found:
        if is_void:
            click.echo(f"Void already: response {words}.")
            continue
        try:
            void_response(state, response, reason, commit=True)
        except InvalidValueError as error:
            raise click.ClickException(f"--{error}.") from error
        click.echo(f"Voided: response {words}.")
