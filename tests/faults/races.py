"""Many at once: identical links become one row, and each row of a visitor goes to one user, with one signal.

::

    python -m tests.faults.races --rounds 200 --workers 64 --database sqlite

Links are made by threads, each with an app context of its own; half of them have read something before, so that the
transaction is the host's, for the other half it is ours. The rows are claimed by users who log in at the same moment
with one and the same visitor's key.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from flask_referrals import Referral, ReferralResponse, user_linked_to_response
from tests.databases import NAMES, new_database
from tests.host import Host, in_parallel, make_host


@dataclass
class Outcome:
    """What came of a race.

    :param wrong: the rounds that did not end as they must, each with what was found.
    :param errors: what reached the caller or the log, of all rounds.
    """

    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def engine_options(url: str, threads: int) -> dict[str, Any]:
    """Return the ``SQLALCHEMY_ENGINE_OPTIONS`` of a site on which many threads write at once.

    :param url: the database's.
    :param threads: how many; each gets a connection, so that it is the database that they meet in.
    """
    options: dict[str, Any] = {"pool_size": threads + 1, "max_overflow": 0}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}  # one writes at a time, the others wait for their turn
    return options


def keep_a_write_ahead_log(host: Host) -> None:
    """Let SQLite read while it writes, as sites with several workers set it up; it stays so in the file."""
    if host.db.engine.dialect.name == "sqlite":
        with host.db.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")


def race_creates(host: Host, *, workers: int, rounds: int) -> Outcome:
    """Make the same link from many threads at once: it is one row, one of them made it, and all get it.

    :param host: a site with its tables.
    :param workers: how many threads make the link.
    :param rounds: how often; each time it is another link.
    """
    outcome = Outcome()
    with host.app.app_context():
        keep_a_write_ahead_log(host)
        owner_id = host.user("owner").id
        product_id = host.add(host.Product(name="tea")).id

    def create(label: str, codes: list[str], worker: int) -> None:
        try:
            with host.app.app_context():
                session = host.db.session
                owner, product = session.get(host.User, owner_id), session.get(host.Product, product_id)
                if worker % 2:
                    session.rollback()  # from here on the transaction is not the host's
                codes.append(Referral.create("/", owner, label, product).code)
        except Exception as error:
            outcome.errors.append(f"{label}: {error!r}")

    for number in range(rounds):
        label = f"round {number}"
        codes: list[str] = []
        in_parallel([partial(create, label, codes, worker) for worker in range(workers)])
        with host.app.app_context():
            rows = host.db.session.scalars(sa.select(Referral.code).where(Referral.label == label)).all()
        if len(rows) != 1 or codes != [rows[0]] * workers:
            outcome.wrong.append(f"{label}: {len(rows)} rows, {len(codes)} answers, {len(set(codes))} codes")
    return outcome


def race_claims(host: Host, *, users: int, rows: int, rounds: int) -> Outcome:
    """Log users in at the same moment with one visitor's key: what they are told they won is what there is to win.

    :param host: a site with its tables.
    :param users: how many.
    :param rows: how many links the visitor has followed.
    :param rounds: how often; each time it is another visitor.
    """
    outcome = Outcome()
    announced: list[tuple[int, Any]] = []
    names = [f"user{number}" for number in range(users)]
    with host.app.app_context():
        keep_a_write_ahead_log(host)
        for name in names:
            host.user(name)
        codes = [Referral.create("/", label=f"link {number}").code for number in range(rows)]

    def note(app: object, response: ReferralResponse) -> None:
        announced.append((response.id, response.user_id))

    def log_in(name: str, cookie: str) -> None:
        browser = host.client()
        browser.set_cookie("session", cookie)
        try:
            answer = browser.post("/login", data={"name": name})
            if answer.status_code != 302:
                outcome.errors.append(f"{name}: {answer.status}")
        except Exception as error:
            outcome.errors.append(f"{name}: {error!r}")

    with user_linked_to_response.connected_to(note, host.app), logged(host, outcome.errors):
        for number in range(rounds):
            visitor = host.client()
            for code in codes:
                visitor.get(f"/referrals/{code}")
            cookie = visitor.get_cookie("session")
            assert cookie is not None
            with host.app.app_context():
                last = sa.select(ReferralResponse.session_key).order_by(ReferralResponse.id.desc()).limit(1)
                key = host.db.session.scalar(last)
            announced.clear()
            in_parallel([partial(log_in, name, cookie.value) for name in names])
            with host.app.app_context():
                left = sa.select(ReferralResponse).where(ReferralResponse.session_key == key)
                owners = {response.id: response.user_id for response in host.db.session.scalars(left)}
            if None in owners.values() or len(owners) != rows or sorted(announced) != sorted(owners.items()):
                outcome.wrong.append(f"round {number}: {len(announced)} claims of {len(owners)} rows")
    return outcome


@contextmanager
def logged(host: Host, lines: list[str]) -> Iterator[None]:
    """Collect what a site logs."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}")

    collector = Collector()
    host.app.logger.addHandler(collector)
    try:
        yield
    finally:
        host.app.logger.removeHandler(collector)


def main() -> int:
    """Run both races on one database, and print what came of them."""
    parser = argparse.ArgumentParser(description="Race for links and for rows.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=64, help="threads that make the same link")
    parser.add_argument("--users", type=int, default=4, help="users who claim the same rows")
    parser.add_argument("--rows", type=int, default=30, help="rows that they claim")
    parser.add_argument("--database", choices=NAMES, default="sqlite")
    options = parser.parse_args()
    outcomes: dict[str, tuple[Outcome, float]] = {}
    with tempfile.TemporaryDirectory() as folder, new_database(options.database, Path(folder)) as url:
        threads = max(options.workers, options.users)
        host = make_host(url, SQLALCHEMY_ENGINE_OPTIONS=engine_options(url, threads))
        with host.app.app_context():
            host.db.create_all()
        races = {
            "creates": partial(race_creates, host, workers=options.workers, rounds=options.rounds),
            "claims": partial(race_claims, host, users=options.users, rows=options.rows, rounds=options.rounds),
        }
        for name, race in races.items():
            started = time.perf_counter()
            outcomes[name] = race(), time.perf_counter() - started
        with host.app.app_context():
            host.db.engine.dispose()
    print(f"{'Database':<12}{'Race':<10}{'Threads':>8}{'Rounds':>8}{'Wrong':>7}{'Errors':>8}{'Seconds':>9}")
    for name, (outcome, seconds) in outcomes.items():
        count = options.workers if name == "creates" else options.users
        found = f"{options.rounds:>8}{len(outcome.wrong):>7}{len(outcome.errors):>8}{seconds:>9.1f}"
        print(f"{options.database:<12}{name:<10}{count:>8}{found}")
        for line in [*outcome.wrong, *outcome.errors][:10]:
            print(f"  {line[:300]}")
    return 1 if any(outcome.wrong or outcome.errors for outcome, _ in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
