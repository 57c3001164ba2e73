"""``flask referrals rollup``."""

import click
from flask.cli import with_appcontext

from ..db.totals import roll_up
from ..state import current_state


@click.command()
@with_appcontext
def rollup() -> None:
    """Add up the counts of past days in the totals table.

    Run this once a day, at 01:00 UTC or later; missed days are made up for. Counts are exact with or without it; it
    makes those of busy links fast. Days that are rolled up keep their counts when 'purge' deletes their rows. The
    command reads the responses table once; on SQLite, no click can be stored meanwhile.
    """
    click.echo(f"Days rolled up: {roll_up(current_state().database)}.")
