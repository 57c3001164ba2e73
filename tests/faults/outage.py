"""Stops a site's PostgreSQL server in mid-run, and starts it again; the site is left alone.

The server is a new one, in a temporary folder and on a free port, with the programs that are on this machine::

    python -m tests.faults.outage --seconds 10

It goes down twice more, each time while nobody asks for anything: first clicks, then requests for a new link come upon
connections that died while they lay in the pool. Ends with 1 when a click is answered with anything but 302 or 503,
when one is lost that came while the server was up, or when a request for a link fails without 503 and ``Retry-After``.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.site import WORKERS, Site
from tests.servers import finish, free_port, new_folder
from tests.web import Answer, Clients

#: For how long requests come in before and after, in seconds.
_MARGIN = 1.0

#: How many requests come after the server was down unnoticed: each worker has a dead connection.
_BURST = 10 * WORKERS


class PostgreSQL:
    """A separate server, which is not running yet.

    :param programs: the folder of ``initdb`` and ``pg_ctl``.
    :param folder: an empty folder that the account may write to.
    :param account: who runs it; ``None`` for the one that runs us.
    :param primary: a running server that this one is to follow, as a hot standby.
    :param fsync: whether it waits for the disk; it need not where the server dies and the machine does not.
    """

    def __init__(
        self,
        programs: Path,
        folder: Path,
        account: str | None,
        primary: "PostgreSQL | None" = None,
        *,
        fsync: bool = False,
    ) -> None:
        self._fsync = "on" if fsync else "off"
        self._programs = programs
        self._folder = folder
        self._account = account
        self._port = free_port()
        if primary is None:
            self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync")
        else:
            source = f"--dbname=host=127.0.0.1 port={primary._port} user=postgres"
            self._run("pg_basebackup", source, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")

    @property
    def url(self) -> str:
        """Where it is, once it runs."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/postgres"

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and not stopped."""
        return (self._folder / "postmaster.pid").exists()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync={self._fsync}"
        self._run("pg_ctl", "start", "--wait", "--log", str(self._folder / "server.log"), "--options", options)

    def stop(self) -> None:
        """Cut it off, as a crash does: it closes no connection, and recovers at the next start."""
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments, f"--pgdata={self._folder}"]
        finish(command, self._folder.parent / f"{program}.log", account=self._account)


def find_programs() -> Path | None:
    """Return the folder of PostgreSQL's server programs, which are seldom on the path; ``None``: there is none."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *Path("/usr").glob("pgsql-*/bin/initdb")]
    newest = max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", str(path))], default=None)
    return newest.parent if newest is not None else None


@contextmanager
def new_server(programs: Path, primary: PostgreSQL | None = None, *, fsync: bool = False) -> Iterator[PostgreSQL]:
    """Yield a running server; it is gone at the end.

    :param programs: what :func:`find_programs` found.
    :param primary: a running server that this one is to follow.
    :param fsync: whether it waits for the disk.
    """
    with new_folder("postgres") as (folder, account):
        server = PostgreSQL(programs, folder, account, primary, fsync=fsync)
        try:
            server.start()
            yield server
        finally:
            if server.is_running:
                server.stop()


