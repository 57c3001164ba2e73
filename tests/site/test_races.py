"""The short form of ``python -m tests.faults.races``."""

import pytest

from tests.conftest import MakeHost
from tests.faults.races import engine_options, race_claims, race_creates
from tests.host import Host

WORKERS = 24


@pytest.fixture
def host(new_host: MakeHost, database_url: str) -> Host:
    """The site, with a connection for each thread."""
    return new_host(SQLALCHEMY_ENGINE_OPTIONS=engine_options(database_url, WORKERS))


def test_identical_links_are_one_row_and_no_error(host: Host) -> None:
    outcome = race_creates(host, workers=WORKERS, rounds=4)
    assert (outcome.wrong, outcome.errors) == ([], [])


def test_each_row_goes_to_one_user_with_one_signal(host: Host) -> None:
    outcome = race_claims(host, users=4, rows=10, rounds=6)
    assert (outcome.wrong, outcome.errors) == ([], [])
