"""Every statement of the extension finds its rows by an index, on tables large enough for one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from flask_referrals import Referral
from flask_referrals.db import totals
from flask_referrals.db.keys import digest
from flask_referrals.queue import store
from flask_referrals.queue.events import new_event
from flask_referrals.state import current_state
from flask_referrals.types import Actor
from tests.host import Host

LINKS = 5_000
#: Responses; each fifth is one to the busy link, each seventh the busy user's.
RESPONSES = 20_000

Sent = list[tuple[str, Any]]


@pytest.fixture
def full(host: Host) -> Host:
    """The site with many links and responses, of which one link and one user have a great part."""
    start = datetime.now(timezone.utc) - timedelta(days=30)
    with host.app.app_context():
        referral, response = host.db.metadata.tables["referral"], host.db.metadata.tables["referral_response"]
        host.db.session.execute(sa.insert(host.User), [{"name": f"user {number}"} for number in range(100)])
        users = host.db.session.scalars(sa.select(host.User.id).order_by(host.User.id)).all()
        host.db.session.execute(
            sa.insert(referral),
            [
                {
                    "code": f"code-{number}",
                    "identity": f"{number:064}",
                    "label": "",
                    "redirect_to": "/",
                    "user_id": users[number % len(users)],
                    "created_at": start,
                }
                for number in range(LINKS)
            ],
        )
        links = host.db.session.scalars(sa.select(referral.c.id).order_by(referral.c.id)).all()
        rows = [
            {
                "referral_id": links[0 if number % 5 == 0 else number % LINKS],
                "session_key": f"{number:043}",
                "user_id": users[1] if number % 7 == 0 else users[number % len(users)] if number % 3 == 0 else None,
                "action": "RESPONDED" if number % 4 else "BOUGHT",
                "is_touch": number % 4 != 0,
                "key": None if number % 4 else f"order {number}",
                "identity": None if number % 4 else digest("BOUGHT", f"order {number}"),
                "created_at": start + timedelta(minutes=number),
            }
            for number in range(RESPONSES)
        ]
        host.db.session.execute(sa.insert(response), rows)
        host.db.session.commit()
        analyze = {"postgresql": "ANALYZE", "sqlite": "ANALYZE"}.get(
            host.db.engine.dialect.name, "ANALYZE TABLE referral, referral_response, referral_total, user"
        )
        totals.roll_up(current_state().database)
        host.db.session.remove()
        with host.db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(analyze)
    return host


@contextmanager
def collected(engine: sa.Engine) -> Iterator[Sent]:
    """Collect statements with their parameters, as the driver is given them."""
    sent: Sent = []

    def on_execute(conn: Any, cursor: Any, statement: str, parameters: Any, *args: Any) -> None:
        if "SELECT" in statement or statement.startswith(("UPDATE", "DELETE")):
            sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", on_execute)
    yield sent
    event.remove(engine, "before_cursor_execute", on_execute)


def scans(connection: sa.Connection, statement: str, parameters: Any) -> list[str]:
    """Return how a statement reads one of our tables from end to end, if it does."""
    ours = ("referral", "referral_response", "referral_total")

    def explain(prefix: str) -> Any:
        return connection.exec_driver_sql(f"{prefix} {statement}", parameters)

    if connection.dialect.name == "sqlite":
        lines = [row[-1] for row in explain("EXPLAIN QUERY PLAN")]
        # A subquery's rows are scanned too, once they are found.
        return [line for line in lines if line.startswith(tuple(f"SCAN {table}" for table in ours))]
    if connection.dialect.name == "postgresql":
        plan = explain("EXPLAIN (FORMAT JSON)").scalar_one()
        nodes = [(json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]]
        found = []
        while nodes:
            node = nodes.pop()
            nodes += node.get("Plans", [])
            if node["Node Type"] == "Seq Scan" and node["Relation Name"] in ours:
                found.append(f"Seq Scan on {node['Relation Name']}")
        return found
    rows = explain("EXPLAIN").mappings().all()
    names = {*ours, "referral_1", "referral_response_1"}
    return [
        f"{row['type']} on {row['table']}" for row in rows if row["table"] in names and row["type"] in ("ALL", "index")
    ]


def walk_through(host: Host) -> None:
    """Do everything that asks our tables something while a visitor or a user waits."""
    client = host.client()
    client.get("/referrals/code-3")
    client.get("/referrals/code-3")
    client.post("/act/LOOKED")
    client.post("/signup", data={"name": "mia"})
    client.post("/act/BOUGHT")
    client.get("/referrals/code-4")
    busy = host.client()
    busy.get("/referrals/code-5")
    busy.post("/login", data={"name": "user 1"})
    busy.post("/act/BOUGHT")
    busy.get("/referrals/code-0")
    busy.post("/referrals/", json={"redirect_to": "/", "label": "new"})
    with host.app.app_context():
        user = host.db.session.scalar(sa.select(host.User).where(host.User.name == "user 1"))
        link = host.db.session.scalars(sa.select(Referral).where(Referral.code == "code-0")).one()
        link.filtered_responses(limit=50)
        assert link.response_count > 0
        link.responses.limit(50).all()
        Referral.referrer_of(user)
        Referral.record_response("PAID", user=user, key="order 3")
        Referral.record_response("WELCOMED", user=user, once=True)
        for response in link.responses.limit(1):
            response.void("refund")
        Referral.attach("code-7", user=user)
        host.app.jinja_env.globals["referral_responses"](user, limit=50)  # type: ignore[operator]


def test_no_statement_reads_a_whole_table(full: Host) -> None:
    with full.app.app_context():
        engine = full.db.engine
    with collected(engine) as sent:
        walk_through(full)
    assert len(sent) > 20
    with engine.connect() as connection:
        found = {statement: scans(connection, statement, parameters) for statement, parameters in sent}
    assert {statement: how for statement, how in found.items() if how} == {}


def test_statistics_of_the_site_find_their_totals_by_an_index(full: Host) -> None:
    with full.app.app_context():
        engine, since = full.db.engine, date.today() - timedelta(days=89)
        with collected(engine) as sent:
            full.referrals.stats(since=since, by="day", compare=True)
            full.referrals.stats(by="month")
    with engine.connect() as connection:
        found = [each for statement, parameters in sent for each in scans(connection, statement, parameters)]
    assert [each for each in found if "referral_total" in each] == []


def test_stored_clicks_find_their_rows_by_an_index(full: Host) -> None:
    now = datetime.now(timezone.utc)
    with full.app.app_context():
        engine = full.db.engine
        users = full.db.session.scalars(sa.select(full.User.id).order_by(full.User.id)).all()
        events = [
            new_event(f"event {number}", f"code-{number}", now, Actor(visitor_key=f"{number:043}"))
            for number in range(50)
        ]
        events += [new_event(f"event of {user}", "code-0", now, Actor(user)) for user in users[:50]]
        store(events)
        for event_ in events:
            event_["user_agent"] = "told later"
        later = [*events, new_event("a key's", "code-0", now, Actor(visitor_key="x"))]
        later.append(new_event("a user's", "code-0", now, Actor(users[1])))
        with collected(engine) as sent:
            store(later)
    assert len(sent) > 5
    with engine.connect() as connection:
        found = {statement: scans(connection, statement, parameters) for statement, parameters in sent}
    assert {statement: how for statement, how in found.items() if how} == {}
