"""``flask referrals revision | check``."""

import typing as t
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass

import click
import sqlalchemy as sa
from flask.cli import with_appcontext

from ..state import AppState, current_state

# Only these commands import Alembic; it is imported inside functions because it is slow to load.


@dataclass(frozen=True)
class _Tool:
    """The host's migration tool."""

    #: The commands that write a revision and that apply it.
    revision: str
    upgrade: str
    #: The arguments of Alembic's context that the host has set.
    options: MutableMapping[str, t.Any]
    #: Writes a revision, given its message, and returns what was written. ``None``: only the tool's own command can.
    write: Callable[[str], t.Any] | None = None


def _find_tool(state: AppState) -> _Tool:
    extensions = state.app.extensions
    if (migrate := extensions.get("migrate")) is not None:
        name = f"flask {migrate.migrate.command}"

        def write(message: str) -> t.Any:
            from alembic import command

            return command.revision(migrate.migrate.get_config(opts=["autogenerate"]), message, autogenerate=True)

        return _Tool(f"{name} migrate", f"{name} upgrade", migrate.configure_args, write)
    if (alembic := extensions.get("alembic")) is not None:  # Flask-Alembic
        name = f"flask {alembic.command_name or 'db'}"
        return _Tool(
            f"{name} revision referrals", f"{name} upgrade", state.app.config["ALEMBIC_CONTEXT"], alembic.revision
        )
    return _Tool("alembic revision --autogenerate", "alembic upgrade head", {"compare_type": True})


@click.command()
@click.option("-m", "--message", default="referrals", show_default=True, help="Give the revision this message.")
@with_appcontext
def revision(message: str) -> None:
    """Write a migration for the referral tables only.

    Nothing is written if the tables match the models. This needs Flask-Migrate or Flask-Alembic.
    """
    from alembic.util import CommandError

    state = current_state()
    tool = _find_tool(state)
    if tool.write is None:
        raise click.ClickException(
            f"This app uses neither Flask-Migrate nor Flask-Alembic. Write the revision with '{tool.revision}'."
        )
    if not find_differences(state):
        click.echo("The referral tables match the models. No migration is needed.")
        return
    with _referral_tables_only(state, tool.options):
        try:
            script = tool.write(message)
        except CommandError as error:
            raise click.ClickException(str(error)) from error
    if script:
        click.echo(f"Apply the migration with '{tool.upgrade}'.")
    else:
        raise click.ClickException(
            "The migrations ignore the referral tables. If these tables are on a bind, create the migrations with "
            "'flask db init --multidb'. If user_model is not a db.Model, name the metadata of its base in env.py."
        )


@click.command()
@with_appcontext
@click.pass_context
def check(ctx: click.Context) -> None:
    """Compare the referral tables with the models.

    The command prints each difference and what to do. It exits with status 1 if they differ.
    """
    state = current_state()
    differences = find_differences(state)
    for difference in differences:
        click.echo(in_words(difference))
    if differences:
        click.echo(how_to_migrate(state), err=True)
        ctx.exit(1)
    click.echo("The referral tables match the models.")


def how_to_migrate(state: AppState) -> str:
    """Return what to do when the tables differ from the models."""
    tool = _find_tool(state)
    or_revision = " or 'flask referrals revision'" if tool.write is not None else ""
    return f"Run '{tool.revision}'{or_revision}, then '{tool.upgrade}'."


def _include_only_referrals(state: AppState, host_filter: t.Any = None) -> t.Any:
    """Return an ``include_object`` for Alembic that leaves out all other tables, and what the host's filter does."""
    names = {(table.schema, table.name) for table in state.database.models.tables}

    def include_object(obj: t.Any, name: str | None, type_: str, reflected: bool, compare_to: t.Any) -> bool:
        if type_ == "table" and (obj.schema, name) not in names:
            return False
        return host_filter is None or host_filter(obj, name, type_, reflected, compare_to)

    return include_object


@contextmanager
def _referral_tables_only(state: AppState, options: MutableMapping[str, t.Any]) -> Iterator[None]:
    """Hide all other tables from the migrations."""
    hosts = {**options}  # env.py adds to it
    options["include_object"] = _include_only_referrals(state, options.get("include_object"))
    try:
        yield
    finally:
        options.clear()
        options.update(hosts)


def find_differences(state: AppState) -> list[t.Any]:
    """Return the differences between the referral tables and the models, in Alembic's form.

    A missing table is one difference: its indexes are left out.
    """
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    options = {**_find_tool(state).options}
    options["include_object"] = _include_only_referrals(state, options.get("include_object"))
    metadata = state.database.models.total.metadata
    with state.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={**options, "target_metadata": metadata})
        changes = compare_metadata(context, metadata)
    # Alembic puts the changes of one column into a list.
    differences = [each for change in changes for each in (change if isinstance(change, list) else [change])]
    missing = {item.key for what, item, *_ in differences if what == "add_table"}
    return [each for each in differences if getattr(getattr(each[-1], "table", None), "key", None) not in missing]


def in_words(change: tuple[t.Any, ...]) -> str:
    """Describe a difference that Alembic found.

    It is ``(operation, …, schema item)``, or a modified column with its old and new property.
    """
    what, _, kind = change[0].partition("_")
    kind = "foreign key" if kind == "fk" else kind.replace("_", " ")
    if what == "modify":
        _, _, table, column, _, actual, expected = change
        return f"Different {kind}: {table}.{column} has {actual!r}, not {expected!r}"
    item = next(part for part in change if isinstance(part, sa.schema.SchemaItem))
    if isinstance(item, sa.Table):
        name = item.name
    elif isinstance(item, sa.Column):
        name = f"{change[2]}.{item.name}"
    else:
        columns = ", ".join(column.name for column in t.cast(t.Any, item).columns)
        name = f"{t.cast(t.Any, item).table.name} ({columns})"
    return f"{'Missing' if what == 'add' else 'Unexpected'} {kind}: {name}"
