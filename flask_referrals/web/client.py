"""What a request says about its client: query, address, origin, whether a person clicked."""

import re
import typing as t
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

import flask
from flask import has_request_context
from flask.globals import request_ctx
from werkzeug.datastructures import MultiDict
from werkzeug.local import LocalProxy
from werkzeug.wrappers import Request

from ..failures import log_failure
from ..settings import Settings
from ..times import now
from ..types import Hooks, storable
from .agents import MAX_READ, is_bot
from .signing import new_signer

#: The longest stored values, in characters.
MAX_REFERRER, MAX_AGENT, MAX_REASON = 1024, 255, 20

_PURPOSE_HEADERS = ("HTTP_SEC_PURPOSE", "HTTP_PURPOSE", "HTTP_X_PURPOSE", "HTTP_X_SEC_PURPOSE", "HTTP_X_MOZ")

#: How many characters of an Accept header are read.
MAX_ACCEPT = 1024
_PAGE_TYPE = re.compile(r"text/(?:html|\*)|application/xhtml\+xml", re.IGNORECASE)

# Apps on Android name themselves in the Referer, as in android-app://com.slack/.
_REFERRER_SCHEMES = ("http", "https", "android-app", "ios-app")

# An address with a port or in brackets; an IPv6 address is in brackets if it has a port.
_WITH_PORT = re.compile(r"(?:\[([^]]*)\]|([^:]*))(?::[0-9]+)?")

IPAddress = IPv4Address | IPv6Address


# The proxy itself: its type says that it is a request.
_request: t.Any = flask.request


def unwrapped(obj: t.Any) -> t.Any:
    """Return the object behind a proxy such as Flask-Login's ``current_user``."""
    return obj._get_current_object() if isinstance(obj, LocalProxy) else obj


def resolve_request(request: Request | None = None) -> Request | None:
    """Return the given request or else the current one, not a proxy; ``None`` outside a request."""
    if request is None and has_request_context():
        request = _request
    resolved: Request | None = unwrapped(request)
    return resolved


def is_current(request: Request) -> bool:
    """Return whether a request is the current one, whose response can still be changed."""
    return has_request_context() and request is _request._get_current_object()


def shares_app_context() -> bool:
    """Return whether the current request uses an app context that was pushed before it, as a test may do.

    Flask 3.1 says so in a private attribute only. Later versions give each request a context of its own.
    """
    context = unwrapped(request_ctx) if has_request_context() else None
    tokens: t.Any = getattr(context, "_cv_tokens", None)
    return bool(tokens) and tokens[0][1] is None


def arguments(request: Request) -> MultiDict[str, str]:
    """Return the query's arguments. A query that is not UTF-8, which some servers let in, has none."""
    if not request.query_string:
        return MultiDict()
    try:
        return request.args
    except UnicodeDecodeError:
        return MultiDict()


def is_prefetch(request: Request) -> bool:
    """Return whether the browser loads ahead of a click that may never come.

    MDN, *Sec-Purpose*: browsers mark speculative loads so that servers can refuse them.
    """
    environ = request.environ
    given = [environ[name] for name in _PURPOSE_HEADERS if name in environ]
    if not given:
        return False
    purposes = " ".join(given).lower()
    return "prefetch" in purposes or "prerender" in purposes or "preview" in purposes


def is_navigation(request: Request) -> bool:
    """Return whether a browser asks for a page to show in a tab, and not for a part of another page.

    Fetch Metadata of the W3C tell, which scripts cannot set. Browsers send them over https only; otherwise ``Accept``
    must ask for a page. A client that sends neither is believed.
    """
    environ = request.environ
    dest, mode = environ.get("HTTP_SEC_FETCH_DEST"), environ.get("HTTP_SEC_FETCH_MODE")
    accept = environ.get("HTTP_ACCEPT", "")[:MAX_ACCEPT]
    asks_for_page = _PAGE_TYPE.search(accept) is not None
    if dest == "empty":  # what a service worker sends on, with the mode "same-origin" if it adds options
        return asks_for_page and mode in ("navigate", "same-origin")
    if dest is None and mode is None:
        return asks_for_page or not accept
    return dest in (None, "document") and mode in (None, "navigate")


