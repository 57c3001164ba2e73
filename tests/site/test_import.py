"""``flask referrals import``: moving over from pinax-referrals."""

import csv
import io
import json
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from sqlalchemy.orm import Mapped, mapped_column

from flask_referrals import Referral, ReferralMixin, ReferralResponse, ReferralResponseMixin
from flask_referrals.contrib.pinax import Options, import_pinax, read_json
from flask_referrals.db.totals import roll_up
from flask_referrals.state import current_state
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import Host, statements
from tests.site.helpers import CONFLICT, declare_on, failing

DUMP = Path(__file__).parents[1] / "data" / "pinax-4.5.0.json"
COUNTS = DUMP.with_name("pinax-4.5.0-counts.json")
ROWS: list[dict[str, Any]] = json.loads(DUMP.read_text())
TIME = "2020-02-29T12:30:00.123Z"


def rows_of(model: str) -> list[dict[str, Any]]:
    """Rows of the real dump, with their keys among their fields."""
    return [{"id": row["pk"], **row["fields"]} for row in ROWS if row["model"] == f"referrals.{model}"]


LINKS, RESPONSES = rows_of("referral"), rows_of("referralresponse")
CODE = {number: link["code"] for number, link in enumerate(LINKS, 1)}


def link(pk: Any = 1, **fields: Any) -> dict[str, Any]:
    """A row as Django dumps it."""
    fields = {"user": None, "label": "", "code": f"code-{pk}", "redirect_to": "/", "created_at": TIME, **fields}
    return {"model": "referrals.referral", "pk": pk, "fields": fields}


def response(pk: Any = 1, **fields: Any) -> dict[str, Any]:
    """A row as Django dumps it."""
    fields = {"referral": 1, "session_key": "s", "action": "RESPONDED", "created_at": TIME, **fields}
    return {"model": "referrals.referralresponse", "pk": pk, "fields": fields}


Import = Callable[..., Result]


@pytest.fixture
def run(host: Host, tmp_path: Path) -> Import:
    """Import a file, a text, or rows; returns the command's result."""

    def run(what: Any, *options: str) -> Result:
        if not isinstance(what, Path):
            text = what if isinstance(what, str) else json.dumps(what)
            what = tmp_path / "dump.json"
            what.write_text(text, encoding="utf-8", errors="surrogateescape")
        arguments = ["referrals", "import", "--from", "pinax", str(what), *options]
        return host.app.test_cli_runner().invoke(args=arguments, catch_exceptions=False)

    return run


@pytest.fixture
def people(host: Host) -> tuple[Any, Any]:
    """Olga and Fred, who have the keys 1 and 2 as in the dump."""
    with host.app.app_context():
        olga, fred = host.user("olga").id, host.user("fred").id
    assert (olga, fred) == (1, 2)
    return olga, fred


def links(host: Host) -> dict[str, Any]:
    with host.app.app_context():
        model = host.referrals.Referral
        return {each.code: each for each in host.db.session.scalars(sa.select(model).order_by(model.id))}


def responses(host: Host) -> list[ReferralResponse]:
    with host.app.app_context():
        return host.responses()


