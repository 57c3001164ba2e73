"""The codes that a text stands for, whatever was glued to it on its way: links, query arguments and typed codes."""

import re
from collections.abc import Collection, Sequence
from unicodedata import normalize
from urllib.parse import unquote, unquote_plus

from ..settings import Settings
from ..types import CODE

#: How many characters of a text and of a query, and how many values of a query are read.
_MAX_TEXT, _MAX_QUERY, _MAX_VALUES = 2048, 8192, 5

# A code with what programs and people put around it. A point or colon that a letter follows is part of another word.
# Letters beyond Latin end it: excluding the others compiles ten times faster than a range up to U+10FFFF.
_GLUED = re.compile(
    r"""
    [^\w.-]*([A-Za-z0-9_-]{1,64})(?![A-Za-z0-9_-])
    [\W_]*(?:(?:[\s&?\#<>"'()\[\]{},;|\\]|[^\x00-\u024f]).*)?
    """,
    re.DOTALL | re.VERBOSE,
)

# A link: scheme, host, and the rest. The first two may be missing, but "n/a" is no link.
_LINK = re.compile(r"(.*?://)?([^/?]*)([/?].*)")
_HOST = re.compile(r"\w[.:]\w")


def find_codes(text: str, settings: Settings) -> Sequence[str]:
    """Return the codes that a text may stand for, the most likely one first.

    The text is a code, or a whole link that was pasted.
    """
    if CODE.fullmatch(text) and text == text.strip("_-"):
        return [text]
    text = normalize("NFKC", unquote(text[:_MAX_TEXT]))
    parts = [match.groups() for match in map(_LINK.fullmatch, text.split()) if match is not None]
    links = [rest for scheme, host, rest in parts if scheme or not host or _HOST.search(host)]
    texts = _read_link(links[0], settings) if links else [text]
    found = [match[1] for each in texts if (match := _GLUED.fullmatch(each)) is not None]
    return [*dict.fromkeys(code for each in found for code in (each, each.strip("_-")) if code)]


def _read_link(link: str, settings: Settings) -> list[str]:
    path, _, query = link.partition("#")[0].partition("?")
    _, is_ours, code = path.partition(f"{settings.url_prefix.rstrip('/')}/")
    if is_ours:
        return [code.partition("/")[0]]
    segments = [segment for segment in path.split("/") if re.search(r"[^\W_]", segment)]
    return [*read_values(query, settings.query_param), *segments[-1:]]


def read_values(query: str, names: Collection[str]) -> list[str]:
    """Return the values of some query arguments, in the order of their names.

    Programs that escape or extend links turn ``&`` into ``&amp;``, and add a second ``?``.
    """
    pairs = [part.partition("=") for part in re.split("[?&;]", query[:_MAX_QUERY])]
    given = [(unquote_plus(name), unquote_plus(value)) for name, _, value in pairs]
    return [value for wanted in names for name, value in given if name == wanted][:_MAX_VALUES]
