"""What the documentation says of the tests is true."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMED = sorted(
    {
        name
        for page in (TESTS.parent / "docs").glob("*.rst")
        for name in re.findall(r"test_\w+\.py::\w+", page.read_text())
    }
)


@pytest.mark.parametrize("name", NAMED)
def test_named_test_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert f"def {test}(" in (TESTS / file).read_text()
