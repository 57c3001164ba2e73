"""``flask referrals doctor``: what is amiss in a set-up."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.conftest import MakeHost
from tests.host import Host
from tests.host import make_host

GOOD: dict[str, Any] = {
    "SECRET_KEY": "k" * 32,
    "REFERRALS_BASE_URL": "https://shop.example",
    "TRUSTED_HOSTS": ["shop.example", "testserver"],
    "SESSION_COOKIE_SECURE": True,
    "SESSION_COOKIE_SAMESITE": "Lax",
}


@pytest.fixture
def made() -> Iterator[list[Host]]:
    """The sites of a test; their connections are closed after it."""
    hosts: list[Host] = []
    yield hosts
    for host in hosts:
        with host.app.app_context():
            host.db.session.remove()
            host.db.engine.dispose()


@pytest.fixture
def site(sqlite_url: str, made: list[Host]) -> Any:
    """Make a site in which all is well, but for what is said."""

    def site(proxy: bool = True, foreign_keys: bool = True, tables: bool = True, **config: Any) -> Host:
        options = {key: config.pop(key) for key in ("with_login", "key_type") if key in config}
        host = make_host(sqlite_url, **options, **{**GOOD, **config})
        made.append(host)
        if proxy:
            host.app.wsgi_app = ProxyFix(host.app.wsgi_app)  # type: ignore[method-assign]
        with host.app.app_context():
            if foreign_keys:
                event.listen(
                    host.db.engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON")
                )
            if tables:
                host.db.create_all()
        return host

    return site


def doctor(host: Host) -> tuple[int, dict[str, tuple[str, str]]]:
    """Return the exit code, and level and text of each check."""
    result = host.app.test_cli_runner().invoke(args=["referrals", "doctor", "--json"], catch_exceptions=False)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return result.exit_code, {line["check"]: (line["level"], f"{line['found']} {line['cure']}") for line in lines}


def test_all_is_well(site: Any) -> None:
    code, found = doctor(site())
    assert {level for level, _ in found.values()} == {"ok"}, found
    assert (code, len(found)) == (0, 11)


def test_people_get_lines_with_a_cure(site: Any) -> None:
    result = site(SECRET_KEY="dev", proxy=False).app.test_cli_runner().invoke(args=["referrals", "doctor"])
    assert result.exit_code == 1
    assert "error    SECRET_KEY: only 3 characters" in result.stdout
    assert "         Replace it: make one with: python -c" in result.stdout
    assert "warning  proxy: ProxyFix is not there" in result.stdout
    assert "ok       tables: as the models say\n" in result.stdout


@pytest.mark.parametrize(
    ("options", "check", "level", "words"),
    [
        ({"tables": False}, "tables", "error", "flask db upgrade"),
        ({"foreign_keys": False}, "foreign keys", "warning", "PRAGMA foreign_keys=ON"),
        ({"SECRET_KEY": "k" * 15}, "SECRET_KEY", "error", "15 characters"),
        ({"SECRET_KEY": "k" * 16}, "SECRET_KEY", "warning", "16 characters"),
        ({"SECRET_KEY_FALLBACKS": ["short"]}, "SECRET_KEY_FALLBACKS", "error", "5 characters"),
        ({"REFERRALS_BASE_URL": None}, "address", "warning", "REFERRALS_BASE_URL"),
        ({"TRUSTED_HOSTS": None}, "TRUSTED_HOSTS", "warning", "not set"),
        ({"TRUSTED_HOSTS": ["other.example"]}, "TRUSTED_HOSTS", "error", "shop.example"),
        ({"SESSION_COOKIE_SECURE": False}, "SESSION_COOKIE_SECURE", "warning", "goes over http"),
        ({"REFERRALS_BASE_URL": "http://shop.example"}, "SESSION_COOKIE_SECURE", "warning", "PREFERRED_URL_SCHEME"),
        ({"SESSION_COOKIE_SAMESITE": "Strict"}, "SESSION_COOKIE_SAMESITE", "error", "withholds"),
        (
            {"SESSION_COOKIE_SAMESITE": "None", "SESSION_COOKIE_SECURE": False},
            "SESSION_COOKIE_SAMESITE",
            "error",
            "refuse",
        ),
        ({"SESSION_COOKIE_SAMESITE": "Strict", "REFERRALS_COOKIE": "ref"}, "SESSION_COOKIE_SAMESITE", "ok", "Strict"),
        ({"REFERRALS_ATTRIBUTION_WINDOW": 86400 * 40}, "attribution", "warning", "31 days"),
        ({"REFERRALS_ATTRIBUTION_WINDOW": 86400 * 31}, "attribution", "ok", "31 days"),
        ({"proxy": False}, "proxy", "warning", "x_for=1"),
        ({"with_login": False}, "users", "warning", "user_loader"),
    ],
)
def test_finding(site: Any, options: dict[str, Any], check: str, level: str, words: str) -> None:
    code, found = doctor(site(**options))
    assert found[check][0] == level
    assert words in found[check][1]
    assert code == (1 if level == "error" else 0)


def test_proxy_fix_under_another_middleware(site: Any) -> None:
    class Middleware:
        def __init__(self, app: Any) -> None:
            self.app = app

    host = site()
    host.app.wsgi_app = Middleware(host.app.wsgi_app)
    assert doctor(host)[1]["proxy"][0] == "ok"


def test_server_name_is_an_address(site: Any) -> None:
    host = site(REFERRALS_BASE_URL=None, SERVER_NAME="shop.example", PREFERRED_URL_SCHEME="https")
    assert doctor(host)[1]["address"] == ("ok", "links begin with https://shop.example ")


def test_database_that_does_not_answer(made: list[Host]) -> None:
    host = make_host("postgresql+psycopg://nobody@127.0.0.1:9/none", **GOOD)
    made.append(host)
    code, found = doctor(host)
    assert (code, found["tables"][0]) == (1, "error")
    assert "does not answer" in found["tables"][1]
    assert found["SECRET_KEY"][0] == "ok"  # the rest is looked at all the same


def test_replica_is_asked_for_an_answer(site: Any, sqlite_url: str, tmp_path: Path) -> None:
    for url, level, words in (
        (sqlite_url, "ok", "read on the bind 'replica'"),
        (f"sqlite:///{tmp_path / 'nowhere' / 'host.db'}", "error", "does not answer: unable to open database file"),
    ):
        binds = {"SQLALCHEMY_BINDS": {"replica": url}, "REFERRALS_REPORT_BIND": "replica"}
        _, found = doctor(site(tables=level == "ok", **binds))
        assert found["reports"][0] == level
        assert words in found["reports"][1]


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_other_databases_are_not_asked_for_a_pragma(host: Host) -> None:
    found = doctor(host)[1]
    assert found["tables"][0] == "ok"
    assert "foreign keys" not in found
    assert found["locks"][0] == "warning"


@pytest.mark.parametrize(
    ("database_url", "options"),
    [("postgresql", {"options": "-c lock_timeout=2s"}), ("mariadb", {"init_command": "SET lock_wait_timeout=2"})],
    indirect=["database_url"],
)
def test_lock_timeout_of_a_server_is_found(new_host: MakeHost, options: dict[str, str]) -> None:
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": options})
    assert doctor(host)[1]["locks"] == ("ok", "a click waits for at most 2 s ")


def test_nothing_secret_is_printed(site: Any) -> None:
    host = site(SECRET_KEY="sesame", SECRET_KEY_FALLBACKS=["hunter2"])
    output = host.app.test_cli_runner().invoke(args=["referrals", "doctor"]).output
    assert "sesame" not in output
    assert "hunter2" not in output


def test_host_key_types_do_not_matter(site: Any) -> None:
    assert doctor(site(key_type=sa.Uuid))[0] == 0
