"""What stands on a page of the documentation, to be run as it stands there."""

import re
import textwrap
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def snippet(page: str, language: str, about: str) -> str:
    """Return the one block on a page that speaks of something.

    :param page: the name of a file in ``docs``.
    :param language: as after ``code-block::``.
    :param about: what is in that block, and in no other of this language.
    """
    blocks = re.findall(rf"\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", (DOCS / page).read_text())
    (found,) = [block for block in blocks if about in block]
    return textwrap.dedent(found)
