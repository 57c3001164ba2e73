"""Responses in partitions by month on PostgreSQL, made by the snippets of docs/scaling.rst as they stand there."""

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from flask_sqlalchemy import SQLAlchemy

from flask_referrals import Referral, ReferralResponse
from flask_referrals.db import totals
from flask_referrals.state import current_state
from tests.conftest import MakeHost
from tests.databases import new_database
from tests.faults.races import engine_options
from tests.host import Host, follow, in_parallel, make_host
from tests.pages import snippet
from tests.site.test_plans import collected, walk_through

MODELS = snippet("scaling.rst", "python", "class ReferralResponse")
REVISION = snippet("scaling.rst", "python", "def upgrade")
NEXT_MONTHS = snippet("scaling.rst", "sql", "CALL")
RETENTION = snippet("scaling.rst", "sql", "DROP TABLE")

WORKERS = 16


def declare(db: SQLAlchemy, User: Any) -> None:
    """Declare the page's models."""
    exec(MODELS, {"__name__": "shop.models", "db": db, "User": User})


def upgrade(connection: sa.Connection, revision: str = REVISION) -> None:
    """Run the page's revision."""
    names: dict[str, Any] = {"op": Operations(MigrationContext.configure(connection))}
    exec(revision, names)
    names["upgrade"]()


