"""The fixtures: one site, on each of the databases."""

import gc
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from tests.databases import NAMES, Tables, new_database
from tests.host import Host, make_host

MakeHost = Callable[..., Host]
NewApp = Callable[..., tuple[Flask, SQLAlchemy]]

# Each test makes an app and models, which are full of cycles: by default, collecting them takes a third of the time.
USUAL_THRESHOLDS = gc.get_threshold()
gc.set_threshold(10_000)


@sa.event.listens_for(sa.Engine, "connect")
def leave_writing_to_the_system(connection: Any, record: Any) -> None:
    """Let no transaction of SQLite wait for the disk: these databases need not survive a power cut."""
    if isinstance(connection, sqlite3.Connection) and not connection.in_transaction:
        connection.execute("PRAGMA synchronous = OFF")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each reason for skipping once, with the number of tests."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session", params=NAMES)
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An own database on one of the servers."""
    with new_database(request.param, tmp_path_factory.mktemp("database")) as url:
        yield from _share(url)


@pytest.fixture(scope="session")
def shared_sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An SQLite database, for what does not depend on the database: a module's ``database_url`` returns it."""
    with new_database("sqlite", tmp_path_factory.mktemp("database")) as url:
        yield from _share(url)


def _share(url: str) -> Iterator[str]:
    TABLES[url] = Tables(url)
    yield url
    TABLES.pop(url).drop()


#: The tables that a test has left, empty, to the next one that makes the same site on the same database.
TABLES: dict[str, Tables] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave no tables to a test that makes its own."""
    names = getattr(item, "fixturenames", ())
    if "new_host" not in names and not {"database_url", "shared_sqlite_url"}.isdisjoint(names):
        for tables in TABLES.values():
            tables.drop()


@pytest.fixture
def new_host(database_url: str) -> Iterator[MakeHost]:
    """Make a site with its tables; they are empty, or dropped, after the test."""
    hosts: list[Host] = []
    tables = TABLES.get(database_url)

    def make(**options: Any) -> Host:
        host = make_host(database_url, **options)
        if tables is None or not tables.has(host.db.metadata):
            if tables is not None and not hosts:
                tables.drop()
            with host.app.app_context():
                host.db.create_all()
            if tables is not None and not hosts and "declare" not in options:
                tables.keep(host.db.metadata)
        hosts.append(host)
        return host

    yield make
    for host in hosts:
        with host.app.app_context():
            host.db.session.remove()
            for engine in host.db.engines.values():
                engine.dispose()
    if tables is not None and all(tables.has(host.db.metadata) for host in hosts) and tables.empty():
        return
    for host in hosts:
        with host.app.app_context():
            host.db.drop_all()
            for engine in host.db.engines.values():
                engine.dispose()
    if tables is not None:
        tables.drop()


@pytest.fixture
def new_app(database_url: str) -> Iterator[NewApp]:
    """Make an app whose models, and whose referrals, are declared by the test; its tables are dropped after it."""
    made: list[tuple[Flask, SQLAlchemy]] = []

    def make(**config: Any) -> tuple[Flask, SQLAlchemy]:
        class Base(DeclarativeBase):
            pass

        app = Flask(__name__)
        app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=database_url, **config)
        made.append((app, SQLAlchemy(app, model_class=Base)))
        return made[-1]

    yield make
    for app, db in made:
        with app.app_context():
            db.session.remove()
            db.drop_all()
            for engine in db.engines.values():
                engine.dispose()


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    """The site with everything at its default."""
    return new_host()


@pytest.fixture
def ctx(host: Host) -> Iterator[None]:
    """The site's app context, for tests that send no requests."""
    with host.app.app_context():
        yield


@pytest.fixture
def usual_collector() -> Iterator[None]:
    """Collect garbage as early as Python does by default, for tests that measure memory."""
    thresholds = gc.get_threshold()
    gc.set_threshold(*USUAL_THRESHOLDS)
    yield
    gc.set_threshold(*thresholds)


@pytest.fixture
def client(host: Host) -> FlaskClient:
    """A browser."""
    return host.client()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An SQLite database, for what does not depend on the database."""
    return f"sqlite:///{tmp_path / 'host.db'}"
