"""Kills a site's processes under load, and looks for every click that was answered.

A worker and all of the server's processes are killed in turn with SIGKILL, spread over the run::

    python -m tests.faults.kill --kills 50 --clicks 20000 --database postgresql

Ends with 1 when an answered click is not in the table exactly once.
"""

import argparse
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from tests.databases import NAMES, new_database
from tests.faults.site import Site
from tests.web import Answer, Clients

_CLIENTS = 8
#: The longest time without an answer: a restart of the server takes some two seconds.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    :param kills: how often something was killed.
    :param answered: clicks that were answered with 302.
    :param refused: clicks with another answer.
    :param broken: clicks whose connection broke before the answer.
    :param recorded: rows in the table; a click may be there whose connection broke.
    :param missing: answered clicks that are not in the table.
    :param doubled: clicks that are there more than once.
    :param is_clean: whether the database finds no fault with itself.
    """

    kills: int
    answered: int
    refused: int
    broken: int
    recorded: int
    missing: int
    doubled: int
    is_clean: bool
    seconds: float

    @property
    def faults(self) -> list[str]:
        """What should not have been, in words."""
        counts = {"refused": self.refused, "missing": self.missing, "doubled": self.doubled}
        found = [f"{name}: {count}" for name, count in counts.items() if count]
        return found if self.is_clean else [*found, "the database is damaged"]


def run(url: str, folder: Path, *, kills: int, clicks: int) -> Outcome:
    """Kill under load.

    :param url: an empty database.
    :param folder: for the site's log.
    :param kills: how often.
    :param clicks: how many clicks must be answered, at least.
    """
    database = make_url(url)
    sqlite_file = database.database if database.get_backend_name() == "sqlite" else None
    if sqlite_file is not None:
        with closing(sqlite3.connect(sqlite_file)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    began = time.monotonic()
    with Site(url, folder) as site, Clients(site.click, _CLIENTS) as clients:
        for number in range(kills):
            since = len(clients.answers)
            # Somewhere in its own part of the run, and behind an answer since the last kill.
            _wait_for(clients, max(int((number + random.random()) * clicks / kills), since + 1))
            if number % 2 == 0:
                _kill_a_worker(site, clients, since)
            else:
                site.kill()
                site.start()
        while sum(answer.status == 302 for answer in clients.answers) < clicks:
            _wait_for(clients, len(clients.answers) + 1)
    recorded = site.recorded()
    answered = [answer.mark for answer in clients.answers if answer.status == 302]
    return Outcome(
        kills=kills,
        answered=len(answered),
        refused=sum(answer.status not in (None, 302) for answer in clients.answers),
        broken=sum(answer.status is None for answer in clients.answers),
        recorded=recorded.total(),
        missing=sum(mark not in recorded for mark in answered),
        doubled=sum(times > 1 for times in recorded.values()),
        is_clean=sqlite_file is None or _is_intact(sqlite_file),
        seconds=time.monotonic() - began,
    )


def _wait_for(clients: Clients[Answer], answers: int) -> None:
    give_up = time.monotonic() + _PATIENCE
    while len(clients.answers) < answers:
        if time.monotonic() > give_up:
            raise TimeoutError(f"No answer in {_PATIENCE} s.")
        time.sleep(0.002)


def _kill_a_worker(site: Site, clients: Clients[Answer], since: int) -> None:
    """Kill one of the workers that have answered since the last kill."""
    while True:
        workers = [answer.worker for answer in clients.answers[since:] if answer.worker is not None]
        if workers and site.kill_worker(random.choice(workers)):
            return
        _wait_for(clients, len(clients.answers) + 1)


def _is_intact(sqlite_file: str) -> bool:
    with closing(sqlite3.connect(sqlite_file)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clicks", type=int, default=20_000)
    parser.add_argument("--database", choices=NAMES, default="sqlite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, new_database(options.database, Path(folder)) as url:
        outcome = run(url, Path(folder), kills=options.kills, clicks=options.clicks)
    print(
        f"{options.database}: {outcome.kills} kills, {outcome.answered} clicks answered, {outcome.recorded} recorded, "
        f"{outcome.missing} missing, {outcome.doubled} doubled, {outcome.refused} refused, {outcome.broken} "
        f"connections broken, database {'clean' if outcome.is_clean else 'damaged'}, {outcome.seconds:.0f} s"
    )
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
