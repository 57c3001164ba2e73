"""Objects that referrals and responses are about: how they are stored, and found again."""

import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from itsdangerous import BadData
from itsdangerous import URLSafeSerializer

from .context import current_state
from .context import signing_keys
from .exceptions import InvalidValueError
from .identity import parse_key
from .identity import primary_key
from .identity import unwrapped

if t.TYPE_CHECKING:
    from .models.records import RecordMixin

_SALT = "flask-referrals.target"


@dataclass(frozen=True)
class TargetType:
    """A kind of object that :meth:`.Referrals.register_target` was told of."""

    model: type[t.Any]
    load: Callable[[str], t.Any] | None
    can_refer: Callable[[t.Any, t.Any], bool] | None


def reference(target: t.Any) -> tuple[str | None, str | None]:
    """Return the type name and the key, as text, under which an object is stored.

    :param target: an instance of a model, or ``None``.
    :raises InvalidValueError: it is not in the database, or its key has more than one column or 64 characters.
    """
    if target is None:
        return None, None
    target = unwrapped(target)
    key = str(primary_key(target, "target"))
    if len(key) > 64:
        raise InvalidValueError("target", "has a primary key longer than 64 characters")
    return _type_name(type(target)), key


def _type_name(model: type[t.Any]) -> str:
    for name, registered in current_state().extension.targets.items():
        if issubclass(model, registered.model):
            return name
    return table_name(model)


def table_name(model: type[t.Any]) -> str:
    """Return the name a model goes by when it is registered without one: that of its table."""
    return str(t.cast(sa.Table, sa.inspect(model).base_mapper.local_table).name)


def load(type_name: str | None, key: str | None) -> t.Any:
    """Return the object stored under a type name and key; ``None`` when it is gone or its type unknown."""
    if type_name is None or key is None:
        return None
    state = current_state()
    registered = state.extension.targets.get(type_name)
    if registered is not None and registered.load is not None:
        return registered.load(key)
    model = registered.model if registered else _model_of_table(type_name)
    if model is None:
        return None
    identity = parse_key(model, key)
    return None if identity is None else state.session.get(model, identity)


def load_many(records: "Iterable[RecordMixin]") -> None:
    """Load the targets of a page of records, one statement for each type; then each has its own without another.

    A type that was registered with ``load`` is left to that.
    """
    by_type: dict[str, list[RecordMixin]] = {}
    for record in records:
        if record.target_type is not None and record.target_id is not None:
            by_type.setdefault(record.target_type, []).append(record)
    registered = current_state().extension.targets
    for name, of_type in by_type.items():
        if name in registered and registered[name].load is not None:
            continue
        model = registered[name].model if name in registered else _model_of_table(name)
        if model is not None:
            _load_of_type(model, of_type)


def _load_of_type(model: type[t.Any], records: "list[RecordMixin]") -> None:
    keys = {record.target_id: parse_key(model, t.cast(str, record.target_id)) for record in records}
    column = sa.inspect(model).primary_key[0]
    wanted = sa.select(model).where(column.in_([key for key in keys.values() if key is not None]))
    objects = current_state().session.scalars(wanted).all()
    # As text: a key of a type of the host's own may be another in Python than what it is made from.
    found = {str(sa.inspect(obj).identity[0]): obj for obj in objects}
    for record in records:
        record._hold_target(found.get(str(keys[record.target_id])))


def is_known(type_name: str) -> bool:
    """Whether objects stored under a type name can be found again."""
    return type_name in current_state().extension.targets or _model_of_table(type_name) is not None


def _model_of_table(name: str) -> type[t.Any] | None:
    for mapper in current_state().mappers:
        has_one_key = mapper.inherits is None and len(mapper.primary_key) == 1
        if has_one_key and table_name(mapper.class_) == name:
            return mapper.class_
    return None


def _serializer() -> URLSafeSerializer:
    return URLSafeSerializer(signing_keys(), salt=_SALT)


def to_token(target: t.Any) -> str:
    """Return the one value that stands for a target in a form.

    :param target: an instance of a registered model.
    :raises InvalidValueError: its model is not registered, or it is not in the database.
    """
    type_name, key = reference(target)
    if type_name not in current_state().extension.targets:
        model_name = type(unwrapped(target)).__name__
        raise InvalidValueError("target", f"needs 'referrals.register_target({model_name})' first")
    return str(_serializer().dumps([type_name, key]))


def from_token(token: str, user: t.Any) -> t.Any:
    """Return the target a form names.

    :param token: what :func:`to_token` made.
    :param user: who wants to refer to it.
    :raises InvalidValueError: it was not made here, the target's type is not registered, the target is gone, or
        this user may not refer to it: the same error for each, so that nobody learns what exists.
    """
    try:
        type_name, key = _serializer().loads(token)
        can_refer = current_state().extension.targets[type_name].can_refer
        target = load(type_name, key)
    except (BadData, KeyError, TypeError, ValueError):
        target = None
    if target is None or (can_refer is not None and not can_refer(user, target)):
        raise InvalidValueError("target", "is not something you can refer to")
    return target
