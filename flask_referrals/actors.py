"""Who acts: the user and the visitor key of a request."""

import typing as t
from uuid import UUID

import flask
from werkzeug.wrappers import Request

from .db.keys import parse_key, primary_key
from .db.tables import MAX_USER_ID
from .exceptions import InvalidValueError
from .state import AppState
from .types import ANONYMOUS, Actor, Anonymous, storable
from .web.client import is_current, unwrapped


def current_actor(
    state: AppState, request: Request | None, user: t.Any = None, *, join: bool = False
) -> Actor | Anonymous:
    """Return who acts in a request: the given user, or else the one who is logged in.

    A given user who is not logged in does not own the browser's history, unless ``join`` says so: anybody can type
    another person's address.
    """
    given = user_key(state, user)
    if given is not None and join:
        return Actor(given, state.visitor_keys.get(request))
    user = current_user(state, request)
    present = None if user is None else user_key(state, user)
    if given is not None and given != present:
        return Actor(given)
    visitor_key = state.visitor_keys.get(request)
    if visitor_key is None and (reserved := state.visitor_keys.get_reserved(request, present)) is not None:
        return Actor(present, *reserved)
    return ANONYMOUS if present is None and visitor_key is None else Actor(present, visitor_key)


def current_user(state: AppState, request: Request | None, *, of_any_model: bool = False) -> t.Any:
    """Return the user who makes a request, or ``None``.

    :param of_any_model: also a user who is not of ``user_model``, and who is anonymous otherwise.
    """
    if request is None or not is_current(request):
        return None  # the login of another request is not known
    loader, config = state.hooks.user_loader, state.app.config
    login_manager = getattr(state.app, "login_manager", None)
    if loader is not None:
        with state.database.without_flush():
            user = unwrapped(loader())
    # Asking Flask-Login costs 100 calls, and makes it write into a visitor's session, which is then signed anew.
    elif login_manager is not None and (
        "_user_id" in flask.session
        or login_manager.request_callback is not None
        or config.get("REMEMBER_COOKIE_NAME", "remember_token") in request.cookies
        or f"HTTP_{config.get('AUTH_HEADER_NAME', 'AUTHORIZATION').upper().replace('-', '_')}" in request.environ
    ):
        from flask_login import current_user

        with state.database.without_flush():
            user = unwrapped(current_user)
    else:
        return None
    model = None if of_any_model else state.database.models.user
    if user is None or user is False or (model is not None and not isinstance(user, model)):
        return None
    return user if getattr(user, "is_authenticated", True) else None


def user_key(state: AppState, user: t.Any) -> t.Any:
    """Return the key of a user as it is stored, or ``None`` for ``None`` and Flask-Login's anonymous user.

    It is the primary key, or text in an app without a user model, whose users may also be bare ids, as in a token.
    A user who is not active has a key too, although Flask-Login does not call them authenticated.

    :raises InvalidValueError: it is not a user of this app.
    """
    user, model = unwrapped(user), state.database.models.user
    is_of_model = model is not None and isinstance(user, model)
    if not getattr(user, "is_authenticated", user is not None) and getattr(user, "is_anonymous", not is_of_model):
        return None
    if model is None:
        return plain_key(user)
    if not is_of_model:
        raise InvalidValueError("user", f"must be a {model.__name__}, not {type(user).__name__}")
    return primary_key(user, "user")


def require_user_key(state: AppState, user: t.Any) -> t.Any:
    """Return the key of a user who must not be anonymous."""
    key = user_key(state, user)
    if key is None:
        raise InvalidValueError("user", "is anonymous: give a user who is logged in")
    return key


def plain_key(user: t.Any) -> str | None:
    """Return the key of a user in an app without a user model."""
    identity = user.get_id() if hasattr(user, "get_id") else user
    if identity is None:
        return None
    if isinstance(identity, bool) or not isinstance(identity, (str, int, UUID)):
        raise InvalidValueError(
            "user",
            f"must have get_id(), or be a str, int or UUID, not {type(identity).__name__}; or give "
            "Referrals(user_model=...)",
        )
    text = str.__str__(identity) if isinstance(identity, str) else str(identity)
    if not text or text != storable(text, MAX_USER_ID):
        raise InvalidValueError("user", f"must have an id of 1 to {MAX_USER_ID} characters")
    return text


def parse_user_key(state: AppState, text: str) -> t.Any:
    """Return a user's key in the type of the user model, or ``None`` when no user can have it."""
    model = state.database.models.user
    return text if model is None else parse_key(model, text, state.database.dialect.name)


def classes_with_own_id(state: AppState) -> list[str]:
    """Return the names of the host's classes whose ``get_id()`` is not that of Flask-Login's ``UserMixin``."""
    models = [mapper.class_ for mapper in state.database.base.mappers if hasattr(mapper.class_, "get_id")]
    return [model.__name__ for model in models if model.get_id.__module__ != "flask_login.mixins"]
