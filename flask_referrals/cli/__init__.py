"""The commands of ``flask referrals``. They read options and print results, and are imported when they are used."""

import io
import sys
import typing as t
from importlib.metadata import EntryPoint, entry_points

import click
from flask.cli import AppGroup
from sqlalchemy.exc import InterfaceError, NoSuchTableError, OperationalError, ProgrammingError

from ..failures import reason_of

#: Other packages add commands here: each entry point is a click command, under its name.
ENTRY_POINT_GROUP = "flask_referrals.commands"

#: The entry points of this package, for a copy of it that was not installed and so has no metadata.
_OWN = (EntryPoint("import", "flask_referrals.contrib.pinax.cli:import_", ENTRY_POINT_GROUP),)


class LazyGroup(AppGroup):
    """Import a command when the command line asks for it, so that a web worker loads none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from .commands import COMMANDS

        return sorted({*super().list_commands(ctx), *COMMANDS, *_find_entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from .commands import COMMANDS

        command = COMMANDS.get(cmd_name) or super().get_command(ctx, cmd_name)
        if command is None and (entry_point := _find_entry_points().get(cmd_name)) is not None:
            command = entry_point.load()
        return command

    def invoke(self, ctx: click.Context) -> t.Any:
        """Run a command. If the database is down or lacks the tables, exit with its words instead of a traceback."""
        try:
            return super().invoke(ctx)
        except (InterfaceError, NoSuchTableError, OperationalError, ProgrammingError) as error:
            what = f"{type(error).__name__}: {reason_of(error)}"
            raise click.ClickException(
                f"The database raised {what}. Run 'flask referrals doctor' to check the set-up."
            ) from error


def _find_entry_points() -> dict[str, EntryPoint]:
    return {each.name: each for each in (*_OWN, *entry_points(group=ENTRY_POINT_GROUP))}


def _replace_unencodable() -> None:
    """Print a question mark for a character that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


group: AppGroup = LazyGroup(
    "referrals", callback=_replace_unencodable, help="Manage referral links, their responses and their tables."
)