class TestRealData:
    """What pinax-referrals 4.5.0 and Django 5.2 wrote."""

    def test_old_code_redirects_and_is_credited(self, host: Host, run: Import, people: Any) -> None:
        assert run(DUMP).exit_code == 0
        for code in CODE.values():
            client = host.client()
            answer = client.get(f"/referrals/{code}/")
            assert answer.status_code == 302
            is_active = code != CODE[6]
            assert client.post("/act/BOUGHT").text == (code if is_active else "")
        assert host.client().get(f"/referrals/{CODE[1]}").location == "/welcome/"

    def test_links_are_as_they_were(self, host: Host, run: Import, people: Any) -> None:
        run(DUMP, "--target", "auth.group=product")
        found = links(host)
        assert list(found) == list(CODE.values())
        for old in LINKS:
            new = found[old["code"]]
            assert (new.user_id, new.label, new.redirect_to) == (old["user"], old["label"], old["redirect_to"])
            assert new.created_at == datetime.fromisoformat(old["created_at"].replace("Z", "+00:00"))
            assert (new.expired_at is None) == (old["expired_at"] is None)
        about = found[CODE[3]]
        assert (about.target_type, about.target_id) == ("product", "1")

    def test_responses_are_as_they_were(self, host: Host, run: Import, people: Any) -> None:
        run(DUMP)
        new = responses(host)
        code_of = {each.id: code for code, each in links(host).items()}
        assert [(code_of[each.referral_id], each.action, each.user_id) for each in new] == [
            (CODE[old["referral"]], old["action"], old["user"]) for old in RESPONSES
        ]
        assert [each.created_at.isoformat()[:23] + "Z" for each in new] == [old["created_at"] for old in RESPONSES]
        assert [each.is_touch for each in new] == [old["action"] == "RESPONDED" for old in RESPONSES]
        assert [each.ignored for each in new] == ["self"] + 7 * [None]  # Olga, on her own link

    @pytest.mark.parametrize("is_rolled_up", [False, True])
    def test_counts_are_its_own_but_for_those_of_owners(
        self, host: Host, run: Import, people: Any, is_rolled_up: bool
    ) -> None:
        """It counts the clicks of owners on their own links; here they are ignored."""
        run(DUMP)
        theirs, owner = json.loads(COUNTS.read_text()), {link["id"]: link["user"] for link in LINKS}
        own = [row for row in RESPONSES if row["user"] is not None and row["user"] == owner[row["referral"]]]
        own_of_links = Counter((CODE[row["referral"]], row["action"]) for row in own)
        own_of_owners = Counter((row["user"], row["action"]) for row in own)
        assert own_of_links == {(CODE[1], "RESPONDED"): 1}
        links = [
            (code, action, number) for code, actions in theirs["links"].items() for action, number in actions.items()
        ]
        expected = {(code, action): number - own_of_links[code, action] for code, action, number in links}

        with host.app.app_context():
            if is_rolled_up:
                roll_up(current_state().database)
            stats = host.referrals.stats(by="referral")
            assert {
                (link.code, action): total.count for link, totals in stats.rows for action, total in totals.items()
            } == expected
            for action in ("RESPONDED", "BOUGHT"):
                assert stats.totals[action].count == sum(expected.get((code, action), 0) for code in CODE.values())
                of_owners = {int(key): actions.get(action, 0) for key, actions in theirs["owners"].items()}
                board = {user.id: number for user, number in host.referrals.leaderboard(action)}
                assert board == +Counter(
                    {key: number - own_of_owners[key, action] for key, number in of_owners.items()}
                )
            for link in host.db.session.scalars(sa.select(Referral)):
                assert link.response_count == theirs["clicks"][link.code] - own_of_links[link.code, "RESPONDED"]

    def test_what_is_personal_is_cut_as_everywhere(self, host: Host, run: Import, people: Any) -> None:
        run(DUMP)
        addresses = ["198.51.100.0", "203.0.113.0", "203.0.113.0", "2001:db8:1::", "2001:db8:1::", "203.0.113.0"]
        assert [each.ip_address for each in responses(host)] == [*addresses, None, "203.0.113.0"]
        assert {each.http_referrer for each in responses(host)} == {"https://blog.example/"}

    def test_live_session_keys_are_not_kept(self, host: Host, run: Import, people: Any) -> None:
        run(DUMP)
        with host.app.app_context(), host.db.engine.connect() as connection:
            everything = repr([connection.execute(table.select()).all() for table in host.db.metadata.sorted_tables])
        for old in RESPONSES:
            assert old["session_key"] not in everything
        kept = [each.session_key or "" for each in responses(host)]
        assert kept[1] == kept[2]  # one visitor's rows stay together
        assert len(set(kept)) == len({old["session_key"] for old in RESPONSES})
        assert all(re.fullmatch(r"~[A-Za-z0-9_-]{42}", key) for key in kept)  # no visitor key begins so

    def test_second_run_adds_nothing(self, host: Host, run: Import, people: Any) -> None:
        assert "Links: 6 added, 0 already imported.\nResponses: 8 added, 0 already imported.\n" in run(DUMP).stdout
        again = run(DUMP)
        assert again.stdout == "Links: 0 added, 6 already imported.\nResponses: 0 added, 8 already imported.\n"
        assert (len(links(host)), len(responses(host))) == (6, 8)

    def test_duplicates_are_named_and_both_codes_live(self, host: Host, run: Import, people: Any) -> None:
        result = run(DUMP)
        assert f"link {CODE[2]} is a duplicate of {CODE[1]}; both codes work" in result.stderr
        assert "Duplicate links, each added with its own code and responses: 1.\n" in result.stdout
        with host.app.app_context():
            olga = host.db.session.get(host.User, people[0])
            assert Referral.create("/welcome/", olga, "welcome mail").code == CODE[1]

    def test_places_that_are_not_allowed_are_named(
        self, new_host: MakeHost, host: Host, run: Import, people: Any
    ) -> None:
        result = run(DUMP)
        assert f"link {CODE[4]} leads to 'https://partner.example/landing', which is not allowed now" in result.stderr
        assert host.client().get(f"/referrals/{CODE[4]}").location == "/"
        host = new_host(REFERRALS_ALLOWED_REDIRECT_HOSTS=["partner.example"])
        assert host.client().get(f"/referrals/{CODE[4]}").location == "https://partner.example/landing"

    def test_csv_of_both_tables_is_the_same(self, host: Host, run: Import, people: Any, tmp_path: Path) -> None:
        files = []
        for name, rows in (("links.csv", LINKS), ("responses.csv", RESPONSES)):
            names = {key: f"{key}_id" if key in ("user", "referral", "target_content_type") else key for key in rows[0]}
            file = tmp_path / name
            with file.open("w", newline="", encoding="utf-8-sig") as stream:
                writer = csv.writer(stream)
                writer.writerow(names.values())
                writer.writerows(["" if value is None else value for value in row.values()] for row in rows)
            files.append(str(file))
        assert run(DUMP).exit_code == 0
        options = ["referrals", "import", "--from", "pinax", "--referrals", files[0], "--responses", files[1]]
        result = host.app.test_cli_runner().invoke(args=options)
        assert result.output == "Links: 0 added, 6 already imported.\nResponses: 0 added, 8 already imported.\n"

    def test_json_lines_in_any_order_are_the_same(self, host: Host, run: Import, people: Any) -> None:
        """What a row names may come after it: it waits."""
        run("".join(json.dumps(row) + "\n" for row in reversed(ROWS)), "--target", "auth.group=product")
        assert len(links(host)) == 6
        assert len(responses(host)) == 8
        assert links(host)[CODE[3]].target_type == "product"


