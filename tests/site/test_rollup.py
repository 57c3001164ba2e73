"""Counts are exact, whatever is rolled up, and whatever changes afterwards."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from random import Random
from threading import Thread
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
import time_machine
from flask.testing import FlaskClient

from flask_referrals import Referral, ReferralResponse
from flask_referrals.db.totals import correct_totals, roll_up
from flask_referrals.db.transactions import open_transaction
from flask_referrals.privacy import purge
from flask_referrals.state import current_state
from flask_referrals.times import as_utc
from tests.conftest import MakeHost
from tests.host import Host, follow, get_one, in_parallel, statements

NOON = datetime(2026, 5, 20, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)


@pytest.fixture
def rollup(host: Host) -> Callable[[], str]:
    """Run the command; return its last line."""

    def run() -> str:
        result = host.app.test_cli_runner().invoke(args=["referrals", "rollup"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[-1]

    return run


@pytest.fixture
def code(host: Host) -> str:
    """The code of a link that was clicked on once on each of three days, and twice today."""
    with time_machine.travel(NOON - 3 * DAY, tick=False) as clock:
        with host.app.app_context():
            code = Referral.create("/").code
        for _ in range(3):
            host.client().get(f"/referrals/{code}")
            clock.shift(DAY)
        for _ in range(2):
            host.client().get(f"/referrals/{code}")
    return code


def count(host: Host, code: str) -> int:
    with host.app.app_context():
        return host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one().response_count


def stored(host: Host, *, is_site: bool = False) -> list[Any]:
    """The rows of the links, or those of the site."""
    with host.app.app_context():
        table = host.db.metadata.tables["referral_total"]
        rows = sa.select(table).where(table.c.id > 0, table.c.referral_id.is_(None) == is_site)
        return list(host.db.session.execute(rows.order_by(table.c.id)))


@time_machine.travel(NOON, tick=False)
def test_days_that_are_over_are_counted_once(host: Host, code: str, rollup: Callable[[], str]) -> None:
    assert count(host, code) == 5
    assert rollup() == "Days rolled up: 3."
    assert [row.count for row in stored(host)] == [1, 1, 1]
    assert count(host, code) == 5
    assert rollup() == "Days rolled up: 0."
    host.client().get(f"/referrals/{code}")
    assert count(host, code) == 6


@time_machine.travel(NOON, tick=False)
def test_day_is_over_an_hour_after_midnight(host: Host, code: str, rollup: Callable[[], str]) -> None:
    with time_machine.travel(NOON.replace(hour=0, minute=59), tick=False):
        assert rollup() == "Days rolled up: 2."
    with time_machine.travel(NOON.replace(hour=1), tick=False):
        assert rollup() == "Days rolled up: 1."


@time_machine.travel(NOON, tick=False)
def test_nothing_is_rolled_up_where_nothing_is(host: Host, rollup: Callable[[], str]) -> None:
    assert rollup() == "Days rolled up: 0."


@time_machine.travel(NOON, tick=False)
def test_busy_links_rows_of_old_days_are_not_read_again(host: Host, code: str, rollup: Callable[[], str]) -> None:
    rollup()
    with host.app.app_context():
        old = sa.delete(ReferralResponse).where(ReferralResponse.created_at < NOON - DAY / 2)
        host.db.session.execute(old)
        host.db.session.commit()
    assert count(host, code) == 5


@time_machine.travel(NOON, tick=False)
@pytest.mark.parametrize("oldest_first", [True, False])
def test_voided_response_leaves_the_count(host: Host, code: str, rollup: Callable[[], str], oldest_first: bool) -> None:
    rollup()
    with host.app.app_context():
        response = host.responses()[0 if oldest_first else -1]
        response.void("fraud")
        response.void("fraud")
    assert count(host, code) == 4


@time_machine.travel(NOON, tick=False)
@pytest.mark.parametrize("oldest_first", [True, False])
def test_voiding_an_old_object_corrects_the_count_once(
    host: Host, code: str, rollup: Callable[[], str], oldest_first: bool
) -> None:
    rollup()
    with host.app.app_context():
        response = host.responses()[0 if oldest_first else -1]
        host.db.session.expunge(response)
        get_one(host.db, ReferralResponse, response.id).void("fraud")
        assert response.ignored is None
        response.void("fraud, says somebody who read it before")
        assert response.ignored == "void"
    assert count(host, code) == 4


@time_machine.travel(NOON, tick=False)
def test_voiding_a_detached_object_corrects_the_count(host: Host, code: str, rollup: Callable[[], str]) -> None:
    rollup()
    with host.app.app_context():
        responses = host.responses()
        host.db.session.remove()
        for response in responses:
            response.void("fraud")
        assert {each.ignored for each in host.responses()} == {"void"}
    assert count(host, code) == 0


@time_machine.travel(NOON, tick=False)
def test_racing_voids_correct_the_count_once(host: Host, code: str, rollup: Callable[[], str]) -> None:
    rollup()
    with host.app.app_context():
        keys = [response.id for response in host.responses()]

    def void(key: int) -> None:
        with host.app.app_context():
            get_one(host.db, ReferralResponse, key).void("fraud")

    in_parallel([partial(void, key) for key in keys for _ in range(3)])
    assert count(host, code) == 0
    with host.app.app_context():
        assert len(host.responses()) == 2 * len(keys)


@time_machine.travel(NOON, tick=False)
def test_click_that_turns_out_to_be_the_owners_leaves_the_count(
    host: Host, client: FlaskClient, rollup: Callable[[], str]
) -> None:
    with host.app.app_context():
        code = Referral.create("/", user=host.user("mia")).code
    with time_machine.travel(NOON - 2 * DAY, tick=False):
        client.get(f"/referrals/{code}")
        host.client().get(f"/referrals/{code}")
    rollup()
    assert count(host, code) == 2
    client.post("/login", data={"name": "mia"})
    assert count(host, code) == 1


@time_machine.travel(NOON, tick=False)
def test_imported_responses_of_old_days_are_counted(host: Host, code: str, rollup: Callable[[], str]) -> None:
    rollup()
    with host.app.app_context():
        link = host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one()
        time = NOON - 2 * DAY
        host.db.session.add(ReferralResponse(referral=link, action="RESPONDED", created_at=time))
        transaction = open_transaction(current_state().database, commit=False)
        correct_totals(transaction, [(link.id, "RESPONDED", time), (link.id, "RESPONDED", NOON)], 1)
        host.db.session.commit()
    assert count(host, code) == 6


@time_machine.travel(NOON, tick=False)
@pytest.mark.parametrize("with_session", [True, False])
def test_deleted_link_takes_its_totals_along(
    host: Host, code: str, rollup: Callable[[], str], with_session: bool
) -> None:
    rollup()
    assert sums(host, is_site=True) == {key: (-number, -value) for key, (number, value) in sums(host).items()}
    with host.app.app_context():
        if with_session:
            host.db.session.delete(host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one())
        else:
            if host.db.engine.dialect.name == "sqlite":
                host.db.session.execute(sa.text("PRAGMA foreign_keys=ON"))
            host.db.session.execute(sa.delete(Referral).where(Referral.code == code))
        host.db.session.commit()
    assert stored(host) == []
    assert sums(host, is_site=True) == {}


@time_machine.travel(NOON, tick=False)
def test_link_may_be_deleted_while_its_days_are_rolled_up(host: Host, code: str) -> None:
    with host.app.app_context():
        kept = Referral.create("/kept").code
    record(host, kept, NOON - 2 * DAY, "RESPONDED")
    with time_machine.travel(NOON - 9 * DAY, tick=False):
        run_roll_up(host)  # places the watermark
    rolling_up = Thread(target=run_roll_up, args=(host,))
    with host.app.app_context():
        host.db.session.delete(host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one())
        host.db.session.flush()
        rolling_up.start()
        rolling_up.join(timeout=0.5)
        host.db.session.commit()
    rolling_up.join()
    assert sums(host) == {("2026-05-18", "RESPONDED", None): (1, 0)}
    assert sums(host, is_site=True) == {("2026-05-18", "RESPONDED", None): (-1, 0)}


@time_machine.travel(NOON, tick=False)
def test_actions_are_counted_apart_from_clicks(host: Host, client: FlaskClient, rollup: Callable[[], str]) -> None:
    with time_machine.travel(NOON - DAY, tick=False):
        code = follow(host, client)
        client.post("/act/BOUGHT")
        client.post("/act/SHARED")
    rollup()
    client.post("/act/BOUGHT")
    assert count(host, code) == 1
    result = host.app.test_cli_runner().invoke(args=["referrals", "list", "--json"], catch_exceptions=False)
    assert '"clicks": 1, "actions": 3' in result.stdout


@time_machine.travel(NOON, tick=False)
def test_two_that_roll_up_at_once_count_each_day_once(host: Host, code: str) -> None:
    def run() -> None:
        with host.app.app_context():
            roll_up(current_state().database)

    run()  # the watermark
    with time_machine.travel(NOON + 2 * DAY, tick=False):
        in_parallel([run] * 4)
        assert count(host, code) == 5
        assert sum(row.count for row in stored(host)) == 5


@time_machine.travel(NOON, tick=False)
def test_first_roll_up_waits_for_a_correction_under_way(host: Host, code: str) -> None:
    def run() -> None:
        with host.app.app_context():
            roll_up(current_state().database)

    rolling_up = Thread(target=run)
    with host.app.app_context():
        host.responses()[0].void("a test", commit=False)
        rolling_up.start()
        rolling_up.join(timeout=0.5)
        host.db.session.commit()
    rolling_up.join()
    assert count(host, code) == 4


@time_machine.travel(NOON, tick=False)
def test_purged_responses_of_days_that_are_rolled_up_stay_counted(
    host: Host, code: str, rollup: Callable[[], str]
) -> None:
    rollup()
    arguments = ["referrals", "purge", "--older-than", "2", "--yes"]
    host.app.test_cli_runner().invoke(args=arguments, catch_exceptions=False)
    with host.app.app_context():
        assert len(host.responses()) < 5
    assert count(host, code) == 5


def run_roll_up(host: Host, *, rebuild: bool = False) -> int:
    with host.app.app_context():
        return roll_up(current_state().database, rebuild=rebuild)


def sums(host: Host, zone: str = "UTC", *, is_site: bool = False) -> dict[tuple[str, str, str | None], tuple[int, Any]]:
    """The stored totals by local date, action and currency: of the links, or of the site."""
    numbers: Counter[Any] = Counter()
    values: Counter[Any] = Counter()
    for row in stored(host, is_site=is_site):
        key = str(as_utc(row.day).astimezone(ZoneInfo(zone)).date()), row.action, row.currency
        numbers[key] += row.count
        values[key] += row.value
    return {key: (number, values[key]) for key, number in numbers.items() if number}


def record(host: Host, code: str, time: datetime, action: str = "BOUGHT", **more: Any) -> int:
    """Record a response at a time, and return its key."""
    with time_machine.travel(time, tick=False), host.app.app_context():
        link = host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one()
        return link.respond(action, **more).id


@time_machine.travel(NOON, tick=False)
def test_each_day_has_a_total_with_the_value_of_each_currency(host: Host, code: str) -> None:
    record(host, code, NOON - 2 * DAY, value=Decimal("0.1"), currency="EUR")
    record(host, code, NOON - 2 * DAY, value=Decimal("0.2"), currency="EUR")
    record(host, code, NOON - 2 * DAY, value=7, currency="USD")
    record(host, code, NOON - DAY, value=5)
    run_roll_up(host)
    assert sums(host) == {
        ("2026-05-17", "RESPONDED", None): (1, 0),
        ("2026-05-18", "RESPONDED", None): (1, 0),
        ("2026-05-18", "BOUGHT", "EUR"): (2, Decimal("0.3")),
        ("2026-05-18", "BOUGHT", "USD"): (1, 7),
        ("2026-05-19", "RESPONDED", None): (1, 0),
        ("2026-05-19", "BOUGHT", None): (1, 5),
    }


@time_machine.travel(NOON, tick=False)
def test_years_are_rolled_up_day_by_day(host: Host) -> None:
    with host.app.app_context():
        code = Referral.create("/").code
    ages = [1, 2, 99, 100, 101, 199, 200, 201, 1000]
    for age in ages:
        record(host, code, NOON - age * DAY, value=age)
    assert run_roll_up(host) == 1000
    expected = {(str((NOON - age * DAY).date()), "BOUGHT", None): (1, age) for age in ages}
    assert sums(host) == expected
    assert count(host, code) == 0


@time_machine.travel(NOON, tick=False)
def test_voided_sale_leaves_the_value(host: Host, code: str) -> None:
    record(host, code, NOON - DAY, value=Decimal("12.50"), currency="EUR")
    sale = record(host, code, NOON - DAY, value=Decimal("7.25"), currency="EUR")
    run_roll_up(host)
    with host.app.app_context():
        get_one(host.db, ReferralResponse, sale).void("refund")
    assert sums(host)["2026-05-19", "BOUGHT", "EUR"] == (1, Decimal("12.50"))


@pytest.mark.parametrize(
    ("zone", "times"),
    [
        ("Europe/Paris", {"2026-03-28T22:59": "28", "2026-03-28T23:01": "29", "2026-03-29T21:59": "29"}),
        ("Europe/Paris", {"2026-10-24T22:01": "25", "2026-10-25T22:59": "25", "2026-10-25T23:01": "26"}),
        ("Africa/Cairo", {"2026-04-23T21:59": "23", "2026-04-23T22:01": "24", "2026-04-24T20:59": "24"}),  # no midnight
        ("Pacific/Apia", {"2011-12-30T09:59": "29", "2011-12-30T10:01": "31"}),  # no 30th
    ],
)
def test_days_are_those_of_the_time_zone(new_host: MakeHost, zone: str, times: dict[str, str]) -> None:
    host = new_host(REFERRALS_TIMEZONE=zone)
    with host.app.app_context():
        code = Referral.create("/").code
    for time in times:
        record(host, code, datetime.fromisoformat(f"{time}:00+00:00"))
    run_roll_up(host)
    assert {day[-2:]: number for (day, *_), (number, _) in sums(host, zone).items()} == Counter(times.values())


@time_machine.travel(NOON, tick=False)
def test_day_is_over_an_hour_after_local_midnight(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_TIMEZONE="America/New_York")
    with host.app.app_context():
        code = Referral.create("/").code
    record(host, code, NOON - DAY)
    with time_machine.travel(NOON.replace(hour=4, minute=59), tick=False):
        assert run_roll_up(host) == 0
    with time_machine.travel(NOON.replace(hour=5), tick=False):
        assert run_roll_up(host) == 1


@time_machine.travel(NOON, tick=False)
@pytest.mark.parametrize("is_voided", [False, True])
def test_response_that_the_host_commits_after_the_roll_up_is_counted(host: Host, code: str, is_voided: bool) -> None:
    run_roll_up(host)
    with time_machine.travel(NOON + DAY / 3, tick=False) as clock, host.app.app_context():
        link = host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one()
        sale = link.respond("BOUGHT", value=3, currency="EUR", commit=False)
        with host.db.session.begin_nested() as savepoint:
            link.respond("BOUGHT", value=4, currency="EUR", commit=False)
            savepoint.rollback()
        if is_voided:
            sale.void("refund", commit=False)
        clock.shift(DAY)
        rolling_up = Thread(target=run_roll_up, args=[host])  # SQLite lets it wait, and so does the voiding
        rolling_up.start()
        rolling_up.join(timeout=1)
        host.db.session.commit()
        rolling_up.join()
    assert sums(host).get(("2026-05-20", "BOUGHT", "EUR")) == (None if is_voided else (1, 3))


@time_machine.travel(NOON, tick=False)
def test_host_that_commits_on_the_same_day_sends_no_more_statements(host: Host, code: str) -> None:
    run_roll_up(host)
    with host.app.app_context():
        link = host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one()
        link.respond("BOUGHT", commit=False)
        with statements(host.db) as sent:
            host.db.session.commit()
        assert sent == ["COMMIT"]


@time_machine.travel(NOON, tick=False)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_host_that_cannot_see_the_roll_up_commits_all_the_same(
    new_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    """Under REPEATABLE READ the watermark that was moved meanwhile cannot be read."""
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": "REPEATABLE READ"})
    with host.app.app_context():
        code = Referral.create("/").code
    record(host, code, NOON - DAY)
    with time_machine.travel(NOON - DAY, tick=False) as clock, host.app.app_context():
        link = host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one()
        link.respond("BOUGHT", commit=False)
        clock.shift(DAY)
        rolling_up = Thread(target=run_roll_up, args=[host])
        rolling_up.start()
        rolling_up.join()
        host.db.session.commit()
    assert "run 'flask referrals rollup --rebuild'" in caplog.text
    assert sums(host) == {("2026-05-19", "BOUGHT", None): (1, 0)}
    run_roll_up(host, rebuild=True)
    assert sums(host) == {("2026-05-19", "BOUGHT", None): (2, 0)}


class TestRebuild:
    """``flask referrals rollup --rebuild``"""

    @pytest.fixture(autouse=True)
    def clock(self) -> Iterator[None]:
        with time_machine.travel(NOON, tick=False):
            yield

    def run(self, host: Host, *arguments: str) -> str:
        result = host.app.test_cli_runner().invoke(args=["referrals", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[-1]

    def execute(self, host: Host, statement: Any) -> None:
        with host.app.app_context():
            host.db.session.execute(statement)
            host.db.session.commit()

    def delete_responses(self, host: Host, before: datetime) -> None:
        table = host.db.metadata.tables["referral_response"]
        self.execute(host, sa.delete(table).where(table.c.created_at < before))

    def test_wrong_totals_are_counted_again(self, host: Host, code: str) -> None:
        record(host, code, NOON - DAY, value=3, currency="EUR")
        run_roll_up(host)
        right = sums(host)
        table = host.db.metadata.tables["referral_total"]
        self.execute(host, sa.update(table).where(table.c.id > 0).values(count=99, value=99))
        assert self.run(host, "rollup", "--rebuild") == "Days rolled up: 3."
        assert sums(host) == right
        assert count(host, code) == 5

    def test_first_roll_up_may_be_one(self, host: Host, code: str) -> None:
        assert self.run(host, "rollup", "--rebuild") == "Days rolled up: 3."
        assert count(host, code) == 5

    @pytest.mark.parametrize("age", ["1", "2", "3", "30"])
    def test_days_whose_responses_were_purged_keep_their_totals(self, host: Host, code: str, age: str) -> None:
        for hours in (-1, 1):  # 'purge --older-than 2' deletes one of them
            record(host, code, NOON - 2 * DAY + timedelta(hours=hours))
        run_roll_up(host)
        right = sums(host)
        self.run(host, "purge", "--older-than", age, "--yes")
        for _ in range(2):
            self.run(host, "rollup", "--rebuild")
            assert sums(host) == right

    def test_old_responses_that_were_added_by_hand_are_counted(self, host: Host, code: str) -> None:
        for days in (10, 20):
            run_roll_up(host)
            with host.app.app_context():
                link = host.db.session.scalars(sa.select(Referral)).one()
                host.db.session.add(ReferralResponse(referral=link, action="RESPONDED", created_at=NOON - days * DAY))
                host.db.session.commit()
            self.run(host, "rollup", "--rebuild")
            assert sums(host)[str((NOON - days * DAY).date()), "RESPONDED", None] == (1, 0)
        assert count(host, code) == 7

    def test_days_whose_responses_were_deleted_by_hand_keep_their_totals(self, host: Host, code: str) -> None:
        run_roll_up(host)
        right = sums(host)
        self.delete_responses(host, NOON - 1.5 * DAY)
        self.run(host, "rollup", "--rebuild")
        assert sums(host) == right

    def test_totals_of_a_development_version_become_days(self, host: Host, code: str) -> None:
        """It counted all days since the last roll-up as one, without value, currency and time zone."""
        record(host, code, NOON - DAY, "RESPONDED")
        run_roll_up(host)
        table = host.db.metadata.tables["referral_total"]
        self.execute(host, sa.delete(table).where(table.c.id > 0))
        with host.app.app_context():
            link = host.db.session.scalars(sa.select(Referral.id)).one()
        of_all = {"referral_id": link, "action": "RESPONDED", "day": NOON.replace(hour=0) - DAY, "count": 4}
        self.execute(host, sa.insert(table).values(of_all))
        self.execute(host, sa.update(table).where(table.c.id < 0).values(action=""))
        assert count(host, code) == 6
        for _ in range(2):
            self.run(host, "rollup", "--rebuild")
            days = {day: number for (day, *_), (number, _) in sums(host).items()}
            assert days == {"2026-05-17": 1, "2026-05-18": 1, "2026-05-19": 2}
            assert count(host, code) == 6

    @pytest.mark.parametrize("is_purged", [False, True])
    def test_other_time_zone_needs_none(self, new_host: MakeHost, is_purged: bool) -> None:
        host = new_host()
        with host.app.app_context():
            code = Referral.create("/").code
        hours = (1, 3, 30, 50, 95, 97, 99)
        for each in hours:
            record(host, code, NOON - timedelta(hours=each))
        run_roll_up(host)
        if is_purged:
            self.run(host, "purge", "--older-than", "4", "--yes")
        for zone in ("Pacific/Auckland", "America/New_York", "UTC"):
            other = new_host(REFERRALS_TIMEZONE=zone)
            run_roll_up(other)
            for _ in range(2):
                assert sum(number for number, _ in sums(other, zone).values()) + len(self.left(other)) == len(hours)
                run_roll_up(other, rebuild=True)
        if not is_purged:
            assert {day for day, *_ in sums(host)} == {"2026-05-16", "2026-05-18", "2026-05-19"}

    def left(self, host: Host) -> list[Any]:
        """The responses since the watermark."""
        with host.app.app_context():
            table = host.db.metadata.tables["referral_total"]
            until = host.db.session.scalars(sa.select(table.c.day).where(table.c.id == -1)).one()
            return [each for each in host.responses() if each.created_at >= as_utc(until)]


@dataclass
class Stored:
    """A response of a journey, as it should be in the totals."""

    id: int
    time: datetime
    action: str
    value: Decimal
    currency: str | None
    is_counted: bool = True


#: Time zones, and a day on which each changes its clocks.
ZONES = {
    "UTC": "2026-03-01",
    "Europe/Paris": "2026-03-29",
    "America/New_York": "2026-11-01",
    "Australia/Lord_Howe": "2026-04-05",
    "America/Havana": "2026-03-08",
    "Asia/Kathmandu": "2026-01-01",
}


@pytest.mark.parametrize("seed", [*range(3), *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 9)]])
def test_totals_equal_the_responses_after_any_journey(new_host: MakeHost, seed: int) -> None:
    random = Random(seed)
    zone = random.choice([*ZONES])
    host = new_host(REFERRALS_TIMEZONE=zone)
    told: list[Stored] = []

    def check(until: datetime) -> None:
        right: dict[Any, tuple[int, Decimal]] = {}
        for each in told:
            if each.is_counted and each.time < until:
                key = str(each.time.astimezone(ZoneInfo(zone)).date()), each.action, each.currency
                number, value = right.get(key, (0, Decimal(0)))
                right[key] = number + 1, value + each.value
        assert sums(host, zone) == right
        assert sums(host, zone, is_site=True) == {key: (-number, -value) for key, (number, value) in right.items()}

    with time_machine.travel(datetime.fromisoformat(f"{ZONES[zone]}T00:00:00+00:00") - 3 * DAY, tick=False) as clock:
        with host.app.app_context():
            code = Referral.create("/").code
        for _ in range(60):
            clock.shift(timedelta(minutes=random.randrange(8 * 60)))
            time = datetime.now(timezone.utc)
            step = random.choice(["record"] * 5 + ["void", "roll up", "rebuild", "purge"])
            if step == "record":
                action, currency = random.choice(["RESPONDED", "BOUGHT"]), random.choice([None, "EUR", "USD"])
                value = Decimal(random.randrange(10**6)).scaleb(-random.randrange(5))
                key = record(host, code, time, action, value=value, currency=currency)
                told.append(Stored(key, time, action, value, currency))
            elif step == "void" and told:
                chosen = random.choice(told)
                with host.app.app_context():
                    response = host.db.session.get(ReferralResponse, chosen.id)
                    if response is not None:
                        response.void("any")
                        chosen.is_counted = False
            elif step in ("roll up", "rebuild"):
                run_roll_up(host, rebuild=step == "rebuild")
                today = (time - timedelta(hours=1)).astimezone(ZoneInfo(zone)).replace(hour=0, minute=0)
                check(today.astimezone(timezone.utc))
            elif step == "purge":
                run_roll_up(host)
                with host.app.app_context():
                    purge(current_state(), timedelta(days=random.choice([2, 4])))
        with host.app.app_context():
            link = host.db.session.scalars(sa.select(Referral)).one()
            assert link.response_count == sum(each.is_counted and each.action == "RESPONDED" for each in told)
