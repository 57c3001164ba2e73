"""``flask referrals revision | check``."""

import typing as t
from collections.abc import Iterator
from contextlib import contextmanager

import click
import sqlalchemy as sa
from flask.cli import with_appcontext

from ..state import AppState, current_state

# Only these commands import Alembic; it is imported inside functions because it is slow to load.


@click.command()
@click.option("-m", "--message", default="referrals", show_default=True, help="Message of the revision.")
@with_appcontext
def revision(message: str) -> None:
    """Write a migration for the referral tables only.

    Nothing is written if the tables match the models. This needs Flask-Migrate.
    """
    from alembic import command
    from alembic.util import CommandError

    state = current_state()
    if "migrate" not in state.app.extensions:
        raise click.ClickException("This app does not use Flask-Migrate. Call 'migrate.init_app(app, db)'.")
    if not find_differences(state):
        click.echo("The referral tables match the models. No migration is needed.")
        return
    with _referral_tables_only(state) as migrate:
        try:
            config = migrate.get_config(opts=["autogenerate"])
            script = command.revision(config, message, autogenerate=True)
        except CommandError as error:
            raise click.ClickException(str(error)) from error
    if script:
        click.echo("Apply the migration with 'flask db upgrade'.")
    else:
        raise click.ClickException(
            "The migrations ignore the referral tables. If these tables are on a bind, create the migrations with "
            "'flask db init --multidb'."
        )


@click.command()
@with_appcontext
@click.pass_context
def check(ctx: click.Context) -> None:
    """Compare the referral tables with the models.

    Exits with status 1 if they differ.
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
    if "migrate" in state.app.extensions:
        return "Run 'flask db migrate' or 'flask referrals revision', then 'flask db upgrade'."
    return "Change the tables with your migration tool, or set up Flask-Migrate."


def _include_only_referrals(state: AppState, host_filter: t.Any = None) -> t.Any:
    """Return an ``include_object`` for Alembic that leaves out all other tables, and what the host's filter does."""
    names = {(table.schema, table.name) for table in state.database.models.tables}

    def include_object(obj: t.Any, name: str | None, type_: str, reflected: bool, compare_to: t.Any) -> bool:
        if type_ == "table" and (obj.schema, name) not in names:
            return False
        return host_filter is None or host_filter(obj, name, type_, reflected, compare_to)

    return include_object


@contextmanager
def _referral_tables_only(state: AppState) -> Iterator[t.Any]:
    """Hide all other tables from the migrations, and yield the app's ``Migrate``."""
    settings = state.app.extensions["migrate"]
    arguments = settings.configure_args
    include_object = _include_only_referrals(state, arguments.get("include_object"))
    settings.configure_args = {**arguments, "include_object": include_object}  # a copy, because env.py adds to it
    try:
        yield settings.migrate
    finally:
        settings.configure_args = arguments


def find_differences(state: AppState) -> list[t.Any]:
    """Return the differences between the referral tables and the models, in Alembic's form."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    migrate = state.app.extensions.get("migrate")
    options = dict(migrate.configure_args) if migrate is not None else {"compare_type": True}
    options["include_object"] = _include_only_referrals(state, options.get("include_object"))
    metadata = state.database.models.total.metadata
    with state.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={**options, "target_metadata": metadata})
        changes = compare_metadata(context, metadata)
    # Alembic puts the changes of one column into a list.
    return [each for change in changes for each in (change if isinstance(change, list) else [change])]


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
