"""Nothing gets slower with the number of times that one visitor has clicked on a link."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from sqlalchemy import event

from flask_referrals import Referral
from flask_referrals.credit import MAX_REPEATS
from tests.host import Host, follow, make_host


def repeat(host: Host, number: int, *, is_own: bool = False) -> None:
    """Store repeats of the latest click; or clicks of a user on their own link."""
    with host.app.app_context():
        click = host.responses()[-1]
        names = ("referral_id", "session_key", "user_id", "action", "is_touch")
        values = {**{name: getattr(click, name) for name in names}, "ignored": "self" if is_own else "repeat"}
        times = [click.created_at + timedelta(microseconds=each) for each in range(1, number + 1)]
        table = host.db.metadata.tables["referral_response"]
        host.db.session.execute(sa.insert(table), [{**values, "created_at": time} for time in times])
        host.db.session.commit()


@contextmanager
def steps_of_sqlite(host: Host) -> Iterator[Callable[[], int]]:
    """Count the steps of SQLite's virtual machine, in thousands."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    def on_execute(conn: Any, *args: Any) -> None:
        connection = conn.connection.dbapi_connection
        assert isinstance(connection, sqlite3.Connection)
        connection.set_progress_handler(count, 1000)

    with host.app.app_context():
        engine = host.db.engine
    event.listen(engine, "before_cursor_execute", on_execute)
    yield lambda: counted
    event.remove(engine, "before_cursor_execute", on_execute)


VISITS: dict[str, Callable[[FlaskClient, str], object]] = {
    "click": lambda client, code: client.get(f"/referrals/{code}"),
    "action": lambda client, code: client.post("/act/BOUGHT"),
    "login": lambda client, code: client.post("/login", data={"name": "mia"}),
}


def steps_of(url: str, visit: str, number: int, kind: str, policy: str) -> int:
    """Return what a visit costs after a number of repeats."""
    host = make_host(url, REFERRALS_ATTRIBUTION=policy)
    client = host.client()
    with host.app.app_context():
        host.db.create_all()
        mia = host.user("mia")
        code = Referral.create("/", user=mia if kind == "own" else None).code
    if kind == "own":
        client.post("/login", data={"name": "mia"})
    client.get(f"/referrals/{code}")
    repeat(host, number, is_own=kind == "own")
    with host.app.app_context():
        if kind == "expired":
            host.db.session.execute(sa.update(Referral).values(expired_at=datetime.now(timezone.utc)))
        host.db.session.commit()
    with steps_of_sqlite(host) as steps:
        VISITS[visit](client, code)
        found = steps()
    with host.app.app_context():
        host.db.drop_all()
        host.db.engine.dispose()
    return found


@pytest.mark.parametrize("kind", ["repeat", "expired", "own"])
@pytest.mark.parametrize(
    ("visit", "policy"), [("click", "last"), ("action", "last"), ("action", "first"), ("login", "last")]
)
def test_repeats_cost_nothing(shared_sqlite_url: str, visit: str, policy: str, kind: str) -> None:
    few, many = (steps_of(shared_sqlite_url, visit, number, kind, policy) for number in (2 * MAX_REPEATS, 5_000))
    assert many <= few + 3


@pytest.mark.parametrize("name", [None, "mia"])
def test_number_of_stored_repeats_is_bounded(host: Host, client: FlaskClient, name: str | None) -> None:
    if name is not None:
        client.post("/signup", data={"name": name})
    other, code = follow(host, client, "/other"), follow(host, client)
    repeat(host, MAX_REPEATS - 1)
    for each in (code, other, code):
        assert client.get(f"/referrals/{each}").status_code == 302
    with host.app.app_context():
        assert len(host.responses()) == 2 + MAX_REPEATS
    assert client.post("/act/BOUGHT").text == code


def test_login_joins_the_newest_repeats(host: Host, client: FlaskClient) -> None:
    follow(host, client, "/other")
    code = follow(host, client)
    repeat(host, 2 * MAX_REPEATS)
    client.post("/signup", data={"name": "mia"})
    assert client.post("/act/BOUGHT").text == code
    with host.app.app_context():
        claimed = [each.user_id is not None for each in host.responses()]
    assert claimed == [True, True] + [False] * MAX_REPEATS + [True] * (MAX_REPEATS + 2)
