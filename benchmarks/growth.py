"""What operations cost as stored responses grow, in milliseconds, in this process::

    python -m benchmarks.growth --database postgresql --stored 10000 --stored 1000000 --stored 10000000

Each is done for somebody else each time: for the quiet, and for the busiest, which are the link with a tenth of all
responses, its owner, and the member with a hundredth. The site has had as many responses each day, and ``flask
referrals rollup`` has run today. Ends with 1 when the median of one is more than ``GOAL`` times as long with the most
as with the fewest.

The databases are given memory as their documentation says: MariaDB's buffer pool, by default 128 MB, 8 GB for as long
as this runs, and SQLite ``mmap_size``. What the same row costs by the driver alone is timed too, as a floor: that also
grows, where a larger index has more pages to be written.

With ``--pinax``, some are timed with pinax-referrals, tuned, likewise.
"""

import argparse
import json
import os
import random
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa
from flask import Flask, current_app, session
from flask_login import login_user
from sqlalchemy import event

from benchmarks import results, rows
from benchmarks.contestants.ours import create_app
from benchmarks.contestants.settings import DATABASE
from benchmarks.sites import install_pinax
from flask_referrals import Referral
from flask_referrals.db.totals import roll_up
from flask_referrals.state import current_state
from flask_referrals.templating import referral_responses
from flask_referrals.web.client import resolve_request
from tests.databases import NAMES, SERVERS, new_database
from tests.host import BROWSER

GOAL = 1.3
#: How often each operation is done before it is timed.
_WARM_UP = 10
#: What is no growth, in milliseconds: less is noise.
_NOISE = 0.1
#: What the titles of pinax-referrals' operations begin with.
_PINAX = "pinax-referrals: "
#: With how many responses it is timed at most; by then an action takes as long as a hundred of this extension's.
_PINAX_STORED = 1_000_000
#: What the titles of floors begin with.
_FLOOR = "floor: "
#: How much memory a database may take, in bytes.
_MEMORY = 8 * 1024**3

#: What is timed, made by what comes before it.
Timed = Callable[[], object]


@dataclass(frozen=True)
class Operation:
    """Something that is timed.

    :param prepare: sets the request up, and returns what is timed.
    """

    title: str
    prepare: Callable[["People"], Timed]


class People(rows.Population):
    """Who is there, and somebody of each kind."""

    def visitor(self, *, is_busy: bool = False) -> str:
        """Return the key of a visitor who is no member, by a quiet or by the busy link."""
        while True:
            visitor = random.choice(self.visitors)  # noqa: S311
            if self.member_of(visitor) is None and (self.link_of(visitor) == self.busy_link) is is_busy:
                return rows.key_of(visitor)

    def member(self, *, is_busy: bool = False) -> int:
        """Return a member who came by a link, a quiet or the busy one."""
        if is_busy:
            return self.busy_member
        while True:
            member = self.member_of(random.choice(self.visitors))  # noqa: S311
            if member is not None and member != self.busy_member:
                return member

    def link(self, *, is_busy: bool = False) -> int:
        """Return a link, a quiet or the busy one."""
        return self.busy_link if is_busy else random.randint(2, self.links)  # noqa: S311

    def owner(self, *, is_busy: bool = False) -> int:
        """Return a user with links, the quiet ones or the busy one among them."""
        return self.busy_owner if is_busy else random.randint(2, self.owners)  # noqa: S311


def _get(model: type[Any], key: int) -> Any:
    found = current_app.extensions["sqlalchemy"].session.get(model, key)
    assert found is not None  # noqa: S101
    return found


def _user(key: int) -> Any:
    return _get(current_app.extensions["referrals"].models.user, key)


def _click(people: People, *, is_busy: bool = False, key: str | None = None, member: int | None = None) -> Timed:
    code = rows.code_of(people.link(is_busy=is_busy))
    _come(key=key, member=member)
    return lambda: current_app.view_functions["referrals.redirect"](code=code)


def _act(*, key: str | None = None, member: int | None = None) -> Timed:
    _come(key=key, member=member)
    return lambda: Referral.record_response("BOUGHT")


def _join(people: People, *, is_busy: bool = False) -> Timed:
    user = _user(people.member())
    _come(key=people.visitor(is_busy=is_busy))
    return lambda: login_user(user)


def _come(*, key: str | None = None, member: int | None = None) -> None:
    """Make the current request a visitor's, or a member's."""
    if key is not None:
        current_state().visitor_keys.set(resolve_request(), key)
    if member is not None:
        session["_user_id"] = str(member)


