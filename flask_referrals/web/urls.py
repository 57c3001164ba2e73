"""The hosts of this site, the URL of a referral, and the ``Location`` of a target."""

import typing as t
from urllib.parse import quote, unquote_plus, urlsplit

import flask
from flask import Blueprint, current_app, has_request_context, url_for
from werkzeug.routing import BuildError
from werkzeug.wrappers import Request

from ..exceptions import ConfigurationError
from ..redirects import parse_host_pattern, safe_location
from ..settings import Settings
from .client import arguments

#: The endpoint of the links.
REDIRECT_ENDPOINT = "referrals.redirect"

# The variable part of the rules in an app that matches hosts.
_HOST = "referrals_host"

# What Werkzeug does not percent-encode in the query of a Location.
_QUERY_CHARACTERS = "%!$&'()*+,/:;=?@"


def referral_url(settings: Settings, code: str) -> str:
    """Return the absolute URL of a referral, under ``REFERRALS_BASE_URL`` or else as ``url_for`` makes it."""
    if settings.base_url is not None:
        return f"{settings.base_url.rstrip('/')}{path_of(REDIRECT_ENDPOINT, code=code)}"
    if not has_request_context() and not current_app.config["SERVER_NAME"]:
        raise ConfigurationError("A referral's URL needs REFERRALS_BASE_URL (or SERVER_NAME) outside a request.")
    return url_for(REDIRECT_ENDPOINT, code=code, _external=True)


def target_location(settings: Settings, target: str | None) -> str | None:
    """Return the ``Location`` for a path, a URL or an endpoint, or ``None`` when it must not be sent."""
    endpoint_host = ""
    if target in current_app.view_functions:
        try:
            target = url_for(target, _external=False) if has_request_context() else path_of(target)
        except BuildError:
            return None
        endpoint_host = urlsplit(target).netloc
    if target is not None and target.startswith("/"):
        return safe_location(target, hosts=())  # a path names no host
    hosts = [*_own_hosts(settings, endpoint_host), *settings.allowed_redirect_hosts]
    return safe_location(target, hosts=hosts, require_https=has_request_context() and flask.request.is_secure)


def _own_hosts(settings: Settings, endpoint_host: str) -> list[str]:
    """Return the hosts of this site: as configured, and as the request and the endpoint name it."""
    hosts = [urlsplit(settings.base_url or "").netloc, current_app.config["SERVER_NAME"], endpoint_host]
    if has_request_context():
        hosts.append(flask.request.host)  # Flask checks it against TRUSTED_HOSTS
    return [host for host in hosts if host and _is_host(host)]


def _is_host(host: str) -> bool:
    try:
        return parse_host_pattern(host)[0] == ""
    except ValueError:
        return False


def location_of(settings: Settings, request: Request, stored: str | None) -> str:
    """Return the ``Location`` of a link: ``?redirect_to=``, the stored target, or else a page that may be sent.

    The rest of the query follows if ``REFERRALS_FORWARD_QUERY`` says so.
    """
    given: t.Any = arguments(request) if request.query_string else {}
    for candidate in (given.get(settings.redirect_param), stored, settings.fallback_url):
        location = target_location(settings, candidate) if candidate else None
        if location is not None:
            break
    location = location or "/"
    if request.script_root and location.startswith("/"):
        location = _under_script_root(request.script_root, location)
    return _with_query(settings, request, location) if settings.forward_query and request.query_string else location


def _under_script_root(script_root: str, path: str) -> str:
    """Return a path of the app as a browser must request it, where the app is mounted."""
    root = safe_location(f"{script_root}/", hosts=()) or "/"
    return path if f"{urlsplit(path).path}/".startswith(root) else f"{root[:-1]}{path}"


def _with_query(settings: Settings, request: Request, location: str) -> str:
    """Add a request's query to a location, byte for byte. Arguments that the location has already are left out."""
    parts = urlsplit(location)
    present = [_name_of(argument) for argument in parts.query.split("&") if argument]
    left_out = {settings.redirect_param, *settings.query_param, *present}
    query = quote(request.query_string, safe=_QUERY_CHARACTERS)
    forwarded = [argument for argument in query.split("&") if _name_of(argument) not in left_out]
    longer = parts._replace(query="&".join([parts.query, *forwarded] if parts.query else forwarded)).geturl()
    return target_location(settings, longer) or location


def _name_of(argument: str) -> str:
    return unquote_plus(argument.partition("=")[0])


def path_of(endpoint: str, **values: str) -> str:
    """Return the path of an endpoint within the app, outside a request too."""
    return current_app.url_map.bind("", script_name="/").build(endpoint, {_HOST: "", **values}, append_unknown=False)


def match_every_host(blueprint: Blueprint) -> dict[str, t.Any]:
    """Return options of rules in an app with ``host_matching=True``, where a rule without a host matches nothing."""
    options: dict[str, t.Any] = {"host": f"<{_HOST}>"}
    blueprint.add_url_rule("/static/<path:filename>", "static", blueprint.send_static_file, **options)
    blueprint.url_value_preprocessor(lambda endpoint, values: (values or {}).pop(_HOST, None))
    blueprint.url_defaults(lambda endpoint, values: values.setdefault(_HOST, _current_host()))
    return options


def _current_host() -> str:
    return flask.request.host if has_request_context() else current_app.config["SERVER_NAME"]
