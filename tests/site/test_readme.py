"""The README's words are true."""

import os
import re
import runpy
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest

from flask_referrals.settings import Settings
from tests.pages import snippet

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.rst").read_text()


def test_quickstart_works_on_each_database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands, and two browsers: tests/servers/test_quickstart.py."""
    file = snippet("../README.rst", "python", "app = Flask")
    assert len(file.strip().splitlines()) <= 40
    (tmp_path / "app.py").write_text(file)
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", database_url)
    quickstart = runpy.run_path(str(tmp_path / "app.py"))
    app, db = quickstart["app"], quickstart["db"]
    with app.app_context():
        db.create_all()
    try:
        owner, friend = app.test_client(), app.test_client()
        page = owner.post("/", data={"name": "Olga"}, follow_redirects=True).text
        (link,) = re.findall(r">(http://[^<]+)<", page)
        assert friend.get(link).headers["Location"] == "/"
        assert "<li>A visitor: Clicked on the link</li>" in owner.get("/").text
        friend.post("/", data={"name": "Mia"})
        items = re.findall("<li>(.*)</li>", owner.get("/").text)
        assert items == ["Mia: SIGNED_UP", "Mia: Clicked on the link"]
    finally:
        with app.app_context():
            db.session.remove()
            db.drop_all()
            db.engine.dispose()


def test_table_of_settings_has_the_defaults_and_descriptions_of_the_code() -> None:
    section = README.split("\nSettings\n", 1)[1]
    table = re.search(r"\.\. list-table::\n((?:   .*\n|\n)+)", section)
    assert table is not None
    row = re.compile(r"\* - ``(\w+)`` - ``([^`]+)`` - (.+?)(?= \* - |$)")
    stated = {
        name: (eval(default, {"timedelta": timedelta}), description)
        for name, default, description in row.findall(" ".join(table[1].split()))
    }
    assert stated == {
        f"REFERRALS_{each.name.upper()}": (each.metadata["default"], each.metadata["description"])
        for each in fields(Settings)
    }


@pytest.mark.parametrize("heading", ["Try it", "Run the tests"])
def test_command_is_one_line_under_its_heading(heading: str) -> None:
    section = re.split(r"\n\n\n", README.split(f"\n{heading}\n", 1)[1])[0]
    assert len(re.findall(r"^    \S", section, re.MULTILINE)) == 1


def test_continuous_integration_runs_the_readmes_command() -> None:
    assert "Run the tests" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
