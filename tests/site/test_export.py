"""``flask referrals export``: both tables as CSV and JSON lines."""

import csv
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flask_referrals import Referral
from flask_referrals.cli import export as exports
from flask_referrals.state import current_state
from tests.databases import on_sqlite
from tests.host import Host, follow, statements

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"]


def export(host: Host, *arguments: str) -> str:
    result = host.app.test_cli_runner().invoke(args=["referrals", "export", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def as_json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_referrals(host: Host) -> None:
    with host.app.app_context():
        olga, lamp = host.user("olga"), host.add(host.Product(name="lamp"))
        expires = datetime(2030, 1, 2, 3, 4, 5, 678000, timezone.utc)
        Referral.create("/päge", olga, "a, b", lamp, code="first", expires_at=expires)
        Referral.create("/", code="second")
        created = Referral.create("/third").created_at
    first, second, third = as_csv(export(host, "referrals"))
    assert (first["code"], first["user_id"], first["label"], first["redirect_to"]) == ("first", "1", "a, b", "/päge")
    assert (first["target_type"], first["target_id"]) == ("product", "1")
    assert first["expired_at"] == "2030-01-02T03:04:05.678000+00:00"
    assert (second["code"], second["user_id"], second["expired_at"]) == ("second", "", "")
    assert third["created_at"] == created.isoformat()
    assert "identity" not in first

    lines = as_json_lines(export(host, "referrals", "--format", "jsonl"))
    assert [line["code"] for line in lines[:2]] == ["first", "second"]
    assert (lines[0]["user_id"], lines[1]["user_id"]) == (1, None)


def test_responses(host: Host) -> None:
    code = follow(host, host.client())
    with host.app.app_context():
        referral = host.db.session.scalar(sa.select(host.referrals.Referral))
        assert referral is not None
        bought = referral.respond("BOUGHT", value=Decimal("-12.50"), currency="EUR", key="order 1")
        bought.params = {"utm_source": "mail"}
        host.db.session.commit()
    click, row = as_csv(export(host, "responses"))
    assert (click["referral"], click["action"], click["is_touch"]) == (code, "RESPONDED", "true")
    assert (click["ip_address"], click["value"]) == ("127.0.0.0", "")
    assert (row["action"], Decimal(row["value"]), row["currency"]) == ("BOUGHT", Decimal("-12.5"), "EUR")
    assert json.loads(row["params"]) == {"utm_source": "mail"}
    line = as_json_lines(export(host, "responses", "--format", "jsonl"))[1]
    assert (Decimal(line["value"]), line["params"]) == (Decimal("-12.5"), {"utm_source": "mail"})


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
def test_visitors_keys_stay_here(host: Host, format_: str) -> None:
    follow(host, host.client())
    with host.app.app_context():
        (key,) = (response.session_key for response in host.responses())
    text = export(host, "responses", "--format", format_)
    assert key is not None
    assert key not in text
    assert "session_key" not in text


@on_sqlite
@pytest.mark.parametrize("value", ["a;=1", "a\n=1", 'a;"=1', " =1", "x\t-1", "\n\n+1", "a;\uff1d1", "a; @b"])
def test_formulas_stay_texts_under_any_separator(host: Host, value: str) -> None:
    with host.app.app_context():
        Referral.create("/", label=value)
    text = export(host, "referrals")
    assert as_csv(text)[0]["label"].replace("'", "") == value
    for separator in ",;\t":
        cells = [cell.strip(' \t"') for row in csv.reader(io.StringIO(text), delimiter=separator) for cell in row]
        assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\uff1d"))] == []


@on_sqlite
def test_control_characters_are_replaced_in_csv(host: Host) -> None:
    with host.app.app_context():
        Referral.create("/", label="\x1b]0;x\x07\x9b\x7fa\tb")
    assert as_csv(export(host, "referrals"))[0]["label"] == "\ufffd]0;x\ufffd\ufffd\ufffda\tb"


@on_sqlite
@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_are_texts_in_a_spreadsheet(host: Host, formula: str) -> None:
    with host.app.app_context():
        Referral.create("/", label=formula)
    assert as_csv(export(host, "referrals"))[0]["label"] == f"'{formula}"
    assert as_json_lines(export(host, "referrals", "--format", "jsonl"))[0]["label"] == formula


def test_only_what_is_new(host: Host) -> None:
    with host.app.app_context():
        old = Referral.create("/", code="old")
        old.created_at = datetime.now(timezone.utc) - timedelta(days=2)
        Referral.create("/new", code="new")
    yesterday = (datetime.now(timezone.utc) - timedelta(days=1)).isoformat()
    assert [row["code"] for row in as_csv(export(host, "referrals", "--since", yesterday))] == ["new"]
    assert host.app.test_cli_runner().invoke(args=["referrals", "export", "referrals", "--since", "x"]).exit_code == 2


def test_file_appears_when_it_is_complete(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with host.app.app_context():
        Referral.create("/", code="there", label="grün")
    file = tmp_path / "links.csv"
    assert export(host, "referrals", "-o", str(file)) == ""
    (row,) = as_csv(file.read_text(encoding="utf-8"))
    assert (row["code"], row["label"]) == ("there", "grün")
    before = file.read_bytes()
    monkeypatch.setattr(exports, "csv_cell", lambda value: 1 / 0)
    assert host.app.test_cli_runner().invoke(args=["referrals", "export", "referrals", "-o", str(file)]).exit_code == 1
    assert file.read_bytes() == before


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("links.csv")])
def test_device_or_symbolic_link_is_not_replaced(host: Host, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "output")
    arguments = ["referrals", "export", "referrals", "-o", str(tmp_path / "output")]
    result = host.app.test_cli_runner().invoke(args=arguments)
    assert result.exit_code == 1 and "Use '-' for the standard output." in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert not (tmp_path / "output").is_file()


def fill(host: Host, number: int) -> None:
    with host.app.app_context():
        referral = Referral.create("/")
        now = datetime.now(timezone.utc)
        row = {"referral_id": referral.id, "action": "RESPONDED", "created_at": now, "user_agent": "x" * 200}
        table = host.db.metadata.tables["referral_response"]
        host.db.session.execute(table.insert(), [row] * number)
        host.db.session.commit()


@pytest.mark.usefixtures("usual_collector")
def test_rows_come_as_they_are_read(host: Host) -> None:
    """One statement, and memory that does not grow with the table, on each driver."""
    peaks = []
    for number in (3_000, 12_000):
        fill(host, number)
        with host.app.app_context(), statements(host.db) as sent:
            tracemalloc.start()
            rows = sum(1 for _ in exports.rows_of(current_state(), "responses"))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert len([each for each in sent if each != "COMMIT"]) == 1
        assert rows in (3_000, 15_000)
    assert peaks[1] < peaks[0] * 1.5