def ignored_reason(
    request: Request,
    settings: Settings,
    hooks: Hooks,
    without_flush: Callable[[], AbstractContextManager[t.Any]],
    *,
    is_click: bool = True,
) -> str | None:
    """Return the reason code of a request that is not a visitor's, or ``None``, also after an error, which is logged.

    :param without_flush: returns a block in which no query of the host's ``classifier`` flushes what it has pending.
    :param is_click: it follows a link; else it brings a typed code, which a script of the site may send.
    """
    if not is_click and is_prefetch(request):
        return "prefetch"
    if is_click and request.method == "HEAD":
        return "head"
    if is_click and not is_navigation(request):
        return "embedded"
    try:
        if is_bot(request.environ.get("HTTP_USER_AGENT", "")[:MAX_READ]):
            return "bot"
        address = client_address(request, hooks) if settings.internal_networks else None
        if address is not None and any(address in network for network in settings.internal_networks):
            return "internal"
        if hooks.classifier is None:
            return None
        with without_flush():
            reason = hooks.classifier(request)
    except Exception:
        log_failure("Could not classify a click; it is counted.")
        return None
    return storable(str(reason), MAX_REASON) if reason else None


def opts_out(request: Request, settings: Settings) -> bool:
    """Return whether the visitor asks not to be tracked, and ``REFERRALS_RESPECT_GPC`` honours that."""
    environ = request.environ
    return settings.respect_gpc and "1" in (environ.get("HTTP_SEC_GPC"), environ.get("HTTP_DNT"))


def description(request: Request | None, settings: Settings, hooks: Hooks) -> dict[str, str | None]:
    """Return what is stored of a request: address, referrer and agent, as settings and visitor permit."""
    if request is None or opts_out(request, settings):
        return {}
    environ = request.environ
    address = client_address(request, hooks)
    return {
        "ip_address": stored_address(address, settings) if address is not None else None,
        "http_referrer": stored_referrer(environ.get("HTTP_REFERER", ""), settings.referrer_storage),
        "user_agent": _storable(environ.get("HTTP_USER_AGENT", "")[:MAX_READ], MAX_AGENT) or None,
    }


_storable = lru_cache(maxsize=256)(storable)


@lru_cache(maxsize=256)
def stored_referrer(value: str, storage: str) -> str | None:
    """Return what ``REFERRALS_REFERRER_STORAGE`` keeps of a referring page's URL."""
    try:
        parts = urlsplit(value)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return None
    if parts.scheme not in _REFERRER_SCHEMES or not host or storage == "none":
        return None
    kept = parts._replace(netloc=host, fragment="")
    if storage == "origin":
        kept = kept._replace(path="/", query="")
    return storable(kept.geturl(), MAX_REFERRER)


@lru_cache(maxsize=256)
def parse_address(text: str) -> IPAddress:
    """Parse an address without its port and zone. An IPv4 address written as IPv6 becomes IPv4."""
    text = text.strip()
    match = _WITH_PORT.fullmatch(text)
    address = ip_address((match[1] or match[2] if match else text).partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def client_address(request: Request, hooks: Hooks) -> IPAddress | None:
    """Return the client's whole address, or ``None`` when it has none. Only ``ProxyFix`` reads forwarding headers."""
    text = request.remote_addr if hooks.client_ip is None else hooks.client_ip(request)
    try:
        return parse_address(text or "")
    except ValueError:
        return None


def client_network(request: Request | None, hooks: Hooks) -> str | None:
    """Return what a client can hardly change of its address: an IPv4 address, or the first half of an IPv6 address.

    All clients without a readable address share one name. Outside a request there is none.
    """
    if request is None:
        return None
    address = client_address(request, hooks)
    return _first_bits(address, 32, 64) if address is not None else "unknown"


def stored_address(address: IPAddress, settings: Settings, day: date | None = None) -> str | None:
    """Return what ``REFERRALS_IP_STORAGE`` keeps of an address. Each day in UTC has another hash of it."""
    if settings.ip_storage == "truncated":
        return _first_bits(address, 24, 48)
    if settings.ip_storage == "hashed":
        signer = new_signer(flask.current_app, f"address.{day or now().date()}")
        return signer.get_signature(str(address)).decode()
    return str(address) if settings.ip_storage == "full" else None


@lru_cache(maxsize=256)
def _first_bits(address: IPAddress, ipv4: int, ipv6: int) -> str:
    """Return an address with the rest of its bits set to zero."""
    network = ip_network((address, ipv4 if address.version == 4 else ipv6), strict=False)
    return str(network.network_address)
