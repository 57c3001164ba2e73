"""Stored responses to begin with: made up, always the same, and skewed as they are on a real site.

One link has a tenth of all responses, and its owner more than that; one member has a hundredth. All others have some
ten each, however many responses there are. The site has had as many responses each day, however long ago it began: ten
thousand are two days old at most, ten million five years.
"""

import base64
import hashlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.schema import AddConstraint, CreateTable

#: A visitor clicks, looks, and buys.
ACTIONS = ("RESPONDED", "VIEWED", "BOUGHT")

_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
_CHUNK = 200_000
#: A response comes at each of these: 120 in the default of REFERRALS_REPEAT_WINDOW, 12 of them by the busy link.
_INTERVAL = timedelta(seconds=15)
#: How many a server's statistics do not know yet.
_RECENT = 600
#: What a connection sets that makes indexes and foreign keys: the rows are known to be right, and none is in use.
_HASTE = {
    "sqlite": ("PRAGMA cache_size=-1000000", "PRAGMA temp_store=MEMORY"),
    "postgresql": ("SET LOCAL maintenance_work_mem = '1GB'",),
    "mysql": ("SET foreign_key_checks = 0",),
}


class Rows(NamedTuple):
    """The rows of a table."""

    table: str
    columns: tuple[str, ...]
    rows: Iterable[tuple[Any, ...]]


