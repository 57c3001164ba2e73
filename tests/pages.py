"""What stands on a page of the documentation, to be run as it stands there."""

import re
import textwrap
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def snippets(page: str, language: str) -> list[str]:
    """Return the blocks of a language on a page, in their order.

    :param page: the name of a file in ``docs``.
    :param language: as after ``code-block::``.
    """
    blocks = re.findall(rf"\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", (DOCS / page).read_text())
    return [textwrap.dedent(block) for block in blocks]


def snippet(page: str, language: str, about: str) -> str:
    """Return the one block that speaks of something, and no other of this language on its page."""
    (found,) = [block for block in snippets(page, language) if about in block]
    return found
