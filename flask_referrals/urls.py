"""Where this site is, the address of a referral, and the page a target stands for."""

from collections.abc import Iterable
from urllib.parse import parse_qsl
from urllib.parse import urlencode
from urllib.parse import urlsplit

from flask import Request
from flask import current_app
from flask import has_request_context
from flask import request
from flask import url_for
from werkzeug.routing import BuildError

from . import clients
from .config import as_words
from .exceptions import ConfigurationError
from .redirects import parse_host_pattern
from .redirects import safe_location

#: The route that a link leads through.
REDIRECT_ENDPOINT = "referrals.redirect"


def referral_url(code: str) -> str:
    """Return the absolute link of a referral, from a mail's worker too.

    The site's address is ``REFERRALS_BASE_URL``, else ``SERVER_NAME`` with ``PREFERRED_URL_SCHEME`` and
    ``APPLICATION_ROOT``, else that of the current request.

    :param code: the referral's code.
    :raises ConfigurationError: none of the three is there.
    """
    base_url = current_app.config["REFERRALS_BASE_URL"]
    if base_url is not None:
        return f"{base_url.rstrip('/')}{path_of(REDIRECT_ENDPOINT, code=code)}"
    server = current_app.create_url_adapter(None)
    if server is not None:
        return server.build(REDIRECT_ENDPOINT, {"code": code}, force_external=True)
    if has_request_context():
        return url_for(REDIRECT_ENDPOINT, code=code, _external=True)
    raise ConfigurationError(
        "A referral's address needs REFERRALS_BASE_URL (or SERVER_NAME) where there is no request."
    )


def _own_hosts() -> list[str]:
    """The hosts that are this site: as configured, and as the visitor calls it."""
    base_url = current_app.config["REFERRALS_BASE_URL"]
    hosts = [urlsplit(base_url).netloc if base_url else None, current_app.config["SERVER_NAME"]]
    if has_request_context():
        hosts.append(request.host)  # checked against TRUSTED_HOSTS by Flask
    return [host for host in hosts if host and _is_host(host)]


def _is_host(host: str) -> bool:
    try:
        return parse_host_pattern(host)[0] == ""
    except ValueError:
        return False


def target_location(target: str | None) -> str | None:
    """Return the ``Location`` that a referral's target stands for, or ``None`` when it must not be sent.

    :param target: a local path, a URL on this site or an allowed host, or the name of an endpoint of the app that
        needs no arguments.
    """
    if target in current_app.view_functions:
        try:
            target = url_for(target, _external=False) if has_request_context() else path_of(target)
        except BuildError:
            return None
    if target is not None and target.startswith("/"):
        return safe_location(target, hosts=())  # a path names no host
    return safe_location(
        target,
        hosts=[*_own_hosts(), *current_app.config["REFERRALS_ALLOWED_REDIRECT_HOSTS"]],
        require_https=has_request_context() and request.is_secure,
    )


def location_of(request: Request, stored: str | None) -> str:
    """Return the header value for where a link leads: always somewhere.

    It is the first of these that may be sent: what the link's query asks for, the stored target,
    ``REFERRALS_FALLBACK_URL``, ``/``; with the rest of the query, if ``REFERRALS_FORWARD_QUERY`` says so.

    :param request: the current request.
    :param stored: the referral's target; ``None`` when it is not known.
    """
    config = current_app.config
    redirect_param = config["REFERRALS_REDIRECT_PARAM"]
    arguments = clients.arguments(request)
    candidates = (arguments.get(redirect_param), stored, config["REFERRALS_FALLBACK_URL"])
    location = next(filter(None, map(target_location, filter(None, candidates))), "/")
    if config["REFERRALS_FORWARD_QUERY"]:
        ours = {redirect_param, *as_words(config["REFERRALS_QUERY_PARAM"])}
        location = _with_query(location, [pair for pair in arguments.items(multi=True) if pair[0] not in ours])
    return location


def _with_query(location: str, arguments: Iterable[tuple[str, str]]) -> str:
    """Add query arguments to a location, as far as the outcome may be sent; those it has already stay as they are."""
    parts = urlsplit(location)
    present = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    added = urlencode([(name, value) for name, value in arguments if name not in present])
    if not added:
        return location
    query = f"{parts.query}&{added}" if parts.query else added
    return target_location(parts._replace(query=query).geturl()) or location


def path_of(endpoint: str, **values: str) -> str:
    """Return the path of an endpoint within the app, outside a request too.

    :param endpoint: its name.
    :param values: the parts of its path.
    :raises werkzeug.routing.BuildError: it needs others.
    """
    return current_app.url_map.bind("", script_name="/").build(endpoint, values)
