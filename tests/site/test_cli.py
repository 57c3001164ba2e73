"""``flask referrals create | list | show | expire | void | stats | top``."""

import inspect
import json
import re
import subprocess
import sys
import unicodedata
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from flask.cli import FlaskGroup, ScriptInfo

from flask_referrals import Referral, Referrals
from flask_referrals.cli import group
from flask_referrals.cli.commands import COMMANDS
from tests.conftest import MakeHost, NewApp
from tests.databases import on_sqlite
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

    @on_sqlite
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
        assert re.search(r" /x+… ", odd)


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

    def test_one_response_has_all_its_values_in_one_row(self, host: Host, run: Run) -> None:
        with host.app.app_context():
            lamp = host.add(host.Product(name="lamp"))
            link = Referral.create("/", code="c")
            bought = link.respond("BOUGHT", target=lamp, value=Decimal("1234.5"), currency="EUR")
            bought.ip_address, bought.http_referrer, bought.ignored = "1.2.3.0", "https://blog.example/", "bot"
            host.db.session.commit()
            keys = bought.id, lamp.id
        header, *table = run("show", "c").output.partition("\n\n")[2].splitlines()
        assert header.split() == ["Id", "Time", "Action", "User", "Ignored", "From"]
        assert [line.split()[-2:] for line in table] == [
            ["bot", "1.2.3.0"],
            ["EUR", "https://blog.example/"],
            [f"product:{keys[1]}"],
        ]
        assert (int(table[0].split()[0]), table[1].split()[0]) == (keys[0], "1,234.50")
        (row,) = lines(run("show", "c", "--json"))
        (response,) = row["responses"]
        assert (response["id"], response["value"], response["currency"]) == (keys[0], "1234.5000", "EUR")

    @pytest.mark.parametrize("code", ["FRIEND", "friend.", "https://shop.example/referrals/friend"])
    def test_expire_names_the_link_that_it_has_found(self, run: Run, code: str) -> None:
        run("create", "/", "--code", "friend")
        assert run("expire", code, "--at", "2030-01-02").stdout == "The link friend expires at 2030-01-02 00:00:00Z.\n"

    @pytest.mark.parametrize("command", ["show", "expire"])
    @pytest.mark.parametrize("code", ["unknown", "ill formed\0"])
    def test_unknown_code(self, host: Host, run: Run, command: str, code: str) -> None:
        result = run(command, code)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: There is no link with the code ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("create / --user 99", "There is no user with the key '99'. Give a primary key of the user table as --user."),
        ("create / --target product:7", "There is no target 'product:7'. Give TYPE:KEY as --target;"),
        ("list --user 99", "as --user."),
        (
            "list --label nope",
            "No link has the label 'nope'. Give a label that 'flask referrals list' shows as --label.",
        ),
        ("show nope", "There is no link with the code 'nope'. Give a code that 'flask referrals list' shows as CODE."),
        ("expire nope", "shows as CODE."),
        ("simulate nope", "Give a code that 'flask referrals list' shows as CODE."),
        ("void 99 --reason fraud", "There is no response with the id 99. Give an id that 'flask referrals show CODE'"),
        ("explain --user 99", "There is no user with the key '99', nor anything stored of one. Give a primary key of"),
        ("explain --user nobody", "There is no user with the key 'nobody'"),
        ("explain --user \u0663", "There is no user with the key '\u0663'"),
        ("explain --response 99", "There is no response with the id 99. Give an id that 'flask referrals show CODE'"),
        ("stats --user 99", "as --user."),
        ("stats --link nope", "shows as --link."),
        ("stats --label nope", "shows as --label."),
        ("stats --label nope\0", "shows as --label."),
        ("stats --by colour", "--by must be one of 'day', 'week'"),
        ("stats --since 2026-03-02 --until 2026-03-01", "--until is not after since."),
        ("top --since 2026-03-02 --until 2026-03-01", "--until is not after since."),
        ("top --until 9999-12-31", "--until must be in a year from 2 to 9998."),
        ("export-user 99", "as KEY."),
        ("export-user -- -1", "There is no user with the key '-1'"),
        ("forget-user --yes 99", "as KEY."),
        (
            "import --from pinax --target shop.item=nope -",
            "There is no target 'shop.item=nope'. Give APP.MODEL=NAME as",
        ),
    ],
)
def test_what_is_unknown_is_named_with_the_option_and_what_to_do(run: Run, arguments: str, words: str) -> None:
    result = run(*arguments.split(" "))
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


