"""A recorder changes neither rows nor counts nor credit, in whatever order its events are stored."""

from pathlib import Path

import pytest

from tests.recorder_journeys import run


@pytest.mark.parametrize(
    ("runs", "steps"),
    [(5, (5, 25)), pytest.param(1000, (2, 7), marks=pytest.mark.slow)],
)
def test_recorder_changes_nothing(tmp_path: Path, runs: int, steps: tuple[int, int]) -> None:
    databases = [f"sqlite:///{tmp_path / name}.db?timeout=10" for name in ("direct", "queued")]
    kinds = run(databases[0], databases[1], runs, steps=steps)
    assert kinds.keys() >= {"None", "repeat", "self"}
