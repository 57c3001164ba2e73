"""The two routes: making a link, and following one."""

import typing as t

import flask
from flask import Blueprint
from flask import Response
from flask import abort
from flask import current_app
from flask import jsonify
from flask import render_template
from flask import request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import BadRequest
from werkzeug.exceptions import HTTPException

from . import clicks
from . import clients
from . import config
from . import targets
from . import visitors
from .context import current_state
from .creation import CODE
from .creation import create as create_referral
from .exceptions import InvalidValueError
from .exceptions import TooManyLinksError
from .failures import log_failure
from .identity import unwrapped
from .transactions import Transaction
from .urls import location_of

blueprint: Blueprint = Blueprint("referrals", __name__, template_folder="templates", static_folder="static")

#: The most a request for a link may send, in bytes.
_MAX_BODY = 32 * 1024

#: After how many seconds a link may be tried again that the database could not take.
_RETRY_AFTER = 10


@blueprint.get("/<code>", endpoint="redirect", strict_slashes=False)
def follow(code: str) -> Response:
    """Send a visitor on to where a link leads, and record the click."""
    if not CODE.fullmatch(code):
        abort(404)
    request = unwrapped(flask.request)
    if clients.is_prefetch(request):
        # A browser that is given the redirect ahead of the click never sends the click itself.
        return _no_store(Response(status=503))
    try:
        redirect_to = clicks.follow(code, request)
    except Exception:
        log_failure("The link %r could not be looked up.", code)
        return _redirect()
    if redirect_to is None:
        abort(404)
    return _redirect(redirect_to)


def follow_from_query() -> None:
    """Record a click for a page that was asked for with a code in its query: ``REFERRALS_QUERY_PARAM``.

    What is no code of ours is left alone: other sites add arguments of their own.
    """
    if not request.query_string or request.method != "GET" or request.endpoint is None:
        return
    names = config.as_words(current_app.config["REFERRALS_QUERY_PARAM"])
    arguments = clients.arguments(request)
    code = next((arguments[name] for name in names if name in arguments), "")
    is_page = request.blueprint != blueprint.name and request.endpoint.rpartition(".")[2] != "static"
    if not is_page or not CODE.fullmatch(code) or clients.is_prefetch(request):
        return
    try:
        clicks.follow(code, unwrapped(request))
    except Exception:
        log_failure("The link %r could not be looked up.", code)


def _redirect(stored: str | None = None) -> Response:
    response = t.cast(Response, flask.redirect(location_of(request, stored), 302))
    response.headers["X-Robots-Tag"] = "noindex"
    return _no_store(response)


def _no_store(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.get("/", strict_slashes=False)
def index() -> Response:
    """Lead on whoever comes back here, from a page that asked them to log in before they made a link."""
    return _redirect()


@blueprint.post("/", strict_slashes=False)
def create() -> flask.typing.ResponseReturnValue:
    """Make a link for the logged-in user: JSON for programs and scripts, a page for a browser's plain form."""
    if _is_cross_site():
        return _refuse(403, "This can only be done from the site itself.")
    state = current_state()
    transaction = Transaction(state, state.models.referral, commit=True)
    try:
        user = visitors.current_user(unwrapped(request))
        return _ask_to_log_in() if user is None else _create(transaction, user)
    except InvalidValueError as error:
        return _refuse(400, str(error))
    except TooManyLinksError as error:
        return _refuse(403, str(error))
    except (SQLAlchemyError, MemoryError):
        log_failure("A link could not be made.")
        return _ask_to_try_again()


def _create(transaction: Transaction, user: t.Any) -> flask.typing.ResponseReturnValue:
    request.max_content_length = _MAX_BODY
    try:
        fields = _fields()
    except HTTPException as error:
        return _refuse(error.code or 400, error.description or "")
    target = targets.from_token(fields["target"], user) if fields["target"] else None
    limit = current_app.config["REFERRALS_LINK_LIMIT"]

    def make() -> flask.typing.ResponseReturnValue:
        referral = create_referral(fields["redirect_to"], user, fields["label"], target, limit=limit, commit=False)
        answer: flask.typing.ResponseReturnValue
        if _wants_page():
            answer = render_template("referrals/created.html", referral=referral)
        else:
            html = render_template("referrals/_referral.html", referral=referral)
            answer = jsonify(url=referral.url, code=referral.code, html=html)
        # Last, for after it the link would be read once more, in a transaction that nobody ends but the teardown.
        transaction.commit()
        return answer

    return transaction.run(make)


def _is_cross_site() -> bool:
    """Whether another site sent this, as far as the browser tells: Fetch Metadata, or else the Origin header."""
    fetch_site = request.headers.get("Sec-Fetch-Site")
    if fetch_site is not None:
        return fetch_site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host


def _fields() -> dict[str, str]:
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
    fields = {"redirect_to": data.get("redirect_to"), "label": data.get("label", ""), "target": data.get("target", "")}
    for name, value in fields.items():
        if value is None:
            raise InvalidValueError(name, "is missing")
        if not isinstance(value, str):
            raise InvalidValueError(name, "must be a string")
    return t.cast("dict[str, str]", fields)


def _wants_page() -> bool:
    accept = request.accept_mimetypes
    return not request.is_json and accept.best_match(["application/json", "text/html"]) == "text/html"


def _refuse(status: int, reason: str) -> flask.typing.ResponseReturnValue:
    if _wants_page():
        abort(status, reason)
    return jsonify(error=reason), status


def _ask_to_try_again() -> flask.typing.ResponseReturnValue:
    reason = "The link could not be made now. Try again in a moment."
    if _wants_page():
        abort(503, reason, retry_after=_RETRY_AFTER)
    return jsonify(error=reason), 503, {"Retry-After": str(_RETRY_AFTER)}


def _ask_to_log_in() -> flask.typing.ResponseReturnValue:
    login_manager = getattr(current_app, "login_manager", None)
    if _wants_page() and login_manager is not None:
        return t.cast("flask.typing.ResponseReturnValue", login_manager.unauthorized())
    return _refuse(401, "You must be logged in to make a link.")
