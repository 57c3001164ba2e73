"""``flask referrals rollup``: the counts of days that are over, counted once and for all."""

import click
from flask.cli import with_appcontext

from .. import totals
from .output import progress_bar


@click.command()
@with_appcontext
def rollup() -> None:
    """Count the responses of every day that is over, so that nobody counts them again.

    Run it daily, an hour after midnight UTC or later; a day that was missed is made up for. Counts are exact with it
    and without it: it only makes those of busy links quick. Rows that are purged later stay in the counts.
    """
    with progress_bar(totals.days_to_roll_up) as progress:
        days = totals.roll_up(progress)
    click.echo(f"Days rolled up: {days}.")