class TestUsers:
    """Whose rows they are here."""

    ROWS = [link(user=7), response(user=8), response(2, user=7)]

    def test_who_is_not_here_is_counted(self, host: Host, run: Import, people: Any) -> None:
        result = run([*self.ROWS, link(2, user=7), link(3, user="9" * 30)])
        assert result.exit_code == 0
        assert "Rows of unknown users, added without a user: 5.\n" in result.stdout
        assert {each.user_id for each in links(host).values()} == {None}
        # The owner's own click is theirs, known here or not; and their links are not the site's own.
        assert [each.ignored for each in responses(host)] == [None, "self"]
        with host.app.app_context():
            assert Referral.create("/").code not in {"code-1", "code-2", "code-3"}

    def test_map_leads_to_other_keys(self, host: Host, run: Import, people: Any, tmp_path: Path) -> None:
        users = tmp_path / "users.csv"
        users.write_text("7,1\n8,2\n")
        run([*self.ROWS, link(2, user=1)], "--users", str(users))
        # The old user 1 is not in the map: not the one who has this key now.
        assert [each.user_id for each in links(host).values()] == [1, None]
        assert [each.user_id for each in responses(host)] == [2, 1]

    @pytest.mark.parametrize("text", ["7\n", "7,1,2\n", "\udcff,1\n"])
    def test_map_that_is_none(self, host: Host, run: Import, tmp_path: Path, text: str) -> None:
        users = tmp_path / "users.csv"
        users.write_text(text, errors="surrogateescape")
        result = run(self.ROWS, "--users", str(users))
        assert (result.exit_code, links(host)) == (2, {})
        assert "Give two columns." in result.stderr

    def test_natural_keys(self, host: Host, run: Import, people: Any, tmp_path: Path) -> None:
        users = tmp_path / "users.csv"
        users.write_text("olga,1\n")
        target = {"target_content_type": ["shop", "item"], "target_object_id": 3}
        run([link(user=["olga"], **target)], "--users", str(users), "--target", "shop.item=product")
        (new,) = links(host).values()
        assert (new.user_id, new.target_type, new.target_id) == (1, "product", "3")

    @pytest.mark.parametrize(
        ("key_type", "key"), [(sa.Uuid, "12345678-1234-5678-1234-567812345678"), (sa.String(9), "u1")]
    )
    def test_keys_of_every_type(self, new_host: MakeHost, tmp_path: Path, key_type: Any, key: str) -> None:
        host = new_host(key_type=key_type, new_key=lambda: sa.types.to_instance(key_type).python_type(key))
        with host.app.app_context():
            host.user("olga")
        file = tmp_path / "dump.json"
        file.write_text(json.dumps([link(user=key), link(2, user="somebody"), response(user=key)]))
        host.app.test_cli_runner().invoke(args=["referrals", "import", "--from", "pinax", str(file)])
        assert [each.user_id and str(each.user_id) for each in links(host).values()] == [key, None]

    def test_users_in_another_database(self, new_host: MakeHost, tmp_path: Path) -> None:
        binds = {"stats": f"sqlite:///{tmp_path / 'stats.db'}"}
        host = new_host(declare=declare_on("stats"), SQLALCHEMY_BINDS=binds)
        with host.app.app_context():
            host.user("olga")
            import_pinax(read_json("dump", array(iter([link(user=1), link(2, user=2)]))))
        assert [each.user_id for each in links(host).values()] == [1, None]


