"""Primary keys of the host's objects as the database stores them, and the digests that make rows unique."""

import hashlib
import json
import typing as t

import sqlalchemy as sa
from sqlalchemy.orm import object_session

from ..exceptions import InvalidValueError
from ..types import Actor
from .build import Models
from .transactions import Transaction


def table_name(model: type[t.Any]) -> str:
    """Return the name of a model's table, with its bind and schema unless it is on the default ones.

    A target is stored under it unless it was registered under another.
    """
    table = t.cast(sa.Table, sa.inspect(model).base_mapper.local_table)
    bind = table.metadata.info.get("bind_key")
    name = table.name if table.schema == table.metadata.schema else f"{table.schema}.{table.name}"
    return name if bind is None else f"{bind}:{name}"


def stored_key(obj: t.Any) -> t.Any:
    """Return an object's primary key if the database has it, or ``None``. Nothing is flushed."""
    state = sa.inspect(obj, raiseerr=False)
    return state.identity[0] if isinstance(state, sa.orm.InstanceState) and state.identity else None


def primary_key(obj: t.Any, field: str) -> t.Any:
    """Return the primary key of a host's object; a pending one is flushed first. ``field`` is for error messages."""
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


def parse_key(model: type[t.Any], text: str, dialect: str) -> t.Any:
    """Return a primary key in the type of its column, or ``None`` when no row can have it."""
    key_type = sa.inspect(model).primary_key[0].type
    try:
        key = key_type.python_type(text)
    except NotImplementedError:  # a type of the host's own
        return text
    except (ValueError, OverflowError):
        return None
    if not isinstance(key, int):
        return key
    # PostgreSQL raises for a number that is too large for the column, sqlite3 for one of more than 8 bytes.
    is_long = isinstance(key_type, sa.BigInteger) or dialect == "sqlite"
    is_possible = key.bit_length() <= (63 if is_long else 31)
    return key if is_possible and str(key) == text else None  # Python reads "7_0" as 70


def existing_users(transaction: Transaction, user_ids: set[t.Any]) -> set[t.Any]:
    """Return those of some users that exist: all, without a user model or with one in another database."""
    key = _user_column(transaction.database.models)
    if key is None or not user_ids:
        return user_ids
    return set(transaction.execute(sa.select(key).where(key.in_(list(user_ids)))).scalars())


def user_exists(models: Models, user_id: t.Any) -> list[sa.ColumnElement[bool]]:
    """Return the conditions that a user is stored; none where :func:`existing_users` does not look."""
    key = _user_column(models)
    return [sa.exists().where(key == user_id)] if key is not None else []


def _user_column(models: Models) -> t.Any:
    key = sa.inspect(models.user).primary_key[0] if models.user is not None else None
    return key if key is not None and key.table.metadata is models.response_table.metadata else None


def digest(*parts: t.Any) -> str:
    """Return the unique hash of a row's identity columns."""
    canonical = json.dumps([part if part is None else str(part) for part in parts])
    return hashlib.sha256(canonical.encode()).hexdigest()


def once_key(actor: Actor) -> str:
    """Return the key of an action that an actor does once. It reveals neither the user nor the visitor key."""
    who = f"user {actor.user_id}" if actor.user_id is not None else f"visitor {actor.visitor_key}"
    return f"once:{hashlib.sha256(who.encode()).hexdigest()}"
