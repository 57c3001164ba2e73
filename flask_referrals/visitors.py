"""Who makes a request: the user that is logged in, or the key that a followed link left in the session.

The key is random and names nothing else. It is signed with the app's ``SECRET_KEY`` under a salt of its own, and kept
under one entry of the Flask session, or in the cookie ``REFERRALS_COOKIE``. It is set by a click that counts, and by
nothing else. What :mod:`.pending` knows of the visitor is kept behind it.
"""

import hashlib
import re
import secrets
import typing as t
from collections.abc import Iterator
from collections.abc import MutableMapping
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from functools import lru_cache

import flask
from flask import Flask
from flask import current_app
from flask import has_request_context
from flask.sessions import NullSession
from itsdangerous import BadSignature
from itsdangerous import TimestampSigner
from werkzeug.wrappers import Request

from . import clients
from . import config
from .context import current_state
from .context import signing_keys
from .failures import log_failure
from .identity import unwrapped

#: The entry of the Flask session that is ours.
SESSION_KEY = "_referral"

_SALT = "flask-referrals.visitor"
# Key, time and signature. Python's base64 decoder skips what is not of its alphabet: such a text is refused unread.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{64}")
_DROPPED = "flask_referrals.key_dropped"
#: What the own cookie becomes with the response to a request; ``None``: it is deleted.
_NEW_TOKEN = "flask_referrals.token"  # noqa: S105
#: Between the signed key, which may be missing, and what is pending; in neither of them.
_BEHIND = "~"

#: How long the own cookie lives where REFERRALS_ATTRIBUTION_WINDOW sets no end: 13 months, which is what the French
#: data protection authority, CNIL, gives cookies that measure an audience.
_COOKIE_LIFETIME = timedelta(days=390)

#: How far a key's clock may be ahead of ours, when it was signed on another machine.
_CLOCK_SKEW = timedelta(seconds=60)


def resolve_request(request: Request | None = None) -> Request | None:
    """Return the request to work on.

    :param request: a request, or ``None`` for the current one.
    :return: the request itself, not a proxy; ``None`` outside a request.
    """
    if request is not None:
        return t.cast(Request, unwrapped(request))
    return t.cast(Request, unwrapped(flask.request)) if has_request_context() else None


def current_user(request: Request | None) -> t.Any:
    """Return the user who makes the request, or ``None``.

    The host's ``user_loader`` says who it is, else Flask-Login when the app has its login manager.

    :param request: the request, or ``None`` for nobody.
    """
    if request is None:
        return None
    loader = current_state().extension.hooks.user_loader
    if loader is not None:
        user = unwrapped(loader())
    elif hasattr(current_app, "login_manager") and _is_current(request):
        from flask_login import current_user

        user = unwrapped(current_user)
    else:
        return None
    return user if getattr(user, "is_authenticated", user is not None) else None


def new_key() -> str:
    """Return a key for a visitor who has none: 256 random bits."""
    return secrets.token_urlsafe(32)


def get_key(request: Request | None) -> str | None:
    """Return the visitor's key, or ``None`` when there is none that can be trusted.

    A view that logs somebody in often clears the session first: then the key is the one that arrived with the
    request, unless it was dropped here.

    :param request: the request, or ``None`` for nobody.
    """
    if request is None or clients.opts_out(request):
        return None
    return next(filter(None, (_verified(text.partition(_BEHIND)[0]) for text in _kept(request))), None)


def set_key(key: str) -> None:
    """Keep a key for the visitor of the current request, unless the app has no sessions; nothing is pending then.

    One that is in the session already stays as it is, and so does the session, where the key's age does not matter and
    no secret is about to be dropped.
    """
    if not _is_settled(key):
        _keep(_signer().sign(key).decode())


def drop_key() -> None:
    """Forget the current visitor's key, so that the next person on this browser does not inherit it."""
    if not has_request_context():
        return
    unwrapped(flask.request).environ[_DROPPED] = True
    _forget()


def restore(app: Flask, **extra: t.Any) -> None:
    """Receive Flask's ``got_request_exception``: give back the key whose session a view cleared before it failed.

    Flask saves the session with its answer to an error, too.
    """
    try:
        is_in_session = current_app.config["REFERRALS_COOKIE"] is None
        if is_in_session and flask.session.modified and SESSION_KEY not in flask.session:
            arrived = next(_kept(unwrapped(flask.request)), None)
            if arrived is not None:
                _keep(arrived)
    except Exception:
        log_failure("It could not be told whether a visitor's key was lost with a request that failed.")


def get_pending(request: Request | None) -> str | None:
    """Return what :func:`set_pending` kept for the visitor, unverified; it is found where the key is.

    :param request: the request, or ``None`` for nobody.
    """
    if request is None or clients.opts_out(request):
        return None
    return next(filter(None, (text.partition(_BEHIND)[2] for text in _kept(request))), None)


