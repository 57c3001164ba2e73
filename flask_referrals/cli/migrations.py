"""``flask referrals revision`` and ``check``: our tables in the host's migrations."""

import typing as t
from collections.abc import Iterator
from contextlib import contextmanager

import click
import sqlalchemy as sa
from flask import current_app
from flask.cli import with_appcontext

from ..context import current_state

# Alembic is imported where it is used: a server that only serves needs none of it.


@click.command()
@click.option("-m", "--message", default="referrals", show_default=True, help="What the revision is about.")
@with_appcontext
def revision(message: str) -> None:
    """Write a revision of our tables alone into the app's migrations.

    Nothing is written when there is nothing to do. Apply it with 'flask db upgrade'.
    """
    from alembic import command
    from alembic.util import CommandError

    if "migrate" not in current_app.extensions:
        raise click.ClickException("This app has no Flask-Migrate: call 'migrate.init_app(app, db)'.")
    if not differences_of_tables():
        click.echo("The tables of referrals are up to date: there is nothing to do.")
        return
    with _our_tables_only() as migrate:
        try:
            config = migrate.get_config(opts=["autogenerate"])
            script = command.revision(config, message, autogenerate=True)
        except CommandError as error:
            raise click.ClickException(str(error)) from error
    if not script:
        raise click.ClickException(
            "The migrations do not look at the tables of referrals. If these are on a bind, the migrations must have "
            "been made with 'flask db init --multidb'."
        )


@click.command()
@with_appcontext
@click.pass_context
def check(ctx: click.Context) -> None:
    """Compare our tables in the database with the models; fail if they differ."""
    differences = differences_of_tables()
    for difference in differences:
        click.echo(in_words(difference))
    if differences:
        ctx.exit(1)
    click.echo("The tables of referrals are as they should be.")


def _tables() -> list[sa.Table]:
    models = current_state().models
    mapped = [t.cast(sa.Table, sa.inspect(model).local_table) for model in (models.referral, models.response)]
    return [*mapped, models.total]


def _only_ours(include: t.Any = None) -> t.Any:
    """Return Alembic's ``include_object`` that leaves out every table but ours.

    :param include: the host's own, which may leave out more.
    """
    ours = {(table.schema, table.name) for table in _tables()}

    def include_object(obj: t.Any, name: str | None, type_: str, reflected: bool, compare_to: t.Any) -> bool:
        if type_ == "table" and (obj.schema, name) not in ours:
            return False
        return include is None or include(obj, name, type_, reflected, compare_to)

    return include_object


@contextmanager
def _our_tables_only() -> Iterator[t.Any]:
    """Let the migrations see nothing but our tables; yield the app's ``Migrate``."""
    settings = current_app.extensions["migrate"]
    arguments = settings.configure_args
    # env.py adds to the arguments it finds: give it a copy.
    settings.configure_args = {**arguments, "include_object": _only_ours(arguments.get("include_object"))}
    try:
        yield settings.migrate
    finally:
        settings.configure_args = arguments


def differences_of_tables() -> list[t.Any]:
    """Return how our tables in the database differ from the models, as Alembic says it."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    migrate = current_app.extensions.get("migrate")
    options = dict(migrate.configure_args) if migrate is not None else {"compare_type": True}
    options["include_object"] = _only_ours(options.get("include_object"))
    metadata = _tables()[0].metadata
    engine = current_state().db.engines[metadata.info.get("bind_key")]
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={**options, "target_metadata": metadata})
        changes = compare_metadata(context, metadata)
    # The changes of one column come as a list.
    return [each for change in changes for each in (change if isinstance(change, list) else [change])]


def in_words(change: tuple[t.Any, ...]) -> str:
    """Say what Alembic found: ``(what, …, schema item)``, or a modified column with its old and new property."""
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
