"""How long a click waits for a locked table on PostgreSQL and MariaDB: their own settings limit it."""

import time
from typing import Any

import pytest
import sqlalchemy as sa

from flask_referrals import Referral
from tests.conftest import MakeHost

#: As docs/security.rst has them, with 1 second.
OPTIONS: dict[str, dict[str, Any]] = {
    "postgresql": {"connect_args": {"options": "-c lock_timeout=1s"}},
    "mysql": {"connect_args": {"init_command": "SET lock_wait_timeout=1, innodb_lock_wait_timeout=1"}},
}
LOCK = {"postgresql": "LOCK TABLE referral_response", "mysql": "LOCK TABLES referral_response WRITE"}


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True, scope="session")
def test_click_on_a_locked_table_redirects_after_two_attempts_at_most(
    new_host: MakeHost, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    dialect = sa.make_url(database_url).get_backend_name()
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS=OPTIONS[dialect])
    with host.app.app_context():
        code = Referral.create("/welcome").code
        host.db.session.remove()
    locking = sa.create_engine(database_url, poolclass=sa.NullPool)
    with locking.connect() as other:
        other.exec_driver_sql(LOCK[dialect])
        started = time.monotonic()
        answer = host.client().get(f"/referrals/{code}")
        waited = time.monotonic() - started
    assert answer.status_code == 302
    assert len(caplog.records) == 1
    assert 1 <= waited < 4
    host.client().get(f"/referrals/{code}")
    with host.app.app_context():
        assert len(host.responses()) == 1
