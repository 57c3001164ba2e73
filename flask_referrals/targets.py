"""Objects that referrals and responses are about: how they are stored, loaded, and put into a form."""

import typing as t

from itsdangerous import BadData

from .db.keys import parse_key, primary_key, table_name
from .exceptions import InvalidValueError
from .state import AppState
from .types import TargetType
from .web.client import unwrapped
from .web.signing import target_serializer


def reference(state: AppState, target: t.Any) -> tuple[str | None, str | None]:
    """Return the type name and the key, as text, under which an object is stored."""
    if target is None:
        return None, None
    target = unwrapped(target)
    key = str(primary_key(target, "target"))
    if len(key) > 64:
        raise InvalidValueError("target", "has a primary key longer than 64 characters")
    for name, registered in state.target_types.items():
        if isinstance(target, registered.model):
            return name, key
    return table_name(type(target)), key


def load_target(state: AppState, type_name: str | None, key: str | None) -> t.Any:
    """Return the object that is stored under a type name and key; ``None`` if it is deleted or its type unknown."""
    found = find_type(state, type_name) if type_name is not None else None
    if found is None or key is None:
        return None
    if found.load is not None:
        return found.load(key)
    identity = parse_key(found.model, key, state.database.dialect.name)
    if identity is None:
        return None
    with state.database.without_flush():
        return state.database.session.get(found.model, identity)


def find_type(state: AppState, name: str) -> TargetType | None:
    """Return the type that was registered under a name, or else the model of the table with that name."""
    if name in state.target_types:
        return state.target_types[name]
    for mapper in state.database.base.mappers:
        has_one_key = mapper.inherits is None and len(mapper.primary_key) == 1
        if has_one_key and table_name(mapper.class_) == name:
            return TargetType(mapper.class_, None, None)
    return None


def to_token(state: AppState, target: t.Any) -> str:
    """Return the signed value that names a target in a form. Its model must be registered."""
    type_name, key = reference(state, target)
    if type_name not in state.target_types:
        model_name = type(unwrapped(target)).__name__
        raise InvalidValueError("target", f"needs 'referrals.register_target({model_name})' first")
    return str(target_serializer(state.app).dumps([type_name, key]))


def from_token(state: AppState, token: str, user: t.Any) -> t.Any:
    """Return the target that a form names.

    :raises InvalidValueError: there is none. The error is the same for each reason: it must not show what exists.
    """
    try:
        type_name, key = target_serializer(state.app).loads(token)
        can_refer = state.target_types[type_name].can_refer
        target = load_target(state, type_name, key)
    except (BadData, KeyError, TypeError, ValueError):
        target = None
    if target is None or (can_refer is not None and not can_refer(user, target)):
        raise InvalidValueError("target", "is not something you can refer to")
    return target
