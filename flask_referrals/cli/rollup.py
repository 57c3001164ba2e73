"""``flask referrals rollup``: the counts of days that are over, counted once and for all."""

import click
from flask.cli import with_appcontext

from .. import totals


@click.command()
@with_appcontext
def rollup() -> None:
    """Count the responses of every day that is over, so that nobody counts them again.

    Run it daily, an hour after midnight UTC or later; a day that was missed is made up for. Counts are exact with it
    and without it: it only makes those of busy links quick. Rows that are purged later stay in the counts. It reads the
    table of responses once; SQLite takes no click in the meantime.
    """
    click.echo(f"Days rolled up: {totals.roll_up()}.")
