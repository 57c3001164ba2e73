"""The visitor key: where it is kept, who may have one, and how it is read.

The key is random and names nothing else. It is signed with the app's ``SECRET_KEY`` and kept under one entry of the
Flask session, or in the cookie ``REFERRALS_COOKIE``. Behind it stand the clicks of its visitor that a recorder has not
stored yet.
"""

import re
import secrets
import typing as t
from collections.abc import Iterator, MutableMapping
from datetime import datetime, timedelta, timezone

import flask
from flask import Flask, current_app
from flask.sessions import NullSession
from itsdangerous import BadSignature, TimestampSigner
from werkzeug.wrappers import Request

from ..failures import log_failure
from ..settings import Settings
from ..times import now
from ..types import Hooks
from .client import is_current, opts_out
from .signing import new_signer, visitor_signer

#: The extension's entry in the Flask session.
SESSION_KEY = "_referral"
#: The entry for a key that is about to be joined to the user who has just logged in, and is of no use to others.
RESERVED_KEY = "_referral_reserved"

# Key, time and signature. Python's base64 decoder skips characters outside its alphabet: such a text is refused unread.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{64}")
#: Separates the signed key, which may be missing, from the pending clicks. It occurs in neither.
_BEHIND = "~"

# Entries of a request's environ: whether the key was dropped, what the cookie becomes (None: deleted), the response
# that it is set on, and whether the visitor consents.
_DROPPED = "flask_referrals.key_dropped"
_NEW_TEXT = "flask_referrals.cookie"
_RESPONSE = "flask_referrals.response"
_CONSENT = "flask_referrals.consent"

#: The cookie's lifetime without REFERRALS_ATTRIBUTION_WINDOW: the 13 months that CNIL, the French data protection
#: authority, allows a cookie that measures an audience.
_COOKIE_LIFETIME = timedelta(days=390)

#: How far the clock of another machine, which signed a key, may be ahead.
_CLOCK_SKEW = timedelta(seconds=60)


def new_key() -> str:
    """Return a new visitor key: 256 random bits."""
    return secrets.token_urlsafe(32)


