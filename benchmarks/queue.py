"""Clicks recorded at once, and by Celery's workers from Redis and from RabbitMQ, beside the floor of the bare driver::

    python -m benchmarks.queue --rounds 5 --seconds 5

In each round each site is run in turn, from another one on each time, on a separate PostgreSQL server, for its CPU
time is read; a ratio is the median of those within a round. A run ends when all that was answered is in the table, and
what it costs is counted until then: of the site, of the worker with its two processes, and of the database. Ends with 1
when a goal is missed, or when a click was answered and not recorded. It needs wrk, and what
``benchmarks/requirements.txt`` names.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

import sqlalchemy as sa

from benchmarks import rows
from benchmarks.contestants.ours import create_app
from benchmarks.contestants.settings import DATABASE
from benchmarks.sites import CONNECTIONS, OURS, RAW, Contestant, Load, Site, cpu_seconds, server_of
from tests.faults.outage import find_programs, new_server
from tests.faults.workers import RABBITMQ_URL, Worker, new_queue
from tests.login_hosts import REDIS_URL

#: How many different links are asked for.
_REQUESTS = 20_000
_WARM_UP = 1.0
#: How long nothing may be recorded, in seconds, before the queue is taken for empty.
_PATIENCE = 10

#: The most of the CPU time of the database that a click may take, as a part of what it takes when it is stored at once.
GOAL = 0.5

_MODULE = "benchmarks.contestants.queued"
BROKERS = {
    Contestant("through Celery, Redis", _MODULE): REDIS_URL,
    Contestant("through Celery, RabbitMQ", _MODULE): RABBITMQ_URL,
}
CONTESTANTS = (OURS, *BROKERS, RAW)


class Run(NamedTuple):
    """A site, for some seconds.

    :param recorded: how many responses there are more.
    :param drained: how long that took after the last answer, in seconds.
    :param app_cpu: the CPU seconds of the site's processes.
    :param worker_cpu: those of the worker's.
    :param database_cpu: those of the database's.
    """

    load: Load
    recorded: int
    drained: float
    app_cpu: float
    worker_cpu: float
    database_cpu: float

    @property
    def speed(self) -> float:
        """Requests per second."""
        return self.load.requests / self.load.seconds

    def per_thousand(self, seconds: float) -> float:
        """Return what 1,000 requests take of some seconds."""
        return seconds / self.load.requests * 1000


def run(contestant: Contestant, url: str, people: rows.Population, seconds: float) -> Run:
    """Measure a site.

    :param url: a database with stored responses.
    :param people: who made them.
    :param seconds: for how long.
    """
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    server = server_of(engine)
    if server is None:
        raise RuntimeError("The database is not on this machine.")
    links = random.choices(range(2, people.links + 1), k=_REQUESTS)  # noqa: S311
    requests = [(contestant.click.format(rows.code_of(link)), "") for link in links]
    with ExitStack() as stack:
        worker = None
        broker = BROKERS.get(contestant)
        if broker is not None:
            environment = stack.enter_context(new_queue(broker))
            os.environ.update(environment)
            stack.callback(lambda: [os.environ.pop(name) for name in environment])
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            worker = Worker({DATABASE: url, **environment}, folder, "benchmarks.contestants.worker")
            stack.enter_context(worker)
            worker.wait_until_ready()
        site = stack.enter_context(Site(contestant, Path(sys.executable), url))
        # One for all questions: to connect costs the server as much as many a click.
        connection = stack.enter_context(engine.execution_options(isolation_level="AUTOCOMMIT").connect())
        latest = _latest(connection)
        _drain(connection, latest, site.load(requests, _WARM_UP).requests)
        latest = _latest(connection)

        def costs() -> list[float]:
            return [cpu_seconds(pid) for pid in (site.pid, worker.pid if worker is not None else 0, server) if pid]

        spent = costs()
        load = site.load(requests, seconds)
        recorded, drained = _drain(connection, latest, load.requests)
        app, *workers, database = (now - then for now, then in zip(costs(), spent, strict=True))
        return Run(load, recorded, drained, app, sum(workers), database)


def _latest(connection: sa.Connection) -> int:
    """Return the id of the latest response."""
    return int(connection.scalar(sa.text("SELECT max(id) FROM referral_response")) or 0)


def _drain(connection: sa.Connection, latest: int, expected: int) -> tuple[int, float]:
    """Wait until there are so many new responses, and those that wrk did not wait for.

    :param latest: the id before the new ones.
    :param expected: how many.
    :return: how many there are, and how long that took.
    """
    count = sa.text("SELECT count(*) FROM referral_response WHERE id > :latest")
    began = grown = time.monotonic()
    before = -1
    while True:
        now = int(connection.scalar(count, {"latest": latest}) or 0)
        if now != before:
            before, grown = now, time.monotonic()
        if time.monotonic() - grown > (2 if now >= expected else _PATIENCE):
            return now, grown - began
        time.sleep(0.5)


def report(runs: dict[Contestant, list[Run]]) -> list[str]:
    """Print the table; return what is amiss, in words."""
    row = "{:26}{:>22}{:>9}{:>9}{:>9}{:>12}{:>8}{:>10}{:>10}{:>16}"
    print(
        row.format(
            "", "requests/s", "p99 ms", "at once", "driver", "app+worker", "db CPU", "at once", "drained", "recorded"
        )
    )
    missed = []
    for contestant, each in runs.items():
        speeds = [run.speed for run in each]

        def ratio(other: Contestant, runs_of: list[Run] = each) -> float:
            return median(one.speed / two.speed for one, two in zip(runs_of, runs[other], strict=True))

        cost = median(
            one.per_thousand(one.database_cpu) / two.per_thousand(two.database_cpu)
            for one, two in zip(each, runs[OURS], strict=True)
        )
        answered, recorded = sum(run.load.requests for run in each), sum(run.recorded for run in each)
        app, worker, database = (
            median(run.per_thousand(getattr(run, name)) for run in each)
            for name in ("app_cpu", "worker_cpu", "database_cpu")
        )
        print(
            row.format(
                contestant.name,
                f"{median(speeds):,.0f} [{min(speeds):,.0f}..{max(speeds):,.0f}]",
                f"{median(run.load.p99 for run in each):.1f}",
                f"{ratio(OURS):.2f}",
                f"{ratio(RAW):.2f}",
                f"{app:.2f}+{worker:.2f}",
                f"{database:.3f}",
                f"{cost:.2f}",
                f"{median(run.drained for run in each):.1f} s",
                f"{recorded}/{answered}",
            )
        )
        if contestant in BROKERS and cost > GOAL:
            missed.append(f"{contestant.name}: the database takes {cost:.2f} of the CPU time, not {GOAL}")
        for run in each:
            more = run.recorded - (run.load.requests - run.load.failed)
            if run.load.failed or not 0 <= more <= CONNECTIONS:
                missed.append(f"{contestant.name} failed {run.load.failed} times, and recorded {more:+} beyond that")
    return missed


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each run (default: 5)")
    parser.add_argument("--stored", type=int, default=100_000, help="responses to begin with (default: 100,000)")
    options = parser.parse_args()
    people = rows.Population(options.stored)
    programs = find_programs()
    if programs is None:
        parser.error("PostgreSQL's initdb was found nowhere.")
    with new_server(programs, fsync=True) as postgresql:
        url = os.environ[DATABASE] = postgresql.url
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        rows.store(engine, rows.ours(people), create_app().extensions["sqlalchemy"].metadata)
        runs: dict[Contestant, list[Run]] = {contestant: [] for contestant in CONTESTANTS}
        for number in range(options.rounds):
            first = number % len(CONTESTANTS)
            for contestant in CONTESTANTS[first:] + CONTESTANTS[:first]:
                done = run(contestant, url, people, options.seconds)
                runs[contestant].append(done)
                cost = done.per_thousand(done.database_cpu)
                print(f"{contestant.name}: {done.speed:.0f} requests/s, database {cost:.3f} s/1000", file=sys.stderr)
        missed = report(runs)
    print("\n" + ("\n".join(missed) or "every goal is met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
