"""The two routes: follow a link, and create one."""

import typing as t
from collections.abc import Collection

import flask
from flask import Blueprint, Response, abort, jsonify, render_template
from markupsafe import escape
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.http import parse_accept_header
from werkzeug.wsgi import get_input_stream

from .actors import current_user
from .clicks import follow_link, follow_query, has_link, is_page
from .db.transactions import Transaction, is_refusal, open_transaction
from .exceptions import InvalidValueError, TooManyLinksError
from .failures import log_failure
from .links import create_link
from .state import AppState
from .targets import from_token
from .web.agents import MAX_READ, OFFICE
from .web.client import MAX_ACCEPT, is_prefetch, unwrapped
from .web.codes import find_codes
from .web.urls import location_of, match_every_host

#: The most that a request for a link may send, in bytes.
_MAX_BODY = 32 * 1024

#: After how many seconds a link that the database could not store may be tried again.
_RETRY_AFTER = 10

_NOT_STORED = ("Cache-Control", "no-store")
_REDIRECT = (("Content-Type", "text/html; charset=utf-8"), _NOT_STORED, ("X-Robots-Tag", "noindex"))

# RFC 9110, 15.4.3: a short note with a link, for clients that get or follow no Location.
_REDIRECT_PAGE = """<!doctype html>
<html lang=en>
{1}<title>Redirecting</title>
<h1>Redirecting</h1>
<p>The link leads to <a href="{0}">{0}</a>.
"""

# For Microsoft Office, so that the browser opens the link itself.
_REFRESH = '<meta http-equiv="refresh" content="0; url={0}">\n'

Answer = flask.typing.ResponseReturnValue


def create_blueprint(state: AppState) -> Blueprint:
    views = _Views(state)
    blueprint = Blueprint("referrals", __name__, template_folder="templates", static_folder="static")
    hosts: t.Any = match_every_host(blueprint) if state.app.url_map.host_matching else {}
    blueprint.add_url_rule("/<code>", "redirect", views.redirect, strict_slashes=False, **hosts)
    blueprint.add_url_rule("/", "index", views.index, strict_slashes=False, **hosts)
    blueprint.add_url_rule("/", "create", views.create, methods=["POST"], strict_slashes=False, **hosts)
    if state.settings.query_param:
        blueprint.before_app_request(views.refuse_prefetch)
        blueprint.after_app_request(views.follow_query)
    return blueprint


class _Views:
    def __init__(self, state: AppState) -> None:
        self._state = state

    def redirect(self, code: str) -> Response:
        """Record a click on a link, and redirect to its target."""
        codes = find_codes(code, self._state.settings)
        if not codes:
            abort(404)
        request = unwrapped(flask.request)
        if is_prefetch(request):
            return _refuse_prefetch()
        target: str | None = None
        try:
            link = follow_link(self._state, request, codes)
        except Exception:
            log_failure("Could not read the link %r.", codes[0])
        else:
            if link is None:
                abort(404)
            target = link.redirect_to
        return self._state.visitor_keys.set_cookie(request, self._redirect(request, target))

    def _redirect(self, request: flask.Request, target: str | None) -> Response:
        location = location_of(self._state.settings, request, target)
        url, headers = escape(location), [*_REDIRECT]
        if OFFICE.search(request.environ.get("HTTP_USER_AGENT", "")[:MAX_READ]):
            return Response(_REDIRECT_PAGE.format(url, _REFRESH.format(url)), 200, headers)
        return Response(_REDIRECT_PAGE.format(url, ""), 302, [*headers, ("Location", location)])

    def refuse_prefetch(self, response: Response | None = None) -> Response | None:
        """Refuse to send a page ahead of the click if its query has a code of this site."""
        request = unwrapped(flask.request)
        is_refused = is_prefetch(request) and is_page(request, response) and has_link(self._state, request)
        return _refuse_prefetch() if is_refused else None

    def follow_query(self, response: Response) -> Response:
        """Record the click of a page that was requested with a code in its query."""
        request = unwrapped(flask.request)
        follow_query(self._state, request, response)
        refusal = self.refuse_prefetch(response)
        if refusal is None:
            return self._state.visitor_keys.finish(request, response)
        response.close()  # it may be an open file
        return refusal

    def index(self) -> Response:
        """Redirect a user who logged in before creating a link, and whom the login sent back here."""
        return self._redirect(unwrapped(flask.request), None)

    def create(self) -> Answer:
        """Create a link for the logged-in user: JSON for programs and scripts, a page for a browser's plain form."""
        if _is_cross_site(self._state.settings.trusted_origins):
            return _refuse(403, "This can only be done from the site itself.")
        transaction = open_transaction(self._state.database, commit=True)
        try:
            failure = "Could not load the user who creates a link."
            user = current_user(self._state, unwrapped(flask.request))
            failure = "A link could not be created."
            return _ask_to_log_in() if user is None else self._create(transaction, user)
        except InvalidValueError as error:
            return _refuse(400, str(error))
        except TooManyLinksError as error:
            return _refuse(403, str(error))
        except (SQLAlchemyError, MemoryError) as error:
            log_failure(failure)
            if is_refusal(error):
                return _refuse(400, "redirect_to or label is not accepted by the database of this site.")
            return _refuse(503, "The link could not be created now. Try again in a moment.", retry_after=_RETRY_AFTER)

    def _create(self, transaction: Transaction, user: t.Any) -> Answer:
        try:
            redirect_to, label, token = _read_fields()
        except HTTPException as error:
            return _refuse(error.code or 400, error.description or "")
        state = self._state

        def create() -> Answer:
            target, limit = from_token(state, token, user) if token else None, state.settings.link_limit
            referral: t.Any = create_link(state, redirect_to, user, label, target, limit=limit, transaction=transaction)
            # Before the commit: after it the link would be read once more, in a transaction that is never ended.
            if _wants_page():
                return render_template("referrals/created.html", referral=referral)
            html = render_template("referrals/_referral.html", referral=referral)
            return jsonify(url=referral.url, code=referral.code, html=html)

        return transaction.run(create)