@dataclass(frozen=True)
class Population:
    """Who is there; users, links and visitors are numbered from 1.

    :param responses: how many are stored.
    """

    responses: int

    #: The link with a tenth of all responses, and its owner.
    busy_link = 1
    busy_owner = 1

    @property
    def older(self) -> int:
        """How many of the responses are not recent."""
        return self.responses - _RECENT

    @property
    def links(self) -> int:
        """How many links there are."""
        return max(self.responses // 10, 1000)

    @property
    def owners(self) -> int:
        """How many users have links, five each: the first ones."""
        return self.links // 5

    @property
    def members(self) -> range:
        """The users who have none, and came by one."""
        return range(self.owners + 1, 2 * self.owners + 1)

    @property
    def busy_member(self) -> int:
        """The user who left a hundredth of all responses."""
        return self.members[0]

    @property
    def visitors(self) -> range:
        """All who have left each of ``ACTIONS``."""
        return range(1, self.responses // len(ACTIONS) + 1)

    def owner_of(self, link: int) -> int:
        """Return a link's owner."""
        return (link - 1) % self.owners + 1

    def link_of(self, visitor: int) -> int:
        """Return the link that a visitor followed."""
        return self.busy_link if visitor % 10 == 0 else 2 + visitor * 7919 % (self.links - 1)

    def member_of(self, visitor: int) -> int | None:
        """Return the user whom a visitor became, or ``None``."""
        if visitor % 100 == 1:
            return self.busy_member
        return self.members[1 + visitor // 5 % (len(self.members) - 1)] if visitor % 5 == 2 else None


def code_of(link: int) -> str:
    """Return a link's code."""
    return hashlib.sha256(b"link %d" % link).hexdigest()[:16]


def key_of(visitor: int) -> str:
    """Return a visitor's key, as ours are."""
    return base64.urlsafe_b64encode(hashlib.sha256(b"visitor %d" % visitor).digest())[:43].decode()


def _times(count: int) -> Iterator[str]:
    """Times up to now, in the form that all three databases read."""
    time = datetime.now(timezone.utc).replace(tzinfo=None) - count * _INTERVAL
    for _ in range(count):
        time += _INTERVAL
        yield time.isoformat(" ", "microseconds")


def _responses(people: Population, key: Any) -> Iterator[tuple[int, str, int | None, str, str]]:
    """Each response's link, key, user, action and time."""
    times = _times(people.responses)
    for visitor in people.visitors:
        link, visitors_key, member = people.link_of(visitor), key(visitor), people.member_of(visitor)
        for action, time in zip(ACTIONS, islice(times, len(ACTIONS)), strict=True):
            yield link, visitors_key, member, action, time


def ours(people: Population) -> Iterator[Rows]:
    """Return the rows of Flask-Referrals' tables and of a table ``user``; the recent responses are the last item."""
    yield Rows("user", ("id",), ((number,) for number in range(1, people.members[-1] + 1)))
    links = enumerate(_times(people.links), start=1)
    yield Rows(
        "referral",
        ("id", "code", "label", "redirect_to", "identity", "user_id", "created_at"),
        ((link, code_of(link), "", "/page", f"stored {link}", people.owner_of(link), time) for link, time in links),
    )
    columns = ("referral_id", "session_key", "user_id", "action", "is_touch", "ip_address", "user_agent", "created_at")
    responses = (
        (link, key, member, action, int(action == ACTIONS[0]), "192.0.2.0", _AGENT, time)
        for link, key, member, action, time in _responses(people, key_of)
    )
    yield Rows("referral_response", columns, islice(responses, people.older))
    yield Rows("referral_response", columns, responses)


def pinax(people: Population) -> Iterator[Rows]:
    """Return the same for pinax-referrals' tables, and Django's users."""
    users = enumerate(_times(people.members[-1]), start=1)
    names = ("username", "password", "first_name", "last_name", "email")
    yield Rows(
        "auth_user",
        ("id", *names, "is_superuser", "is_staff", "is_active", "date_joined"),
        ((number, f"user{number}", "!", "", "", "", 0, 0, 1, time) for number, time in users),
    )
    links = enumerate(_times(people.links), start=1)
    yield Rows(
        "referrals_referral",
        ("id", "user_id", "label", "code", "redirect_to", "created_at"),
        ((link, people.owner_of(link), "", code_of(link), "/page", time) for link, time in links),
    )
    columns = ("referral_id", "session_key", "user_id", "ip_address", "action", "http_referrer", "created_at")
    responses = (
        (link, key, member, "192.0.2.1", action, "", time)
        for link, key, member, action, time in _responses(people, lambda visitor: key_of(visitor)[:32].lower())
    )
    yield Rows("referrals_referralresponse", columns, islice(responses, people.older))
    yield Rows("referrals_referralresponse", columns, responses)


def store(engine: sa.Engine, tables: Iterable[Rows], metadata: sa.MetaData | None = None) -> None:
    """Load rows, each database in the way in which it takes many.

    A server's statistics know all but the last item: on a site they are never quite up to date.

    :param engine: the database.
    :param tables: what to load, in this order.
    :param metadata: the tables, if they are to be made; their indexes and foreign keys last, which is faster.
    """
    *known, recent = tables
    # SQLite has no foreign keys but those a table is made with, and does not check them.
    foreign_keys: Any = None if engine.dialect.name == "sqlite" else []
    made = metadata.sorted_tables if metadata is not None else []
    with engine.begin() as connection:
        for table in made:
            connection.execute(CreateTable(table, include_foreign_key_constraints=foreign_keys))
    for rows in known:
        _write(engine, rows)
    with engine.begin() as connection:
        for setting in _HASTE[engine.dialect.name]:
            connection.exec_driver_sql(setting)
        for table in made:
            for index in table.indexes:
                index.create(connection)
            if foreign_keys is not None:
                for constraint in table.foreign_key_constraints:
                    connection.execute(AddConstraint(constraint, isolate_from_table=False))
    refresh(engine)
    _write(engine, recent)


def refresh(engine: sa.Engine) -> None:
    """Let a server know what it has, and write it out; SQLite would not on a site either."""
    if engine.dialect.name == "sqlite":
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("VACUUM ANALYZE")
            connection.exec_driver_sql("CHECKPOINT")
            return
        for table in sa.inspect(connection).get_table_names():
            connection.exec_driver_sql(f"ANALYZE TABLE {engine.dialect.identifier_preparer.quote(table)}")


def _write(engine: sa.Engine, rows: Rows) -> None:
    write = {"sqlite": _write_sqlite, "postgresql": _write_postgresql, "mysql": _write_mariadb}[engine.dialect.name]
    write(engine, rows)


def _head(engine: sa.Engine, rows: Rows) -> str:
    quote = engine.dialect.identifier_preparer.quote
    return f"{quote(rows.table)} ({', '.join(map(quote, rows.columns))})"


def _chunks(rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Rows as text that COPY and LOAD DATA both read."""
    each = iter(rows)
    while chunk := list(islice(each, _CHUNK)):
        line = "\t".join(["%s"] * len(chunk[0])) + "\n"
        # A column that may be NULL is neither the first nor the last. Of two in a row, the second call replaces one.
        yield "".join([line % row for row in chunk]).replace("\tNone\t", "\t\\N\t").replace("\tNone\t", "\t\\N\t")


def _write_sqlite(engine: sa.Engine, rows: Rows) -> None:
    marks = ", ".join("?" * len(rows.columns))
    with closing(sqlite3.connect(engine.url.database or "")) as connection:
        connection.executemany(f"INSERT INTO {_head(engine, rows)} VALUES ({marks})", rows.rows)  # noqa: S608
        connection.commit()


def _write_postgresql(engine: sa.Engine, rows: Rows) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
        cursor: Any = connection.connection.cursor()
        with cursor.copy(f"COPY {_head(engine, rows)} FROM STDIN") as copy:
            for chunk in _chunks(rows.rows):
                copy.write(chunk)


def _write_mariadb(engine: sa.Engine, rows: Rows) -> None:
    local = sa.create_engine(engine.url, connect_args={"local_infile": True}, poolclass=sa.NullPool)
    table, columns = _head(engine, rows).split(" ", 1)
    with tempfile.TemporaryDirectory() as folder, local.connect() as connection:
        file = Path(folder, "rows.tsv")
        # One transaction each: all of it at once would fill the undo log.
        for chunk in _chunks(rows.rows):
            file.write_text(chunk)
            connection.exec_driver_sql(f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE {table} {columns}")
            connection.commit()
    local.dispose()
