"""``flask referrals rollup``."""

import click
from flask.cli import with_appcontext

from ..db.totals import roll_up
from ..state import current_state


@click.command()
@click.option("--rebuild", is_flag=True, help="Count all days again whose rows still exist.")
@with_appcontext
def rollup(rebuild: bool) -> None:
    """Add up the counts of past days in the totals table.

    Run this once a day, at 01:00 or later in REFERRALS_TIMEZONE; missed days are made up for. Counts are exact with or
    without it; it makes those of busy links fast. Days that are rolled up keep their counts when 'purge' deletes their
    rows. The command reads the responses table once for every 100 days; on SQLite, no click can be stored meanwhile.

    With --rebuild, days whose rows were purged keep their totals. Use it after an upgrade that added columns to the
    totals table, or after you deleted or changed rows by hand. Do not run 'purge' meanwhile.
    """
    click.echo(f"Days rolled up: {roll_up(current_state().database, rebuild=rebuild)}.")
