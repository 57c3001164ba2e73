"""``flask referrals create | list | show | expire | stats | top``."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from flask.cli import FlaskGroup, ScriptInfo

from flask_referrals import Referral
from flask_referrals.cli.commands import COMMANDS
from tests.conftest import MakeHost
from tests.host import Host, follow, make_host, statements

Run = Callable[..., Result]


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    """A site that knows its address."""
    return new_host(REFERRALS_BASE_URL="https://shop.example")


@pytest.fixture
def run(host: Host) -> Run:
    """Run one of the commands."""

    def run(*arguments: str) -> Result:
        return host.app.test_cli_runner().invoke(args=["referrals", *arguments], catch_exceptions=False)

    return run


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


class TestCreate:
    """``flask referrals create``."""

    def test_prints_the_url_of_the_one_link(self, host: Host, run: Run) -> None:
        result = run("create", "/spring", "--code", "spring")
        assert (result.exit_code, result.output) == (0, "https://shop.example/referrals/spring\n")
        assert run("create", "/spring").output == result.output
        assert host.client().get("/referrals/spring").location == "/spring"

    def test_takes_all_that_a_link_has(self, host: Host, run: Run) -> None:
        with host.app.app_context():
            olga, lamp = host.user("olga"), host.add(host.Product(name="lamp"))
            keys = olga.id, lamp.id
        options = ["--user", str(keys[0]), "--label", "mail", "--target", f"product:{keys[1]}"]
        (row,) = lines(run("create", "/", *options, "--code", "c", "--expires-at", "2030-01-02T03:04+01:00", "--json"))
        assert (row["code"], row["user_id"], row["label"]) == ("c", keys[0], "mail")
        assert (row["url"], row["expired_at"]) == ("https://shop.example/referrals/c", "2030-01-02T02:04:00+00:00")
        with host.app.app_context():
            referral = Referral.create(
                "/", host.db.session.get(host.User, keys[0]), "mail", host.db.session.get(host.Product, keys[1])
            )
            assert referral.code == "c"

    def test_existing_link_keeps_its_code(self, host: Host, run: Run) -> None:
        run("create", "/", "--code", "first")
        for options in (["--code", "second"], ["--expires-at", "2030-01-01"]):
            result = run("create", "/", *options)
            assert (result.exit_code, result.stdout) == (1, "")
            assert result.stderr.startswith("Error: This link already exists")
        (row,) = lines(run("list", "--json"))
        assert (row["code"], row["expired_at"]) == ("first", None)
        assert run("create", "/", "--code", "first").exit_code == 0

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["https://evil.example"], "redirect_to must be a path on this site"),
            (["/", "--user", "7"], "There is no user with the key '7'."),
            (["/", "--user", "nobody"], "There is no user with the key 'nobody'."),
            (["/", "--target", "product:7"], "There is no target 'product:7'"),
            (["/", "--target", "nothing"], "There is no target 'nothing'"),
            (["/", "--code", "ä"], "code must be 1 to 64 letters"),
            (["/", "--expires-at", "soon"], "'soon' is not a time such as"),
            (["/", "--expires-at", "9999-12-31"], "must be in a year from 2 to 9998"),
        ],
    )
    def test_mistakes_are_named(self, host: Host, run: Run, arguments: list[str], words: str) -> None:
        result = run("create", *arguments)
        assert result.exit_code in (1, 2)
        assert words in result.stderr
        assert lines(run("list", "--json")) == []

    def test_needs_the_base_url(self, new_host: MakeHost, run: Run) -> None:
        result = new_host().app.test_cli_runner().invoke(args=["referrals", "create", "/"])
        assert (result.exit_code, lines(run("list", "--json"))) == (1, [])
        assert "needs REFERRALS_BASE_URL (or SERVER_NAME)" in result.stderr


class TestList:
    """``flask referrals list``."""

    @pytest.fixture(autouse=True)
    def links(self, host: Host) -> None:
        """Three links, the newest by Olga and clicked twice, the oldest expired."""
        now = datetime.now(timezone.utc)
        with host.app.app_context():
            olga = host.user("olga")
            for days, code, user in ((3, "old", None), (2, "middle", None), (1, "new", olga)):
                label = "spring" if code != "old" else ""
                referral = Referral.create(f"/{code}", user, label, code=code)
                referral.created_at = now - timedelta(days=days)
                referral.expired_at = now - timedelta(hours=1) if code == "old" else None
            host.db.session.commit()
        for _ in range(2):
            client = host.client()
            client.get("/referrals/new")
            client.get("/referrals/new")  # a repeat
        client.post("/act/BOUGHT")

    @pytest.mark.parametrize(
        ("options", "codes"),
        [
            ([], ["new", "middle", "old"]),
            (["--limit", "1"], ["new"]),
            (["--user", "1"], ["new"]),
            (["--label", "spring"], ["new", "middle"]),
            (["--active"], ["new", "middle"]),
            (["--expired"], ["old"]),
        ],
    )
    def test_newest_first(self, host: Host, run: Run, options: list[str], codes: list[str]) -> None:
        assert [row["code"] for row in lines(run("list", "--json", *options))] == codes

    def test_counts_what_counts(self, host: Host, run: Run) -> None:
        counts = {row["code"]: (row["clicks"], row["actions"]) for row in lines(run("list", "--json"))}
        assert counts == {"new": (2, 1), "middle": (0, 0), "old": (0, 0)}

    def test_number_of_statements_is_fixed(self, host: Host, run: Run) -> None:
        sent_for = []
        for limit in ("1", "3"):
            with host.app.app_context(), statements(host.db) as sent:
                run("list", "--limit", limit)
            sent_for.append(len(sent))
        assert sent_for[0] == sent_for[1] <= 3

    def test_is_a_table_for_people(self, host: Host, run: Run) -> None:
        with host.app.app_context():
            Referral.create("/" + "x" * 60, label="\x1b[2J\u202ea", code="odd")
        header, odd, new, *_ = run("list").output.splitlines()
        assert header.split() == ["Code", "User", "Label", "Redirects", "to", "Clicks", "Actions", "Created", "Expires"]
        assert new.split()[:6] == ["new", "1", "spring", "/new", "2", "1"]
        assert header.index("Label") == new.index("spring")
        # What a user wrote does not steer the terminal, nor break the table.
        assert "\ufffd[2J\ufffda" in odd
        assert f"/{'x' * 46}… " in odd


class TestShow:
    """``flask referrals show``."""

    def test_says_what_happened_and_why_it_does_not_count(self, host: Host, run: Run) -> None:
        client = host.client()
        code = follow(host, client, "/welcome")
        client.get(f"/referrals/{code}")
        client.post("/act/BOUGHT")
        (row,) = lines(run("show", code, "--json"))
        assert (row["code"], row["redirect_to"]) == (code, "/welcome")
        found = [(each["action"], each["ignored"]) for each in row["responses"]]
        assert found == [("BOUGHT", None), ("RESPONDED", "repeat"), ("RESPONDED", None)]
        text = run("show", code, "--limit", "2").output
        assert f"code: {code}\n" in text
        assert text.count("RESPONDED") == 1
        assert "repeat" in text

    def test_says_where_the_link_is_and_how_often_it_counted(self, host: Host, run: Run, sqlite_url: str) -> None:
        client = host.client()
        code = follow(host, client, "/welcome")
        client.post("/act/BOUGHT")
        (row,) = lines(run("show", code, "--json"))
        assert (row["url"], row["clicks"], row["actions"]) == (f"https://shop.example/referrals/{code}", 1, 1)
        assert f"clicks: 1\nactions: 1\nurl: https://shop.example/referrals/{code}\n" in run("show", code).output

    def test_needs_no_base_url(self, new_host: MakeHost) -> None:
        host = new_host()
        with host.app.app_context():
            Referral.create("/", code="c")
        assert "url: /referrals/c\n" in host.app.test_cli_runner().invoke(args=["referrals", "show", "c"]).output

    def test_keeps_visitors_keys_to_itself(self, host: Host, run: Run) -> None:
        code = follow(host, host.client())
        with host.app.app_context():
            key = host.responses()[0].session_key
        assert key is not None
        assert key not in run("show", code, "--json").output

    @pytest.mark.parametrize("command", ["show", "expire"])
    @pytest.mark.parametrize("code", ["unknown", "ill formed\0"])
    def test_unknown_code(self, host: Host, run: Run, command: str, code: str) -> None:
        result = run(command, code)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: There is no link with the code ")


@pytest.mark.parametrize("key", ["7", "nobody", "-1", "\u0663"])
def test_unknown_user(run: Run, key: str) -> None:
    for command in (["list", "--user"], ["explain", "--user"], ["export-user"], ["forget-user", "--yes"]):
        result = run(*command, "--", key) if "--user" not in command else run(*command, key)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith((f"Error: There is no user with the key {key!r}", f"Error: {key!r} cannot be"))


class TestExpire:
    """``flask referrals expire``."""

    def test_link_leads_on_and_earns_nothing(self, host: Host, run: Run) -> None:
        run("create", "/", "--code", "c")
        result = run("expire", "c")
        assert result.exit_code == 0
        assert result.output.startswith("The link c expires at ")
        client = host.client()
        assert client.get("/referrals/c").status_code == 302
        assert client.post("/act/BOUGHT").text == ""

    def test_at_a_time(self, host: Host, run: Run) -> None:
        run("create", "/", "--code", "c")
        assert run("expire", "c", "--at", "2030-01-01").output == "The link c expires at 2030-01-01 00:00:00Z.\n"
        (row,) = lines(run("list", "--active", "--json"))
        assert row["expired_at"] == "2030-01-01T00:00:00+00:00"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("key_type", [sa.Uuid, sa.String(36)])
def test_users_with_other_keys(new_host: MakeHost, key_type: Any) -> None:
    key = "12345678-1234-5678-1234-567812345678"
    new_key = lambda: sa.types.to_instance(key_type).python_type(key)  # noqa: E731
    host = new_host(key_type=key_type, new_key=new_key, REFERRALS_BASE_URL="https://shop.example")
    with host.app.app_context():
        host.user("olga")
    runner = host.app.test_cli_runner()
    (row,) = lines(runner.invoke(args=["referrals", "create", "/", "--user", key, "--json"]))
    assert row["user_id"] == key
    assert len(lines(runner.invoke(args=["referrals", "list", "--user", key, "--json"]))) == 1
    assert runner.invoke(args=["referrals", "list"]).exit_code == 0


@pytest.mark.slow
def test_import_loads_neither_what_commands_need_nor_a_dialect() -> None:
    ours = "flask_referrals.contrib.pinax", "flask_referrals.contrib.dashboard", "flask_referrals.cli.export"
    heavy = "alembic", "flask_migrate", "sqlalchemy.dialects.mysql", *ours
    code = f"import sys, flask_referrals; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("command", "is_told"), [(None, True), ("run", True), ("routes", False)])
def test_commands_do_not_warn_of_the_hosts_of_requests(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, command: str | None, is_told: bool
) -> None:
    context = click.Context(click.Command(command), info_name=command, obj=ScriptInfo()) if command else None
    with context.scope() if context is not None else nullcontext():
        make_host(sqlite_url, TESTING=False)
    assert ("Links use the request's Host header." in caplog.text) == is_told


def test_commands_of_flask_are_recognised(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    flask = FlaskGroup(create_app=lambda: make_host(sqlite_url, TESTING=False).app, add_version_option=False)
    result = CliRunner().invoke(flask, ["referrals", "simulate", "a.b"])
    assert "cannot be a code" in result.stderr
    assert caplog.text == ""


def test_without_a_user_model(sqlite_url: str) -> None:
    """A user is what Flask-Login's get_id() says."""
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    from flask_referrals import Referrals

    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=sqlite_url, REFERRALS_BASE_URL="https://shop.example"
    )
    db = SQLAlchemy(app)
    Referrals(app)
    with app.app_context():
        db.create_all()
    (row,) = lines(app.test_cli_runner().invoke(args=["referrals", "create", "/", "--user", "olga", "--json"]))
    assert row["user_id"] == "olga"
    with app.app_context():
        db.engine.dispose()


