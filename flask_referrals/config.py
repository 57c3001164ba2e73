"""Every setting with its default, and the check that it can be used."""

import ipaddress
import re
import typing as t
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from urllib.parse import urlsplit

from flask import Flask
from flask import current_app

from .exceptions import ConfigurationError
from .redirects import parse_host_pattern
from .redirects import safe_location

DEFAULTS: dict[str, t.Any] = {
    # Where the blueprint is mounted.
    "REFERRALS_URL_PREFIX": "/referrals",
    # Scheme, host and mount path of the site, for links made outside a request: "https://shop.example".
    "REFERRALS_BASE_URL": None,
    # The query argument of a link that names another page to arrive at.
    "REFERRALS_REDIRECT_PARAM": "redirect_to",
    # Other hosts a link may lead to: "shop.example", ".shop.example" (and its subdomains),
    # "*.shop.example" (its subdomains only), each with ":port" unless it is the default one.
    "REFERRALS_ALLOWED_REDIRECT_HOSTS": (),
    # Where a link leads whose own target is no longer allowed: a path or URL.
    "REFERRALS_FALLBACK_URL": "/",
    # Who gets credit: the "last" link that was followed, or the "first".
    "REFERRALS_ATTRIBUTION": "last",
    # How long after the click an action is still credited: timedelta or seconds; None: for ever.
    "REFERRALS_ATTRIBUTION_WINDOW": None,
    # A visitor's further clicks on the same link within this time are one: timedelta or seconds; None: never.
    "REFERRALS_REPEAT_WINDOW": timedelta(minutes=30),
    # The query arguments that bring a code to any page: "ref", several names, or None: none does.
    "REFERRALS_QUERY_PARAM": None,
    # Networks whose clicks are the site's own people's: "192.0.2.0/24".
    "REFERRALS_INTERNAL_NETWORKS": (),
    # What becomes of a click that does not count: "flag": it is stored with the reason; "drop": it is not.
    "REFERRALS_IGNORED": "flag",
    # Query arguments of a link that are stored with the click.
    "REFERRALS_CAMPAIGN_PARAMS": ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content", "sub"),
    # Whether a link's other query arguments are passed on to where it leads.
    "REFERRALS_FORWARD_QUERY": False,
    # Codes that nobody may choose, in any case of letters.
    "REFERRALS_RESERVED_CODES": ("admin", "api", "static"),
    # How many wrong codes an address may type within an hour, in each process; None: any number.
    "REFERRALS_GUESS_LIMIT": 10,
    # How many links a user may make with the form; None: any number.
    "REFERRALS_LINK_LIMIT": 1000,
    # How long a click waits for a lock in SQLite before it leads on unrecorded: timedelta or seconds; None: as long as
    # the engine's own timeout says, which also ends a longer one.
    "REFERRALS_LOCK_TIMEOUT": timedelta(seconds=2),
    # The key in SQLALCHEMY_BINDS of a replica, where counts, lists and exports are read; None: where clicks are stored.
    "REFERRALS_REPORT_BIND": None,
    # The cookie that keeps the visitor's key, with SameSite=Lax; None: it is kept in the Flask session.
    "REFERRALS_COOKIE": None,
    # Whether visitors who send Sec-GPC: 1 or DNT: 1 are neither described nor recognised later.
    "REFERRALS_RESPECT_GPC": False,
    # What is kept of an address: "truncated" (IPv4 /24, IPv6 /48), "full", "hashed" (another hash each day) or "none".
    "REFERRALS_IP_STORAGE": "truncated",
    # What is kept of the Referer header: its "origin", "full" or "none".
    "REFERRALS_REFERRER_STORAGE": "origin",
    # What the filter action_display shows for an action: {action: words}.
    "REFERRALS_ACTION_DISPLAY": {"RESPONDED": "Clicked on the link"},
}


#: So that a time before now is still a date.
_LONGEST = timedelta(days=36525)


def _require(valid: bool, name: str, rule: str) -> None:
    if not valid:
        raise ConfigurationError(f"{name} must be {rule}.")


def _check_choice(*choices: str) -> Callable[[str, t.Any], None]:
    def check(name: str, value: t.Any) -> None:
        _require(value in choices, name, " or ".join(repr(choice) for choice in choices))

    return check


def _check_duration(name: str, value: t.Any) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            value = timedelta(seconds=value)
        except (OverflowError, ValueError):  # infinite, or not a number
            value = timedelta(0)
    in_range = isinstance(value, timedelta) and timedelta(0) < value <= _LONGEST
    rule = "a timedelta or a number of seconds, longer than zero and at most 100 years, or None"
    _require(value is None or in_range, name, rule)


def _check_attribution(name: str, value: t.Any) -> None:
    _require(value in ("last", "first") or callable(value), name, "'last', 'first' or a callable")


def _check_path_prefix(name: str, value: t.Any) -> None:
    valid = isinstance(value, str) and value.startswith("/") and value.rstrip("/") != ""
    _require(valid, name, "a path such as '/referrals'")


def _check_base_url(name: str, value: t.Any) -> None:
    if value is not None:
        _require(isinstance(value, str) and _is_base_url(value), name, "a URL such as 'https://shop.example', or None")


def _is_base_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        usable = parts.port is None or parts.port > 0
    except ValueError:  # brackets, or a port that is none
        return False
    return usable and parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query + parts.fragment


def _check_word(name: str, value: t.Any) -> None:
    _require(isinstance(value, str) and value != "", name, "a name")