@pytest.mark.parametrize("command", ["create /", "show c", "stats", "rollup", "export responses", "rekey"])
def test_missing_tables_are_reported_without_a_traceback(new_app: NewApp, command: str) -> None:
    app, db = new_app(REFERRALS_BASE_URL="https://shop.example")

    class User(db.Model):  # type: ignore[name-defined, misc]
        id = db.Column(sa.Integer, primary_key=True)

    Referrals(app, user_model=User)
    result = app.test_cli_runner().invoke(args=["referrals", *command.split()], catch_exceptions=False)
    assert result.exit_code == 1
    assert re.match(
        r"Error: The database raised \w+: .*referral.*\. Run 'flask referrals doctor' to check", result.stderr
    )


def test_database_that_is_down_is_reported_without_a_traceback(tmp_path: Path) -> None:
    app = make_host(f"sqlite:///{tmp_path / 'missing' / 'host.db'}").app
    result = app.test_cli_runner().invoke(args=["referrals", "list"], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: The database raised OperationalError: unable to open database file.")


class TestVoid:
    """``flask referrals void``."""

    @pytest.fixture
    def ids(self, host: Host) -> list[int]:
        """A click that was repeated, and a purchase."""
        client = host.client()
        code = follow(host, client)
        client.get(f"/referrals/{code}")
        client.post("/act/PURCHASED")
        with host.app.app_context():
            responses = host.responses()
            responses[2].value, responses[2].currency = Decimal(9), "EUR"
            host.db.session.commit()
            return [response.id for response in responses]

    def ignored(self, host: Host) -> dict[str, list[str | None]]:
        with host.app.app_context():
            found: dict[str, list[str | None]] = {}
            for response in host.responses():
                found.setdefault(response.action, []).append(response.ignored)
            return found

    def test_takes_several_out_of_the_counts_and_keeps_the_reason(self, host: Host, run: Run, ids: list[int]) -> None:
        click_id, _, purchase_id = ids
        result = run("void", str(purchase_id), str(click_id), str(click_id), "--reason", "refund of order 17")
        assert result.exit_code == 0
        first, second = result.output.splitlines()
        assert first.startswith(f"Voided: response {purchase_id} (PURCHASED, 9.00 EUR, at 20")
        assert second.startswith(f"Voided: response {click_id} (RESPONDED, at 20")
        assert self.ignored(host) == {"RESPONDED": ["void", "void"], "PURCHASED": ["void"], "VOIDED": ["void", "void"]}
        (row,) = lines(run("list", "--json"))
        assert (row["clicks"], row["actions"]) == (0, 0)
        with host.app.app_context():
            reasons = [response.params and response.params["reason"] for response in host.responses()[3:]]
        assert reasons == ["refund of order 17"] * 2

    def test_can_be_run_again(self, host: Host, run: Run, ids: list[int]) -> None:
        run("void", str(ids[2]), "--reason", "first")
        result = run("void", str(ids[2]), "--reason", "second")
        assert result.exit_code == 0
        assert result.output.startswith(f"Void already: response {ids[2]} (PURCHASED")
        assert len(self.ignored(host)["VOIDED"]) == 1

    @pytest.mark.parametrize(
        ("arguments", "words", "exit_code"),
        [
            (["99", "--reason", "fraud"], "There is no response with the id 99", 1),
            (["--reason", " "], "--reason must be printable text, and not empty", 1),
            (["--reason", "a\x1b[2J"], "--reason must be printable text", 1),
            (["--reason", "x" * 201], "--reason is longer than 200 characters", 1),
            ([], "Missing option '--reason'", 2),
            (["abc", "--reason", "fraud"], "'abc' is not a valid integer", 2),
            (["9" * 30, "--reason", "fraud"], "is not in the range", 2),
        ],
    )
    def test_mistake_voids_nothing(
        self, host: Host, run: Run, ids: list[int], arguments: list[str], words: str, exit_code: int
    ) -> None:
        result = run("void", str(ids[0]), *arguments)
        assert (result.exit_code, result.stdout) == (exit_code, "")
        assert words in result.stderr
        assert "VOIDED" not in self.ignored(host)


class TestTables:
    """Tables on a terminal of 80 columns."""

    COMMANDS = (
        "list",
        "show {code}",
        "explain --user {user}",
        "stats",
        *(f"stats --by {name}" for name in ("day", "referral", "owner", "label", "referrer", "ignored", "utm_source")),
        "top",
        "top value:EUR",
    )

    @pytest.fixture
    def names(self, new_host: MakeHost) -> tuple[Run, dict[str, str]]:
        """A site whose values are all long."""
        host = new_host(key_type=sa.Uuid, new_key=uuid.uuid4, REFERRALS_BASE_URL="https://shop.example")
        with host.app.app_context():
            olga = host.user("olga")
            link = Referral.create("/" + "x" * 2000, olga, "\u8336" * 100, olga, code="c" * 64)
            link.expired_at = datetime(2030, 1, 1, tzinfo=timezone.utc)
            friend, value = host.user("friend"), Decimal("9876543210.5")
            for action in ("RESPONDED", "A" * 120):
                for currency, ignored in (("EUR", None), ("GBP", None), ("USD", None), ("EUR", "a long reason, too!!")):
                    sold = link.respond(action, user=friend, target=olga, value=value, currency=currency)
                    sold.http_referrer, sold.ip_address = f"https://{'r' * 246}", "2001:db8:85a3:8d3:1319:8a2e:370:7348"
                    sold.params, sold.ignored = {"utm_source": "e\u0301" * 60}, ignored
            host.db.session.commit()
            key = str(friend.id)
        run = lambda *arguments: host.app.test_cli_runner().invoke(args=["referrals", *arguments])  # noqa: E731
        return run, {"code": "c" * 64, "user": key}

    @pytest.mark.parametrize("command", COMMANDS)
    def test_fit(self, names: tuple[Run, dict[str, str]], command: str) -> None:
        run, values = names
        result = run(*command.format(**values).split())
        assert result.exit_code == 0, result.exception
        table = result.stdout.rpartition("\n\n")[2].splitlines()
        assert len(table) > 1
        assert max(map(width, table)) <= 80
        if command.startswith(("stats", "top value", "show")):
            assert re.search(r"\d,\d{3},\d{3},\d{3}\.\d\d EUR", result.stdout)  # an amount is never cut

    @pytest.mark.parametrize(
        "label", ["ชื่อที่ดี", "हिन्दी", "\u0645\u06cc\u200c\u0634\u0648\u062f", "\U0001f469\u200d\U0001f373", "\u2764\ufe0f"]
    )
    def test_align_text_with_marks_and_joiners(self, host: Host, run: Run, label: str) -> None:
        with host.app.app_context():
            Referral.create("/", label=label)
        header, line = run("list").stdout.splitlines()
        assert label in line
        assert width(line[: line.index(" /")]) == header.index(" Redirects")

    @pytest.mark.parametrize(
        ("command", "sentence"),
        [
            ("list", "There are no such links."),
            ("list --expired", "There are no such links."),
            ("show c", "There are no responses."),
            ("explain --user 1", "This user or visitor has no touches."),
            ("stats --by label", "There are no such responses."),
            ("stats --by day", "There are no such responses."),
            ("top", "Nobody's links brought RESPONDED."),
            ("top PURCHASD", "Nobody's links brought PURCHASD."),
            ("top value:EUR", "Nobody's links brought value:EUR."),
            ("top \x1b[2J", "Nobody's links brought \ufffd[2J."),
        ],
    )
    def test_nothing_is_a_sentence(self, host: Host, run: Run, command: str, sentence: str) -> None:
        with host.app.app_context():
            host.user("olga")
            if command.startswith("show"):
                Referral.create("/", code="c")
        result = run(*command.split())
        assert result.exit_code == 0
        assert result.stdout.splitlines()[-1] == sentence


def width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.category(each) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )


class TestExpire:
    """``flask referrals expire``."""

    def test_link_redirects_and_earns_nothing(self, host: Host, run: Run) -> None:
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
    """``stats`` and ``top``: statistics of two links."""

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
            (["--by", "utm_source"], ["utm_source Clicks Signed up Purchased Value", "news 3 3 1 1,234.50 EUR"]),
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

    @on_sqlite
    def test_two_formats_are_refused(self, run: Run) -> None:
        result = run("stats", "--csv", "--json")
        assert (result.exit_code, "Give either --csv or --json." in result.stderr) == (2, True)

    @on_sqlite
    def test_steps_have_the_sites_words(self, new_host: MakeHost) -> None:
        host = new_host(REFERRALS_ACTION_DISPLAY={"SIGNED_UP": "Joined us"})
        with host.app.app_context():
            code = Referral.create("/").code
        host.client().get(f"/referrals/{code}")
        printed = host.app.test_cli_runner().invoke(args=["referrals", "stats", "--by", "label"])
        assert printed.stdout.split("\n")[0].split() == ["Label", "Clicks", "Joined", "us", "Purchased", "Value"]

    def test_json_has_all_actions(self, codes: list[str], run: Run) -> None:
        total = {"count": 1, "value": {}}
        found = lines(run("stats", "--link", codes[1], "--by", "referral", "--json"))
        assert found == [{"referral": codes[1], "actions": {"RESPONDED": total, "SIGNED_UP": total}}]

    def test_top_lists_owners(self, codes: list[str], run: Run) -> None:
        assert run("top").stdout.split() == ["Place", "User", "Count", "1", "1", "2"]
        assert run("top", "value:EUR").stdout.split() == ["Place", "User", "Value", "1", "1", "1,234.50", "EUR"]

    def test_day_must_be_one(self, run: Run) -> None:
        result = run("stats", "--since", "March")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "is not a day such as" in result.stderr


