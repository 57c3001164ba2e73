"""``flask referrals …``."""

import click
from flask.cli import AppGroup


class _Referrals(AppGroup):
    """Imports its commands when one is asked for: a site that serves pages needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._gather()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self._gather()
        return super().get_command(ctx, cmd_name)

    def _gather(self) -> None:
        from .commands import COMMANDS

        for command in COMMANDS:
            self.add_command(command)


group: AppGroup = _Referrals("referrals", short_help="Links, their responses, and the tables of both.")
