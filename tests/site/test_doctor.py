"""``flask referrals doctor``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_login import UserMixin
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_referrals import Referral, Referrals
from tests.conftest import MakeHost
from tests.host import Host, make_host

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
            for engine in host.db.engines.values():
                engine.dispose()


@pytest.fixture
def site(sqlite_url: str, made: list[Host]) -> Any:
    """Make a site without any problem, except for those in the options."""

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
    """Return the exit code, and the level and text of each check."""
    result = host.app.test_cli_runner().invoke(args=["referrals", "doctor", "--json"], catch_exceptions=False)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return result.exit_code, {line["check"]: (line["level"], f"{line['message']} {line['fix']}") for line in lines}


def test_site_without_problems(site: Any) -> None:
    code, found = doctor(site())
    assert {level for level, _ in found.values()} == {"ok"}, found
    assert (code, len(found)) == (0, 14)


def test_codes_whose_lower_case_was_not_filled_in(site: Any) -> None:
    host = site()
    with host.app.app_context():
        tea, cup = (Referral.create("/", label=code, code=code) for code in ("tea", "cup"))
        cup.folded_code = None
        host.db.session.flush()
        tea.folded_code = "cup"
        host.db.session.commit()
        assert doctor(host)[1]["codes"][0] == "ok"
        host.db.session.execute(sa.update(host.referrals.Referral).values(folded_code=None))
        host.db.session.commit()
    level, text = doctor(host)[1]["codes"]
    assert (level, text[:29]) == ("warning", "2 links have no folded_code: ")


def test_report_for_people(site: Any) -> None:
    result = site(SECRET_KEY="dev", proxy=False).app.test_cli_runner().invoke(args=["referrals", "doctor"])
    assert result.exit_code == 1
    assert "error    SECRET_KEY: It has only 3 characters." in result.stdout
    assert "         Replace it with the output of: python -c" in result.stdout
    assert "warning  proxy: ProxyFix is not set up." in result.stdout
    assert "ok       tables: They match the models.\n" in result.stdout


def test_missing_tables_are_named_once(site: Any) -> None:
    code, found = doctor(site(tables=False))
    assert code == 1
    assert [(check, text) for check, (level, text) in found.items() if level == "error"] == [
        (
            "tables",
            "They differ from the models. Missing table: referral; Missing table: referral_response; "
            "Missing table: referral_total. Run 'alembic revision --autogenerate', then 'alembic upgrade head'.",
        )
    ]


def test_database_that_is_down_is_named_once(tmp_path: Path, made: list[Host]) -> None:
    made.append(make_host(f"sqlite:///{tmp_path / 'nowhere' / 'host.db'}", **GOOD))
    code, found = doctor(made[0])
    assert code == 1
    assert [check for check, (level, _) in found.items() if level == "error"] == ["tables"]
    assert "unable to open database file" in found["tables"][1]


@pytest.mark.parametrize(
    ("options", "check", "level", "words"),
    [
        ({"tables": False}, "tables", "error", "Missing table: referral;"),
        ({"foreign_keys": False}, "foreign keys", "warning", "PRAGMA foreign_keys=ON"),
        ({"SECRET_KEY": "k" * 15}, "SECRET_KEY", "error", "15 characters"),
        ({"SECRET_KEY": "k" * 16}, "SECRET_KEY", "warning", "16 characters"),
        ({"SECRET_KEY_FALLBACKS": ["short"]}, "SECRET_KEY_FALLBACKS", "error", "5 characters"),
        ({"REFERRALS_BASE_URL": None}, "base URL", "warning", "REFERRALS_BASE_URL"),
        ({"REFERRALS_BASE_URL": "http://shop.example"}, "base URL", "warning", "Over http"),
        ({"REFERRALS_BASE_URL": "http://localhost:5000", "TRUSTED_HOSTS": None}, "base URL", "ok", "localhost:5000"),
        ({"TRUSTED_HOSTS": None}, "TRUSTED_HOSTS", "warning", "It is not set"),
        ({"TRUSTED_HOSTS": ["other.example"]}, "TRUSTED_HOSTS", "error", "shop.example"),
        (
            {"SESSION_COOKIE_SECURE": False},
            "SESSION_COOKIE_SECURE",
            "warning",
            "also send the session cookie over http",
        ),
        ({"REFERRALS_BASE_URL": "http://shop.example"}, "SESSION_COOKIE_SECURE", "warning", "PREFERRED_URL_SCHEME"),
        (
            {"SESSION_COOKIE_SAMESITE": "Strict", "REFERRALS_COOKIE": None},
            "SESSION_COOKIE_SAMESITE",
            "error",
            "Users are logged out",
        ),
        (
            {"SESSION_COOKIE_SAMESITE": "None", "SESSION_COOKIE_SECURE": False},
            "SESSION_COOKIE_SAMESITE",
            "error",
            "refuse",
        ),
        ({"SESSION_COOKIE_SAMESITE": "Strict"}, "SESSION_COOKIE_SAMESITE", "ok", "Strict"),
        ({}, "attribution", "ok", "'referral' keeps the visitor key for 90 days"),
        ({}, "attribution", "ok", "@referrals.consent"),
        ({"REFERRALS_ATTRIBUTION_WINDOW": None}, "attribution", "ok", "for 390 days"),
        (
            {"REFERRALS_ATTRIBUTION_WINDOW": 86400 * 40, "REFERRALS_COOKIE": None},
            "attribution",
            "warning",
            "REFERRALS_COOKIE",
        ),
        ({"REFERRALS_ATTRIBUTION_WINDOW": 86400 * 31, "REFERRALS_COOKIE": None}, "attribution", "ok", "31 days"),
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


def test_server_name_is_a_base_url(site: Any) -> None:
    host = site(REFERRALS_BASE_URL=None, SERVER_NAME="shop.example", PREFERRED_URL_SCHEME="https")
    assert doctor(host)[1]["base URL"] == ("ok", "Links start with https://shop.example. ")


def test_other_checks_run_without_a_database(made: list[Host]) -> None:
    host = make_host("postgresql+psycopg://nobody@127.0.0.1:9/none", **GOOD)
    made.append(host)
    code, found = doctor(host)
    assert (code, found["tables"][0]) == (1, "error")
    assert "Check SQLALCHEMY_DATABASE_URI" in found["tables"][1]
    assert found["SECRET_KEY"][0] == "ok"


def test_replica_is_queried(site: Any, sqlite_url: str, tmp_path: Path) -> None:
    for url, level, words in (
        (sqlite_url, "ok", "on the bind 'replica'"),
        (f"sqlite:///{tmp_path / 'nowhere' / 'host.db'}", "error", "unable to open database file"),
    ):
        binds = {"SQLALCHEMY_BINDS": {"replica": url}, "REFERRALS_REPORT_BIND": "replica"}
        _, found = doctor(site(tables=level == "ok", **binds))
        assert found["reports"][0] == level
        assert words in found["reports"][1]


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_servers_have_no_pragma(host: Host) -> None:
    found = doctor(host)[1]
    assert {level for level, _ in (found["tables"], found["transactions"])} == {"ok"}, found
    assert "foreign keys" not in found
    assert found["locks"][0] == "warning"


@pytest.mark.parametrize(
    ("database_url", "options"),
    [("postgresql", {"options": "-c lock_timeout=2s"}), ("mariadb", {"init_command": "SET lock_wait_timeout=2"})],
    indirect=["database_url"],
)
def test_lock_timeout_of_a_server_is_found(new_host: MakeHost, options: dict[str, str]) -> None:
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": options})
    assert doctor(host)[1]["locks"] == ("ok", "A click waits at most 2 s for a lock. ")


@pytest.mark.parametrize(
    ("database_url", "options"),
    [("sqlite", {"isolation_level": None}), ("postgresql", {"autocommit": True}), ("mariadb", {"autocommit": True})],
    indirect=["database_url"],
)
def test_driver_that_commits_each_statement_is_found(new_host: MakeHost, options: dict[str, Any]) -> None:
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": options})
    level, text = doctor(host)[1]["transactions"]
    assert level == "error"
    assert "SQLALCHEMY_ENGINE_OPTIONS" in text


def test_listener_that_begins_transactions_on_sqlite_is_right(site: Any) -> None:
    host = site(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"isolation_level": None}})
    with host.app.app_context():
        event.listen(host.db.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    assert doctor(host)[1]["transactions"][0] == "ok"


def test_nothing_secret_is_printed(site: Any) -> None:
    host = site(SECRET_KEY="sesame", SECRET_KEY_FALLBACKS=["hunter2"])
    output = host.app.test_cli_runner().invoke(args=["referrals", "doctor"]).output
    assert "sesame" not in output
    assert "hunter2" not in output


def test_host_key_types_do_not_matter(site: Any) -> None:
    assert doctor(site(key_type=sa.Uuid))[0] == 0


@pytest.mark.parametrize(("has_migrate", "words"), [(True, "flask db upgrade"), (False, "'alembic upgrade head'")])
def test_fix_for_tables_names_the_hosts_tool(site: Any, has_migrate: bool, words: str) -> None:
    host = site(tables=False)
    if has_migrate:
        Migrate(host.app, host.db)
    assert words in doctor(host)[1]["tables"][1]


class RotatingUser:
    """A user whose ``get_id()`` changes with the password, as Flask-Security's does."""

    def get_id(self) -> str:
        raise NotImplementedError


class TestUserKeys:
    """What the rows of an app store of its users."""

    @pytest.mark.parametrize(
        ("base", "level", "words"),
        [(UserMixin, "ok", "get_id()"), (RotatingUser, "warning", "user_model=Member")],
    )
    def test_without_a_user_model(self, sqlite_url: str, base: type, level: str, words: str) -> None:
        app = Flask(__name__)
        app.config.update(SECRET_KEY="k" * 32, SQLALCHEMY_DATABASE_URI=sqlite_url)
        db = SQLAlchemy(app)

        class Member(base, db.Model):  # type: ignore[misc, name-defined]
            id = sa.Column(sa.Integer, primary_key=True)

        host = Host(app, db, Referrals(app), Member, None)
        found = doctor(host)[1]["user keys"]
        assert found[0] == level
        assert words in found[1]
        with app.app_context():
            db.engine.dispose()

    def test_with_a_user_model(self, site: Any) -> None:
        assert doctor(site())[1]["user keys"] == ("ok", "Users are stored by the primary key of User. ")
