"""Which request is meant, and what it says about its client: query, address, origin, whether a person clicked."""

import ipaddress
import typing as t
from datetime import date
from functools import lru_cache
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
from .agents import MAX_READ, is_bot_agent
from .signing import new_signer

#: The longest stored values, in characters.
MAX_REFERRER, MAX_AGENT, MAX_REASON = 1024, 255, 20

_PURPOSE_HEADERS = ("HTTP_SEC_PURPOSE", "HTTP_PURPOSE", "HTTP_X_PURPOSE", "HTTP_X_SEC_PURPOSE", "HTTP_X_MOZ")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def unwrapped(obj: t.Any) -> t.Any:
    """Return the object behind a proxy such as Flask-Login's ``current_user``."""
    return obj._get_current_object() if isinstance(obj, LocalProxy) else obj


def resolve_request(request: Request | None = None) -> Request | None:
    """Return the given request or else the current one, not a proxy; ``None`` outside a request."""
    if request is not None:
        return t.cast(Request, unwrapped(request))
    return t.cast(Request, unwrapped(flask.request)) if has_request_context() else None


def is_current(request: Request) -> bool:
    """Return whether a request is the current one, whose response can still be changed."""
    return has_request_context() and request is unwrapped(flask.request)


def shares_app_context() -> bool:
    """Return whether the current request uses an app context that was pushed before it, as a test may do.

    Flask 3.1 says so in a private attribute only. Later versions give each request a context of its own.
    """
    context: t.Any = t.cast(t.Any, request_ctx)._get_current_object() if has_request_context() else None
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


def ignored_reason(request: Request, settings: Settings, hooks: Hooks) -> str | None:
    """Return the reason code of a request on a link that is not a person's click, or ``None``.

    The exact signals come first: the method, then the Fetch Metadata of the W3C, which scripts cannot set. An error is
    logged; the click counts then.
    """
    environ = request.environ
    if request.method == "HEAD":
        return "head"
    if environ.get("HTTP_SEC_FETCH_DEST", "document") != "document":
        return "embedded"
    try:
        if is_bot_agent(environ.get("HTTP_USER_AGENT", "")[:MAX_READ]):
            return "bot"
        address = client_address(request, hooks) if settings.internal_networks else None
        if address is not None and any(address in network for network in settings.internal_networks):
            return "internal"
        reason = hooks.classifier(request) if hooks.classifier is not None else None
    except Exception:
        log_failure("Could not tell whether a person follows a link; the click counts.")
        return None
    return storable(str(reason), MAX_REASON) if reason else None


def opts_out(request: Request, settings: Settings) -> bool:
    """Return whether the visitor asks not to be tracked, and ``REFERRALS_RESPECT_GPC`` honours that.

    *Global Privacy Control*, a W3C draft, defines ``Sec-GPC: 1``; ``DNT: 1`` came before it.
    """
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
        "http_referrer": stored_referrer(environ.get("HTTP_REFERER"), settings),
        "user_agent": _stored_agent(environ.get("HTTP_USER_AGENT", "")[:MAX_READ]),
    }


@lru_cache(maxsize=256)
def _stored_agent(user_agent: str) -> str | None:
    return storable(user_agent, MAX_AGENT) or None


def stored_referrer(value: str | None, settings: Settings) -> str | None:
    """Return what ``REFERRALS_REFERRER_STORAGE`` keeps of a referring page's URL."""
    if not value or settings.referrer_storage == "none":
        return None
    return _referrer(value, settings.referrer_storage == "origin")


@lru_cache(maxsize=256)
def _referrer(value: str, is_origin_only: bool) -> str | None:
    try:
        parts = urlsplit(value)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    kept = parts._replace(netloc=host, fragment="")
    if is_origin_only:
        kept = kept._replace(path="/", query="")
    return storable(kept.geturl(), MAX_REFERRER)


@lru_cache(maxsize=256)
def parse_address(text: str) -> IPAddress:
    """Read an address. An IPv4 address written as IPv6 becomes IPv4; the zone, which is the server's, is cut.

    :raises ValueError: the text is not an address.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def client_address(request: Request, hooks: Hooks) -> IPAddress | None:
    """Return the client's whole address, or ``None`` when it has none.

    It comes from the host's ``client_ip``, else from ``request.remote_addr``: forwarding headers count only through
    Werkzeug's ``ProxyFix``, as the host set it up.
    """
    client_ip = hooks.client_ip
    try:
        return parse_address((client_ip(request) if client_ip is not None else request.remote_addr) or "")
    except ValueError:
        return None


def client_network(request: Request | None, hooks: Hooks) -> str | None:
    """Return what a client can hardly change of its address: all of an IPv4 address, the /64 of an IPv6 one."""
    address = client_address(request, hooks) if request is not None else None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address) if address is not None else None


def stored_address(address: IPAddress, settings: Settings, day: date | None = None) -> str | None:
    """Return what ``REFERRALS_IP_STORAGE`` keeps of an address.

    :param day: the day in UTC on which it was seen, by default today: each day has another hash of the same address.
    """
    storage = settings.ip_storage
    if storage == "none":
        return None
    if storage == "hashed":
        signer = new_signer(flask.current_app, f"address.{day or now().date()}")
        return signer.get_signature(str(address)).decode()
    return _truncated(address) if storage == "truncated" else str(address)


@lru_cache(maxsize=256)
def _truncated(address: IPAddress) -> str:
    dropped_bits = 32 - 24 if address.version == 4 else 128 - 48
    return str(type(address)(int(address) >> dropped_bits << dropped_bits))