def set_pending(pending: str, key: str | None) -> None:
    """Keep something behind the key of the current request's visitor, unless the app has no sessions.

    :param pending: a text for a cookie.
    :param key: the visitor's key, if they have one.
    """
    token = _signer().sign(key).decode() if key is not None else ""
    _keep(f"{token}{_BEHIND}{pending}")


def drop_pending(request: Request) -> None:
    """Forget what is kept behind a visitor's key, if it is the current request's."""
    if not _is_current(request):
        return
    token, behind, _ = next(_kept(request), "").partition(_BEHIND)
    if token and behind:
        _keep(token)
    elif behind:
        _forget()


def _kept(request: Request) -> Iterator[str]:
    """Yield what is kept for a visitor: as it is now, and as it arrived if a view has cleared the session since."""
    cookie = current_app.config["REFERRALS_COOKIE"]
    if cookie is not None:
        yield from _texts(request.environ.get(_NEW_TOKEN, request.cookies.get(cookie)))
    elif not _is_current(request):
        yield from _texts(_entry(_arrived_session(request)))
    else:
        yield from _texts(_entry(flask.session))
        if flask.session.modified and _DROPPED not in request.environ:
            yield from _texts(_entry(_arrived_session(request)))


def _texts(*values: t.Any) -> Iterator[str]:
    yield from (value for value in values if isinstance(value, str))


def _keep(text: str) -> None:
    if isinstance(flask.session, NullSession):
        return
    if current_app.config["REFERRALS_COOKIE"] is not None:
        _send_cookie(text)
    else:
        flask.session[SESSION_KEY] = text


def _is_settled(key: str) -> bool:
    settings = current_app.config
    if settings["REFERRALS_COOKIE"] or settings["REFERRALS_ATTRIBUTION_WINDOW"] or settings.get("SECRET_KEY_FALLBACKS"):
        return False
    text = next(_texts(_entry(flask.session)), "")
    return text.partition(".")[0] == key and _BEHIND not in text  # whoever has the key has read it there, verified


def _forget() -> None:
    request = unwrapped(flask.request)
    cookie = current_app.config["REFERRALS_COOKIE"]
    if cookie is None:
        if SESSION_KEY in flask.session:
            del flask.session[SESSION_KEY]
    elif cookie in request.cookies or _NEW_TOKEN in request.environ:
        _send_cookie(None)


def _send_cookie(token: str | None) -> None:
    """Set the own cookie with the response to the current request, or delete it."""
    environ = unwrapped(flask.request).environ
    is_first = _NEW_TOKEN not in environ
    environ[_NEW_TOKEN] = token
    if is_first:
        flask.after_this_request(_set_cookie)


def _set_cookie(response: flask.Response) -> flask.Response:
    token = unwrapped(flask.request).environ[_NEW_TOKEN]
    interface = current_app.session_interface
    window = config.duration("REFERRALS_ATTRIBUTION_WINDOW")
    response.set_cookie(
        current_app.config["REFERRALS_COOKIE"],
        token or "",
        max_age=(window or _COOKIE_LIFETIME) if token is not None else 0,
        path=interface.get_cookie_path(current_app),
        domain=interface.get_cookie_domain(current_app),
        secure=interface.get_cookie_secure(current_app),
        httponly=True,
        samesite="Lax",
    )
    response.vary.add("Cookie")
    return response


def _is_current(request: Request) -> bool:
    return has_request_context() and request is unwrapped(flask.request)


def _arrived_session(request: Request) -> MutableMapping[str, t.Any] | None:
    if current_app.session_interface.get_cookie_name(current_app) not in request.cookies:
        return None
    return current_app.session_interface.open_session(current_app, t.cast(flask.Request, request))


def _signer() -> TimestampSigner:
    return _signer_with(tuple(signing_keys()))


@lru_cache(maxsize=8)
def _signer_with(keys: tuple[str, ...]) -> TimestampSigner:
    # 48 bytes fill their base64 form to the last bit, so that no
    # two texts are the same signature.
    return TimestampSigner(keys, salt=_SALT, digest_method=hashlib.sha384)


def _entry(session: MutableMapping[str, t.Any] | None) -> t.Any:
    return session.get(SESSION_KEY) if session is not None else None


def _verified(token: str) -> str | None:
    if not _TOKEN.fullmatch(token):
        return None
    try:
        key, signed_at = _signer().unsign(token, return_timestamp=True)
    except BadSignature:
        return None
    return key.decode() if _in_time(signed_at) else None


def _in_time(signed_at: datetime) -> bool:
    age = datetime.now(timezone.utc) - signed_at
    window = config.duration("REFERRALS_ATTRIBUTION_WINDOW")
    return -_CLOCK_SKEW <= age and (window is None or age <= window)
