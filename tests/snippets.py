"""The blocks of code in the documentation, which the tests run as they are printed."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def code_blocks(text: str, language: str) -> list[str]:
    """Return the blocks of a language in their order, without their indentation.

    :param text: reStructuredText.
    :param language: as after ``.. code-block::``.
    """
    blocks = re.findall(rf"\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", text)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]