def _check_words(name: str, value: t.Any) -> None:
    is_list = isinstance(value, (list, tuple, set, frozenset))
    _require(is_list and all(isinstance(word, str) and word for word in value), name, "a list of names")


def _check_networks(name: str, value: t.Any) -> None:
    _check_words(name, value)
    for network in value:
        try:
            parse_network(network)
        except ValueError as error:
            raise ConfigurationError(f"{name}: {error}.") from None


def _check_optional_words(name: str, value: t.Any) -> None:
    _check_words(name, as_words(value))


def _check_switch(name: str, value: t.Any) -> None:
    _require(isinstance(value, bool), name, "True or False")


def _check_cookie(name: str, value: t.Any) -> None:
    valid = value is None or (isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]+", value) is not None)
    _require(valid, name, "a name of letters, digits, '-' or '_', or None")


def _check_limit(name: str, value: t.Any) -> None:
    valid = value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)
    _require(valid, name, "a number above zero, or None")


def _check_hosts(name: str, value: t.Any) -> None:
    _require(isinstance(value, (list, tuple, set, frozenset)), name, "a list of hosts")
    for pattern in value:
        _require(isinstance(pattern, str), name, "a list of hosts")
        try:
            parse_host_pattern(pattern)
        except ValueError as error:
            raise ConfigurationError(f"{name}: {error}.") from None


def _check_mapping(name: str, value: t.Any) -> None:
    _require(isinstance(value, dict), name, "a dict of {action: words}")


_CHECKS: dict[str, Callable[[str, t.Any], None]] = {
    "REFERRALS_URL_PREFIX": _check_path_prefix,
    "REFERRALS_BASE_URL": _check_base_url,
    "REFERRALS_REDIRECT_PARAM": _check_word,
    "REFERRALS_ALLOWED_REDIRECT_HOSTS": _check_hosts,
    "REFERRALS_ATTRIBUTION": _check_attribution,
    "REFERRALS_ATTRIBUTION_WINDOW": _check_duration,
    "REFERRALS_REPEAT_WINDOW": _check_duration,
    "REFERRALS_QUERY_PARAM": _check_optional_words,
    "REFERRALS_INTERNAL_NETWORKS": _check_networks,
    "REFERRALS_IGNORED": _check_choice("flag", "drop"),
    "REFERRALS_CAMPAIGN_PARAMS": _check_words,
    "REFERRALS_FORWARD_QUERY": _check_switch,
    "REFERRALS_RESERVED_CODES": _check_words,
    "REFERRALS_GUESS_LIMIT": _check_limit,
    "REFERRALS_LINK_LIMIT": _check_limit,
    "REFERRALS_LOCK_TIMEOUT": _check_duration,
    "REFERRALS_COOKIE": _check_cookie,
    "REFERRALS_RESPECT_GPC": _check_switch,
    "REFERRALS_IP_STORAGE": _check_choice("truncated", "full", "hashed", "none"),
    "REFERRALS_REFERRER_STORAGE": _check_choice("origin", "full", "none"),
    "REFERRALS_ACTION_DISPLAY": _check_mapping,
}


def apply(app: Flask) -> None:
    """Give every missing setting its default, and check them all.

    :param app: the app whose ``config`` is completed.
    :raises ConfigurationError: a setting cannot be used; it is named with what it must be.
    """
    for name, default in DEFAULTS.items():
        value = app.config.setdefault(name, default)
        if name in _CHECKS:
            _CHECKS[name](name, value)
    fallback = app.config["REFERRALS_FALLBACK_URL"]
    hosts = [*app.config["REFERRALS_ALLOWED_REDIRECT_HOSTS"]]
    if app.config["REFERRALS_BASE_URL"]:
        hosts.append(urlsplit(app.config["REFERRALS_BASE_URL"]).netloc)
    allowed = safe_location(fallback, hosts=hosts)
    _require(allowed is not None, "REFERRALS_FALLBACK_URL", "a path, or a URL on an allowed host")
    if not app.secret_key:
        raise ConfigurationError("SECRET_KEY is not set: visitors' keys are signed with it.")
    if isinstance(app.config.get("SECRET_KEY_FALLBACKS"), (str, bytes)):
        # Each of its letters would be taken for a key.
        raise ConfigurationError("SECRET_KEY_FALLBACKS must be a list of keys, not one key.")
    if app.config["REFERRALS_COOKIE"] == app.config["SESSION_COOKIE_NAME"]:
        raise ConfigurationError("REFERRALS_COOKIE must be another name than SESSION_COOKIE_NAME.")
    bind, binds = app.config["REFERRALS_REPORT_BIND"], app.config["SQLALCHEMY_BINDS"]
    if bind is not None and bind not in [*binds]:
        found = f"has only {', '.join(map(repr, binds))}" if binds else "is empty"
        raise ConfigurationError(f"REFERRALS_REPORT_BIND is {bind!r}, but SQLALCHEMY_BINDS {found}.")


@lru_cache(maxsize=256)
def parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Read an entry of ``REFERRALS_INTERNAL_NETWORKS``.

    :raises ValueError: it is no network, or has bits behind its prefix.
    """
    return ipaddress.ip_network(text)


def as_words(value: t.Any) -> t.Any:
    """Return the names in a setting that may be one name, several or ``None``."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def duration(name: str) -> timedelta | None:
    """Return a setting that is a length of time.

    :param name: the setting's name.
    :return: its value; a plain number is taken as seconds.
    """
    value = current_app.config[name]
    return value if value is None or isinstance(value, timedelta) else timedelta(seconds=value)
