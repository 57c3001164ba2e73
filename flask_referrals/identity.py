"""The keys by which a host's users and objects are stored in our tables."""

import typing as t

import sqlalchemy as sa
from sqlalchemy.orm import object_session
from werkzeug.local import LocalProxy

from .context import current_state
from .exceptions import InvalidValueError


def unwrapped(obj: t.Any) -> t.Any:
    """Return the object behind a proxy such as Flask-Login's ``current_user``."""
    return obj._get_current_object() if isinstance(obj, LocalProxy) else obj


def primary_key(obj: t.Any, field: str) -> t.Any:
    """Return the primary key of a host's object; one that waits in the session is flushed first.

    :param obj: an instance of a mapped class with a primary key of one column.
    :param field: how to call it in an error.
    :raises InvalidValueError: it is no such instance, or not in the database and not in a session.
    """
    state = sa.inspect(obj, raiseerr=False)
    if not isinstance(state, sa.orm.InstanceState):
        raise InvalidValueError(field, f"must be an instance of a model, not {type(obj).__name__}")
    if not state.identity and (session := object_session(obj)) is not None:
        session.flush()
    if not state.identity:
        raise InvalidValueError(field, "has no primary key yet: add it to the session first")
    if len(state.identity) != 1:
        raise InvalidValueError(field, "has a primary key of more than one column")
    return state.identity[0]


def user_id(user: t.Any) -> t.Any:
    """Return what is stored for a user: the primary key, or ``get_id()`` for an app without a user model.

    :param user: the user; ``None`` and Flask-Login's anonymous user are nobody.
    :raises InvalidValueError: it is not a user of this app.
    """
    user = unwrapped(user)
    if user is None or not getattr(user, "is_authenticated", True):
        return None
    user_model = current_state().models.user
    if user_model is not None:
        if not isinstance(user, user_model):
            raise InvalidValueError("user", f"must be a {user_model.__name__}, not {type(user).__name__}")
        return primary_key(user, "user")
    if not hasattr(user, "get_id"):
        raise InvalidValueError("user", "needs get_id(), or Referrals(user_model=...) must be given")
    return user.get_id()
