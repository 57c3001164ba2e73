"""The databases the tests run on, each in a database of its own that is dropped at the end."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

#: Where the servers are: standard ports, unless the environment says otherwise.
SERVERS = {
    "postgresql": os.environ.get("TEST_POSTGRESQL_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"),
    "mariadb": os.environ.get("TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1:3306/"),
}
NAMES = ("sqlite", *SERVERS)


def unavailable(reason: str) -> None:
    """Skip a test for what is missing on this machine; with CI set, nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def new_database(name: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a new, empty database."""
    if name == "sqlite":
        yield f"sqlite:///{folder / 'test.db'}"
        return
    server = sa.create_engine(SERVERS[name], isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    database = f"flask_referrals_test_{secrets.token_hex(4)}"
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {database}")
    except sa.exc.OperationalError as error:
        reason = str(error.orig).partition("\n")[0]
        unavailable(f"No {name} server ({reason}): set TEST_{name.upper()}_URL.")
    try:
        yield server.url.set(database=database).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            force = " WITH (FORCE)" if name == "postgresql" else ""
            connection.exec_driver_sql(f"DROP DATABASE {database}{force}")
