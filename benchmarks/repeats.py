"""What a click, an action and a login cost after repeats of one visitor's click, in milliseconds, in this process::

    python -m benchmarks.repeats --database postgresql --repeats 0 --repeats 20000 --repeats 200000

The visitor has clicked on one link again and again within the last minutes. Beside these rows there are 100,000 clicks
of others.
"""

import argparse
import secrets
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median

import sqlalchemy as sa

from tests.databases import NAMES, new_database
from tests.host import Host, follow, make_host

_OTHERS = 100_000
_PAGE = 10_000


def _fill(host: Host, repeats: int) -> None:
    with host.app.app_context():
        session, table = host.db.session, host.db.metadata.tables["referral_response"]
        (click,) = host.responses()
        common = {"referral_id": click.referral_id, "action": click.action, "is_touch": True}
        for start in range(0, repeats, _PAGE):
            rows = [
                {**common, "session_key": click.session_key, "ignored": "repeat", "created_at": click.created_at + age}
                for age in (timedelta(microseconds=each) for each in range(start, min(start + _PAGE, repeats)))
            ]
            session.execute(sa.insert(table), rows)
        for start in range(0, _OTHERS, _PAGE):
            rows = [
                {**common, "session_key": secrets.token_urlsafe(32), "created_at": click.created_at - age}
                for age in (timedelta(seconds=each) for each in range(start, start + _PAGE))
            ]
            session.execute(sa.insert(table), rows)
        session.commit()
        analyze = "ANALYZE TABLE referral, referral_response" if host.db.engine.name == "mysql" else "ANALYZE"
        with host.db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(analyze)


def _time(operation: Callable[[], object], number: int) -> float:
    taken = []
    for _ in range(number):
        start = time.perf_counter()
        operation()
        taken.append((time.perf_counter() - start) * 1000)
    return median(taken)


def measure(url: str, repeats: int) -> dict[str, float]:
    """Return the medians of some operations, in milliseconds.

    :param url: an empty database.
    """
    host = make_host(url)
    with host.app.app_context():
        host.db.create_all()
        host.user("mia")
    client = host.client()
    code = follow(host, client)
    _fill(host, repeats)
    client.get("/")
    figures = {
        "page": _time(lambda: client.get("/"), 20),
        "click": _time(lambda: client.get(f"/referrals/{code}"), 20),
        "action": _time(lambda: client.post("/act/LOOKED"), 20),
        "login": _time(lambda: client.post("/login", data={"name": "mia"}), 1),
        "user's click": _time(lambda: client.get(f"/referrals/{code}"), 20),
        "user's action": _time(lambda: client.post("/act/LOOKED"), 20),
    }
    with host.app.app_context():
        host.db.engine.dispose()
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=NAMES, default="sqlite")
    parser.add_argument("--repeats", type=int, action="append")
    options = parser.parse_args()
    for repeats in options.repeats or [0, 20_000, 200_000]:
        with tempfile.TemporaryDirectory() as folder, new_database(options.database, Path(folder)) as database_url:
            figures = measure(database_url, repeats)
        told = "  ".join(f"{name} {figure:.1f}" for name, figure in figures.items())
        print(f"{options.database}, {repeats:,} repeats: {told}", flush=True)
