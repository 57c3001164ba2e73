"""Requests per second of a site with Flask-Referrals, of pinax-referrals, and of floors, under gunicorn and wrk::

    python -m benchmarks.web --rounds 10 --seconds 4 --database postgresql --stored 100000

All sites run all the time, and have nothing to do but in their turn. In each round of a scenario each has one, another
one first each time; a ratio is the median of those within a round. Before a round the responses of the last one are
deleted and PostgreSQL is told to do what it does now and then, VACUUM, ANALYZE and CHECKPOINT, which it then has no
reason to do in anybody's turn. Statements are counted apart, on one request. Ends with 1 when a goal is missed, when a
response was answered and not recorded, or when a request failed.

It needs wrk, and what ``benchmarks/requirements.txt`` names; pinax-referrals gets a virtual environment of its own.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import sqlalchemy as sa

from benchmarks import results, rows
from benchmarks.contestants.counting import HEADER
from benchmarks.contestants.settings import DATABASE
from benchmarks.figures import Run, report
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.sites import (
    CONNECTIONS,
    CONTESTANTS,
    PINAX_TUNED,
    Contestant,
    Site,
    cpu_seconds,
    install_pinax,
    server_of,
)
from tests.databases import new_database

#: How many visitors, or members, take turns.
_JAR = 300
#: How many different requests are made of them, so that hardly anybody clicks on a link twice.
_REQUESTS = 20_000
#: In which time, in seconds, a request that is under way has recorded its response.
_SETTLE = 0.5
#: After how many requests alike the statements are counted: by then nothing is done for the first time.
_WARM = 6


class Benchmark:
    """The sites with their databases, which hold stored responses; as a context manager it ends and drops them.

    :param database: ``"postgresql"`` or ``"sqlite"``.
    :param stored: how many responses.
    :param cache: where pinax-referrals is installed.
    """

    def __init__(self, database: str, stored: int, cache: Path) -> None:
        self._database = database
        self._people = rows.Population(stored)
        self._pythons = {False: Path(sys.executable), True: install_pinax(cache)}
        self._urls: dict[bool, str] = {}
        self._engines: dict[bool, sa.Engine] = {}
        self._sites: dict[tuple[Contestant, bool], Site] = {}
        self._jars: dict[tuple[Contestant, Callable[[Site, rows.Population], str] | None], list[str]] = {}
        #: The newest response that stays for the next round, by table: the last of the visitors' clicks.
        self._kept: dict[str, int] = {}

    def __enter__(self) -> "Benchmark":
        with ExitStack() as stack:
            for is_pinax in (False, True):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                url = self._urls[is_pinax] = stack.enter_context(new_database(self._database, folder))
                if self._database == "sqlite":
                    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
                        connection.execute("PRAGMA journal_mode=WAL")
                engine = self._engines[is_pinax] = sa.create_engine(url, poolclass=sa.NullPool)
                self._fill(engine, is_pinax)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _fill(self, engine: sa.Engine, is_pinax: bool) -> None:
        if not is_pinax:
            os.environ[DATABASE] = self._urls[is_pinax]
            from benchmarks.contestants.ours import create_app

            metadata = create_app().extensions["sqlalchemy"].metadata
            rows.store(engine, rows.ours(self._people), metadata)
            return
        command = [str(self._pythons[True]), "-m", PINAX_TUNED.module]
        subprocess.run(command, check=True, env={**os.environ, DATABASE: self._urls[True]})  # noqa: S603
        rows.store(engine, rows.pinax(self._people))

    def site(self, contestant: Contestant, *, is_counting: bool = False) -> Site:
        """Return a site, which is started when it is asked for first."""
        if (contestant, is_counting) not in self._sites:
            is_pinax = contestant.is_pinax
            site = Site(contestant, self._pythons[is_pinax], self._urls[is_pinax], is_counting=is_counting)
            self._sites[contestant, is_counting] = self._stack.enter_context(site)
        return self._sites[contestant, is_counting]

    def begin(self, scenario: Scenario, contestants: Sequence[Contestant]) -> None:
        """Make a scenario's visitors, and warm the sites up."""
        self.begin_round()
        requests = {contestant: self._requests(contestant, scenario) for contestant in contestants}
        self._kept = {contestant.table: self._newest(contestant) for contestant in contestants}
        for contestant in contestants:
            self.site(contestant).load(requests[contestant], 1)
            self._recorded_after(contestant, self._kept[contestant.table])

    def begin_round(self) -> None:
        """Delete what the last round recorded, and have the database do its housekeeping now."""
        for is_pinax, engine in self._engines.items():
            table = next(each.table for each in CONTESTANTS.values() if each.is_pinax is is_pinax)
            if table in self._kept:
                response = sa.table(table, sa.column("id"))
                with engine.begin() as connection:
                    connection.execute(sa.delete(response).where(response.c.id > self._kept[table]))
            rows.refresh(engine)

    def run(self, contestant: Contestant, scenario: Scenario, seconds: int) -> Run:
        """Measure a site.

        :param seconds: for how long; wrk knows whole ones only.
        """
        site, requests = self.site(contestant), self._requests(contestant, scenario)
        server = server_of(self._engines[contestant.is_pinax])
        newest = self._newest(contestant)
        app_cpu, database_cpu = cpu_seconds(site.pid), cpu_seconds(server) if server else None
        load = site.load(requests, seconds)
        app_cpu = cpu_seconds(site.pid) - app_cpu
        if server is not None and database_cpu is not None:
            database_cpu = cpu_seconds(server) - database_cpu
        recorded = self._recorded_after(contestant, newest, waits=scenario.records)
        return Run(load, recorded, app_cpu, database_cpu)

    def _requests(self, contestant: Contestant, scenario: Scenario) -> list[tuple[str, str]]:
        cookies = scenario.cookies
        if (contestant, cookies) not in self._jars:
            site, jar = self.site(contestant), [""]
            if cookies is not None:
                with ThreadPoolExecutor(CONNECTIONS) as pool:
                    jar = list(pool.map(lambda _: cookies(site, self._people), range(_JAR)))
            self._jars[contestant, cookies] = jar
        jar = self._jars[contestant, cookies]
        return [(scenario.path(contestant, self._people), jar[number % len(jar)]) for number in range(_REQUESTS)]

    def _newest(self, contestant: Contestant) -> int:
        """Return the highest key of a response."""
        response = sa.table(contestant.table, sa.column("id"))
        with self._engines[contestant.is_pinax].connect() as connection:
            return int(connection.scalar(sa.select(sa.func.max(response.c.id))) or 0)

    def _recorded_after(self, contestant: Contestant, newest: int, *, waits: bool = True) -> int:
        """Return how many responses have higher keys.

        :param waits: until those that wrk did not wait for are there too.
        """
        response = sa.table(contestant.table, sa.column("id"))
        count = sa.select(sa.func.count()).select_from(response).where(response.c.id > newest)
        before = -1
        while True:
            with self._engines[contestant.is_pinax].connect() as connection:
                now = int(connection.scalar(count) or 0)
            if now == before or not waits:
                return now
            before = now
            time.sleep(_SETTLE)

    def statements(self, contestant: Contestant, scenario: Scenario) -> list[str]:
        """Return the first word of each statement that a request sends."""
        site = self.site(contestant, is_counting=True)
        cookies = scenario.cookies(site, self._people) if scenario.cookies is not None else ""
        for _ in range(_WARM):
            response = site.get(scenario.path(contestant, self._people), cookies)
        return (response.headers[HEADER] or "").split()


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=4, help="of each turn (default: 4)")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="only this one; may be given again")
    parser.add_argument("--contestant", choices=CONTESTANTS, action="append", help="only this one and ours; likewise")
    parser.add_argument("--stored", type=int, default=100_000, help="responses to begin with (default: 100,000)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "flask-referrals-benchmarks")
    parser.add_argument("--json", type=Path, help="keep the figures there too")
    options = parser.parse_args()
    chosen = [CONTESTANTS[name] for name in ("ours", *(options.contestant or CONTESTANTS))]
    missed = []
    with Benchmark(options.database, options.stored, options.cache) as benchmark:
        for name in options.scenario or list(SCENARIOS):
            scenario = SCENARIOS[name]
            contestants = [contestant for contestant in scenario.contestants if contestant in chosen]
            sent = {contestant: benchmark.statements(contestant, scenario) for contestant in contestants}
            runs: dict[Contestant, list[Run]] = {contestant: [] for contestant in contestants}
            benchmark.begin(scenario, contestants)
            # As long altogether: the shorter a turn, the more alike the machine is in the next one's.
            turns = options.seconds if scenario.is_close else 1
            for number in range(options.rounds * turns):
                if number % turns == 0:
                    benchmark.begin_round()
                first = number % len(contestants)
                for contestant in contestants[first:] + contestants[:first]:
                    runs[contestant].append(benchmark.run(contestant, scenario, options.seconds // turns))
            figures, faults = report(options.database, name, scenario, options.stored, runs, sent)
            of = {"database": options.database, "stored": options.stored, "scenario": name}
            results.keep(options.json, of, figures)
            missed += faults
    print("\n" + ("\n".join(missed) or "every goal is met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