class TestOutput:
    """What visitors and users wrote, on a terminal."""

    COMMANDS = (
        ["list"],
        ["show", "c"],
        ["simulate", "c"],
        ["explain", "--response", "1"],
        ["export", "referrals"],
        ["export", "responses"],
        ["export-user", "1"],
        ["list", "--json"],
    )

    @pytest.fixture
    def odd(self, host: Host) -> None:
        """A link whose owner wrote control codes and many alphabets."""
        with host.app.app_context():
            label = "\x1b]0;x\x07\x9b31m\u202e \u010d \u8336 \U0001fad6"
            referral = Referral.create("/", host.user("olga"), label, code="c")
            referral.respond("BUY \u8336", target=referral)

    @pytest.mark.usefixtures("odd")
    def test_has_no_control_codes(self, host: Host) -> None:
        for arguments in self.COMMANDS:
            output = host.app.test_cli_runner().invoke(args=["referrals", *arguments], color=True).stdout
            assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", output), arguments

    @pytest.mark.usefixtures("odd")
    @pytest.mark.parametrize("charset", ["cp1252", "latin-1", "ascii"])
    def test_is_printed_in_any_encoding(self, host: Host, charset: str) -> None:
        for arguments in self.COMMANDS:
            result = host.app.test_cli_runner(charset=charset).invoke(args=["referrals", *arguments])
            assert result.exit_code == 0, result.exception
        assert host.app.test_cli_runner(charset=charset).invoke(args=["referrals", "simulate", "--help"]).exit_code == 0