class TestTargets:
    """What the rows are about."""

    def test_kept_by_name_or_number_when_unknown_here(self, host: Host, run: Import) -> None:
        content_type = {"model": "contenttypes.contenttype", "pk": 4, "fields": {"app_label": "shop", "model": "item"}}
        about = [link(pk, target_content_type=pk + 3, target_object_id=1) for pk in (1, 2, 3)]
        run([*about, content_type, response(target_content_type=4, target_object_id=9)], "--target", "6=user")
        names = {code: each.target_type for code, each in links(host).items()}
        assert names == {"code-1": "shop.item", "code-2": "contenttype-5", "code-3": "user"}
        (new,) = responses(host)
        assert (new.target_type, new.target_id) == ("shop.item", "9")
        with host.app.app_context():
            assert host.responses()[0].target is None

    def test_name_that_leads_nowhere_is_a_mistake(self, host: Host, run: Import) -> None:
        result = run(DUMP, "--target", "auth.group=produkt")
        assert (result.exit_code, links(host)) == (1, {})
        assert "There is no target 'auth.group=produkt'. Give APP.MODEL=NAME as --target" in result.stderr


class TestBroken:
    """What cannot be imported is named with its number, and the rest goes in."""

    @on_sqlite
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (link(2, code="söder"), "code 'söder' is not 1 to 64 letters"),
            (link(2, code=None), "code '' is not"),
            (link(2, redirect_to="/" * 2049), "redirect_to is longer than 2048"),
            (link(2, label="a\0b"), "label has a NUL in it"),
            (link(2, label=5), "label is not text"),
            (link(2, created_at="yesterday"), "created_at 'yesterday' is not a time"),
            (link(2, created_at=None), "has no created_at"),
            (link(2, expired_at="2020-13-01"), "expired_at '2020-13-01' is not a time"),
            (link(2, user={}), "user is not a key"),
            (link(2, code="code-1"), "code 'code-1' is there twice"),
            (link(1, code="other"), "id 1 is another link's"),
            (response(2, referral=5), "its referral 5 was not imported"),
            (response(2, action=""), "has no action"),
            (link(2, redirect_to="javascript:alert(1)"), "redirect_to 'javascript:alert(1)' is neither a path nor"),
            (link(2, redirect_to=" java\tScript:x"), "redirect_to ' java\\tScript:x' is neither"),
            (link(2, redirect_to="data:text/html,x"), "redirect_to 'data:text/html,x' is neither"),
            (link(2, redirect_to="ftp://a/b"), "redirect_to 'ftp://a/b' is neither"),
            (link(2, created_at="9999-12-31T23:59:59Z"), "created_at 9999-12-31 23:59:59+00:00 is in the future"),
            (response(2, created_at="9999-12-31T23:59:59Z"), "created_at 9999-12-31 23:59:59+00:00 is in the future"),
            (
                response(2, created_at="2020-02-29T12:00Z"),
                "created_at 2020-02-29 12:00:00+00:00 is before its referral was created",
            ),
            (response(2, action="x" * 129), "action is longer than 128"),
            ({"model": "referrals.referral", "pk": 2}, "is not an object with model, pk and fields"),
            ([], "is not an object with model, pk and fields"),
        ],
    )
    def test_row(self, host: Host, run: Import, row: Any, reason: str) -> None:
        result = run([link(), row, response()])
        assert result.exit_code == 1
        assert f"dump.json, record 2: refused: {reason}" in result.stderr
        assert "Records refused: 1.\n" in result.stdout
        assert (list(links(host)), len(responses(host))) == (["code-1"], 1)

    @on_sqlite
    @pytest.mark.parametrize(
        "broken",
        [
            '{"model": "referrals.referral", "pk": 2, "fields": {"user": nobody}}',
            '{"model": "referrals.referral", "pk": 2, "fields": {"user": 1',
            '{"model": "referrals.referral", "pk": 2, "fields": {"label": "no end}}',
            "nothing like it",
            "[" * 100_000,
        ],
        ids=["value", "cut", "string", "text", "nested"],
    )
    @pytest.mark.parametrize("separator", [", ", "\n"], ids=["array", "lines"])
    def test_text(self, host: Host, run: Import, broken: str, separator: str) -> None:
        text = separator.join([json.dumps(link()), broken, json.dumps(link(3)), json.dumps(response())])
        result = run(text if separator == "\n" else f"[{text}]")
        assert result.exit_code == 1
        assert ("dump.json, line 2: refused" if separator == "\n" else "dump.json, record 2: refused") in result.stderr
        assert (list(links(host)), len(responses(host))) == (["code-1", "code-3"], 1)

    def test_file_that_ends_too_soon(self, host: Host, run: Import) -> None:
        result = run(json.dumps([link(), link(2)])[:-20])
        assert (result.exit_code, list(links(host))) == (1, ["code-1"])
        assert "dump.json, record 2: refused" in result.stderr
        result = run(json.dumps([link()])[:-1])
        assert "dump.json, record 2: refused: is missing" in result.stderr

    def test_bytes_that_are_not_utf_8(self, host: Host, run: Import) -> None:
        result = run(json.dumps([link(label="LABEL"), link(2)]).replace("LABEL", "\udcff"))
        assert (result.exit_code, list(links(host))) == (1, ["code-2"])
        assert "record 1: refused: label has a NUL in it, or is not UTF-8" in result.stderr

    def test_csv_lines(self, host: Host, tmp_path: Path) -> None:
        file = tmp_path / "links.csv"
        lines = [
            "id,code,redirect_to,created_at",
            f"1,one,/,{TIME}",
            "2,two",
            f"3,th\nree,/,{TIME}",
            f"5,five,/,{TIME}",
        ]
        file.write_text("\n".join(lines))
        options = ["referrals", "import", "--from", "pinax", "--referrals", str(file)]
        result = host.app.test_cli_runner().invoke(args=options)
        assert (result.exit_code, list(links(host))) == (1, ["one", "five"])
        assert "links.csv, line 3: refused: has 2 columns, not 4" in result.stderr

    def test_csv_without_a_column(self, host: Host, tmp_path: Path) -> None:
        file = tmp_path / "links.csv"
        file.write_text("id,redirect_to,created_at\n")
        options = ["referrals", "import", "--from", "pinax", "--referrals", str(file)]
        result = host.app.test_cli_runner().invoke(args=options)
        assert (result.exit_code, "code missing" in result.stderr) == (1, True)

    def test_code_of_another_link(self, host: Host, run: Import) -> None:
        with host.app.app_context():
            Referral.create("/ours", code="code-1")
        result = run([link(), response()])
        assert result.exit_code == 1
        assert "code 'code-1' is another link's" in result.stderr
        assert responses(host) == []

    def test_reserved_code_is_refused_in_any_case(self, host: Host, run: Import) -> None:
        result = run([link(1, code="Admin"), link(2)])
        assert (result.exit_code, list(links(host))) == (1, ["code-2"])
        assert "record 1: refused: code 'Admin' is reserved" in result.stderr

    def test_codes_that_differ_only_by_case_are_both_imported(self, host: Host, run: Import) -> None:
        with host.app.app_context():
            Referral.create("/mine", code="cup")
        result = run([link(pk, code=code, redirect_to=f"/{pk}") for pk, code in enumerate(("Tea", "tea", "CUP"), 1)])
        assert result.exit_code == 0
        assert "link tea is only found in exactly this case" in result.stderr
        assert [each.folded_code for each in links(host).values()] == ["cup", "tea", None, None]
        client = host.client()
        assert [client.get(f"/referrals/{code}").location for code in ("Tea", "tea", "TEA")] == ["/1", "/2", "/1"]

    @pytest.mark.parametrize("column", [{"redirect_to": "/theirs"}, {"label": "theirs"}, {"user": 2}])
    def test_link_with_the_code_and_time_of_another(self, host: Host, run: Import, people: Any, column: Any) -> None:
        run([link(label="ours", user=1), response()])
        for rows in ([link(**{"label": "ours", "user": 1, **column}), response(2)], [link(2), link(2, **column)]):
            result = run(rows)
            assert result.exit_code == 1
            assert re.search(r"record [12]: refused: code 'code-[12]' is (another link's|there twice)", result.stderr)
        assert len(responses(host)) == 1

    def test_response_with_the_id_of_another(self, host: Host, run: Import) -> None:
        run([link(), response()])
        result = run([link(), response(created_at="2021-01-01T00:00Z")])
        assert "record 2: refused: is another response than the one that is stored" in result.stderr
        assert "Responses: 0 added, 0 already imported.\n" in result.stdout

    def test_row_that_the_database_refuses(self, host: Host, run: Import) -> None:
        """One of a batch: the others of the batch go in, and nothing is counted twice."""
        with host.app.app_context(), host.db.engine.begin() as connection:
            connection.exec_driver_sql("CREATE UNIQUE INDEX the_hosts_own ON referral (label)")
        result = run([link(pk, label=str(pk % 7)) for pk in range(1, 9)])
        assert result.exit_code == 1
        assert "record 8: refused: is refused by the database" in result.stderr
        assert "Links: 7 added, 0 already imported.\n" in result.stdout
        assert len(links(host)) == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-02-29T12:30:00.123Z", "2020-02-29T12:30:00.123000+00:00"),
        ("2020-02-29 12:30:00.12+00", "2020-02-29T12:30:00.120000+00:00"),
        ("2020-02-29 12:30:00.123456+05:30", "2020-02-29T07:00:00.123456+00:00"),
        ("2020-02-29 12:30:00", "2020-02-29T11:30:00+00:00"),  # in the zone that was given
    ],
)
def test_times_as_databases_write_them(host: Host, run: Import, text: str, expected: str) -> None:
    run([link(created_at=text, expired_at=text)], "--timezone", "Europe/Berlin")
    (new,) = links(host).values()
    assert new.created_at == new.expired_at == datetime.fromisoformat(expected)