@pytest.fixture
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A separate database, because the revision makes a schema."""
    with new_database("postgresql", tmp_path_factory.mktemp("database")) as url:
        yield url


@pytest.fixture
def host(database_url: str, new_host: MakeHost) -> Host:
    """The site as it was, with a visit, an order and a voiding; then as the page has it."""
    before = make_host(database_url)
    with before.app.app_context():
        before.db.create_all()
        code = Referral.create("/", user=before.user("olga")).code
    client = before.client()
    client.get(f"/referrals/{code}")
    client.post("/signup", data={"name": "ina"})
    with before.app.app_context():
        ina = before.db.session.scalars(sa.select(before.User).where(before.User.name == "ina")).one()
        response = Referral.record_response("BOUGHT", user=ina, key="order 1")
        assert response is not None
        response.void("refund")
        before.db.session.remove()
        with before.db.engine.begin() as connection:
            upgrade(connection)
        before.db.engine.dispose()
    return new_host(declare=declare, SQLALCHEMY_ENGINE_OPTIONS=engine_options(database_url, WORKERS))


def partitions(host: Host) -> dict[str, int]:
    """Return how many rows are in each partition that has any."""
    of_row = "SELECT tableoid::regclass::text, count(*) FROM referral_response GROUP BY 1"
    with host.db.engine.connect() as connection:
        return {name.removeprefix("responses."): count for name, count in connection.exec_driver_sql(of_row)}


def make_months(host: Host, months: int, rows: int) -> list[str]:
    """Let there be partitions of the past instead of ``before``, with rows in each; return their names.

    :param rows: how many in each, all of one visitor and one link.
    """
    first = [datetime.now(timezone.utc).replace(day=1, hour=0, minute=0, second=0, microsecond=0)]
    for _ in range(months):
        first.insert(0, (first[0] - timedelta(days=1)).replace(day=1))
    first.append((first[-1] + timedelta(days=31)).replace(day=1))
    names = [f"month_{start:%Y_%m}" for start in first[:-1]]
    with host.app.app_context(), host.db.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE responses.before")
        for name, start, end in zip(names, first, first[1:], strict=False):
            bounds = f"FROM ('{start}') TO ('{end}')"
            connection.exec_driver_sql(
                f"CREATE TABLE responses.{name} PARTITION OF responses.unkeyed FOR VALUES {bounds}"
            )
        link = connection.execute(sa.select(Referral.id)).scalar_one()
        each = {"referral_id": link, "action": "RESPONDED", "is_touch": True, "session_key": "x" * 43}
        for start in first[:months]:
            connection.execute(sa.insert(ReferralResponse), [{**each, "created_at": start}] * rows)
    return names[:months]


def test_what_was_there_is_there(host: Host) -> None:
    with host.app.app_context():
        assert partitions(host) == {"before": 2, "keyed": 2}
        responses = host.responses()
        assert [response.action for response in responses] == ["RESPONDED", "SIGNED_UP", "BOUGHT", "VOIDED"]
        for response in responses:
            assert host.db.session.get(ReferralResponse, response.id, populate_existing=True) is response


def test_migrations_have_nothing_to_do(host: Host) -> None:
    result = host.app.test_cli_runner().invoke(args=["referrals", "check"])
    assert (result.exit_code, result.output) == (0, "The referral tables match the models.\n")
    with host.app.app_context(), host.db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), host.db.metadata) == []


def test_site_works_as_before(host: Host) -> None:
    client = host.client()
    code = follow(host, client, "/tea")
    client.get(f"/referrals/{code}")
    client.post("/signup", data={"name": "max"})
    assert client.post("/act/LOOKED").text == code
    with host.app.app_context():
        link = host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one()
        maximum = host.db.session.scalars(sa.select(host.User).where(host.User.name == "max")).one()
        response = Referral.record_response("BOUGHT", user=maximum, key="order 2")
        assert response is not None
        response.void("refund")
        assert Referral.record_response("BOUGHT", user=maximum, key="order 2") is response
        found = [(each.action, each.ignored, each.user_id) for each in host.responses() if each.referral_id == link.id]
        assert found == [
            ("RESPONDED", None, maximum.id),
            ("RESPONDED", "repeat", maximum.id),
            ("SIGNED_UP", None, maximum.id),
            ("LOOKED", None, maximum.id),
            ("BOUGHT", "void", maximum.id),
            ("VOIDED", "void", maximum.id),
        ]
        assert link.response_count == 1
        # Without its key, the order is among the months.
        before = partitions(host)
        host.referrals.forget_user(maximum)
        after = partitions(host)
        assert after == {"before": before["before"] + 1, "keyed": before["keyed"] - 1}
        host.db.session.delete(link)
        host.db.session.commit()
        assert partitions(host) == {"before": 2, "keyed": 2}


@pytest.mark.parametrize("options", [{"key": "order 7"}, {"once": True}], ids=["key", "once"])
def test_action_happens_once_however_many_race(host: Host, options: dict[str, Any]) -> None:
    with host.app.app_context():
        ina_id = host.db.session.scalars(sa.select(host.User.id).where(host.User.name == "ina")).one()
    ids: list[int] = []

    def act(action: str) -> None:
        with host.app.app_context():
            response = Referral.record_response(action, user=host.db.session.get(host.User, ina_id), **options)
            assert response is not None
            ids.append(response.id)

    for number in range(6):
        ids.clear()
        in_parallel([partial(act, f"PAID-{number}")] * WORKERS)
        with host.app.app_context():
            rows = sa.select(ReferralResponse.id).where(ReferralResponse.action == f"PAID-{number}")
            assert ids == [host.db.session.scalars(rows).one()] * WORKERS


def test_every_statement_finds_its_rows_by_an_index(host: Host) -> None:
    # Not by those of ``before``, which no transaction uses while one that is older than the revision runs.
    make_months(host, months=2, rows=2)
    with host.app.app_context():
        owner = host.user("user 1")
        for number in range(8):
            Referral.create("/", user=owner, label=str(number), code=f"code-{number}")
        for code in ("code-0", "code-3"):
            host.client().get(f"/referrals/{code}")
        engine = host.db.engine
    with collected(engine) as sent:
        walk_through(host)
    assert len(sent) > 20
    found = {}
    with engine.connect() as connection:
        connection.exec_driver_sql("SET enable_seqscan = off")  # where the tables are as small as here
        for statement, parameters in sent:
            plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
            if any(node["Node Type"] == "Seq Scan" and node["Schema"] == "responses" for node in nodes(plan)):
                found[statement] = plan
    assert found == {}


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan, each with the schema of its table."""
    waiting = [(json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        is_partition = re.fullmatch(r"keyed|unkeyed|before|other|month_\d+_\d+", node.get("Relation Name", ""))
        yield {**node, "Schema": "responses" if is_partition else None}


def test_statement_that_knows_the_time_or_the_key_reads_few_partitions(host: Host) -> None:
    months = make_months(host, months=6, rows=3)
    with host.app.app_context():
        engine = host.db.engine
        totals.roll_up(current_state().database)
        link = host.db.session.scalars(sa.select(Referral)).one()
        ina = host.db.session.scalars(sa.select(host.User).where(host.User.name == "ina")).one()
        code = link.code
        with collected(engine) as sent:
            assert link.response_count == 18
            link.respond("BOUGHT", user=ina, key="order 9")
    client = host.client()
    client.get(f"/referrals/{code}")
    with collected(engine) as clicked:
        client.get(f"/referrals/{code}")
    count = next(each for each in sent if "count(*)" in each[0])
    by_key = next(each for each in sent if "referral_response.identity = " in each[0])
    is_repeat = next(each for each in clicked if "EXISTS" in each[0])
    with engine.connect() as connection:  # which is rolled back
        for statement, parameters in (count, by_key, is_repeat):
            analyzed = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
            plan = connection.exec_driver_sql(analyzed, parameters).scalar_one()
            read = {node["Relation Name"] for node in nodes(plan) if node["Schema"] and node["Actual Loops"]}
            assert read, statement
            assert read.isdisjoint(months[:-1]), statement
            assert read == {"keyed"} or statement != by_key[0]


def test_month_is_dropped_and_its_counts_are_kept(host: Host) -> None:
    month, *_ = make_months(host, months=3, rows=5)
    with host.app.app_context():
        totals.roll_up(current_state().database)
        link = host.db.session.scalars(sa.select(Referral)).one()
        assert link.response_count == 15
        assert partitions(host)[month] == 5
        host.db.session.commit()
        with host.db.engine.begin() as connection:
            connection.exec_driver_sql(RETENTION.replace("month_2026_01", month))
        assert month not in partitions(host)
        assert link.response_count == 15
        host.client().get(f"/referrals/{link.code}")
        assert link.response_count == 16


def test_months_to_come_are_made_as_often_as_one_likes(host: Host) -> None:
    with host.app.app_context(), host.db.engine.begin() as connection:
        connection.exec_driver_sql(NEXT_MONTHS)
        connection.exec_driver_sql(NEXT_MONTHS)
        tables = sa.inspect(connection).get_table_names("responses")
    assert len([table for table in tables if table.startswith("month_")]) == 2


def test_click_of_a_month_without_a_partition_is_kept(host: Host) -> None:
    with host.app.app_context():
        link = host.db.session.scalars(sa.select(Referral)).one()
        late = datetime.now(timezone.utc) + timedelta(days=400)
        host.add(host.referrals.ReferralResponse(referral_id=link.id, action="RESPONDED", created_at=late))
        assert partitions(host)["other"] == 1


def test_weeks_are_made_as_the_page_says(database_url: str) -> None:
    host = make_host(database_url)
    weekly = REVISION.replace("month", "week").replace("YYYY_MM", "IYYY_IW")
    with host.app.app_context():
        host.db.create_all()
        with host.db.engine.begin() as connection:
            upgrade(connection, weekly)
            link = sa.insert(Referral).values(code="a", identity="a", redirect_to="/", label="")
            key = connection.scalar(link.returning(Referral.id))
            now = datetime.now(timezone.utc)
            for weeks in range(4):
                time = now + timedelta(weeks=weeks)
                connection.execute(sa.insert(ReferralResponse).values(referral_id=key, action="A", created_at=time))
        names = [f"week_{now + timedelta(weeks=weeks):%G_%V}" for weeks in (1, 2)]
        assert partitions(host) == {"before": 1, names[0]: 1, names[1]: 1, "other": 1}
        host.db.engine.dispose()
