"""Run Alembic on the shop's database; a shorter version of the file that ``flask db init`` writes."""

from __future__ import annotations

import logging
from logging.config import fileConfig
from typing import Any

from alembic import context
from flask import current_app

config = context.config
logger = logging.getLogger("alembic.env")
# Keep logging unchanged if something else has configured it, such as a test run.
if config.config_file_name and not logging.getLogger().handlers:
    fileConfig(config.config_file_name, disable_existing_loggers=False)


def drop_empty_revision(_context: Any, _revision: Any, directives: list[Any]) -> None:
    if getattr(config.cmd_opts, "autogenerate", False) and directives[0].upgrade_ops.is_empty():
        directives.clear()
        logger.info("No changes in schema detected.")


def run() -> None:
    migrate = current_app.extensions["migrate"]
    options = {"process_revision_directives": drop_empty_revision, **migrate.configure_args}
    options["target_metadata"] = migrate.db.metadata
    if context.is_offline_mode():
        context.configure(url=migrate.db.engine.url, literal_binds=True, **options)
        with context.begin_transaction():
            context.run_migrations()
        return
    with migrate.db.engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()


run()
