"""Requests per second of a site with Flask-Referrals, of pinax-referrals, and of two floors, under gunicorn and wrk::

    python -m benchmarks.web --rounds 5 --seconds 8 --database postgresql --stored 100000

In each round each scenario is run on each site in turn, from another one on each time; a ratio is the median of those
within a round. Statements are counted apart, on one request. Ends with 1 when a goal is missed, when a response was
answered and not recorded, or when a request failed.

It needs wrk, and what ``benchmarks/requirements.txt`` names; pinax-referrals gets a virtual environment of its own.
"""

import argparse
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import sqlalchemy as sa

from benchmarks import rows
from benchmarks.contestants.counting import HEADER
from benchmarks.contestants.settings import DATABASE
from benchmarks.sites import CONNECTIONS
from benchmarks.sites import CONTESTANTS
from benchmarks.sites import OURS
from benchmarks.sites import PINAX_DOCUMENTED
from benchmarks.sites import PINAX_TUNED
from benchmarks.sites import RAW
from benchmarks.sites import WITHOUT
from benchmarks.sites import Contestant
from benchmarks.sites import Load
from benchmarks.sites import Site
from benchmarks.sites import cpu_seconds
from benchmarks.sites import install_pinax
from benchmarks.sites import server_of
from tests.databases import new_database

#: How many visitors, or members, take turns.
_JAR = 300
#: How many different requests are made of them, so that hardly anybody clicks on a link twice.
_REQUESTS = 20_000
#: The first of them warm the site up.
_WARM_UP = 1000
#: In which time, in seconds, a request that is under way has recorded its response.
_SETTLE = 0.5
#: After how many requests alike the statements are counted: by then nothing is done for the first time.
_WARM = 6


@dataclass(frozen=True)
class Scenario:
    """What is asked for, and by whom.

    :param title: what it is called in the table.
    :param cookies: gives somebody's cookies, before it is measured; ``None``: nobody has any.
    :param path: gives the path of a request.
    :param records: whether each request is to leave a response.
    :param contestants: who takes part.
    """

    title: str
    cookies: Callable[[Site, rows.Population], str] | None
    path: Callable[[Contestant, rows.Population], str]
    records: bool
    contestants: tuple[Contestant, ...] = tuple(CONTESTANTS.values())[:-1]


def _any_link(contestant: Contestant, people: rows.Population) -> str:
    return contestant.click.format(rows.code_of(random.randint(2, people.links)))  # noqa: S311


def _click(site: Site, people: rows.Population) -> str:
    # Twice: some of what is kept in a session comes with the second request.
    return site.cookies_after(*(_any_link(site.contestant, people) for _ in range(2)))


def _log_in(site: Site, people: rows.Population) -> str:
    member = random.choice(people.members[1:])  # noqa: S311
    return site.cookies_after(f"/login/{member}", _any_link(site.contestant, people))


SCENARIOS = {
    "new": Scenario("click of a new visitor", None, _any_link, records=True),
    "returning": Scenario("click of a returning visitor", _click, _any_link, records=True),
    "action": Scenario("action of a referred visitor", _click, lambda *_: "/buy", records=True),
    "page": Scenario(
        "page without a referral", None, lambda *_: "/page", records=False, contestants=tuple(CONTESTANTS.values())
    ),
    "member": Scenario("click of a logged-in member", _log_in, _any_link, records=True),
}

#: At least how often our requests per second are another's.
GOALS = {
    ("postgresql", "new"): {PINAX_DOCUMENTED: 6.5, PINAX_TUNED: 2.4, RAW: 0.7},
    ("postgresql", "returning"): {PINAX_DOCUMENTED: 5.5, PINAX_TUNED: 1.55, RAW: 0.7},
    ("postgresql", "action"): {PINAX_TUNED: 5.5, RAW: 0.7},
    ("postgresql", "member"): {PINAX_DOCUMENTED: 5.5, PINAX_TUNED: 1.7},
    ("postgresql", "page"): {WITHOUT: 0.98},
    ("sqlite", "new"): {PINAX_TUNED: 1.8, RAW: 0.5},
    ("sqlite", "returning"): {PINAX_TUNED: 1.25, RAW: 0.5},
    ("sqlite", "action"): {PINAX_TUNED: 7, RAW: 0.5},
    ("sqlite", "page"): {WITHOUT: 0.98},
}


class Run(NamedTuple):
    """A scenario on a site, for some seconds.

    :param recorded: how many responses there are more.
    :param app_cpu: the CPU seconds of the site's processes.
    :param database_cpu: those of the database's; ``None``: it cannot be read.
    """

    load: Load
    recorded: int
    app_cpu: float
    database_cpu: float | None

    @property
    def speed(self) -> float:
        """Requests per second."""
        return self.load.requests / self.load.seconds


