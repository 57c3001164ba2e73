"""The ``REFERRALS_*`` settings of an app: read, checked and frozen once, by ``init_app``."""

import re
import typing as t
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, fields
from datetime import timedelta, tzinfo
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import urlsplit

from .exceptions import ConfigurationError
from .redirects import parse_host_pattern, parse_origin, safe_location
from .times import load_zone

#: Returns a value in the form that the code uses, or raises ValueError with what the setting must be.
Parser = Callable[[t.Any], t.Any]
Networks = tuple[IPv4Network | IPv6Network, ...]
Attribution = str | Callable[[t.Any], t.Any]

_WORDS = {"RESPONDED": "Clicked on the link"}

#: The longest duration, so that the current time minus it is still a date.
_LONGEST = timedelta(days=36525)


def _checked(is_valid: Callable[[t.Any], t.Any], rule: str) -> Parser:
    """Return a parser that leaves a valid value as it is."""

    def parse(value: t.Any) -> t.Any:
        if not is_valid(value):
            raise ValueError(rule)
        return value

    return parse


def _choice(*choices: str) -> Parser:
    return _checked(lambda value: value in choices, " or ".join(map(repr, choices)))


def _optional(parse: Parser) -> Parser:
    def parse_or_none(value: t.Any) -> t.Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or None") from None

    return parse_or_none


def _duration(value: t.Any) -> timedelta:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            value = timedelta(seconds=value)
        except (OverflowError, ValueError):  # infinite, or not a number
            value = None
    if not isinstance(value, timedelta) or not timedelta(0) < value <= _LONGEST:
        raise ValueError("a timedelta or a number of seconds, longer than zero and at most 100 years")
    return value


def _is_base_url(value: t.Any) -> bool:
    try:
        parts = urlsplit(value)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query + parts.fragment
        return isinstance(value, str) and is_valid and (parts.port is None or parts.port > 0)
    except (AttributeError, TypeError, ValueError):  # no text, brackets, or an invalid port
        return False


def _names(value: t.Any, kind: str = "names") -> tuple[str, ...]:
    if isinstance(value, (list, tuple, set, frozenset)) and all(map(_is_name, value)):
        return tuple(value)
    raise ValueError(f"a list of {kind}")


def _is_name(value: t.Any) -> bool:
    return isinstance(value, str) and value != ""


def _one_or_more_names(value: t.Any) -> tuple[str, ...]:
    return () if value is None else _names((value,) if isinstance(value, str) else value)


