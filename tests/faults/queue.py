"""Clicks through a broker, while the database is down, workers die, and the broker itself does.

The database is a separate server, in a temporary folder and on a free port, and so is RabbitMQ; Redis is the one of
the tests::

    python -m tests.faults.queue --broker rabbitmq --seconds 60

In turn, under clicks that never stop: the database goes down for some seconds, while a process of the worker's is
killed; then all of the worker is killed, and another started; RabbitMQ is killed, and started again. Ends with 1 when a
click is answered with anything but 302, or is not in the table exactly once when the queue is empty.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from tests.faults.outage import PostgreSQL, find_programs, new_server
from tests.faults.rabbitmq import RabbitMQ, find_program, new_node
from tests.faults.site import WORKERS, Site
from tests.faults.workers import Worker, new_queue
from tests.login_hosts import REDIS_URL
from tests.web import Clients

BROKERS = ("redis", "rabbitmq")

#: For how long clicks come in before and after each fault, in seconds.
_MARGIN = 2.0
#: How long the queue may take to become empty, in seconds: a batch that failed waits.
_PATIENCE = 60


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    :param clicks: how many clicks had which status; ``None``: the connection broke.
    :param while_down: those of them that were answered while the database was down.
    :param at_once: clicks that were stored by the site itself, for the broker was down.
    :param lost: answered clicks that are not in the table.
    :param doubled: clicks that are in the table more than once.
    :param slowest: the longest that a click took, in seconds.
    :param recovery: from the time at which the database took connections again until all of its time's clicks were in.
    """

    clicks: Counter[int | None]
    while_down: int
    at_once: int
    lost: int
    doubled: int
    slowest: float
    recovery: float

    @property
    def faults(self) -> list[str]:
        """What should not have been, in words."""
        found = [f"clicks: {dict(self.clicks)}"] if self.clicks.keys() != {302} else []
        found += [f"{name}: {getattr(self, name)}" for name in ("lost", "doubled") if getattr(self, name)]
        return found if self.while_down else [*found, "no click while the database was down"]


def run(server: PostgreSQL, broker: str, node: RabbitMQ | None, folder: Path, *, seconds: float) -> Outcome:
    """Do all of it.

    :param server: a running server with nothing in it.
    :param broker: the broker's URL.
    :param node: the broker, if it may be killed.
    :param folder: for the logs.
    :param seconds: for how long the database is down.
    """
    with new_queue(broker) as environment, Site(server.url, folder, environment) as site:
        with Worker(site.environment, folder) as worker:
            worker.wait_until_ready()
            with Clients(site.click, 2 * WORKERS, pause=0.02) as visitors:
                time.sleep(_MARGIN)
                stopped = time.monotonic()
                server.stop()
                time.sleep(seconds / 2)
                worker.kill_child()
                time.sleep(seconds / 2)
                server.start()
                started = time.monotonic()
                answered = {answer.mark for answer in visitors.answers if answer.status == 302}
                _wait(site, answered)
                recovery = time.monotonic() - started
                worker.kill()
                time.sleep(_MARGIN)
                worker.start()
                worker.wait_until_ready(2)
                if node is not None:
                    node.kill()
                    time.sleep(_MARGIN)
                    node.start()
                time.sleep(_MARGIN)
            answered = {answer.mark for answer in visitors.answers if answer.status == 302}
            _wait(site, answered)
        recorded = site.recorded()
        return Outcome(
            clicks=Counter(answer.status for answer in visitors.answers),
            while_down=sum(answer.sent > stopped and answer.ended < started for answer in visitors.answers),
            at_once=site.logged("could not be queued"),
            lost=len(answered - recorded.keys()),
            doubled=sum(times > 1 for times in recorded.values()),
            slowest=max(answer.ended - answer.sent for answer in visitors.answers),
            recovery=recovery,
        )


def _wait(site: Site, answered: set[str]) -> None:
    """Wait until clicks are in the table, or no more than a certain time."""
    give_up = time.monotonic() + _PATIENCE
    while time.monotonic() < give_up:
        try:
            if answered <= site.recorded().keys():
                return
        except sa.exc.OperationalError:  # it recovers
            pass
        time.sleep(0.2)


@contextmanager
def new_broker(name: str) -> Iterator[tuple[str, RabbitMQ | None]]:
    """Yield a broker's URL, and the broker itself if it is our own.

    :param name: one of ``BROKERS``.
    :raises RuntimeError: RabbitMQ is not installed.
    """
    if name == "redis":
        yield REDIS_URL, None
        return
    program = find_program()
    if program is None:
        raise RuntimeError("RabbitMQ's server was found nowhere.")
    with new_node(program) as node:
        yield node.url, node


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--broker", choices=BROKERS, default="redis")
    options = parser.parse_args()
    programs = find_programs()
    if programs is None:
        parser.error("PostgreSQL's initdb was found nowhere.")
    with (
        new_broker(options.broker) as (url, node),
        new_server(programs) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        outcome = run(server, url, node, Path(folder), seconds=options.seconds)
    print(
        f"{options.broker}: {outcome.clicks.total()} clicks, {outcome.clicks[302]} x 302, {outcome.while_down} of them "
        f"while the database was down for {options.seconds:g} s; {outcome.lost} lost, {outcome.doubled} doubled, "
        f"{outcome.at_once} stored at once while the broker was down; the slowest took {outcome.slowest:.2f} s; all "
        f"were there {outcome.recovery:.1f} s after the database was back"
    )
    for fault in outcome.faults:
        print(f"FAULT: {fault}")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