def test_link_that_expires_in_the_last_year_never_does(host: Host, run: Import) -> None:
    run([link(expired_at="9999-12-31T23:59:59Z")])
    assert links(host)["code-1"].expired_at is None


def test_columns_that_the_host_has_renamed(new_host: MakeHost) -> None:
    def declare(db: Any, User: Any) -> None:
        class Invite(ReferralMixin, db.Model):  # type: ignore[misc]
            __tablename__ = "invite"
            __user_model__ = User
            label: Mapped[str] = mapped_column("name", sa.String(100))

        class Answer(ReferralResponseMixin, db.Model):  # type: ignore[misc]
            __tablename__ = "answer"
            __user_model__ = User
            __referral_model__ = Invite
            http_referrer: Mapped[str | None] = mapped_column("came_from", sa.String(1024))

    host = new_host(declare=declare)
    with host.app.app_context():
        import_pinax(
            read_json("dump", array(iter([link(label="mail"), response(http_referrer="https://blog.example/")])))
        )
    assert links(host)["code-1"].label == "mail"
    assert [each.http_referrer for each in responses(host)] == ["https://blog.example/"]


def test_links_of_a_second_site_are_kept_apart(host: Host, run: Import) -> None:
    """Their numbers may be the same."""
    run([link(), response()])
    run([link(code="theirs", redirect_to="/theirs"), response()])
    assert len(responses(host)) == 2