class TestHelp:
    """``flask referrals --help``."""

    @pytest.fixture
    def output(self, sqlite_url: str) -> str:
        runner = make_host(sqlite_url).app.test_cli_runner()
        # On a terminal of 80 columns, click leaves two empty.
        return runner.invoke(args=["referrals", "--help"], terminal_width=78).output

    def test_lists_all_commands(self, output: str) -> None:
        for command in (*COMMANDS, "import"):
            assert f"\n  {command} " in output

    def test_cuts_no_summary(self, output: str) -> None:
        assert "..." not in output.partition("Commands:")[2]

    def test_explains_each_command_argument_and_option(self, sqlite_url: str) -> None:
        context = click.Context(group, info_name="referrals")
        commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
        assert set(commands) >= {*COMMANDS, "import"}
        for name, command in commands.items():
            assert command is not None and command.help, name
            prints_table = "echo_table(" in inspect.getsource(inspect.unwrap(cast(Any, command.callback)))
            assert not prints_table or any("--json" in option.opts for option in command.params), name
            output = command.get_help(click.Context(command, context, name, terminal_width=80))
            for parameter in command.params:
                words = (name, parameter.name)
                if isinstance(parameter, click.Option):
                    assert parameter.help and parameter.help.endswith("."), words
                    has_default = isinstance(parameter.default, (str, int)) and bool(parameter.default)
                    assert not has_default or parameter.show_default, words
                else:
                    shown = parameter.make_metavar(click.Context(command)).strip("[]{}.")
                    for each in shown.split("|"):
                        assert re.search(rf"\b{each}\b", command.help), words
            assert max(map(len, output.splitlines())) <= 80, name

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
