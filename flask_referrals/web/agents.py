"""Whether a user agent is a person's browser."""

import re
import typing as t
from collections.abc import Callable
from functools import cache, lru_cache

#: How many characters of an agent are read. A client may send any length.
MAX_READ = 512

_OFFICE = r"ms-?office | microsoft\ office"

#: The programs of Microsoft Office. They follow a link, and then let the browser open the last page only.
OFFICE: re.Pattern[str] = re.compile(_OFFICE, re.IGNORECASE | re.VERBOSE)

_PROGRAM = re.compile(
    _OFFICE
    + r"""
    # Does not name a browser, device or app of people. Werkzeug is Flask's test client, with which hosts test pages.
    | ^(?!.*(?:mozilla|opera|safari|webkit|firefox|chrom|browser|hbbtv|android|ip(?:hone|ad|od)|cfnetwork|midp|docomo
         |fban/|werkzeug/))
    # Gives an address for complaints. After the @ of a locale, as in th_TH@calendar=gregorian, comes no domain.
    | https?: | www\. | @[a-z0-9.-]+\.[a-z]{2}
    # Claims to be compatible with a browser; of those still in use, only these two really were.
    | \(compatible[;)](?!\ (?:msie|konqueror)) | khtml,\ like\ gecko;
    # Says what it does. There are phones named CUBOT and "B BOT 550".
    | (?<!cu)bot(?:[^a-z]*$|[/;,)-]) | proxy[/)] | headless
    | (?:crawl|spider|scrap(?:e|per|y)?|scan(?:ner)?|check|monitor|preview|fetch|extractor|downloader|tester)
      (?:ers?|ing|s)?(?![a-z0-9])
    """,
    re.IGNORECASE | re.VERBOSE,
)

# Names on the library's list that are also those of people's phones, browsers and apps, such as HTC's Butterfly.
# _PROGRAM knows the crawlers that the list means.
_MISTAKEN = re.compile(r"AP3A\.240617\.008|Blackboard|Butterfly|Expanse|Fever|Sogou|Sonic|Viber")


@lru_cache(maxsize=4096)
def is_bot(user_agent: str) -> bool:
    """Return whether an agent of at most :data:`MAX_READ` characters belongs to a program. An empty one does."""
    return _PROGRAM.search(user_agent) is not None or _crawler_test()(_MISTAKEN.sub("", user_agent))


@cache
def _crawler_test() -> Callable[[str], bool]:
    """Load the list of known crawlers, at the first click that needs it."""
    try:
        from crawleruseragents import is_crawler
    except UnicodeDecodeError:  # It reads its list, which is UTF-8, in the locale's encoding.
        return lambda user_agent: False
    return t.cast("Callable[[str], bool]", is_crawler)
