"""Whether a link may lead to a target; nothing else.

The rule is a positive grammar: one ``/`` that no second one follows, or ``http(s)://`` with an ASCII host that is
allowed and a valid port. What is checked is what is sent: Werkzeug percent-encodes a ``Location`` while it writes the
headers, so that is done first, and the outcome is checked.
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
    """Read an entry of ``REFERRALS_ALLOWED_REDIRECT_HOSTS``.

    :param pattern: ``name``, ``.name`` or ``*.name``, with ``:port`` when it is not the scheme's default.
    :return: the prefix (``""``, ``"."`` or ``"*."``), the host in lower case, the port or ``None``.
    :raises ValueError: it is no such thing; ``*`` alone would allow everything.
    """
    match = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    if match is None or not (match[3] is None or 0 < int(match[3]) < 65536):
        raise ValueError(f"{pattern!r} is not a host name, '.name' or '*.name'")
    prefix, host, port = match.groups(default="")
    return prefix, host.lower(), int(port) if port else None


def _host_allowed(scheme: str, host: str, port: int, patterns: Collection[str]) -> bool:
    for pattern in patterns:
        prefix, name, wanted_port = parse_host_pattern(pattern)
        if port != (wanted_port or _DEFAULT_PORTS[scheme]):
            continue
        if (prefix != "*." and host == name) or (prefix and host.endswith(f".{name}")):
            return True
    return False


def _grammatical(url: str, *, hosts: Collection[str], require_https: bool) -> bool:
    if url.startswith("/"):
        return not url.startswith("//")
    match = _ABSOLUTE.match(url)
    if match is None:
        return False
    scheme, host, port_text = match[1].lower(), match[2].lower(), match[3]
    if require_https and scheme != "https":
        return False
    port = int(port_text) if port_text else _DEFAULT_PORTS[scheme]
    return len(host) <= 253 and 0 < port < 65536 and _host_allowed(scheme, host, port, hosts)


def safe_location(url: object, *, hosts: Collection[str], require_https: bool = False) -> str | None:
    """Return the ``Location`` header for a target, or ``None`` when it must not be sent.

    :param url: the target: a local path, or an absolute URL.
    :param hosts: the hosts it may name, as in ``REFERRALS_ALLOWED_REDIRECT_HOSTS``; the own host is one of them.
    :param require_https: refuse ``http`` targets; true when the request came by ``https``.
    :return: the header's exact value, which writing the header does not change any more.
    """
    if not isinstance(url, str) or not 0 < len(url) <= MAX_LENGTH:
        return None
    return _location(url, tuple(hosts), require_https)


@lru_cache(maxsize=256)
def _location(url: str, hosts: tuple[str, ...], require_https: bool) -> str | None:
    if not url.isprintable() or url != url.strip() or "\\" in url:
        return None  # a control, format or surrogate character, or white space other than U+0020
    if not _grammatical(url, hosts=hosts, require_https=require_https):
        return None
    try:
        # Nothing known gets past this point and fails below; it holds whatever a later Werkzeug does to a header.
        location = iri_to_uri(url)
        settled = iri_to_uri(location) == location
    except ValueError:  # brackets or a port that urllib refuses
        return None
    if not settled or not _grammatical(location, hosts=hosts, require_https=require_https):
        return None
    return location
