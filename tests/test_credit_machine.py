"""The site agrees with a small model of who gets credit, whatever people do."""

import os
from pathlib import Path

from tests.credit_machine import run


def test_site_and_model_agree(tmp_path: Path) -> None:
    run(f"sqlite:///{tmp_path / 'machine.db'}?timeout=10", 2000 if os.environ.get("CI") else 100)