class Benchmark:
    """The sites with their databases, which hold stored responses; as a context manager it drops them at the end.

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

    def _site(self, contestant: Contestant, *, is_counting: bool = False) -> Site:
        is_pinax = contestant.is_pinax
        return Site(contestant, self._pythons[is_pinax], self._urls[is_pinax], is_counting=is_counting)

    def run(self, contestant: Contestant, scenario: Scenario, seconds: float) -> Run:
        """Measure a site.

        :param seconds: for how long.
        """
        engine = self._engines[contestant.is_pinax]
        with self._site(contestant) as site:
            requests = self._requests(site, scenario)
            site.load(requests[:_WARM_UP], min(seconds, 1))
            server = server_of(engine)
            before = self._recorded(contestant)
            app_cpu, database_cpu = cpu_seconds(site.pid), cpu_seconds(server) if server else None
            load = site.load(requests[_WARM_UP:], seconds)
            app_cpu = cpu_seconds(site.pid) - app_cpu
            if server is not None and database_cpu is not None:
                database_cpu = cpu_seconds(server) - database_cpu
            return Run(load, self._recorded(contestant) - before, app_cpu, database_cpu)

    def _requests(self, site: Site, scenario: Scenario) -> list[tuple[str, str]]:
        jar = [""]
        cookies = scenario.cookies
        if cookies is not None:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                jar = list(pool.map(lambda _: cookies(site, self._people), range(_JAR)))
        return [(scenario.path(site.contestant, self._people), jar[number % len(jar)]) for number in range(_REQUESTS)]

    def _recorded(self, contestant: Contestant) -> int:
        """Return how many responses there are, once those that wrk did not wait for are there too."""
        count = sa.select(sa.func.count()).select_from(sa.table(contestant.table))
        before = -1
        while True:
            with self._engines[contestant.is_pinax].connect() as connection:
                now = int(connection.scalar(count) or 0)
            if now == before:
                return now
            before = now
            time.sleep(_SETTLE)

    def statements(self, contestant: Contestant, scenario: Scenario) -> list[str]:
        """Return the first word of each statement that a request sends."""
        with self._site(contestant, is_counting=True) as site:
            cookies = scenario.cookies(site, self._people) if scenario.cookies is not None else ""
            for _ in range(_WARM):
                response = site.get(scenario.path(contestant, self._people), cookies)
            return (response.headers[HEADER] or "").split()


def _report(
    database: str, name: str, scenario: Scenario, runs: dict[Contestant, list[Run]], sent: dict[Contestant, list[str]]
) -> list[str]:
    """Print a scenario's table; return the goals that are missed, in words."""
    row = "{:26}{:>24}{:>9}{:>9}{:>9}{:>9}{:>5}{:>17}{:>9}  {}"
    print(f"\n{scenario.title}, {database}")
    print(row.format("", "requests/s", "p50 ms", "p99 ms", "app CPU", "db CPU", "SQL", "recorded", "ours/it", "goal"))
    missed = []
    for contestant, each in runs.items():
        speeds = [run.speed for run in each]
        answered, recorded = sum(run.load.requests for run in each), sum(run.recorded for run in each)
        ratio = median(ours.speed / run.speed for ours, run in zip(runs[OURS], each, strict=True))
        goal = GOALS.get((database, name), {}).get(contestant)
        database_cpu = [run.database_cpu / run.load.requests * 1000 for run in each if run.database_cpu is not None]
        print(
            row.format(
                contestant.name,
                f"{median(speeds):,.0f} [{min(speeds):,.0f}..{max(speeds):,.0f}]",
                f"{median(run.load.p50 for run in each):.1f}",
                f"{median(run.load.p99 for run in each):.1f}",
                f"{median(run.app_cpu / run.load.requests * 1000 for run in each):.2f}",
                f"{median(database_cpu):.2f}" if database_cpu else "",
                len(sent[contestant]),
                f"{recorded}/{answered}" if scenario.records else "",
                f"{ratio:.2f}" if contestant != OURS else "",
                "" if goal is None else f"{goal} {'met' if ratio >= goal else 'MISSED'}",
            )
        )
        if goal is not None and ratio < goal:
            missed.append(f"{scenario.title}: {ratio:.2f} of {contestant.name}, not {goal}")
        missed += _faults(scenario, contestant, each)
    for contestant, statements in sent.items():
        counted = ", ".join(f"{count} {word}" for word, count in Counter(statements).items())
        print(f"    {contestant.name}: {counted or 'no statement'}")
    return missed


def _faults(scenario: Scenario, contestant: Contestant, runs: Sequence[Run]) -> list[str]:
    """Tell what a site did wrong, in words."""
    found = []
    for run in runs:
        # Those that were under way when wrk ended are recorded, and not counted as answered.
        more = run.recorded - (run.load.requests - run.load.failed if scenario.records else 0)
        if not 0 <= more <= CONNECTIONS * scenario.records:
            found.append(f"{scenario.title}: {contestant.name} recorded {more:+} beyond what it answered")
        if run.load.failed:
            found.append(f"{scenario.title}: {contestant.name} failed {run.load.failed} times")
    return found


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of each run (default: 8)")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="only this one; may be given again")
    parser.add_argument("--contestant", choices=CONTESTANTS, action="append", help="only this one and ours; likewise")
    parser.add_argument("--stored", type=int, default=100_000, help="responses to begin with (default: 100,000)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "flask-referrals-benchmarks")
    options = parser.parse_args()
    names = options.scenario or list(SCENARIOS)
    chosen = [CONTESTANTS[name] for name in ("ours", *(options.contestant or CONTESTANTS))]
    missed = []
    with Benchmark(options.database, options.stored, options.cache) as benchmark:
        for name in names:
            scenario = SCENARIOS[name]
            contestants = [contestant for contestant in scenario.contestants if contestant in chosen]
            sent = {contestant: benchmark.statements(contestant, scenario) for contestant in contestants}
            runs: dict[Contestant, list[Run]] = {contestant: [] for contestant in contestants}
            for number in range(options.rounds):
                first = number % len(contestants)
                for contestant in contestants[first:] + contestants[:first]:
                    runs[contestant].append(benchmark.run(contestant, scenario, options.seconds))
            missed += _report(options.database, name, scenario, runs, sent)
    print("\n" + ("\n".join(missed) or "every goal is met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