def test_links_of_forgotten_users_are_known_again(host: Host, run: Import, people: Any) -> None:
    rows = [link(user=people[0], label="mail"), response()]
    run(rows)
    with host.app.app_context():
        host.referrals.forget_user(host.db.session.get(host.User, people[0]))
    assert run(rows).stdout.startswith("Links: 0 added, 1 already imported.\n")


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("table", ["referral ", "referral_response"])
def test_batch_is_retried_after_a_deadlock(host: Host, is_open: bool, table: str) -> None:
    rows = array(iter([link(), response()]))
    with host.app.app_context():
        if is_open:
            host.db.session.scalars(sa.select(host.User)).all()
        with failing(host, lambda statement: statement.startswith(f"INSERT INTO {table}"), CONFLICT) as failed:
            report = import_pinax(read_json("dump", rows))
    assert (len(failed), report.links_added, report.responses_added) == (1, 1, 1)
    assert (len(links(host)), len(responses(host))) == (1, 1)


def many(number: int) -> Iterator[dict[str, Any]]:
    yield from (link(pk, label=f"label {pk}") for pk in range(1, 101))
    for pk in range(1, number + 1):
        yield response(pk, referral=pk % 100 + 1, session_key=f"session {pk}", user=pk)


def array(rows: Iterator[dict[str, Any]]) -> io.StringIO:
    return io.StringIO("[" + ", ".join(map(json.dumps, rows)) + "]")


