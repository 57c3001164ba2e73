"""Whether a link may lead to a target: a path on this site, or a URL on an allowed host.

What is checked is what is sent: Werkzeug percent-encodes a ``Location`` while it writes the headers, so that is done
first, and the outcome is checked.
"""

import re
from collections.abc import Collection
from functools import lru_cache

from werkzeug.urls import iri_to_uri

#: The longest target, in characters.
MAX_LENGTH = 2048

_HOST = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
_AUTHORITY = rf"({_HOST}|\[[0-9a-f:.]+\])(?::([0-9]{{1,5}}))?"
_ABSOLUTE = re.compile(rf"(https?)://{_AUTHORITY}(?=[/?#]|\Z)", re.ASCII | re.IGNORECASE)
_PATTERN = re.compile(rf"(\*?\.)?{_AUTHORITY}", re.ASCII | re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}

HostPattern = tuple[str, str, int | None]


@lru_cache(maxsize=256)
def parse_host_pattern(pattern: str) -> HostPattern:
    """Read ``name``, ``.name`` or ``*.name``, with ``:port`` if it is not the scheme's default.

    :return: the prefix (``""``, ``"."`` or ``"*."``), the host in lower case, the port or ``None``.
    :raises ValueError: it is none of these; ``*`` alone would allow everything.
    """
    match = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    if match is None or not (match[3] is None or 0 < int(match[3]) < 65536):
        raise ValueError(f"{pattern!r} is not a host name, '.name' or '*.name'")
    prefix, host, port = match.groups(default="")
    return prefix, host.lower(), int(port) if port else None


def parse_origin(text: str) -> str:
    """Return an origin as browsers write it: in lower case, without the default port.

    :raises ValueError: it is not a scheme and a host, with or without a port.
    """
    match = _ABSOLUTE.fullmatch(text) if isinstance(text, str) else None
    if match is None or not (match[3] is None or 0 < int(match[3]) < 65536):
        raise ValueError(f"{text!r} is not an origin such as 'https://app.example'")
    scheme, host, port = match[1].lower(), match[2].lower(), int(match[3] or 0)
    return f"{scheme}://{host}:{port}" if port not in (0, _DEFAULT_PORTS[scheme]) else f"{scheme}://{host}"


def _is_allowed(url: str, patterns: Collection[str], require_https: bool) -> bool:
    if url.startswith("/"):
        return not url.startswith("//")
    match = _ABSOLUTE.match(url)
    if match is None or (require_https and match[1].lower() != "https"):
        return False
    host, default_port = match[2].lower(), _DEFAULT_PORTS[match[1].lower()]
    port = int(match[3] or default_port)
    for prefix, name, listed_port in map(parse_host_pattern, patterns):
        is_host = (prefix != "*." and host == name) or (prefix and host.endswith(f".{name}"))
        if is_host and port == (listed_port or default_port):
            return len(host) <= 253 and 0 < port < 65536
    return False


def safe_location(url: object, *, hosts: Collection[str], require_https: bool = False) -> str | None:
    """Return the exact ``Location`` header for a path or an absolute URL, or ``None`` when it must not be sent.

    :param hosts: the hosts it may name, as in ``REFERRALS_ALLOWED_REDIRECT_HOSTS``.
    :param require_https: refuse ``http`` URLs.
    """
    if not isinstance(url, str) or not 0 < len(url) <= MAX_LENGTH:
        return None
    return _location(url, tuple(hosts), require_https)


@lru_cache(maxsize=256)
def _location(url: str, hosts: tuple[str, ...], require_https: bool) -> str | None:
    # Printable: no control, format or surrogate character, and no white space other than U+0020.
    if not url.isprintable() or url != url.strip() or "\\" in url or not _is_allowed(url, hosts, require_https):
        return None
    try:
        # Nothing known gets past this point and fails below; it holds whatever a later Werkzeug does to a header.
        location = iri_to_uri(url)
        is_settled = iri_to_uri(location) == location
    except ValueError:  # brackets or a port that urllib refuses
        return None
    return location if is_settled and _is_allowed(location, hosts, require_https) else None