def _ask(*, key: str | None = None, member: int | None = None) -> Timed:
    _come(key=key, member=member)
    return Referral.referral_for_request


def _newest(people: People, *, is_busy: bool = False) -> Timed:
    owner = _user(people.owner(is_busy=is_busy))
    return lambda: referral_responses(owner, limit=50)


def _count(people: People, *, is_busy: bool = False) -> Timed:
    referral = _get(current_app.extensions["referrals"].models.referral, people.link(is_busy=is_busy))
    return lambda: referral.response_count


def _insert(people: People) -> Timed:
    link = people.link()
    with current_app.extensions["sqlalchemy"].engine.connect() as connection:
        mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    row = {
        "referral_id": link,
        "session_key": secrets.token_urlsafe(32),
        "action": "RESPONDED",
        "is_touch": True,
        "created_at": datetime.now(timezone.utc).replace(tzinfo=None).isoformat(" "),
    }
    insert = f"INSERT INTO referral_response ({', '.join(row)}) VALUES ({', '.join([mark] * len(row))})"  # noqa: S608

    def timed() -> None:
        with closing(current_app.extensions["sqlalchemy"].engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute(f"SELECT redirect_to FROM referral WHERE code = {mark}", (rows.code_of(link),))  # noqa: S608
            cursor.fetchone()
            cursor.execute(insert, tuple(row.values()))
            connection.commit()

    return timed


OPERATIONS = (
    Operation("click of a stranger, quiet link", lambda people: _click(people)),
    Operation("click of a stranger, busy link", lambda people: _click(people, is_busy=True)),
    Operation("click of a visitor, quiet link", lambda people: _click(people, key=people.visitor())),
    Operation("click of a visitor, busy link", lambda people: _click(people, is_busy=True, key=people.visitor())),
    Operation("click of a member", lambda people: _click(people, member=people.member())),
    Operation("click of the busy member", lambda people: _click(people, member=people.member(is_busy=True))),
    Operation("action of a stranger", lambda people: _act()),
    Operation("action of a visitor, quiet link", lambda people: _act(key=people.visitor())),
    Operation("action of a visitor, busy link", lambda people: _act(key=people.visitor(is_busy=True))),
    Operation("action of a member", lambda people: _act(member=people.member())),
    Operation("action of the busy member", lambda people: _act(member=people.member(is_busy=True))),
    Operation("join at login, quiet link", lambda people: _join(people)),
    Operation("join at login, busy link", lambda people: _join(people, is_busy=True)),
    Operation("referral_for_request, a visitor", lambda people: _ask(key=people.visitor())),
    Operation("referral_for_request, a member", lambda people: _ask(member=people.member())),
    Operation("referral_for_request, the busy member", lambda people: _ask(member=people.member(is_busy=True))),
    Operation("newest 50 of an owner", lambda people: _newest(people)),
    Operation("newest 50 of the busy owner", lambda people: _newest(people, is_busy=True)),
    Operation("response_count of a quiet link", lambda people: _count(people)),
    Operation("response_count of the busy link", lambda people: _count(people, is_busy=True)),
    Operation(f"{_FLOOR}SELECT and INSERT by the driver, quiet link", _insert),
)


@contextmanager
def memory(database: str) -> Iterator[None]:
    """Give a server the memory that the largest site needs; PostgreSQL has the operating system's."""
    if database != "mariadb":
        yield
        return
    server = sa.create_engine(SERVERS[database], poolclass=sa.NullPool)
    with server.connect() as connection:
        before = connection.exec_driver_sql("SELECT @@innodb_buffer_pool_size").scalar()
        connection.exec_driver_sql(f"SET GLOBAL innodb_buffer_pool_size = {_MEMORY}")
    try:
        yield
    finally:
        with server.connect() as connection:
            connection.exec_driver_sql(f"SET GLOBAL innodb_buffer_pool_size = {before}")


def _map_memory(connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute(f"PRAGMA mmap_size = {_MEMORY}")


@contextmanager
def stored(database: str, responses: int) -> Iterator[Flask]:
    """Yield a site with as many responses; its database is dropped at the end."""
    with tempfile.TemporaryDirectory() as folder, new_database(database, Path(folder)) as url:
        os.environ[DATABASE] = url
        if database == "sqlite":
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        app = create_app()
        with app.app_context():
            event.listen(app.extensions["sqlalchemy"].engine, "connect", _map_memory)
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        rows.store(engine, rows.ours(rows.Population(responses)), app.extensions["sqlalchemy"].metadata)
        with app.app_context():
            roll_up(current_state().database)
        yield app
        with app.app_context():
            app.extensions["sqlalchemy"].engine.dispose()


def measure(sites: dict[int, Flask], repeats: int) -> dict[tuple[str, int], float]:
    """Return the median milliseconds of each operation, with each number of stored responses.

    :param sites: the site with as many; they take turns, so that what else the machine does is the same for all.
    :param repeats: how often each is done, after some times that are not timed.
    """
    took: dict[tuple[str, int], list[float]] = {}
    for number in range(-_WARM_UP, repeats):
        for operation in OPERATIONS:
            for responses, app in random.sample(list(sites.items()), len(sites)):
                with app.test_request_context(headers={"User-Agent": BROWSER}):
                    timed = operation.prepare(People(responses))
                    began = time.perf_counter()
                    timed()
                    if number >= 0:
                        milliseconds = (time.perf_counter() - began) * 1000
                        took.setdefault((operation.title, responses), []).append(milliseconds)
    return {what: median(each) for what, each in took.items()}


def measure_pinax(database: str, responses: int, repeats: int, python: Path) -> dict[tuple[str, int], float]:
    """Return the same for what ``benchmarks.contestants.pinax_timed`` does with pinax-referrals.

    :param python: where that is installed.
    """
    with tempfile.TemporaryDirectory() as folder, new_database(database, Path(folder)) as url:
        if database == "sqlite":
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        environment = {**os.environ, DATABASE: url}
        subprocess.run([python, "-m", "benchmarks.contestants.pinax"], check=True, env=environment)  # noqa: S603
        rows.store(sa.create_engine(url, poolclass=sa.NullPool), rows.pinax(rows.Population(responses)))
        command = [str(python), "-m", "benchmarks.contestants.pinax_timed", str(_WARM_UP), str(repeats)]
        printed = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)  # noqa: S603
    return {(_PINAX + title, responses): milliseconds for title, milliseconds in json.loads(printed.stdout).items()}


def _report(database: str, took: dict[tuple[str, int], float]) -> list[str]:
    """Print a database's table; return what grew, in words."""
    sizes = sorted({responses for _, responses in took})
    row = "{:52}" + "{:>12}" * (len(sizes) + 1)
    print("\n" + row.format(f"{database}, median ms", *(f"{responses:,}" for responses in sizes), "growth"))
    grew = []
    for title in dict.fromkeys(title for title, _ in took):
        each = [took[title, responses] for responses in sizes if (title, responses) in took]
        growth = each[-1] / each[0]
        shown = [f"{milliseconds:.2f}" for milliseconds in each]
        print(row.format(title, *shown, *[""] * (len(sizes) - len(each)), f"{growth:.2f}"))
        if growth > GOAL and each[-1] - each[0] > _NOISE and not title.startswith((_PINAX, _FLOOR)):
            grew.append(f"{database}: {title}: {growth:.2f} times, not {GOAL}")
    return grew


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=NAMES, action="append", help="only this one; may be given again")
    parser.add_argument("--stored", type=int, action="append", help="a number of responses; may be given again")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument(
        "--pinax", action="store_true", help="time pinax-referrals too, up to a million, without MariaDB"
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "flask-referrals-benchmarks")
    parser.add_argument("--json", type=Path, help="keep the figures there too")
    options = parser.parse_args()
    grew = []
    sizes = sorted(options.stored or (10_000, 1_000_000, 10_000_000))
    for database in options.database or NAMES:
        with ExitStack() as stack:
            stack.enter_context(memory(database))
            sites = {}
            for responses in sizes:
                began = time.monotonic()
                sites[responses] = stack.enter_context(stored(database, responses))
                print(f"{database}: {responses:,} stored in {time.monotonic() - began:.0f} s", file=sys.stderr)
            took = measure(sites, options.repeats)
        if options.pinax and database != "mariadb":
            python = install_pinax(options.cache)
            for responses in sizes:
                if responses <= _PINAX_STORED:
                    took |= measure_pinax(database, responses, options.repeats, python)
        grew += _report(database, took)
        for (title, responses), milliseconds in took.items():
            of = {"database": database, "operation": title, "stored": responses}
            results.keep(options.json, of, round(milliseconds, 3))
    print("\n" + ("\n".join(grew) or "nothing grew"))
    return 1 if grew else 0


if __name__ == "__main__":
    sys.exit(main())
