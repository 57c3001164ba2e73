"""What the documentation says of the tests is true."""

import re
from pathlib import Path

import docutils.core
import pytest

TESTS = Path(__file__).parent
PAGES = [*sorted((TESTS.parent / "docs").glob("*.rst")), TESTS.parent / "README.rst", TESTS.parent / "CHANGES.rst"]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_well_formed(page: Path) -> None:
    settings = {"report_level": 2, "halt_level": 2, "_disable_config": True}
    docutils.core.publish_string(page.read_text(), str(page), writer="null", settings_overrides=settings)
