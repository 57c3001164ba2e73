"""The site agrees with a small model of who gets credit, whatever people do."""

from pathlib import Path

import pytest

from tests.credit_machine import run


@pytest.mark.parametrize("runs", [10, pytest.param(250, marks=pytest.mark.slow)])
def test_site_and_model_agree(tmp_path: Path, runs: int) -> None:
    run(f"sqlite:///{tmp_path / 'machine.db'}?timeout=10", runs)
