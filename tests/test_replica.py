"""Reports are read on a replica; what decides something is not."""

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event

from flask_referrals import Referral
from flask_referrals import ReferralResponse
from flask_referrals import totals
from flask_referrals.exceptions import ConfigurationError
from flask_referrals.reporting import filtered_responses
from tests.conftest import MakeHost
from tests.databases import unavailable
from tests.faults import outage
from tests.host import Host
from tests.host import follow
from tests.host import make_host
from tests.pages import snippet

SETTINGS = snippet("scaling.rst", "python", "REFERRALS_REPORT_BIND")

Report = Callable[[Host, Any], object]


def command(host: Host, *arguments: str) -> str:
    result = host.app.test_cli_runner().invoke(args=["referrals", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def page(host: Host, user: Any) -> str:
    template = (
        "{% for each in referral_responses(user, limit=5) %}{{ each.referral.code }}{{ each.user.name }}{% endfor %}"
    )
    return host.app.jinja_env.from_string(template).render(user=user)


REPORTS: dict[str, Report] = {
    "count": lambda host, olga: olga.referral_codes[0].response_count,
    "responses of a link": lambda host, olga: olga.referral_codes[0].filtered_responses(),
    "responses of a user": lambda host, olga: filtered_responses(user=olga),
    "a page": page,
    "referred": lambda host, olga: Referral.referred_by(olga),
    "list": lambda host, olga: command(host, "list"),
    "show": lambda host, olga: command(host, "show", olga.referral_codes[0].code),
    "export": lambda host, olga: command(host, "export", "responses"),
}


@contextmanager
def sent_to(host: Host, bind: str | None) -> Iterator[list[str]]:
    """Collect what is sent to one of the host's engines."""
    sent: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
        sent.append(statement)

    with host.app.app_context():
        engine = host.db.engines[bind]
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def fill(host: Host) -> None:
    """Let Olga bring Mia, who looks, signs up and buys."""
    with host.app.app_context():
        code = Referral.create("/", user=host.user("olga")).code
    client = host.client()
    client.get(f"/referrals/{code}")
    client.post("/signup", data={"name": "mia"})
    client.post("/act/BOUGHT")


def find_olga(host: Host) -> Any:
    """Return Olga with her link, as the host has read them."""
    olga = host.db.session.scalars(sa.select(host.User).where(host.User.name == "olga")).one()
    assert len(olga.referral_codes) == 1
    return olga


class TestSecondBind:
    """A second bind to the same database: what is sent where."""

    @pytest.fixture
    def host(self, new_host: MakeHost, database_url: str) -> Host:
        """The site, with somebody who has come by a link."""
        host = new_host(SQLALCHEMY_BINDS={"replica": database_url}, REFERRALS_REPORT_BIND="replica")
        fill(host)
        return host

    @pytest.mark.parametrize("report", [name for name in REPORTS if name != "show"])
    def test_report_is_read_on_the_replica_alone(self, host: Host, report: str) -> None:
        with host.app.app_context():
            olga = find_olga(host)
            with sent_to(host, None) as primary, sent_to(host, "replica") as replica:
                REPORTS[report](host, olga)
        assert replica
        # A user's row belongs to the host, as it was before.
        assert [statement for statement in primary if "referral" in statement] == []

    def test_what_decides_is_read_where_it_is_written(self, host: Host) -> None:
        with sent_to(host, "replica") as replica:
            client = host.client()
            follow(host, client)
            client.post("/signup", data={"name": "max"})
            client.post("/act/BOUGHT")
            client.post("/login", data={"name": "olga"})
            client.post("/referrals/", json={"redirect_to": "/"})
            with host.app.app_context():
                olga = find_olga(host)
                Referral.referrer_of(olga)
                Referral.explain(olga)
                totals.roll_up()
                host.referrals.forget_user(olga)
        assert replica == []

    @pytest.mark.parametrize("report", ["count", "a page", "export"])
    def test_nothing_is_held_afterwards(self, host: Host, report: str) -> None:
        with host.app.app_context():
            olga = find_olga(host)
            host.db.session.commit()
            olga.referral_codes  # noqa: B018 (read again)
            REPORTS[report](host, olga)
            assert host.db.engines["replica"].pool.checkedout() == 0  # type: ignore[attr-defined]

    def test_objects_are_the_hosts(self, host: Host) -> None:
        with host.app.app_context():
            olga = find_olga(host)
            link = olga.referral_codes[0]
            responses = filtered_responses(user=olga, limit=5)
            assert all(response in host.db.session for response in responses)
            assert {id(response.referral) for response in responses} == {id(link)}
            with sent_to(host, "replica") as replica:
                assert responses[0].user.name == "mia"  # loaded when it is asked for
                responses[0].void("refund")
            assert replica == []
            assert [response.action for response in link.filtered_responses()] == ["SIGNED_UP", "RESPONDED"]

    def test_what_the_host_has_changed_stays_changed(self, host: Host) -> None:
        with host.app.app_context():
            olga = find_olga(host)
            with host.db.session.no_autoflush:
                response = host.db.session.scalars(sa.select(ReferralResponse).limit(1)).one()
                response.params = {"note": "the host's"}
                listed = filtered_responses(user=olga)
            assert response in listed
            assert response.params == {"note": "the host's"}
            host.db.session.commit()
            assert response.params == {"note": "the host's"}

    def test_bind_must_be_there(self, sqlite_url: str) -> None:
        with pytest.raises(ConfigurationError, match=r"REFERRALS_REPORT_BIND is 'replica', but .*BINDS is empty"):
            make_host(sqlite_url, REFERRALS_REPORT_BIND="replica")
        with pytest.raises(ConfigurationError, match=r"is \['a'\], but SQLALCHEMY_BINDS has only 'a', 'b'\."):
            binds = {"a": sqlite_url, "b": sqlite_url}
            make_host(sqlite_url, REFERRALS_REPORT_BIND=["a"], SQLALCHEMY_BINDS=binds)


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
    """Two servers of our own, of which the second follows the first."""
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
        assert totals.roll_up() == 2
    pair.wait()
    assert pair.clicks() == 2


def test_standby_that_is_down_fails_reports_and_nothing_else(pair: Pair) -> None:
    pair.standby.stop()
    try:
        with pair.host.app.app_context():
            olga = find_olga(pair.host)
            with pytest.raises(sa.exc.OperationalError):
                filtered_responses(user=olga)
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
