"""The visitor key: where it is kept, who may have one, and how it is read.

The key is random. It is signed with the app's ``SECRET_KEY`` and kept under one entry of the Flask session. The cookie
``REFERRALS_COOKIE`` holds the same text for the time after the session, which most browsers drop when they are closed.
Behind the key stand the clicks of its visitor that a recorder has not stored yet.
"""

import re
import secrets
import typing as t
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from functools import partial

import flask
from flask import Flask
from flask.sessions import NullSession
from itsdangerous import BadSignature, TimestampSigner
from werkzeug.http import dump_cookie
from werkzeug.wrappers import Request, Response

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

# Entries of a request's environ: whether the key was dropped, what is kept now (None: nothing), a text in the session
# whose key need not be signed again, the response, whether it depends on the cookie, and whether the visitor consents.
_DROPPED = "flask_referrals.key_dropped"
_NEW_TEXT = "flask_referrals.kept"
_RECENT_TEXT = "flask_referrals.recent"
_RESPONSE = "flask_referrals.response"
_COOKIE_READ = "flask_referrals.cookie_read"
_CONSENT = "flask_referrals.consent"

#: How long a browser may be recognised after its last click: the 13 months that CNIL, the French data protection
#: authority, allows a cookie that measures an audience.
MAX_LIFETIME = timedelta(days=390)

#: How far the clock of another machine, which signed a key, may be ahead.
_CLOCK_SKEW = timedelta(seconds=60)

#: Browsers take a cookie whose name begins so only from the host itself and over https, not from its subdomains
#: (RFC 6265bis, 4.1.3).
_HOST_PREFIX = "__Host-"


R = t.TypeVar("R", bound=Response)


def new_key() -> str:
    """Return a new visitor key: 256 random bits."""
    return secrets.token_urlsafe(32)