class TestStats:
    """``stats`` and ``top``: what came of two links."""

    @pytest.fixture
    def codes(self, host: Host) -> list[str]:
        with host.app.app_context():
            olga = host.user("olga")
            codes = [Referral.create("/a", olga).code, Referral.create("/b", label="=blog").code]
        for number, code in enumerate((codes[0], codes[0], codes[1])):
            client = host.client()
            client.get(f"/referrals/{code}?utm_source=news")
            client.post("/signup", data={"name": f"friend {number}"})
        with host.app.app_context():
            friend = host.db.session.get(host.User, 2)
            Referral.record_response("PURCHASED", user=friend, value=Decimal("1234.5"), currency="EUR")
        return codes

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ([], ["Action Count Value", "RESPONDED 3", "SIGNED_UP 3", "PURCHASED 1 1,234.50 EUR"]),
            (["--by", "utm_source"], ["Utm_source Clicks Signed up Purchased Value", "news 3 3 1 1,234.50 EUR"]),
            (["--by", "owner"], ["Owner Clicks Signed up Purchased Value", "1 2 2 1 1,234.50 EUR", "(none) 1 1 0"]),
            (["--user", "1", "--by", "label"], ["Label Clicks Signed up Purchased Value", "(none) 2 2 1 1,234.50 EUR"]),
            (["--until", "2020-01-01"], ["Action Count Value", "RESPONDED 0", "SIGNED_UP 0", "PURCHASED 0"]),
            (
                ["--by", "label", "--label", "=blog", "--csv"],
                ["label,action,count,currency,value", "'=blog,RESPONDED,1,,", "'=blog,SIGNED_UP,1,,"],
            ),
        ],
    )
    def test_stats_prints(self, codes: list[str], run: Run, arguments: list[str], expected: list[str]) -> None:
        assert [" ".join(line.split()) for line in run("stats", *arguments).stdout.splitlines()] == expected

    def test_json_has_all_actions(self, codes: list[str], run: Run) -> None:
        total = {"count": 1, "value": {}}
        found = lines(run("stats", "--link", codes[1], "--by", "referral", "--json"))
        assert found == [{"referral": codes[1], "actions": {"RESPONDED": total, "SIGNED_UP": total}}]

    def test_top_lists_owners(self, codes: list[str], run: Run) -> None:
        assert run("top").stdout.split() == ["Place", "User", "Count", "1", "1", "2"]
        assert run("top", "value:EUR").stdout.split() == ["Place", "User", "Value", "1", "1", "1234.5000"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["stats", "--by", "colour"], "by must be one of"),
            (["stats", "--since", "March"], "is not a day such as"),
            (["stats", "--user", "99"], "There is no user"),
            (["stats", "--link", "nothing"], "There is no link"),
            (["stats", "--since", "2026-03-02", "--until", "2026-03-01"], "until is not after since"),
        ],
    )
    def test_mistakes_are_named(self, run: Run, arguments: list[str], words: str) -> None:
        result = run(*arguments)
        assert result.exit_code == (2 if "March" in arguments else 1)
        assert words in result.output