#: The parts of a run. *During* is from the order to stop until the server takes connections again; *unnoticed* is what
#: comes after an outage that no request fell into.
PARTS = ("before", "during", "after", "unnoticed")


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    :param clicks: for each part, how many clicks had which status; ``None``: the connection broke.
    :param links: the same of requests for a new link.
    :param lost: for each part, how many clicks are not in the table.
    :param missing: those of them, in any part, after which the site gave a key.
    :param doubled: clicks that are in the table more than once.
    :param unlogged: unrecorded clicks, less those in the log; below zero: the log has too many.
    :param leaks: answers that show what went wrong inside.
    :param impolite: answers of 503 without ``Retry-After``.
    :param slowest: the longest that a click took during the outage, in seconds.
    :param recovery: from the order to start until a click was recorded, in seconds.
    """

    clicks: dict[str, Counter[int | None]]
    links: dict[str, Counter[int | None]]
    lost: dict[str, int]
    missing: int
    doubled: int
    unlogged: int
    leaks: int
    impolite: int
    slowest: float
    recovery: float

    @property
    def faults(self) -> list[str]:
        """What should not have been, in words."""
        found = []
        for part in PARTS:
            click_statuses, link_statuses = ({302, 503}, {200, 503}) if part == "during" else ({302}, {200})
            if not self.clicks[part] or not self.clicks[part].keys() <= click_statuses:
                found.append(f"clicks {part}: {dict(self.clicks[part])}")
            if not self.links[part] or not self.links[part].keys() <= link_statuses:
                found.append(f"links {part}: {dict(self.links[part])}")
            if part != "during" and self.lost[part]:
                found.append(f"lost {part}: {self.lost[part]}")
        for name in ("missing", "doubled", "unlogged", "leaks", "impolite"):
            if getattr(self, name):
                found.append(f"{name}: {getattr(self, name)}")
        return found


def run(server: PostgreSQL, folder: Path, *, seconds: float) -> Outcome:
    """Stop the server under a site, and start it again.

    :param server: a running server with nothing in it.
    :param folder: for the site's log.
    :param seconds: for how long it is down.
    """
    with Site(server.url, folder) as site:
        with Clients(site.click, 2 * WORKERS, pause=0.02) as visitors, Clients(site.make_link, 1, pause=0.1) as owner:
            time.sleep(_MARGIN)
            stopped = time.monotonic()
            server.stop()
            time.sleep(seconds)
            started = time.monotonic()
            server.start()
            ready = time.monotonic()
            time.sleep(_MARGIN)
        late_clicks = _after_unnoticed_outage(server, site.click)
        late_links = _after_unnoticed_outage(server, site.make_link)
        recorded = site.recorded()

    def parts(answers: list[Answer], late: list[Answer]) -> dict[str, list[Answer]]:
        before = [answer for answer in answers if answer.ended < stopped]
        after = [answer for answer in answers if answer.sent > ready]
        during = [answer for answer in answers if answer.ended >= stopped and answer.sent <= ready]
        return dict(zip(PARTS, (before, during, after, late), strict=True))

    def statuses(answers: dict[str, list[Answer]]) -> dict[str, Counter[int | None]]:
        return {part: Counter(answer.status for answer in answers[part]) for part in PARTS}

    clicks, links = parts(visitors.answers, late_clicks), parts(owner.answers, late_links)
    all_clicks = [*visitors.answers, *late_clicks]
    lost = [answer for answer in all_clicks if answer.mark not in recorded]
    everything = [*all_clicks, *owner.answers, *late_links]
    return Outcome(
        clicks=statuses(clicks),
        links=statuses(links),
        lost={part: sum(answer.mark not in recorded for answer in clicks[part]) for part in PARTS},
        missing=sum(answer.has_cookie for answer in lost),
        doubled=sum(times > 1 for times in recorded.values()),
        unlogged=sum(answer.status == 302 for answer in lost) - site.lost(),
        leaks=sum(bool(re.search("Traceback|psycopg|sqlalchemy", answer.body)) for answer in everything),
        impolite=sum(answer.status == 503 and not answer.retry_after for answer in everything),
        slowest=max(answer.ended - answer.sent for answer in clicks["during"]),
        recovery=min(
            (answer.ended - started for answer in all_clicks if answer.ended > started and answer.mark in recorded),
            default=float("inf"),
        ),
    )


def _after_unnoticed_outage(server: PostgreSQL, send: Callable[[], Answer]) -> list[Answer]:
    server.stop()
    server.start()
    with Clients(send, WORKERS) as clients:
        while len(clients.answers) < _BURST:
            time.sleep(0.01)
    return clients.answers


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    programs = find_programs()
    if programs is None:
        parser.error("PostgreSQL's initdb was found nowhere.")
    with new_server(programs) as server, tempfile.TemporaryDirectory() as folder:
        outcome = run(server, Path(folder), seconds=options.seconds)
    row = "{:10}" + 4 * "{:>8}" + 3 * "{:>12}"
    print(row.format("", "clicks", "302", "503", "lost", "links", "200", "503"))
    for part in PARTS:
        clicks, links = outcome.clicks[part], outcome.links[part]
        cells = (clicks.total(), clicks[302], clicks[503], outcome.lost[part], links.total(), links[200], links[503])
        print(row.format(part, *cells))
    print(
        f"{outcome.missing} missing, {outcome.doubled} doubled, {outcome.unlogged} unlogged, {outcome.leaks} leaks, "
        f"{outcome.impolite} x 503 without Retry-After; the slowest click in the outage took {outcome.slowest:.2f} s; "
        f"the first was recorded {outcome.recovery:.2f} s after the order to start"
    )
    for fault in outcome.faults:
        print(f"FAULT: {fault}")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
