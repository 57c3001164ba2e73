"""The keys by which a host's users and objects are stored in our tables."""

import typing as t
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import object_session
from werkzeug.local import LocalProxy

from .clients import storable
from .context import current_state
from .exceptions import InvalidValueError

#: The longest text that tells users apart in an app without a user model.
MAX_USER_ID = 255


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
    """Return what is stored for a user: the primary key, or text for an app without a user model.

    Such an app may have objects with Flask-Login's ``get_id()`` for its users, or their bare identities: text, an
    integer, or a UUID, as they come out of a token.

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
    return _identity(user)


def _identity(user: t.Any) -> str | None:
    identity = user.get_id() if hasattr(user, "get_id") else user
    if identity is None:
        return None
    if isinstance(identity, bool) or not isinstance(identity, (str, int, UUID)):
        raise InvalidValueError(
            "user",
            f"must have get_id(), or be a str, int or UUID, not {type(identity).__name__}; or give "
            "Referrals(user_model=...)",
        )
    text = str(identity)
    if not text or text != storable(text, MAX_USER_ID):
        raise InvalidValueError("user", f"must be told apart by 1 to {MAX_USER_ID} characters")
    return text


def user_key(text: str) -> t.Any:
    """Return a user's key as the user model has it, or ``None`` when no user can have it.

    :param text: the key as text; that it is a user's is not looked up.
    """
    user_model = current_state().models.user
    return text if user_model is None else parse_key(user_model, text)


def parse_key(model: type[t.Any], text: str) -> t.Any:
    """Return a primary key as a model has it, or ``None`` when no row can have it.

    :param model: a model with a primary key of one column.
    :param text: the key as text.
    """
    key_type = sa.inspect(model).primary_key[0].type
    try:
        key = key_type.python_type(text)
    except NotImplementedError:  # a type of the host's own
        return text
    except (ValueError, OverflowError):
        return None
    if isinstance(key, int):
        if str(key) != text:
            return None  # Python takes "7_0" for 70
        # PostgreSQL answers a number that is too large for the column with an error, sqlite3 one of more than 8 bytes.
        dialect = current_state().session.get_bind(sa.inspect(model)).dialect.name
        is_long = isinstance(key_type, sa.BigInteger) or dialect == "sqlite"
        if key.bit_length() > (63 if is_long else 31):
            return None
    return key
