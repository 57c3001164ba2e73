"""What a request tells of the program that sent it: address, origin, and whether a person is looking."""

import hashlib
import ipaddress
from datetime import date
from datetime import datetime
from datetime import timezone
from urllib.parse import urlsplit

from flask import current_app
from itsdangerous import Signer
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Request

from .agents import is_bot
from .config import parse_network
from .context import current_state
from .context import signing_keys
from .failures import log_failure

#: The longest stored values, in characters.
MAX_REFERRER = 1024
MAX_AGENT = 255
MAX_REASON = 20

_PURPOSE_HEADERS = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Sec-Purpose", "X-Moz")


def is_prefetch(request: Request) -> bool:
    """Whether the browser asks ahead of a click that may never come.

    MDN, *Sec-Purpose*: browsers mark speculative loads so that servers can refuse them.
    """
    purposes = " ".join(request.headers.get(name, "") for name in _PURPOSE_HEADERS).lower()
    return any(word in purposes for word in ("prefetch", "prerender", "preview"))


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
    if _is_internal(request):
        return "internal"
    classifier = current_state().extension.hooks.classifier
    reason = classifier(request) if classifier is not None else None
    return storable(str(reason), MAX_REASON) if reason else None


def _is_internal(request: Request) -> bool:
    networks = current_app.config["REFERRALS_INTERNAL_NETWORKS"]
    if not networks:
        return False
    address = client_address(request)
    return address is not None and any(address in parse_network(network) for network in networks)


def lacks_consent(request: Request) -> str | None:
    """Return the reason code when the visitor may not be recognised later; a ``consent`` that fails gives none."""
    consent = current_state().extension.hooks.consent
    try:
        return None if consent is None or consent(request) else "no-consent"
    except Exception:
        log_failure("It could not be told whether a visitor consents; taken for a no.")
        return "no-consent"


def arguments(request: Request) -> MultiDict[str, str]:
    """Return the query's arguments; there are none in a query of bytes that are no UTF-8, which some servers let in."""
    try:
        return request.args
    except UnicodeDecodeError:
        return MultiDict()


def storable(text: str, length: int) -> str:
    """Cut a text that the client wrote to what every database can store.

    :param text: any text; NUL and lone surrogates are dropped: PostgreSQL refuses the one, UTF-8 the other.
    :param length: the longest result in characters.
    """
    return text.replace("\0", "").encode("utf-8", "ignore").decode()[:length]


def opts_out(request: Request) -> bool:
    """Whether the visitor asks not to be tracked, and ``REFERRALS_RESPECT_GPC`` says that this is heard.

    *Global Privacy Control*, a W3C draft, defines ``Sec-GPC: 1``; ``DNT: 1`` is its forerunner.
    """
    is_heard = bool(current_app.config["REFERRALS_RESPECT_GPC"])
    return is_heard and "1" in (request.headers.get("Sec-GPC"), request.headers.get("DNT"))


def description(request: Request | None) -> dict[str, str | None]:
    """Return what is stored of a request: address, referrer and agent, as far as the settings and the visitor let us.

    :param request: the request; of none, nothing is known.
    """
    if request is None or opts_out(request):
        return {"ip_address": None, "http_referrer": None, "user_agent": None}
    address = client_address(request)
    return {
        "ip_address": kept_address(address) if address is not None else None,
        "http_referrer": kept_referrer(request.headers.get("Referer")),
        "user_agent": storable(request.headers.get("User-Agent", ""), MAX_AGENT) or None,
    }


def kept_referrer(value: str | None) -> str | None:
    """Return what ``REFERRALS_REFERRER_STORAGE`` lets us keep of a referring page's URL."""
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


IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> IPAddress:
    """Read an address; an IPv4 one that is written as IPv6 is the IPv4 one, and a zone, which is the server's, is cut.

    :raises ValueError: it is no address.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def client_address(request: Request) -> IPAddress | None:
    """Return the client's whole address, or ``None`` when it has none.

    It is what the host's ``client_ip`` says, else ``request.remote_addr``: forwarding headers count only through
    Werkzeug's ``ProxyFix``, as the host set it up.
    """
    client_ip = current_state().extension.hooks.client_ip
    try:
        return parse_address((client_ip(request) if client_ip else request.remote_addr) or "")
    except ValueError:
        return None


def kept_address(address: IPAddress, day: date | None = None) -> str | None:
    """Return what ``REFERRALS_IP_STORAGE`` lets us keep of an address.

    :param address: the whole address.
    :param day: the day in UTC on which it was seen, by default today: the same address is another hash on another day.
    """
    storage = current_app.config["REFERRALS_IP_STORAGE"]
    if storage == "none":
        return None
    if storage == "hashed":
        day = day or datetime.now(timezone.utc).date()
        signer = Signer(signing_keys(), salt=f"flask-referrals.address.{day}", digest_method=hashlib.sha256)
        return signer.get_signature(str(address)).decode()
    if storage == "truncated":
        dropped_bits = 32 - 24 if address.version == 4 else 128 - 48
        return str(type(address)(int(address) >> dropped_bits << dropped_bits))
    return str(address)
