"""What an import remembers while it runs: in a temporary file, so that memory use does not grow with the dump."""

import json
import sqlite3
import typing as t
from collections.abc import Iterable, Iterator

from .dumps import Record

_SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE link (
        pk TEXT PRIMARY KEY, id INTEGER, code TEXT, owner TEXT, user_id TEXT, created_at TEXT
    ) WITHOUT ROWID;
    CREATE TABLE user (old TEXT PRIMARY KEY, new TEXT) WITHOUT ROWID;
    CREATE TABLE deferred (kind TEXT, record TEXT);
    BEGIN;
"""


class ImportedLink(t.NamedTuple):
    """A link of the dump that is in the database.

    :param pk: its key in the dump.
    :param id: its key here.
    :param owner: the key of its user in the dump.
    :param user_id: the key of its user here, as text.
    :param created_at: when it was created, in ISO 8601.
    """

    pk: str
    id: int
    code: str
    owner: str | None
    user_id: str | None
    created_at: str


class Ledger:
    """The imported links, the keys of the users, and the deferred records.

    :param users: pairs of a user's key in the dump and here. ``None``: they are the same.
    """

    def __init__(self, users: Iterable[tuple[str, str]] | None) -> None:
        self._has_same_users = users is None
        self._file = sqlite3.connect("", isolation_level=None)  # SQLite deletes a file without a name when it is closed
        self._file.executescript(_SCHEMA)
        try:
            self._file.executemany("INSERT OR REPLACE INTO user VALUES (?, ?)", users or ())
        except BaseException:  # reading the pairs may fail
            self.close()
            raise

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def add_links(self, links: Iterable[ImportedLink]) -> None:
        """Remember links."""
        self._file.executemany("INSERT OR REPLACE INTO link VALUES (?, ?, ?, ?, ?, ?)", links)

    def find_links(self, pks: Iterable[str]) -> dict[str, ImportedLink]:
        """Return the imported links among some keys of the dump."""
        return {row[0]: ImportedLink(*row) for row in self._find("link", "pk", pks)}

    def find_users(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the keys of users here by their keys in the dump. Users who are not in the pairs are left out."""
        return {key: key for key in keys} if self._has_same_users else dict(self._find("user", "old", keys))

    def _find(self, table: str, column: str, values: Iterable[str]) -> Iterator[tuple[t.Any, ...]]:
        wanted = list(set(values))
        places = ", ".join("?" * len(wanted))
        return self._file.execute(f"SELECT * FROM {table} WHERE {column} IN ({places})", wanted)  # noqa: S608

    def defer(self, record: Record) -> None:
        """Keep a record until the dump has been read."""
        text = json.dumps([record.where, record.kind, record.pk, record.fields])
        self._file.execute("INSERT INTO deferred VALUES (?, ?)", [record.kind, text])

    def deferred(self, kind: str) -> Iterator[Record]:
        """Yield the deferred records of a kind."""
        for (text,) in self._file.execute("SELECT record FROM deferred WHERE kind = ?", [kind]):
            yield Record(*json.loads(text))