class VisitorKeys:
    """Reads the visitor keys of an app's requests, and changes that of the current one."""

    def __init__(self, app: Flask, settings: Settings, hooks: Hooks) -> None:
        self._app = app
        self._settings = settings
        self._hooks = hooks

    def has_consent(self, request: Request) -> bool:
        """Return whether the host's ``consent`` permits to recognise the visitor. An error is logged and means no."""
        consent = self._hooks.consent
        if consent is None:
            return True
        if _CONSENT not in request.environ:
            try:
                request.environ[_CONSENT] = bool(consent(request))
            except Exception:
                log_failure("Could not tell whether a visitor consents; taken as a no.")
                request.environ[_CONSENT] = False
        return bool(request.environ[_CONSENT])

    def may_recognise(self, request: Request) -> bool:
        """Return whether a visitor may have a key: they have not opted out, and consent where the host asks."""
        has_consent = self._hooks.consent is None or self.has_consent(request)
        return has_consent and not opts_out(request, self._settings)

    def get(self, request: Request | None) -> str | None:
        """Return the visitor key of a request, or ``None`` without one that can be trusted.

        A view that logs somebody in often clears the session first: then it is the key that arrived with the request,
        unless it was dropped here.
        """
        if request is None or not self.may_recognise(request):
            return None
        for text in self._texts(request):
            if (key := self._verify(text.partition(_BEHIND)[0])) is not None:
                return key
        return None

    def set(self, request: Request | None, key: str) -> None:
        """Keep a key for the visitor of a request, if that is the current one and the app has sessions.

        A key that is there already is left alone, and so is the session, unless its age matters or a secret key is
        about to be retired.
        """
        if request is None or not is_current(request) or not self.may_recognise(request) or not _has_session():
            return
        settings = self._settings
        if not settings.cookie and not settings.attribution_window and not self._app.config.get("SECRET_KEY_FALLBACKS"):
            text = str(flask.session.get(SESSION_KEY, ""))
            if text.partition(".")[0] == key and _BEHIND not in text:
                return
        self._keep(request, self._signer().sign(key).decode())

    def drop(self, request: Request | None) -> None:
        """Drop the key of a request, if that is the current one, so that the next person on the browser has none."""
        if request is not None and is_current(request):
            request.environ[_DROPPED] = True
            _remove_entry(RESERVED_KEY)
            self._forget(request)

    def is_dropped(self, request: Request) -> bool:
        """Return whether the key of a request was dropped in it."""
        return _DROPPED in request.environ

    def prepare(self, request: Request | None) -> None:
        """Note the response to the current request, so that a later change still reaches its cookie."""
        if self._settings.cookie and request is not None and is_current(request) and _RESPONSE not in request.environ:
            request.environ.setdefault(_RESPONSE, None)
            flask.after_this_request(self._set_cookie)

    def restore(self, request: Request) -> None:
        """Give back the key whose session a view cleared before it failed: Flask saves the session all the same."""
        if not self._settings.cookie and flask.session.modified and SESSION_KEY not in flask.session:
            arrived = next(self._texts(request), None)
            if arrived is not None and _has_session():
                self._keep(request, arrived)

    def reserve(self, request: Request, key: str, user_id: t.Any) -> None:
        """Replace the key by one that only serves to join it to a user."""
        self.drop(request)
        if _has_session():
            value = f"{key}.{now().timestamp()}.{user_id}"
            flask.session[RESERVED_KEY] = new_signer(self._app, "reservation").sign(value).decode()

    def get_reserved(self, request: Request | None, user_id: t.Any) -> tuple[str, datetime] | None:
        """Return the key that is reserved for a user, or any reserved key if nobody is logged in, and since when.

        The latter happens when the host rolls back the user who has just signed up.
        """
        is_here = request is not None and is_current(request) and RESERVED_KEY in flask.session
        if request is None or not is_here or not self.may_recognise(request):
            return None
        try:
            value = new_signer(self._app, "reservation").unsign(str(flask.session[RESERVED_KEY])).decode()
        except (BadSignature, UnicodeDecodeError):
            return None
        key, seconds, fraction, reserved_for = value.split(".", 3)
        if user_id is not None and reserved_for != str(user_id):
            return None
        return key, datetime.fromtimestamp(float(f"{seconds}.{fraction}"), timezone.utc)

    def get_pending(self, request: Request | None) -> str | None:
        """Return the text behind a request's key, unverified, or ``None``."""
        if request is None or not self.may_recognise(request):
            return None
        return next(filter(None, (text.partition(_BEHIND)[2] for text in self._texts(request))), None)

    def set_pending(self, request: Request, pending: str, key: str | None) -> None:
        """Keep a text behind the key of the current request's visitor, who may have none."""
        if is_current(request) and self.may_recognise(request) and _has_session():
            token = self._signer().sign(key).decode() if key is not None else ""
            self._keep(request, f"{token}{_BEHIND}{pending}")

    def drop_pending(self, request: Request) -> None:
        """Drop the text behind the key of a request, if that is the current one."""
        if is_current(request):
            token, behind, _ = next(self._texts(request), "").partition(_BEHIND)
            if token and behind:
                self._keep(request, token)
            elif behind:
                self._forget(request)

    def _texts(self, request: Request) -> Iterator[str]:
        """Yield what is kept for a visitor: as it is now, and as it arrived if a view has cleared the session since."""
        cookie = self._settings.cookie
        text: t.Any = None
        if cookie is not None:
            text = request.environ.get(_NEW_TEXT, request.cookies.get(cookie))
        elif is_current(request):
            session = flask.session
            text = session.get(SESSION_KEY)
            if isinstance(text, str):
                yield text
            if not session.modified or _DROPPED in request.environ:
                return
            text = _arrived_entry(request)
        else:
            text = _arrived_entry(request)
        if isinstance(text, str):
            yield text

    def _keep(self, request: Request, text: str) -> None:
        if self._settings.cookie is not None:
            self._send_cookie(request, text)
        else:
            flask.session[SESSION_KEY] = text

    def _forget(self, request: Request) -> None:
        cookie = self._settings.cookie
        if cookie is None:
            _remove_entry(SESSION_KEY)
        elif cookie in request.cookies or _NEW_TEXT in request.environ:
            self._send_cookie(request, None)

    def _send_cookie(self, request: Request, text: str | None) -> None:
        request.environ[_NEW_TEXT] = text
        if request.environ.get(_RESPONSE) is not None:
            self._set_cookie(request.environ[_RESPONSE])
        else:
            self.prepare(request)

    def _set_cookie(self, response: flask.Response) -> flask.Response:
        """Note the response to the current request, and set the cookie on it if it has changed."""
        environ, name = flask.request.environ, t.cast(str, self._settings.cookie)
        environ[_RESPONSE] = response
        if _NEW_TEXT not in environ:
            return response
        text: str | None = environ[_NEW_TEXT]
        cookies = response.headers.getlist("Set-Cookie")
        response.headers.setlist("Set-Cookie", [each for each in cookies if not each.startswith(f"{name}=")])
        interface = current_app.session_interface
        response.set_cookie(
            name,
            text or "",
            max_age=(self._settings.attribution_window or _COOKIE_LIFETIME) if text is not None else 0,
            path=interface.get_cookie_path(current_app),
            domain=interface.get_cookie_domain(current_app),
            secure=interface.get_cookie_secure(current_app),
            httponly=True,
            samesite="Lax",
        )
        response.vary.add("Cookie")
        return response

    def _signer(self) -> TimestampSigner:
        """Return the signer with the app's secret keys, which a host may replace while it runs."""
        return visitor_signer(*(self._app.config.get("SECRET_KEY_FALLBACKS") or ()), self._app.secret_key)

    def _verify(self, token: str) -> str | None:
        if not _TOKEN.fullmatch(token):
            return None
        try:
            key, signed_at = self._signer().unsign(token, return_timestamp=True)
        except BadSignature:
            return None
        age, window = now() - signed_at, self._settings.attribution_window
        return key.decode() if -_CLOCK_SKEW <= age and (window is None or age <= window) else None


def _has_session() -> bool:
    """Return whether the app has sessions. Without one there is no cookie either: a login could not drop it."""
    return not isinstance(flask.session, NullSession)


def _remove_entry(name: str) -> None:
    if name in flask.session:  # removing what is not there would mark the session as modified
        del flask.session[name]


def _arrived_entry(request: Request) -> t.Any:
    """Return the extension's entry of the session as it arrived with a request."""
    if current_app.session_interface.get_cookie_name(current_app) not in request.cookies:
        return None
    session: MutableMapping[str, t.Any] | None = current_app.session_interface.open_session(
        current_app, t.cast(flask.Request, request)
    )
    return session.get(SESSION_KEY) if session is not None else None