def _words(value: t.Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("a dict of {action: words}")
    return _WORDS | value


def _codes(value: t.Any) -> frozenset[str]:
    return frozenset(name.casefold() for name in _names(value))


def _list_of(kind: str, parse: Parser) -> Parser:
    def parse_all(value: t.Any) -> tuple[t.Any, ...]:
        names = _names(value, kind)
        try:
            return tuple(map(parse, names))
        except ValueError as error:
            raise ValueError(f"a list of {kind}: {error}") from None

    return parse_all


def _zone(value: t.Any) -> tzinfo:
    try:
        return load_zone(value)
    except ValueError:
        rule = "an IANA time zone such as 'Europe/Paris'; install tzdata if the system has no time zones"
        raise ValueError(rule) from None


_any = _checked(lambda value: True, "")
_base_url = _checked(_is_base_url, "a URL such as 'https://shop.example'")
_attribution = _checked(lambda value: value in ("last", "first") or callable(value), "'last', 'first' or a callable")
_boolean = _checked(lambda value: isinstance(value, bool), "True or False")
_cookie_name = _checked(
    lambda value: _is_name(value) and re.fullmatch(r"[A-Za-z0-9_-]+", value), "a name of letters, digits, '-' or '_'"
)
_hosts = _list_of("hosts", _checked(parse_host_pattern, "a host"))
_limit = _checked(lambda value: type(value) is int and value > 0, "a number above zero")
_name = _checked(_is_name, "a name")
_networks = _list_of("networks", ip_network)
_origins = _list_of("origins", parse_origin)
_path_prefix = _checked(
    lambda value: _is_name(value) and value.startswith("/") and value.rstrip("/"), "a path such as '/referrals'"
)


def _setting(default: t.Any, parse: Parser, description: str) -> t.Any:
    return field(metadata={"default": default, "parse": parse, "description": description})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one app. Each field is ``REFERRALS_`` and its name in capitals."""

    url_prefix: str = _setting("/referrals", _path_prefix, "The path of the two routes.")
    base_url: str | None = _setting(None, _optional(_base_url), "The URL that links begin with, also outside requests.")
    redirect_param: str = _setting("redirect_to", _name, "A link's query argument that names another page.")
    allowed_redirect_hosts: tuple[str, ...] = _setting((), _hosts, "Other hosts that links may lead to.")
    fallback_url: str = _setting("/", _any, "Where a link redirects when its own target is no longer allowed.")
    attribution: Attribution = _setting("last", _attribution, "``last``, ``first`` or a callable.")
    attribution_window: timedelta | None = _setting(
        timedelta(days=90), _optional(_duration), "How long after a click actions are credited."
    )
    repeat_window: timedelta | None = _setting(
        timedelta(minutes=30), _optional(_duration), "A visitor's clicks on one link within this time count once."
    )
    query_param: tuple[str, ...] = _setting(None, _one_or_more_names, "Query arguments that bring a code to any page.")
    internal_networks: Networks = _setting((), _networks, "Networks whose clicks are ignored, such as your office's.")
    ignored: str = _setting(
        "flag", _choice("flag", "drop"), "``flag`` ignored clicks with their reason, or ``drop`` them."
    )
    campaign_params: tuple[str, ...] = _setting(
        ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content", "sub"),
        _names,
        "Query arguments of a link that are stored with the click.",
    )
    forward_query: bool = _setting(False, _boolean, "Whether other query arguments are passed on to the target.")
    reserved_codes: frozenset[str] = _setting(
        ("admin", "api", "insight", "mine", "static"), _codes, "Codes that nobody may choose."
    )
    guess_limit: int | None = _setting(10, _optional(_limit), "Wrong codes per address, hour and process.")
    funnel: tuple[str, ...] = _setting(
        ("RESPONDED", "SIGNED_UP", "PURCHASED"), _names, "The steps of ``stats().funnel``, in their order."
    )
    link_limit: int | None = _setting(1000, _optional(_limit), "Links that one user may create with the form.")
    trusted_origins: tuple[str, ...] = _setting((), _origins, "Other origins whose pages may create links for a user.")
    lock_timeout: timedelta | None = _setting(
        timedelta(seconds=2), _optional(_duration), "How long a click waits for SQLite's lock; then it only redirects."
    )
    report_bind: str | None = _setting(None, _any, "The bind of a replica, where counts, lists and exports are read.")
    timezone: tzinfo = _setting("UTC", _zone, "The time zone of the days that ``flask referrals rollup`` counts.")
    cookie: str | None = _setting(
        "referral", _optional(_cookie_name), "A cookie that keeps the visitor key when the browser is closed."
    )
    respect_gpc: bool = _setting(False, _boolean, "Whether ``Sec-GPC: 1`` and ``DNT: 1`` prevent recognition.")
    ip_storage: str = _setting(
        "truncated",
        _choice("truncated", "full", "hashed", "none"),
        "What is stored of an address: ``truncated``, ``full``, ``hashed`` (new each day) or ``none``.",
    )
    referrer_storage: str = _setting(
        "origin",
        _choice("origin", "full", "none"),
        "What is stored of the ``Referer``: ``origin``, ``full`` or ``none``.",
    )
    action_display: Mapping[str, str] = _setting(
        _WORDS, _words, "Words for actions in templates, pages and tables; they extend these."
    )

    @classmethod
    def defaults(cls) -> dict[str, t.Any]:
        """Return each setting's name in ``app.config`` and its default."""
        return {f"REFERRALS_{each.name.upper()}": each.metadata["default"] for each in fields(cls)}

    @classmethod
    def from_config(cls, config: MutableMapping[str, t.Any]) -> "Settings":
        """Read the settings from an app's config, to which the defaults are added."""
        values = {}
        for each, (name, default) in zip(fields(cls), cls.defaults().items(), strict=True):
            try:
                values[each.name] = each.metadata["parse"](config.setdefault(name, default))
            except ValueError as error:
                raise ConfigurationError(f"{name} must be {error}.") from None
        settings = cls(**values)
        settings._check_together(config)
        return settings

    def _check_together(self, config: Mapping[str, t.Any]) -> None:
        hosts = [*self.allowed_redirect_hosts]
        if self.base_url:
            hosts.append(urlsplit(self.base_url).netloc)
        if safe_location(self.fallback_url, hosts=hosts) is None:
            raise ConfigurationError("REFERRALS_FALLBACK_URL must be a path, or a URL on an allowed host.")
        if not config["SECRET_KEY"]:
            raise ConfigurationError("SECRET_KEY is not set. Set it: visitor keys are signed with it.")
        if isinstance(config.get("SECRET_KEY_FALLBACKS"), (str, bytes)):
            # Each letter would be used as a key.
            raise ConfigurationError("SECRET_KEY_FALLBACKS must be a list of keys, not one key.")
        if self.cookie is not None and config["SESSION_COOKIE_NAME"] in (self.cookie, f"__Host-{self.cookie}"):
            raise ConfigurationError("REFERRALS_COOKIE must be another name than SESSION_COOKIE_NAME.")
