"""What an import remembers while it runs, however many rows there are: in a temporary file."""

import json
import sqlite3
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass

from .dumps import Record


@dataclass(frozen=True)
class KnownLink:
    """A link of the dump that is in the database.

    :param pk: its key in the dump.
    :param id: its key here.
    :param owner: its user's key in the dump.
    :param user_id: its user's key here, as text.
    """

    pk: str
    id: int
    code: str
    owner: str | None
    user_id: str | None


class Ledger:
    """Which link has become which, which user is which, and what has to wait for the end.

    :param users: the users' keys in the dump and here, pair by pair; ``None``: they are the same.
    """

    def __init__(self, users: Iterable[tuple[str, str]] | None) -> None:
        self._same_users = users is None
        # Without a name it is a file that nobody else can open, gone when it is closed.
        self._file = sqlite3.connect("", isolation_level=None)
        self._file.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            CREATE TABLE link (pk TEXT PRIMARY KEY, id INTEGER, code TEXT, owner TEXT, user_id TEXT) WITHOUT ROWID;
            CREATE TABLE user (old TEXT PRIMARY KEY, new TEXT) WITHOUT ROWID;
            CREATE TABLE later (kind TEXT, record TEXT);
            BEGIN;
            """
        )
        try:
            self._file.executemany("INSERT OR REPLACE INTO user VALUES (?, ?)", users or ())
        except BaseException:  # the pairs are read here, and may be no pairs
            self.close()
            raise

    def close(self) -> None:
        """Forget it all."""
        self._file.close()

    def add_links(self, links: Iterable[KnownLink]) -> None:
        """Remember links."""
        rows = ((link.pk, link.id, link.code, link.owner, link.user_id) for link in links)
        self._file.executemany("INSERT OR REPLACE INTO link VALUES (?, ?, ?, ?, ?)", rows)

    def links(self, pks: Iterable[str]) -> dict[str, KnownLink]:
        """Return the links among some keys of the dump."""
        wanted = list(set(pks))
        sql = f"SELECT pk, id, code, owner, user_id FROM link WHERE pk IN ({_places(wanted)})"  # noqa: S608
        return {row[0]: KnownLink(*row) for row in self._file.execute(sql, wanted)}

    def users(self, keys: Iterable[str]) -> dict[str, str]:
        """Return what some users' keys in the dump are here; those that the pairs leave out are not in it."""
        wanted = list(set(keys))
        if self._same_users:
            return {key: key for key in wanted}
        sql = f"SELECT old, new FROM user WHERE old IN ({_places(wanted)})"  # noqa: S608
        return dict(self._file.execute(sql, wanted))

    def leave(self, record: Record) -> None:
        """Keep a record for later."""
        text = json.dumps([record.where, record.kind, record.pk, record.fields])
        self._file.execute("INSERT INTO later VALUES (?, ?)", [record.kind, text])

    def left(self, kind: str) -> Iterator[Record]:
        """Yield the records of a kind that were left."""
        for (text,) in self._file.execute("SELECT record FROM later WHERE kind = ?", [kind]):
            yield Record(*json.loads(text))


def _places(values: list[str]) -> str:
    return ", ".join("?" * len(values))
