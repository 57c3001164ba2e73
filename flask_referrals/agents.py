"""Whether a user agent is a person's browser."""

import re
import typing as t
from collections.abc import Callable
from functools import cache
from functools import lru_cache

#: As much of an agent as is looked at, in characters. A client may send any length, to be searched and kept.
MAX_LOOKED_AT = 512

_PROGRAM = re.compile(
    r"""
    # Names nothing that people look through. Werkzeug is Flask's test client: hosts test their own pages with it, and
    # nobody crawls with it, so it is a person.
    ^(?!.*(?:mozilla|opera|android|iphone|midp|docomo|browser|hbbtv|werkzeug/))
    # Leaves an address for complaints.
    | https?: | www\. | @[a-z]
    # Claims to be compatible with a browser; of those still met, only these two did.
    | \(compatible[;)](?!\ (?:msie|konqueror)) | khtml,\ like\ gecko;
    # Says what it does. There are phones named CUBOT and "B BOT 550".
    | (?<!cu)bot(?:[^a-z]*$|[/;,)-]) | crawl | spider | scrap | scan | check | monitor | preview | fetch
    | headless | proxy[/)]
    """,
    re.IGNORECASE | re.VERBOSE,
)

# The library's names that are also those of people's phones and browsers: a build of Android 15 on OPPO, OnePlus and
# realme phones, an app for schools, HTC's Butterfly, ViewSonic … The crawlers it means by the others, _PROGRAM knows.
_MISTAKEN = re.compile(r"AP3A\.240617\.008|Blackboard|Butterfly|Expanse|Fever|Sogou|Sonic|Viber")


def is_bot(user_agent: str) -> bool:
    """Whether an agent says that it is a program; one that says nothing is."""
    return _is_bot(user_agent[:MAX_LOOKED_AT])


@lru_cache(maxsize=4096)
def _is_bot(user_agent: str) -> bool:
    return _PROGRAM.search(user_agent) is not None or _crawler_test()(_MISTAKEN.sub("", user_agent))


@cache
def _crawler_test() -> Callable[[str], bool]:
    """Load the list of known crawlers, at the first click that needs it."""
    try:
        from crawleruseragents import is_crawler
    except UnicodeDecodeError:  # It reads its list, which is UTF-8, in the locale's encoding.
        return lambda user_agent: False
    return t.cast(Callable[[str], bool], is_crawler)
