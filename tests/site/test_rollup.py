"""Counts are exact, whatever is rolled up, and whatever changes afterwards."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
import time_machine
from flask.testing import FlaskClient

from flask_referrals import Referral, ReferralResponse
from flask_referrals.db.totals import correct_totals, roll_up
from flask_referrals.db.transactions import open_transaction
from flask_referrals.state import current_state
from tests.host import Host, follow, in_parallel

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


def stored(host: Host) -> list[Any]:
    """The rows of the totals but the bookmark."""
    with host.app.app_context():
        table = host.db.metadata.tables["referral_total"]
        return list(host.db.session.execute(sa.select(table).where(table.c.id > 0).order_by(table.c.id)))


@time_machine.travel(NOON, tick=False)
def test_days_that_are_over_are_counted_once(host: Host, code: str, rollup: Callable[[], str]) -> None:
    assert count(host, code) == 5
    assert rollup() == "Days rolled up: 3."
    assert [row.count for row in stored(host)] == [3]
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
        host.db.session.get_one(ReferralResponse, response.id).void("fraud")
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
            host.db.session.get_one(ReferralResponse, key).void("fraud")

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
def test_deleted_link_takes_its_totals_along(host: Host, code: str, rollup: Callable[[], str]) -> None:
    rollup()
    with host.app.app_context():
        host.db.session.delete(host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one())
        host.db.session.commit()
    assert stored(host) == []


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

    run()  # the bookmark
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
