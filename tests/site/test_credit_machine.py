"""The site agrees with a small model of who gets credit, whatever people do."""

from pathlib import Path

import pytest

from tests.credit_machine import run
from tests.databases import new_database


@pytest.mark.parametrize(
    ("database", "runs"),
    [
        ("sqlite", 10),
        pytest.param("sqlite", 100, marks=pytest.mark.slow),
        pytest.param("postgresql", 20, marks=pytest.mark.slow),
        pytest.param("mariadb", 20, marks=pytest.mark.slow),
    ],
)
def test_site_and_model_agree(tmp_path: Path, database: str, runs: int) -> None:
    with new_database(database, tmp_path) as url:
        run(url, runs)
