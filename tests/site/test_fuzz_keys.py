"""The short form of ``python -m tests.fuzz.keys``."""

import pytest

from tests.conftest import MakeHost
from tests.fuzz.keys import Target, forgeries


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """A key is the same on every database."""
    return shared_sqlite_url


@pytest.mark.slow
@pytest.mark.parametrize("cookie", [None, "visitor"])
def test_no_forged_key_is_accepted_and_none_is_an_error(new_host: MakeHost, cookie: str | None) -> None:
    target = Target(new_host(with_login=False, REFERRALS_COOKIE=cookie))
    for name, entries in forgeries(target, characters="AZaz09-_.=~ \u00e9", number=500, seed=1).items():
        outcome = target.try_all(entries)
        assert outcome.tried > 20, name
        assert (outcome.accepted, outcome.failed) == ([], []), name
