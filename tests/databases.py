"""The databases the tests run on, each in a database of its own that is dropped at the end."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

#: Where the servers are: standard ports, unless the environment says otherwise.
SERVERS = {
    "postgresql": os.environ.get("TEST_POSTGRESQL_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"),
    # Without ssl_disabled, PyMySQL reads the system's certificates before each connection: longer than most tests take.
    "mariadb": os.environ.get("TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1:3306/?ssl_disabled=true"),
}
NAMES = ("sqlite", *SERVERS)

#: Marks a test that shows nothing about the statements, such as a refused argument: it runs on SQLite alone.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


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
            if name == "postgresql":
                connection.exec_driver_sql(f"ALTER DATABASE {database} SET synchronous_commit = off")
    except sa.exc.OperationalError as error:
        reason = str(error.orig).partition("\n")[0]
        unavailable(f"No {name} server ({reason}): set TEST_{name.upper()}_URL.")
    try:
        yield server.url.set(database=database).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            force = " WITH (FORCE)" if name == "postgresql" else ""
            connection.exec_driver_sql(f"DROP DATABASE {database}{force}")


#: What describes the tables of a database, with their columns, indexes, constraints and triggers.
_CATALOGS = {
    "sqlite": "SELECT sql FROM sqlite_master ORDER BY name",
    "postgresql": """
        SELECT c.relname, c.relfilenode, c.relkind, a.attname, a.attnotnull, a.atttypid, a.atttypmod, t.tgname,
        (SELECT string_agg(conname, ' ' ORDER BY conname) FROM pg_constraint WHERE conrelid = c.oid)
        FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid LEFT JOIN pg_trigger t ON t.tgrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1, 4, 8""",
    "mysql": """
        SELECT table_name, column_name, CONCAT_WS(' ', column_type, collation_name), is_nullable
        FROM information_schema.columns
        WHERE table_schema = DATABASE() UNION ALL
        SELECT table_name, index_name, column_name, CAST(non_unique AS char) FROM information_schema.statistics
        WHERE table_schema = DATABASE() UNION ALL
        SELECT table_name, constraint_name, constraint_type, NULL FROM information_schema.table_constraints
        WHERE table_schema = DATABASE() UNION ALL
        SELECT trigger_name, event_manipulation, action_timing, NULL FROM information_schema.triggers
        WHERE trigger_schema = DATABASE()
        ORDER BY 1, 2, 3, 4""",
}

#: More rows than these take longer to delete than their tables to make anew.
_MANY_ROWS = 500


class Tables:
    """The tables that stay in a database from one test to the next.

    :param url: the database's.
    """

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        self._metadata: sa.MetaData | None = None
        self._catalog: object = None

    def has(self, metadata: sa.MetaData) -> bool:
        """Return whether the tables are there."""
        return self._metadata is metadata

    def keep(self, metadata: sa.MetaData) -> None:
        """Take over the tables, which have just been created."""
        with self._engine.connect() as connection:
            self._metadata, self._catalog = metadata, self._read_catalog(connection)

    def empty(self) -> bool:
        """Delete all rows. Return whether the tables are as they were; otherwise they must be made anew."""
        assert self._metadata is not None
        with self._engine.begin() as connection:
            if self._read_catalog(connection) != self._catalog:
                return False
            tables = self._metadata.sorted_tables
            count = sum(connection.execute(table.delete()).rowcount for table in reversed(tables))
            self._restart_keys(connection, tables)
            return count < _MANY_ROWS

    def drop(self) -> None:
        """Drop the tables, if there are any."""
        metadata, self._metadata = self._metadata, None
        if metadata is not None:
            metadata.drop_all(self._engine)
        self._engine.dispose()

    def _read_catalog(self, connection: sa.Connection) -> object:
        return connection.exec_driver_sql(_CATALOGS[connection.dialect.name]).all()

    def _restart_keys(self, connection: sa.Connection, tables: Sequence[sa.Table]) -> None:
        if connection.dialect.name == "postgresql":
            get_sequence = sa.func.pg_get_serial_sequence  # NULL if there is none
            keys = [get_sequence(f'"{table.name}"', column.name) for table in tables for column in table.primary_key]
            connection.execute(sa.select(*(sa.func.setval(key, 1, False) for key in keys)))
        elif connection.dialect.name == "mysql":
            used = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
            for (name,) in connection.exec_driver_sql(f"{used} AND auto_increment > 1").all():
                connection.exec_driver_sql(f"ALTER TABLE `{name}` AUTO_INCREMENT = 1")
        elif any(table.dialect_options["sqlite"]["autoincrement"] for table in tables):
            connection.exec_driver_sql("DELETE FROM sqlite_sequence")