@pytest.mark.slow
@pytest.mark.usefixtures("usual_collector")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_memory_does_not_grow_with_the_dump(host: Host) -> None:
    peaks = []
    for number in (4_000, 16_000):
        stream = array(many(number))
        with host.app.app_context():
            tracemalloc.start()
            report = import_pinax(read_json("dump", stream))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert report.responses_added + report.responses_present == number
    assert peaks[1] < peaks[0] * 1.3


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_progress_is_reported_batch_by_batch(host: Host) -> None:
    told: list[int] = []
    stream = array(many(5_000))
    with host.app.app_context():
        import_pinax(read_json("dump", stream), Options(progress=lambda: told.append(stream.tell())))
    assert len(told) >= 5
    assert told == sorted(told)
    assert told[0] < told[-1]


def test_statements_do_not_grow_with_the_rows_of_a_batch(host: Host) -> None:
    counts = []
    for number in (1, 10, 900):  # the first also adds the links
        with host.app.app_context(), statements(host.db) as sent:
            import_pinax(read_json("dump", array(many(number))))
        counts.append(len([each for each in sent if not each.startswith("INSERT")]))
    assert counts[1] == counts[2]


def test_old_times_do_not_depend_on_the_clock() -> None:
    """The expired link of the dump is expired wherever these tests run."""
    assert datetime.fromisoformat(LINKS[5]["expired_at"].replace("Z", "+00:00")) < datetime.now(
        timezone.utc
    ) - timedelta(1)


@pytest.mark.parametrize("arguments", [[], ["--responses", str(DUMP)]])
def test_what_to_read_must_be_said(host: Host, arguments: list[str]) -> None:
    result = host.app.test_cli_runner().invoke(args=["referrals", "import", "--from", "pinax", *arguments])
    assert result.exit_code == 2
    assert "--referrals" in result.output
