"""Clicks survive the death of a process, an outage of the database, and a lock that somebody holds.

The programs in ``tests/faults`` do the same for longer.
"""

from functools import partial
from pathlib import Path

import pytest

from tests.databases import NAMES, new_database, unavailable
from tests.faults import kill, lock, outage
from tests.host import in_parallel

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES)
def test_every_answered_click_survives_the_death_of_the_processes(name: str, tmp_path: Path) -> None:
    with new_database(name, tmp_path) as url:
        outcome = kill.run(url, tmp_path, kills=2, clicks=300)
    assert outcome.faults == []


def test_database_may_go_down_and_come_back(tmp_path: Path) -> None:
    programs = outage.find_programs()
    if programs is None:
        unavailable("No programs of a PostgreSQL server: initdb was found nowhere.")
        return
    with outage.new_server(programs) as server:
        outcome = outage.run(server, tmp_path, seconds=1)
    assert outcome.faults == []


def test_click_waits_no_longer_than_the_lock_timeout(tmp_path: Path) -> None:
    faults = {}

    def run(name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        outcome = lock.run(f"sqlite:///{folder / 'host.db'}", folder, lock.LOCKS[name], seconds=5)
        faults[name] = outcome.faults(lock.BOUND + 1)  # for all four at the same time, and what else the machine does

    in_parallel([partial(run, name) for name in lock.LOCKS])
    assert faults == {name: [] for name in lock.LOCKS}
