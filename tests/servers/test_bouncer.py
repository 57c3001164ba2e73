"""The site behind PgBouncer in transaction mode, with the snippets of docs/scaling.rst as they stand there."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_referrals import Referral
from flask_referrals.db import totals
from flask_referrals.state import current_state
from tests.bouncer import new_bouncer
from tests.conftest import MakeHost
from tests.databases import new_database
from tests.host import Host, in_parallel
from tests.pages import snippet

pytestmark = pytest.mark.slow

CONFIG = snippet("scaling.rst", "ini", "pool_mode")
SETTINGS = snippet("scaling.rst", "python", "prepare_threshold")

#: Connections that PgBouncer may open to the server, and threads that want one each.
CONNECTIONS = 3
VISITORS = 16


def engine_options() -> dict[str, Any]:
    """Return the engine options on the page."""
    app = Flask("shop")
    exec(SETTINGS, {"app": app})
    options: dict[str, Any] = app.config["SQLALCHEMY_ENGINE_OPTIONS"]
    return options


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A separate database, without PgBouncer."""
    with new_database("postgresql", tmp_path_factory.mktemp("database")) as url:
        yield url


@pytest.fixture
def database_url(server_url: str) -> Iterator[str]:
    """The database through PgBouncer."""
    with new_bouncer(server_url, CONFIG, default_pool_size=CONNECTIONS) as url:
        yield url


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    """The site with the page's engine options, and more connections than PgBouncer has."""
    return new_host(SQLALCHEMY_ENGINE_OPTIONS={**engine_options(), "pool_size": VISITORS, "max_overflow": 0})


def test_everything_is_recorded(host: Host, server_url: str) -> None:
    with host.app.app_context():
        code = Referral.create("/", user=host.user("olga")).code
    answers: list[object] = []

    def look_in(number: int) -> None:
        # More often than psycopg sends a statement before it prepares it.
        answers.extend(host.client().get(f"/referrals/{code}").status_code for _ in range(8))

    def visit(number: int) -> None:
        client = host.client()
        answers.append(client.get(f"/referrals/{code}").status_code)
        answers.append(client.post("/signup", data={"name": f"user {number}"}).status_code)
        answers.append(client.post("/act/BOUGHT").text)
        answers.append(client.post("/referrals/", json={"redirect_to": "/"}).status_code)
        with host.app.app_context():
            Referral.create("/", label="the same for all")
            user = host.db.session.scalar(sa.select(host.User).where(host.User.name == f"user {number}"))
            Referral.record_response("PAID", user=user, key="order 1")

    in_parallel([partial(look_in, number) for number in range(VISITORS)])
    in_parallel([partial(visit, number) for number in range(VISITORS)])
    server = sa.create_engine(server_url, poolclass=sa.NullPool)
    with server.connect() as connection:
        activity = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert 0 < connection.exec_driver_sql(activity).scalar_one() <= CONNECTIONS

    assert sorted(answers, key=str) == sorted([*[302] * 10, code, 200] * VISITORS, key=str)
    with host.app.app_context():
        responses = host.responses()
        assert len(responses) == 11 * VISITORS + 1
        assert sum(response.user_id is not None for response in responses) == 3 * VISITORS + 1
        assert host.db.session.scalar(sa.select(sa.func.count(Referral.id))) == VISITORS + 2
        host.db.session.execute(sa.text("UPDATE referral_response SET created_at = created_at - interval '2 days'"))
        host.db.session.commit()
        assert totals.roll_up(current_state().database) > 0
        link = host.db.session.scalars(sa.select(Referral).where(Referral.code == code)).one()
        assert link.response_count == 9 * VISITORS
        assert len(Referral.referred_by(link.user)) == VISITORS
        export = host.app.test_cli_runner().invoke(args=["referrals", "export", "responses"])
        assert export.output.count("\n") == 11 * VISITORS + 2


def test_click_waits_for_a_lock_as_the_page_says(host: Host, server_url: str) -> None:
    with host.app.app_context():
        code = Referral.create("/").code
    server = sa.create_engine(server_url, poolclass=sa.NullPool)
    with server.begin() as locked:
        locked.exec_driver_sql("LOCK TABLE referral_response")
        assert host.client().get(f"/referrals/{code}").status_code == 302
    with host.app.app_context():
        assert host.responses() == []


def test_prepared_statements_break(database_url: str, server_url: str) -> None:
    def read_often(url: str, **options: Any) -> None:
        engine = sa.create_engine(url, poolclass=sa.NullPool, **options)
        for _ in range(2):  # clients, of which each numbers its prepared statements from 0
            with engine.connect() as connection:
                for _ in range(8):
                    connection.execute(sa.text("SELECT 1"))
                    connection.commit()

    with new_bouncer(server_url, CONFIG, default_pool_size=1) as url:
        read_often(url, **engine_options())
        with pytest.raises(sa.exc.ProgrammingError, match=r"prepared statement \"_pg3_\d+\" already exists"):
            read_often(url)


def test_options_of_a_connection_are_refused(database_url: str) -> None:
    engine = sa.create_engine(database_url, connect_args={"options": "-c lock_timeout=2s"}, poolclass=sa.NullPool)
    with pytest.raises(sa.exc.OperationalError, match="unsupported startup parameter"):
        engine.connect()