def _refuse_prefetch() -> Response:
    # A browser that gets the answer ahead of the click never sends the click itself.
    return Response(status=503, headers=[_NOT_STORED])


def _is_cross_site(trusted_origins: Collection[str]) -> bool:
    """Return whether another site may have sent the request, as Fetch Metadata says, or else the Origin header."""
    request = flask.request
    if request.headers.get("Origin") in trusted_origins:
        return False
    fetch_site = request.headers.get("Sec-Fetch-Site")
    if fetch_site is not None:
        return fetch_site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    if origin == "null":  # Referrer-Policy: no-referrer, or another site that hides what it is
        return not (_has_same_site_session() or flask.g.get("csrf_valid"))  # Flask-WTF has checked its token
    return origin is not None and origin.partition("://")[2] != request.host


def _has_same_site_session() -> bool:
    """Return whether the request has a session cookie that a browser never sends with a POST from another site."""
    config = flask.current_app.config
    is_same_site = str(config["SESSION_COOKIE_SAMESITE"]).lower() in ("lax", "strict")
    return is_same_site and config["SESSION_COOKIE_NAME"] in flask.request.cookies


def _read_fields() -> list[str]:
    request = flask.request
    request.environ["wsgi.input"] = get_input_stream(request.environ, max_content_length=_MAX_BODY)
    request.environ["wsgi.input_terminated"] = True
    if request.mimetype == "application/json":
        try:
            data = request.get_json()
        except RecursionError:
            raise BadRequest("The body is nested too deeply.") from None
        if not isinstance(data, dict):
            raise BadRequest("The body must be a JSON object.")
    elif request.mimetype in ("application/x-www-form-urlencoded", "multipart/form-data"):
        data = request.form.to_dict()
    else:
        abort(415, "The body must be JSON or a form.")
    fields = {"redirect_to": None, "label": "", "target": ""} | data
    for name in ("redirect_to", "label", "target"):
        if fields[name] is None:
            raise InvalidValueError(name, "is missing")
        if not isinstance(fields[name], str):
            raise InvalidValueError(name, "must be a string")
    return [fields[name] for name in ("redirect_to", "label", "target")]


def _wants_page() -> bool:
    # Only the beginning: parsing all of what servers let in takes seconds.
    accept = parse_accept_header(flask.request.headers.get("Accept", "")[:MAX_ACCEPT], MIMEAccept)
    return not flask.request.is_json and accept.best_match(["application/json", "text/html"]) == "text/html"


def _refuse(status: int, reason: str, **retry: int) -> Answer:
    if _wants_page():
        abort(status, reason, **retry)
    return jsonify(error=reason), status, [("Retry-After", str(seconds)) for seconds in retry.values()]


def _ask_to_log_in() -> Answer:
    login_manager = getattr(flask.current_app, "login_manager", None)
    if _wants_page() and login_manager is not None:
        return t.cast("Answer", login_manager.unauthorized())
    return _refuse(401, "You must be logged in to create a link.")
