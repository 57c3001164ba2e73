"""What the documentation says of tests, files and layers is true."""

import re
from pathlib import Path

import docutils.core
import pytest
from docutils.nodes import make_id

import flask_referrals

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flask_referrals"
DOCS = sorted((ROOT / "docs").glob("*.rst"))
PAGES = [*DOCS, ROOT / "README.rst", ROOT / "CHANGES.rst", ROOT / "tests" / "README.rst"]
NAMED = sorted({name for page in DOCS for name in re.findall(r"test_\w+\.py::\w+", page.read_text())})
TEXTS = [page.read_text() for page in PAGES]
PATHS = sorted({path for text in TEXTS for path in re.findall(r"\b(?:tests|benchmarks|docs)/[\w/]+\.\w+", text)})


@pytest.mark.parametrize("name", NAMED)
def test_named_test_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert any(f"def {test}(" in path.read_text() for path in (ROOT / "tests").rglob(file))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_is_well_formed(page: Path) -> None:
    settings = {"report_level": 2, "halt_level": 2, "_disable_config": True}
    docutils.core.publish_string(page.read_text(), str(page), writer="null", settings_overrides=settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"<(\S+)>`_", page.read_text()):
        name, _, heading = link.partition("#")
        if "://" not in link:
            assert (page.parent / name).exists(), link
            assert not heading or heading in map(make_id, (page.parent / name).read_text().splitlines()), link


def test_public_names_are_documented_and_documented_errors_are_public() -> None:
    public, text = set(flask_referrals.__all__), "".join(TEXTS)
    assert [name for name in public if name not in text] == []
    assert set(re.findall(r"\b(?:Code|Configuration|Invalid|Referrals|TooMany)\w*Error\b", text)) <= public


@pytest.mark.parametrize("path", PATHS)
def test_named_file_exists(path: str) -> None:
    assert (ROOT / path).exists()


def design_section(heading: str) -> str:
    """Return what is below a heading of docs/design.rst."""
    page = (ROOT / "docs" / "design.rst").read_text()
    return page.split(f"\n{heading}\n", 1)[1].split("\n\n\n", 1)[0]


def test_design_lists_modules_that_exist() -> None:
    section = design_section("The way through the modules")
    modules = re.findall(r"^\(?``([a-z_.]+)``\)? ", section, re.MULTILINE)
    missing = [name for name in modules if not (PACKAGE / f"{name.replace('.', '/')}.py").exists()]
    assert modules and missing == []


def test_design_answers_twelve_questions_with_files_that_exist() -> None:
    files = re.findall(r"``([a-z_/]+\.py)``$", design_section("Where is it decided?"), re.MULTILINE)
    missing = [name for name in files if not (PACKAGE / name).exists()]
    assert len(files) == 12 and missing == []


def test_design_lists_the_layers_that_are_checked() -> None:
    rows = re.findall(r"^\d+ +(``.*``) ", design_section("Who may import whom"), re.MULTILINE)
    checked = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert checked is not None
    layers = re.findall(r'"(.*?)"', checked[1])
    assert [row.replace("``", "").split(", ") for row in rows] == [layer.split(" | ") for layer in layers]
