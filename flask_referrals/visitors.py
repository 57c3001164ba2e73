"""Who makes a request: the user that is logged in, or the key that a followed link left in the session.

The key is random and names nothing else. It is signed with the app's ``SECRET_KEY`` under a salt of its own, and kept
under one entry of the Flask session. It is set by a click that counts, and by nothing else.
"""

import hashlib
import re
import secrets
import typing as t
from collections.abc import MutableMapping
from datetime import datetime
from datetime import timedelta
from datetime import timezone

import flask
from flask import current_app
from flask import has_request_context
from flask.sessions import NullSession
from itsdangerous import BadSignature
from itsdangerous import TimestampSigner
from werkzeug.wrappers import Request

from . import config
from .context import current_state
from .context import signing_keys
from .identity import unwrapped

#: The entry of the Flask session that is ours.
SESSION_KEY = "_referral"

_SALT = "flask-referrals.visitor"
# Key, time and signature. Python's base64 decoder skips what is not of its alphabet: such a text is refused unread.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{64}")
_DROPPED = "flask_referrals.key_dropped"

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
    if request is None:
        return None
    if not _is_current(request):
        return _verified(_arrived_session(request))
    key = _verified(flask.session)
    if key is None and flask.session.modified and _DROPPED not in request.environ:
        key = _verified(_arrived_session(request))
    return key


def set_key(key: str) -> None:
    """Keep a key in the session of the current request, unless the app has no sessions."""
    if not isinstance(flask.session, NullSession):
        flask.session[SESSION_KEY] = _signer().sign(key).decode()


def drop_key() -> None:
    """Forget the current visitor's key, so that the next person on this browser does not inherit it."""
    if has_request_context():
        unwrapped(flask.request).environ[_DROPPED] = True
        if SESSION_KEY in flask.session:
            del flask.session[SESSION_KEY]


def _is_current(request: Request) -> bool:
    return has_request_context() and request is unwrapped(flask.request)


def _arrived_session(request: Request) -> MutableMapping[str, t.Any] | None:
    if current_app.session_interface.get_cookie_name(current_app) not in request.cookies:
        return None
    return current_app.session_interface.open_session(current_app, t.cast(flask.Request, request))


def _signer() -> TimestampSigner:
    # 48 bytes fill their base64 form to the last bit, so that no
    # two texts are the same signature.
    return TimestampSigner(signing_keys(), salt=_SALT, digest_method=hashlib.sha384)


def _verified(session: MutableMapping[str, t.Any] | None) -> str | None:
    token = session.get(SESSION_KEY) if session is not None else None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
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
