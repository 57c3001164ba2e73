"""docs/testing.rst: the suite of a host runs as it stands there, on the app of the README's quickstart."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import snippet, snippets
from tests.shop import ROOT

pytestmark = pytest.mark.slow

PAGE = "testing.rst"
TESTS = "".join(block for block in snippets(PAGE, "python") if "def test_" in block)
SET_UP = snippet(PAGE, "python", "def link()")
NEW_TABLES = snippet(PAGE, "python", "def tables():\n    with app.app_context():\n        db.create_all()")
ROLLED_BACK = snippet(PAGE, "python", "create_savepoint") + snippet(PAGE, "python", "isolation_level")

FAILING_CLICK = """
from app import app, db

def test_click_without_a_table(link):
    with app.app_context():
        db.metadata.tables["referral_response"].drop(db.engine)
    assert app.test_client().get(link).headers["Location"] == "/"
"""


def run(folder: Path, conftest: str, tests: str, database_url: str) -> str:
    """Run tests as those of the quickstart, and return the last line of pytest's report."""
    (folder / "app.py").write_text(snippet("../README.rst", "python", "app = Flask"))
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_referrals.py").write_text(tests)
    env = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    if not database_url.startswith("sqlite"):
        env["FLASK_SQLALCHEMY_DATABASE_URI"] = database_url
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    report = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True).stdout
    print(report)
    return report.splitlines()[-1]


def test_no_block_is_left_out() -> None:
    """The browser's is in ``unit/test_agents.py``."""
    run = [SET_UP, NEW_TABLES, ROLLED_BACK, TESTS, snippet(PAGE, "python", "ChromeOptions")]
    assert [block for block in snippets(PAGE, "python") if block not in "".join(run)] == []


@pytest.mark.parametrize("empty_database", [NEW_TABLES, ROLLED_BACK], ids=["tables", "rollback"])
def test_suite_passes(database_url: str, tmp_path: Path, empty_database: str) -> None:
    assert re.fullmatch(r"\d+ passed in .*", run(tmp_path, SET_UP + empty_database, TESTS, database_url))


def test_click_that_is_not_recorded_is_an_error(tmp_path: Path) -> None:
    assert run(tmp_path, SET_UP + NEW_TABLES, FAILING_CLICK, "sqlite://").startswith("1 passed, 1 error")
