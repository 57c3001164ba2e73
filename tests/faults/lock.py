"""Holds a lock of a site's SQLite database, and times the clicks that come in meanwhile::

    python -m tests.faults.lock --seconds 60

There are as many clients as the site has workers, so that what is timed is a request and not its wait for a worker.
Ends with 1 when a click gets no redirect within ``BOUND`` seconds, or when one after the lock is not recorded.
"""

import argparse
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.databases import new_database
from tests.faults.site import WORKERS, Site
from tests.web import Clients

#: The default of ``REFERRALS_LOCK_TIMEOUT`` and half a second, in seconds.
BOUND = 2.5

#: For how long clicks come in before and after, in seconds.
_MARGIN = 0.5


@dataclass(frozen=True)
class Lock:
    """A lock that somebody holds.

    :param journal_mode: the database's.
    :param statements: what takes it.
    :param host_reads: whether the clicks come when the host has a transaction running, in which it has only read.
    """

    journal_mode: str
    statements: tuple[str, ...]
    host_reads: bool = False


LOCKS = {
    "writer": Lock("wal", ("BEGIN IMMEDIATE",)),
    "writer, behind the host": Lock("wal", ("BEGIN IMMEDIATE",), host_reads=True),
    "writer against readers": Lock("delete", ("BEGIN EXCLUSIVE",)),
    "reader against writers": Lock("delete", ("BEGIN", "SELECT count(*) FROM referral")),
}


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    :param answered: clicks that came in under the lock.
    :param slowest: the longest any of them took, in seconds.
    :param unanswered: clicks without a 302, at any time.
    :param missing: clicks that are not in the table, though the site gave a key after them. A click that waits for the
        end of the host's transaction gets its key before it is stored.
    :param unlogged: unrecorded clicks, less those in the log; below zero: the log has too many.
    :param after: clicks that were sent when the lock was gone.
    :param lost: those of them that are not in the table.
    """

    answered: int
    slowest: float
    unanswered: int
    missing: int
    unlogged: int
    after: int
    lost: int

    def faults(self, bound: float = BOUND) -> list[str]:
        """Return what should not have been, in words.

        :param bound: the longest that a click may take under the lock, in seconds.
        """
        counts = {"no redirect": self.unanswered, "missing": self.missing, "unlogged": self.unlogged, "lost": self.lost}
        found = [f"{name}: {count}" for name, count in counts.items() if count]
        return found if self.slowest <= bound else [*found, f"slowest: {self.slowest:.2f} s"]


def run(url: str, folder: Path, lock: Lock, *, seconds: float) -> Outcome:
    """Hold a lock.

    :param url: an empty SQLite database.
    :param folder: for the site's log.
    :param lock: how it is taken.
    :param seconds: for how long.
    """
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as holder:
        holder.execute(f"PRAGMA journal_mode={lock.journal_mode}")
        with Site(url, folder) as site:
            click = partial(site.click, host_reads=lock.host_reads)
            with Clients(click, WORKERS, pause=0.01) as clients:
                time.sleep(_MARGIN)
                for statement in lock.statements:
                    holder.execute(statement).fetchall()
                locked = time.monotonic()
                time.sleep(seconds)
                released = time.monotonic()
                holder.execute("ROLLBACK")
                unlocked = time.monotonic()
                while sum(answer.sent > unlocked for answer in clients.answers) < 2 * WORKERS:
                    time.sleep(_MARGIN)
            recorded = site.recorded()
            logged = site.lost()
    under_lock = [answer for answer in clients.answers if answer.ended > locked and answer.sent < released]
    after = [answer for answer in clients.answers if answer.sent > unlocked]
    unrecorded = [answer for answer in clients.answers if answer.mark not in recorded]
    return Outcome(
        answered=len(under_lock),
        slowest=max(answer.ended - answer.sent for answer in under_lock),
        unanswered=sum(answer.status != 302 for answer in clients.answers),
        missing=0 if lock.host_reads else sum(answer.has_cookie for answer in unrecorded),
        unlogged=len(unrecorded) - logged,
        after=len(after),
        lost=sum(answer.mark not in recorded for answer in after),
    )


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    row = "{:24} {:>8}" + 7 * "{:>12}"
    print(
        row.format("lock", "clicks", "slowest, s", "no redirect", "missing", "unlogged", "after it", "lost", "verdict")
    )
    has_faults = False
    for name, lock in LOCKS.items():
        with tempfile.TemporaryDirectory() as folder, new_database("sqlite", Path(folder)) as url:
            found = run(url, Path(folder), lock, seconds=options.seconds)
        has_faults = has_faults or bool(found.faults())
        slowest, verdict = f"{found.slowest:.2f}", "bad" if found.faults() else "good"
        counts = (found.unanswered, found.missing, found.unlogged, found.after, found.lost)
        print(row.format(name, found.answered, slowest, *counts, verdict), flush=True)
    return 1 if has_faults else 0


if __name__ == "__main__":
    sys.exit(main())