class VisitorKeys:
    """Reads the visitor keys of an app's requests, and changes that of the current one.

    :param without_flush: returns a block in which no query flushes what the host has pending: ``consent`` and a store
        of sessions may read in its database.
    """

    def __init__(
        self, app: Flask, settings: Settings, hooks: Hooks, without_flush: Callable[[], AbstractContextManager[t.Any]]
    ) -> None:
        self._app = app
        self._settings = settings
        self._hooks = hooks
        self._without_flush = without_flush
        self._window = settings.attribution_window
        self._cookie_lifetime = min(self._window or MAX_LIFETIME, MAX_LIFETIME)
        self._max_age = int(self._cookie_lifetime.total_seconds())
        #: How old a key is before a click signs it again.
        self._renewal = self._cookie_lifetime / 1000
        #: The cookie on http and on https: its name, and its attributes but Max-Age as in a Set-Cookie header.
        self._cookies: dict[bool, tuple[str, str]] = {}

    def has_consent(self, request: Request) -> bool:
        """Return whether the host's ``consent`` permits to recognise the visitor. An error is logged and means no.

        The key of a visitor who does not consent is dropped.
        """
        consent, environ = self._hooks.consent, request.environ
        if consent is None:
            return True
        if _CONSENT not in environ:
            environ[_CONSENT] = False
            try:
                with self._without_flush():
                    environ[_CONSENT] = bool(consent(request))
            except Exception:
                log_failure("Could not read a visitor's consent; the visitor gets no key.")
            else:
                if not environ[_CONSENT]:
                    self.drop(request)
        return bool(environ[_CONSENT])

    def may_recognise(self, request: Request) -> bool:
        """Return whether a visitor may have a key: they have not opted out, and consent where the host asks.

        The key of one who may not is dropped.
        """
        if opts_out(request, self._settings):
            if not self.is_dropped(request):
                self.drop(request)
            return False
        return self._hooks.consent is None or self.has_consent(request)

    def get(self, request: Request | None) -> str | None:
        """Return the visitor key of a request, or ``None`` without one that can be trusted."""
        if request is None or not self.may_recognise(request):
            return None
        for text, limit in self._texts(request):
            if not text:
                continue
            token = text.partition(_BEHIND)[0]
            key, age = self._verify(token)
            if key is not None and (limit is None or age <= limit):
                if age <= self._renewal and token == text:
                    request.environ[_RECENT_TEXT] = text
                return key
        return None

    def set(self, request: Request | None, key: str) -> None:
        """Keep a key for the visitor of the current request, if that is possible.

        The same key is signed again only if it is no longer new, or if a secret key is about to be retired.
        """
        if request is None or not is_current(request) or not self.may_recognise(request):
            return
        recent = request.environ.get(_RECENT_TEXT)
        if (
            recent is None
            or recent.partition(".")[0] != key
            or recent != flask.session.get(SESSION_KEY)
            or (self._settings.cookie is not None and not self._has_cookie(request))
            or self._app.config.get("SECRET_KEY_FALLBACKS")
        ):
            self._keep(request, self._signer().sign(key).decode())

    def drop(self, request: Request | None) -> None:
        """Drop the key of a request, if that is the current one, so that the next person on the browser has none."""
        if request is not None and is_current(request):
            request.environ[_DROPPED] = True
            if RESERVED_KEY in flask.session:  # removing what is not there would mark the session as modified
                del flask.session[RESERVED_KEY]
            self._keep(request, None)

    def is_dropped(self, request: Request) -> bool:
        return _DROPPED in request.environ

    def restore(self, request: Request) -> None:
        """Give back the key whose session a view cleared before it failed: Flask saves the session all the same."""
        if flask.session.modified and SESSION_KEY not in flask.session:
            arrived = next((text for text, _ in self._texts(request) if text), None)
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
        return next(filter(None, (text.partition(_BEHIND)[2] for text, _ in self._texts(request))), None)

    def set_pending(self, request: Request, pending: str, key: str | None) -> None:
        """Keep a text behind the key of the current request's visitor, who may have none."""
        if is_current(request) and self.may_recognise(request):
            token = self._signer().sign(key).decode() if key is not None else ""
            self._keep(request, f"{token}{_BEHIND}{pending}")

    def drop_pending(self, request: Request) -> None:
        """Drop the text behind the key of a request, if that is the current one."""
        if is_current(request):
            token, behind, _ = next((text for text, _ in self._texts(request) if text), "").partition(_BEHIND)
            if behind:
                self._keep(request, token or None)

    def _texts(self, request: Request) -> Iterator[tuple[str, timedelta | None]]:
        """Yield what is kept for a visitor, and how old it may be.

        It is what this request keeps already, or else what is in the session, in the session as it arrived if a view
        has cleared it, and in the cookie.
        """
        environ, window, has_changed = request.environ, self._window, True
        is_here = is_current(request)
        if is_here and _RESPONSE not in environ:
            self._await_response(request)
        if _NEW_TEXT in environ:
            yield environ[_NEW_TEXT] or "", window
            return
        text = ""
        if is_here:
            session = unwrapped(flask.session)
            if isinstance(session, NullSession):
                return
            text, has_changed = str(session.get(SESSION_KEY, "")), session.modified
            yield text, window
        interface = self._app.session_interface
        if has_changed and interface.get_cookie_name(self._app) in request.cookies:
            with self._without_flush():
                arrived: t.Any = interface.open_session(self._app, t.cast(flask.Request, request)) or {}
            text = str(arrived.get(SESSION_KEY, text))
            yield text, window
        if self._settings.cookie is not None and not text:
            environ[_COOKIE_READ] = True
            (name, _), cookies = self._cookie(request), request.cookies
            if name in cookies:
                yield cookies[name], self._cookie_lifetime

    def _keep(self, request: Request, text: str | None) -> None:
        """Keep a text for the visitor of the current request, or none."""
        environ, session, settings = request.environ, unwrapped(flask.session), self._settings
        if isinstance(session, NullSession):
            return  # without a session there is no cookie either: a login could not drop it
        changes = text is not None or SESSION_KEY in session or _NEW_TEXT in environ or self._has_cookie(request)
        environ[_NEW_TEXT] = text
        # A click from another site comes without a Strict session: one with the key would replace it.
        is_avoided = settings.cookie is not None and self._app.config["SESSION_COOKIE_SAMESITE"] == "Strict"
        if text is not None and not is_avoided:
            session[SESSION_KEY] = text
        elif SESSION_KEY in session:
            del session[SESSION_KEY]
        if changes:
            if _RESPONSE not in environ:
                self._await_response(request)
            if environ[_RESPONSE] is not None:
                self.finish(request, environ[_RESPONSE])

    def _await_response(self, request: Request) -> None:
        """Have :meth:`finish` called. The view of a link calls :meth:`set_cookie`, which is quicker."""
        request.environ[_RESPONSE] = None
        if getattr(request, "endpoint", None) != REDIRECT_ENDPOINT:
            flask.after_this_request(partial(self.finish, request))

    def finish(self, request: Request, response: R) -> R:
        """Set the cookie, if it has changed, on a response, and keep shared caches from storing the visitor key."""
        environ = request.environ
        has_changed, is_read = _NEW_TEXT in environ, _COOKIE_READ in environ
        if (has_changed or is_read) and "no-store" not in response.headers.get("Cache-Control", ""):
            if is_read:
                response.vary.add("Cookie")
            if has_changed:
                response.cache_control.public = False
                response.cache_control.private = True
        return self.set_cookie(request, response)

    def set_cookie(self, request: Request, response: R) -> R:
        """Set the cookie, if it has changed, on a response that no cache stores. What is kept later reaches it, too."""
        environ, settings = request.environ, self._settings
        is_repeated = _RESPONSE in environ and environ[_RESPONSE] is not None
        environ[_RESPONSE] = response
        if _NEW_TEXT not in environ or settings.cookie is None:
            return response
        (name, attributes), text = self._cookie(request), environ[_NEW_TEXT]
        if is_repeated:
            cookies = response.headers.getlist("Set-Cookie")
            response.headers.setlist("Set-Cookie", [each for each in cookies if not each.startswith(f"{name}=")])
        if text is not None:
            response.headers.add("Set-Cookie", f"{name}={text}{attributes}; Max-Age={self._max_age}")
        elif name in request.cookies:
            response.headers.add("Set-Cookie", f"{name}={attributes}; Max-Age=0")
        return response

    def _has_cookie(self, request: Request) -> bool:
        """Return whether the browser sent the cookie, and it is in use."""
        return self._settings.cookie is not None and self._cookie(request)[0] in request.cookies

    def _cookie(self, request: Request) -> tuple[str, str]:
        """Return name and attributes of the cookie, with the scope of the session's."""
        is_secure = request.scheme == "https" or bool(self._app.config["SESSION_COOKIE_SECURE"])
        if is_secure not in self._cookies:
            name, interface = self._settings.cookie or "", self._app.session_interface
            path, domain = interface.get_cookie_path(self._app), interface.get_cookie_domain(self._app)
            if is_secure and path == "/" and not domain:
                name = f"{_HOST_PREFIX}{name}"
            header = dump_cookie(
                name, secure=is_secure, path=path, domain=domain, httponly=True, samesite="Lax", sync_expires=False
            )
            self._cookies[is_secure] = name, header.removeprefix(f"{name}=")
        return self._cookies[is_secure]

    def _signer(self) -> TimestampSigner:
        # Read from the config each time: a host may replace its keys.
        config = self._app.config
        return visitor_signer(*(config.get("SECRET_KEY_FALLBACKS") or ()), config["SECRET_KEY"])

    def _verify(self, token: str) -> tuple[str | None, timedelta]:
        """Return the key of a signed text, or ``None``, and its age."""
        if not _TOKEN.fullmatch(token):
            return None, timedelta(0)
        try:
            key, signed_at = self._signer().unsign(token, return_timestamp=True)
        except BadSignature:
            return None, timedelta(0)
        # By the clock of the signature: freezegun, in the tests of a host, changes this name but not now().
        age = datetime.now(timezone.utc) - signed_at
        return (key.decode() if -_CLOCK_SKEW <= age else None), age
