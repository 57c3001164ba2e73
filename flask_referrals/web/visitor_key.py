"""The visitor key: where it is kept, who may have one, and how it is read.

The key is random. It is signed with the app's ``SECRET_KEY`` and kept under one entry of the Flask session, or in the
cookie ``REFERRALS_COOKIE``. Behind it stand the clicks of its visitor that a recorder has not stored yet.
"""

import re
import secrets
import typing as t
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial

import flask
from flask import Flask
from flask.sessions import NullSession
from itsdangerous import BadSignature, TimestampSigner
from werkzeug.wrappers import Request

from ..failures import log_failure
from ..settings import Settings
from ..times import now, parse_time
from ..types import Hooks
from .client import is_current, opts_out, unwrapped
from .signing import new_signer, visitor_signer
from .urls import REDIRECT_ENDPOINT

#: The entries in the Flask session: the key, and one that only serves to join it to the user who has just logged in.
SESSION_KEY, RESERVED_KEY = "_referral", "_referral_reserved"

# Key, time and signature. Python's base64 decoder skips characters outside its alphabet: such a text is refused unread.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{64}")
#: Separates the signed key, which may be missing, from the pending clicks. It occurs in neither.
_BEHIND = "~"

# Entries of a request's environ: whether the key was dropped, what is kept now (None: nothing), the response, and
# whether the visitor consents.
_DROPPED = "flask_referrals.key_dropped"
_NEW_TEXT = "flask_referrals.kept"
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
        consent, environ = self._hooks.consent, request.environ
        if consent is None:
            return True
        if _CONSENT not in environ:
            environ[_CONSENT] = False
            try:
                environ[_CONSENT] = bool(consent(request))
            except Exception:
                log_failure("Could not tell whether a visitor consents; taken as a no.")
        return bool(environ[_CONSENT])

    def may_recognise(self, request: Request) -> bool:
        """Return whether a visitor may have a key: they have not opted out, and consent where the host asks."""
        is_asked = self._hooks.consent is not None
        return not opts_out(request, self._settings) and (not is_asked or self.has_consent(request))

    def get(self, request: Request | None) -> str | None:
        """Return the visitor key of a request, or ``None`` without one that can be trusted."""
        if request is None or not self.may_recognise(request):
            return None
        for text in self._texts(request):
            if (key := self._verify(text.partition(_BEHIND)[0])) is not None:
                return key
        return None

    def set(self, request: Request | None, key: str) -> None:
        """Keep a key for the visitor of the current request, if that is possible.

        The same key is signed again only if its age matters, or if a secret key is about to be retired.
        """
        if request is None or not is_current(request) or not self.may_recognise(request):
            return
        settings = self._settings
        if not (settings.cookie or settings.attribution_window or self._app.config.get("SECRET_KEY_FALLBACKS")):
            text = str(flask.session.get(SESSION_KEY, ""))
            if text.partition(".")[0] == key and _BEHIND not in text:
                return
        self._keep(request, self._signer().sign(key).decode())

    def drop(self, request: Request | None) -> None:
        """Drop the key of a request, if that is the current one, so that the next person on the browser has none."""
        if request is not None and is_current(request):
            request.environ[_DROPPED] = True
            if RESERVED_KEY in flask.session:  # removing what is not there would mark the session as modified
                del flask.session[RESERVED_KEY]
            self._keep(request, None)

    def is_dropped(self, request: Request) -> bool:
        """Return whether the key of a request was dropped in it."""
        return _DROPPED in request.environ

    def restore(self, request: Request) -> None:
        """Give back the key whose session a view cleared before it failed: Flask saves the session all the same."""
        if not self._settings.cookie and flask.session.modified and SESSION_KEY not in flask.session:
            arrived = next(filter(None, self._texts(request)), None)
            if arrived is not None:
                self._keep(request, arrived)

    def reserve(self, request: Request, key: str, user_id: t.Any) -> None:
        """Replace the key by one that only serves to join it to a user."""
        self.drop(request)
        if not isinstance(flask.session, NullSession):
            value = f"{key} {now().isoformat()} {user_id}"
            flask.session[RESERVED_KEY] = new_signer(self._app, "reservation").sign(value).decode()

    def get_reserved(self, request: Request | None, user_id: t.Any) -> tuple[str, datetime] | None:
        """Return the key that is reserved for a user, or any if nobody is logged in, and since when."""
        is_here = request is not None and is_current(request) and RESERVED_KEY in flask.session
        if request is None or not is_here or not self.may_recognise(request):
            return None
        try:
            value = new_signer(self._app, "reservation").unsign(str(flask.session[RESERVED_KEY])).decode()
            key, time, reserved_for = value.split(" ", 2)
        except (BadSignature, ValueError):
            return None
        return (key, parse_time(time)) if user_id is None or reserved_for == str(user_id) else None

    def get_pending(self, request: Request | None) -> str | None:
        """Return the text behind a request's key, unverified, or ``None``."""
        if request is None or not self.may_recognise(request):
            return None
        return next(filter(None, (text.partition(_BEHIND)[2] for text in self._texts(request))), None)

    def set_pending(self, request: Request, pending: str, key: str | None) -> None:
        """Keep a text behind the key of the current request's visitor, who may have none."""
        if is_current(request) and self.may_recognise(request):
            token = self._signer().sign(key).decode() if key is not None else ""
            self._keep(request, f"{token}{_BEHIND}{pending}")

    def drop_pending(self, request: Request) -> None:
        """Drop the text behind the key of a request, if that is the current one."""
        if is_current(request):
            token, behind, _ = next(self._texts(request), "").partition(_BEHIND)
            if behind:
                self._keep(request, token or None)

    def _texts(self, request: Request) -> Iterator[str]:
        """Yield what is kept for a visitor: as it is now, and as it arrived if a view has cleared the session since."""
        cookie, is_here = self._settings.cookie, is_current(request)
        if is_here:
            self._await_response(request)
        if cookie is not None:
            yield request.environ.get(_NEW_TEXT, request.cookies.get(cookie)) or ""
            return
        has_changed = True
        if is_here:
            session = unwrapped(flask.session)
            yield str(session.get(SESSION_KEY, ""))
            has_changed = session.modified and _DROPPED not in request.environ
        interface = self._app.session_interface
        if has_changed and interface.get_cookie_name(self._app) in request.cookies:
            arrived: t.Any = interface.open_session(self._app, t.cast(flask.Request, request)) or {}
            yield str(arrived.get(SESSION_KEY, ""))

    def _keep(self, request: Request, text: str | None) -> None:
        """Keep a text for the visitor of the current request, or none."""
        cookie, environ, session = self._settings.cookie, request.environ, unwrapped(flask.session)
        name, kept = (SESSION_KEY, session) if cookie is None else (cookie, request.cookies)
        if isinstance(session, NullSession) or (text is None and name not in kept and _NEW_TEXT not in environ):
            return  # without a session there is no cookie either: a login could not drop it
        environ[_NEW_TEXT] = text
        if cookie is None and text is not None:
            session[SESSION_KEY] = text
        elif cookie is None:
            session.pop(SESSION_KEY, None)
        self._await_response(request)
        self.finish(environ, environ.get(_RESPONSE))

    def _await_response(self, request: Request) -> None:
        # Without a cookie, the answer of a link needs nothing: no cache stores it.
        is_link = self._settings.cookie is None and getattr(request, "endpoint", None) == REDIRECT_ENDPOINT
        if not is_link and _RESPONSE not in request.environ:
            request.environ[_RESPONSE] = None
            flask.after_this_request(partial(self.finish, request.environ))

    def finish(self, environ: dict[str, t.Any], response: t.Any) -> t.Any:
        """Set the cookie, if it has changed, on a response, and keep shared caches from storing the visitor key."""
        cookie = self._settings.cookie
        if response is None or _RESPONSE not in environ:
            return response
        environ[_RESPONSE] = response
        if cookie is not None:
            response.vary.add("Cookie")
        if _NEW_TEXT not in environ:
            return response
        if "no-store" not in response.headers.get("Cache-Control", ""):
            response.cache_control.public = False
            response.cache_control.private = True
        if cookie is None:
            return response
        text, interface = environ[_NEW_TEXT], self._app.session_interface
        cookies = response.headers.getlist("Set-Cookie")
        response.headers.setlist("Set-Cookie", [each for each in cookies if not each.startswith(f"{cookie}=")])
        response.set_cookie(
            cookie,
            text or "",
            max_age=(self._settings.attribution_window or _COOKIE_LIFETIME) if text is not None else 0,
            path=interface.get_cookie_path(self._app),
            domain=interface.get_cookie_domain(self._app),
            secure=interface.get_cookie_secure(self._app),
            httponly=True,
            samesite="Lax",
        )
        return response

    def _signer(self) -> TimestampSigner:
        # Read from the config each time: a host may replace its keys.
        config = self._app.config
        return visitor_signer(*(config.get("SECRET_KEY_FALLBACKS") or ()), config["SECRET_KEY"])

    def _verify(self, token: str) -> str | None:
        if not _TOKEN.fullmatch(token):
            return None
        try:
            key, signed_at = self._signer().unsign(token, return_timestamp=True)
        except BadSignature:
            return None
        age, window = now() - signed_at, self._settings.attribution_window
        return key.decode() if -_CLOCK_SKEW <= age and (window is None or age <= window) else None