class TestHelp:
    """``flask referrals --help``."""

    @pytest.fixture
    def output(self, sqlite_url: str) -> str:
        runner = make_host(sqlite_url).app.test_cli_runner()
        return runner.invoke(args=["referrals", "--help"], terminal_width=80).output

    def test_lists_all_commands(self, output: str) -> None:
        for command in (*COMMANDS, "import"):
            assert f"\n  {command} " in output

    def test_cuts_no_summary(self, output: str) -> None:
        assert "..." not in output.partition("Commands:")[2]

    def test_purge_says_which_counts_stay(self, sqlite_url: str) -> None:
        output = make_host(sqlite_url).app.test_cli_runner().invoke(args=["referrals", "purge", "--help"]).output
        assert "Days that are rolled up keep their counts" in output


def test_other_packages_add_commands(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extra.py").write_text("import click\n\n@click.command()\ndef hello():\n    click.echo('Hello.')\n")
    (tmp_path / "extra-1.0.dist-info").mkdir()
    entry_points = "[flask_referrals.commands]\nhello = extra:hello\n"
    (tmp_path / "extra-1.0.dist-info" / "entry_points.txt").write_text(entry_points)
    monkeypatch.syspath_prepend(tmp_path)
    runner = make_host(sqlite_url).app.test_cli_runner()
    assert "\n  hello\n" in runner.invoke(args=["referrals", "--help"]).output
    assert runner.invoke(args=["referrals", "hello"]).output == "Hello.\n"
    assert runner.invoke(args=["referrals", "goodbye"]).exit_code == 2
