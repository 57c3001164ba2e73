"""Clicks survive the death of a process, an outage of the database, and a lock that somebody holds.

The programs in ``tests/faults`` do the same for longer.
"""

from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.conftest import MakeHost
from tests.databases import NAMES
from tests.databases import new_database
from tests.databases import unavailable
from tests.faults import kill
from tests.faults import lock
from tests.faults import outage
from tests.host import follow
from tests.host import in_parallel


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


def test_everything_goes_over_the_connection_on_which_the_host_has_written(new_host: MakeHost) -> None:
    # There is no second one; on SQLite it would wait for the first until the lock timeout.
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 1})
    client = host.client()

    @host.app.before_request
    def write_and_do_not_commit() -> None:
        host.db.session.add(host.Product(name="written first"))
        host.db.session.flush()

    follow(host, client)
    client.post("/signup", data={"name": "mia"})
    client.post("/act/PURCHASED")
    made = client.post("/referrals/", json={"redirect_to": "/"})

    assert made.status_code == 200
    with host.app.app_context():
        responses = host.responses()
        assert [response.action for response in responses] == ["RESPONDED", "SIGNED_UP", "PURCHASED"]
        assert len({response.user_id for response in responses}) == 1
        assert host.db.session.scalar(sa.select(sa.func.count(host.Product.id))) == 4
