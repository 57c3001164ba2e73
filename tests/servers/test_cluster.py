"""On a Galera cluster nothing is lost, doubled or miscounted; ``python -m tests.cluster`` shows it for longer."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import time_machine
from sqlalchemy import event

from flask_referrals import Referral, ReferralResponse
from tests.cluster import galera, haproxy
from tests.cluster.galera import Cluster
from tests.cluster.run import run
from tests.cluster.site import new_host
from tests.databases import unavailable
from tests.host import Host, get_one, in_parallel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes."""
    reason = galera.missing() or haproxy.missing()
    if reason is not None:
        unavailable(reason)
    with galera.new_cluster() as cluster:
        yield cluster


@pytest.fixture
def hosts(cluster: Cluster) -> Iterator[list[Host]]:
    """The site, once for each node, with empty tables."""
    hosts = [new_host(node.url) for node in cluster.nodes]
    with hosts[0].app.app_context():
        hosts[0].db.drop_all()
        hosts[0].db.create_all()
    yield hosts
    for host in hosts:
        with host.app.app_context():
            host.db.engine.dispose()


def test_node_may_die_under_visitors_and_come_back(cluster: Cluster, tmp_path: Path) -> None:
    outcome = run(cluster, tmp_path, clicks=300)
    assert outcome.faults == []
    assert min(outcome.commits.values()) > 0


def test_clicks_on_different_nodes_are_no_conflict(hosts: list[Host]) -> None:
    with hosts[0].app.app_context():
        link = Referral.create("/").id
    row = {"referral_id": link, "action": "RESPONDED", "is_touch": True, "created_at": datetime.now(timezone.utc)}

    def click(host: Host) -> None:
        with host.app.app_context():
            for _ in range(50):
                # Without us, who would try again.
                with host.db.engine.begin() as connection:
                    connection.execute(sa.insert(host.db.metadata.tables["referral_response"]), row)

    in_parallel([partial(click, host) for host in hosts * 2])
    with hosts[0].app.app_context():
        assert len(hosts[0].responses()) == 300


def test_action_on_another_node_than_the_click_is_credited(hosts: list[Host]) -> None:
    with hosts[0].app.app_context():
        code = Referral.create("/").code
    for number in range(50):
        here, there = hosts[number % 3], hosts[(number + 1) % 3]
        name, _, value = here.client().get(f"/referrals/{code}").headers["Set-Cookie"].partition(";")[0].partition("=")
        visitor = there.client()
        visitor.set_cookie(name, value)
        assert visitor.post("/act/PAID").text == code


@pytest.mark.parametrize("is_first", [True, False])
def test_roll_up_and_correction_on_different_nodes_count_each_response_once(hosts: list[Host], is_first: bool) -> None:
    here, there, _ = hosts
    with here.app.app_context():
        link = Referral.create("/").id
        if not is_first:
            add_response(here, link, days=9)
            with time_machine.travel(datetime.now(timezone.utc) - timedelta(days=5)):
                roll_up(here)
        key = add_response(here, link, days=2)
        engine = here.db.engine
    corrections = iter([1])

    def correct(conn: sa.Connection, cursor: Any, statement: str, *args: Any) -> None:
        """Void what was just counted."""
        if statement.startswith("UPDATE referral_total") and next(corrections, None):
            with there.app.app_context():
                get_one(there.db, ReferralResponse, key).void("a test")

    event.listen(engine, "before_cursor_execute", correct)
    roll_up(here)
    event.remove(engine, "before_cursor_execute", correct)
    assert next(corrections, None) is None
    with there.app.app_context():
        assert get_one(there.db, Referral, link).response_count == (0 if is_first else 1)


def add_response(host: Host, link: int, *, days: int) -> int:
    """Store a click of some days ago, and return its key."""
    response = host.referrals.ReferralResponse(
        referral_id=link, action="RESPONDED", created_at=datetime.now(timezone.utc) - timedelta(days=days)
    )
    key: int = host.add(response).id
    return key


def roll_up(host: Host) -> None:
    result = host.app.test_cli_runner().invoke(args=["referrals", "rollup"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
