"""What a request tells of the program that sent it: address, origin, and whether a person is looking."""

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

from flask import current_app
from werkzeug.wrappers import Request

from .context import current_state

#: The longest stored values, in characters.
MAX_REFERRER = 1024
MAX_AGENT = 255

_BOT = re.compile(
    r"(?<!cu)bot(?![a-z])|crawl|spider|slurp|scrap|preview|fetch|facebookexternalhit|facebot|whatsapp|embedly"
    r"|headless|phantomjs|lighthouse|monitor|uptime|pingdom|validator|mediapartners"
    r"|^(?:curl|wget|python|java|okhttp|go-http|libwww|apache-httpclient|axios|node|ruby|perl|php)\b",
    re.IGNORECASE,
)
_PURPOSE_HEADERS = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Sec-Purpose", "X-Moz")


def is_prefetch(request: Request) -> bool:
    """Whether the browser asks ahead of a click that may never come.

    MDN, *Sec-Purpose*: browsers mark speculative loads so that servers can refuse them.
    """
    return any(
        word in request.headers.get(name, "").lower()
        for name in _PURPOSE_HEADERS
        for word in ("prefetch", "prerender", "preview")
    )


def not_a_click(request: Request) -> str | None:
    """Return the reason code why a request on a link is no person's click, or ``None``.

    The exact signals come first: the method, then the Fetch Metadata of W3C, which scripts cannot set.
    """
    if request.method == "HEAD":
        return "head"
    if request.headers.get("Sec-Fetch-Dest", "document") != "document":
        return "embedded"
    if is_bot(request.headers.get("User-Agent", "")):
        return "bot"
    classifier = current_state().extension.hooks.classifier
    return classifier(request) if classifier is not None else None


def has_consent(request: Request) -> bool:
    """Whether the visitor may be recognised later, as the host's ``consent`` says."""
    consent = current_state().extension.hooks.consent
    return consent is None or bool(consent(request))


@lru_cache(maxsize=4096)
def is_bot(user_agent: str) -> bool:
    """Whether an agent says that it is a program; one that says nothing is."""
    return not user_agent or _BOT.search(user_agent) is not None


def storable(text: str, length: int) -> str:
    """Cut a text that the client wrote to what every database can store.

    :param text: any text; NUL and lone surrogates are dropped: PostgreSQL refuses the one, UTF-8 the other.
    :param length: the longest result in characters.
    """
    return text.replace("\0", "").encode("utf-8", "ignore").decode()[:length]


def referrer(request: Request) -> str | None:
    """Return what ``REFERRALS_REFERRER_STORAGE`` lets us keep of the ``Referer`` header."""
    value = request.headers.get("Referer")
    storage = current_app.config["REFERRALS_REFERRER_STORAGE"]
    if not value or storage == "none":
        return None
    try:
        parts = urlsplit(value)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    kept = parts._replace(netloc=host, fragment="")
    if storage == "origin":
        kept = kept._replace(path="/", query="")
    return storable(kept.geturl(), MAX_REFERRER)


def user_agent(request: Request) -> str | None:
    """Return the agent's name for itself, cut to its column."""
    return storable(request.headers.get("User-Agent", ""), MAX_AGENT) or None


def client_address(request: Request) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the client's whole address, which is never stored unless the host wants that."""
    client_ip = current_state().extension.hooks.client_ip
    try:
        address = ipaddress.ip_address((client_ip(request) if client_ip else request.remote_addr) or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def ip_address(request: Request) -> str | None:
    """Return what ``REFERRALS_IP_STORAGE`` lets us keep of the client's address, or ``None`` if it is none.

    The address is the host's ``client_ip``, else ``request.remote_addr``: forwarding headers count only through
    Werkzeug's ``ProxyFix``, as the host set it up.
    """
    storage = current_app.config["REFERRALS_IP_STORAGE"]
    if storage == "none":
        return None
    address = client_address(request)
    if address is None:
        return None
    if storage == "truncated":
        kept_bits = 24 if address.version == 4 else 48
        return str(ipaddress.ip_network((address, kept_bits), strict=False).network_address)
    return str(address)
