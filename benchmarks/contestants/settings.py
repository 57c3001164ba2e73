"""What a site is told by the command that starts it, and where everything is."""

import os
import sqlite3
from typing import Any

import sqlalchemy as sa
from flask import Flask

#: The variable with the database's URL.
DATABASE = "BENCHMARKS_DATABASE"

#: What is answered where nothing is to be seen.
PAGE = "a page that has nothing to do with referrals"


def configure(app: Flask) -> None:
    """Give an app its secret and its database; SQLite is told what its documentation recommends with WAL.

    :param app: a site on Flask-SQLAlchemy.
    """
    app.config["SECRET_KEY"] = "of no use to anybody: the site lives for seconds"  # noqa: S105
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ[DATABASE]
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_events": [(_trust_wal, "connect")]}


def _trust_wal(connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=NORMAL")
