"""Reports are read on a hot standby that follows a PostgreSQL server, with the settings of docs/scaling.rst."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_referrals.db import totals
from flask_referrals.reports import counted_responses
from flask_referrals.state import current_state
from tests.databases import unavailable
from tests.faults import outage
from tests.host import make_host
from tests.pages import snippet
from tests.site.test_replica import REPORTS, fill, find_olga, sent_to

pytestmark = pytest.mark.slow

SETTINGS = snippet("scaling.rst", "python", "REFERRALS_REPORT_BIND")


class Pair:
    """A primary and its hot standby, and a site on both."""

    def __init__(self, primary: outage.PostgreSQL, standby: outage.PostgreSQL) -> None:
        self.standby = standby
        site = Flask("shop")
        exec(SETTINGS, {"app": site})
        settings = site.config.get_namespace("REFERRALS_", lowercase=False, trim_namespace=False)
        (bind,) = site.config["SQLALCHEMY_BINDS"]
        self.host = make_host(
            primary.url,
            SQLALCHEMY_BINDS={bind: standby.url},
            SQLALCHEMY_ENGINE_OPTIONS={"pool_pre_ping": True},
            **settings,
        )
        with self.host.app.app_context():
            self.primary_engine, self.replica_engine = self.host.db.engines[None], self.host.db.engines["replica"]
            self.host.db.create_all()
        fill(self.host)
        self.wait()

    def on_replica(self, sql: str) -> Any:
        """Return what the standby says to a statement."""
        with self.replica_engine.connect() as connection:
            return connection.exec_driver_sql(sql).scalar()

    def wait(self) -> None:
        """Wait until the standby has all there is."""
        with self.primary_engine.connect() as connection:
            written = connection.exec_driver_sql("SELECT pg_current_wal_insert_lsn()").scalar()
        for _ in range(300):
            if self.on_replica(f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"):
                return
            self.on_replica("SELECT pg_sleep(0.1)")
        pytest.fail("The standby does not catch up.")

    def clicks(self) -> int:
        """Return how often Olga's link was followed, as the report says."""
        with self.host.app.app_context():
            return int(find_olga(self.host).referral_codes[0].response_count)

    def click(self) -> int:
        """Follow Olga's link, and return the status."""
        with self.host.app.app_context():
            code = find_olga(self.host).referral_codes[0].code
        return int(self.host.client().get(f"/referrals/{code}").status_code)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[outage.PostgreSQL, outage.PostgreSQL]]:
    """Two separate servers, of which the second follows the first."""
    programs = outage.find_programs()
    if programs is None:
        unavailable("No programs of a PostgreSQL server: initdb was found nowhere.")
        return
    with outage.new_server(programs) as primary, outage.new_server(programs, primary) as standby:
        yield primary, standby


@pytest.fixture
def pair(servers: tuple[outage.PostgreSQL, outage.PostgreSQL]) -> Iterator[Pair]:
    """The site on both; its tables are dropped after the test."""
    pair = Pair(*servers)
    yield pair
    with pair.host.app.app_context():
        pair.host.db.session.remove()
        pair.host.db.drop_all()
    pair.primary_engine.dispose()
    pair.replica_engine.dispose()


def test_reports_reach_the_standby_and_nothing_else_does(pair: Pair) -> None:
    assert pair.on_replica("SELECT pg_is_in_recovery()") is True
    with pytest.raises(sa.exc.DBAPIError, match="read-only transaction"):
        pair.on_replica("DELETE FROM referral_response")
    with sent_to(pair.host, "replica") as replica:
        assert pair.click() == 302
        assert replica == []
        pair.wait()
        with pair.host.app.app_context():
            olga = find_olga(pair.host)
            for report in REPORTS.values():
                before = len(replica)
                report(pair.host, olga)
                assert len(replica) > before
    assert pair.clicks() == 2


def test_report_is_behind_until_the_standby_has_caught_up(pair: Pair) -> None:
    assert pair.clicks() == 1
    pair.on_replica("SELECT pg_wal_replay_pause()")
    try:
        assert pair.click() == 302
        assert pair.clicks() == 1
    finally:
        pair.on_replica("SELECT pg_wal_replay_resume()")
    pair.wait()
    assert pair.clicks() == 2
    with pair.host.app.app_context():
        host, old = pair.host, "created_at - interval '2 days'"
        host.db.session.execute(sa.text(f"UPDATE referral_response SET created_at = {old}"))
        host.db.session.commit()
        assert totals.roll_up(current_state().database) > 0
    pair.wait()
    assert pair.clicks() == 2


def test_standby_that_is_down_fails_reports_and_nothing_else(pair: Pair) -> None:
    pair.standby.stop()
    try:
        with pair.host.app.app_context():
            olga = find_olga(pair.host)
            with pytest.raises(sa.exc.OperationalError):
                counted_responses(current_state(), user=olga)
            # The host's own transaction is none the worse for it.
            olga.name = "olga of old"
            pair.host.db.session.commit()
            olga.name = "olga"
            pair.host.db.session.commit()
        client = pair.host.client()
        assert pair.click() == 302
        assert client.post("/signup", data={"name": "max"}).status_code == 302
        assert client.post("/act/BOUGHT").status_code == 200
    finally:
        pair.standby.start()
    pair.wait()
    assert pair.clicks() == 2
