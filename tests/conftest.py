"""The fixtures: one site, on each of the databases."""

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.databases import NAMES
from tests.databases import new_database
from tests.host import Host
from tests.host import make_host

MakeHost = Callable[..., Host]


@pytest.fixture(scope="session", params=NAMES)
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An own database on one of the servers."""
    with new_database(request.param, tmp_path_factory.mktemp("database")) as url:
        yield url


@pytest.fixture
def new_host(database_url: str) -> Iterator[MakeHost]:
    """Make a site with its tables; they are dropped after the test."""
    hosts: list[Host] = []

    def make(**options: Any) -> Host:
        host = make_host(database_url, **options)
        with host.app.app_context():
            host.db.create_all()
        hosts.append(host)
        return host

    yield make
    for host in hosts:
        with host.app.app_context():
            host.db.session.remove()
            host.db.drop_all()
            for engine in host.db.engines.values():
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
def client(host: Host) -> FlaskClient:
    """A browser."""
    return host.client()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An SQLite database, for what does not depend on the database."""
    return f"sqlite:///{tmp_path / 'host.db'}"
