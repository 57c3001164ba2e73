"""The README's words are true."""

import os
import re
import sys
from dataclasses import fields
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import pytest

from flask_referrals.settings import Settings
from tests.host import BROWSER

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.rst").read_text()


def code_block(heading: str, language: str) -> str:
    """The first block of a language under a heading, without its indentation."""
    section = README.split(f"\n{heading}\n", 1)[1]
    match = re.search(rf"\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", section)
    assert match is not None
    return re.sub(r"^    ", "", match[1], flags=re.MULTILINE)


def test_quickstart_works_word_for_word(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quickstart.py").write_text(code_block("Quickstart", "python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FLASK_SECRET_KEY", "a test's secret")
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", database_url)
    monkeypatch.delitem(sys.modules, "quickstart", raising=False)
    quickstart = import_module("quickstart")
    app = quickstart.create_app()
    with app.app_context():
        quickstart.db.create_all()
    try:
        owner, friend = app.test_client(), app.test_client()
        for client in (owner, friend):
            client.environ_base["HTTP_USER_AGENT"] = BROWSER
        owner.post("/signup", data={"name": "olga"})
        with app.test_request_context():
            user = quickstart.db.session.query(quickstart.User).one()
            link = user.referral.url
            assert user.referral.label == "welcome mail"
        assert friend.get(link).status_code == 302
        friend.post("/signup", data={"name": "mia"})
        with app.app_context():
            user = quickstart.db.session.query(quickstart.User).filter_by(name="olga").one()
            assert [(response.action, response.user.name) for response in user.referral.responses] == [
                ("SIGNED_UP", "mia"),
                ("RESPONDED", "mia"),
            ]
    finally:
        with app.app_context():
            quickstart.db.session.remove()
            quickstart.db.drop_all()
            quickstart.db.engine.dispose()


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
