"""The pair of models that live in a host's database: found among its own, or built, once for each ``SQLAlchemy()``."""

import typing as t
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.model import Model
from sqlalchemy.orm import MappedAsDataclass

from . import totals
from .context import mappers_of
from .exceptions import ConfigurationError
from .models import ReferralMixin
from .models import ReferralResponseMixin

_INFO_KEY = "flask_referrals"

T = t.TypeVar("T")


@dataclass(frozen=True)
class Models:
    """The concrete classes of one database."""

    referral: type[ReferralMixin]
    response: type[ReferralResponseMixin]
    user: type[t.Any] | None
    total: sa.Table
    #: What was made of the models, by what made it and its arguments.
    made: dict[t.Any, t.Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, make: Callable[..., T], *arguments: t.Hashable) -> T:
        """Return what is made of these models, a statement for one; it is made when it is asked for first.

        :param make: makes it, given the models and the arguments.
        :param arguments: what else it depends on.
        """
        key = (make, *arguments)
        if key not in self.made:
            self.made[key] = make(self, *arguments)
        return t.cast(T, self.made[key])


def get_models(
    db: SQLAlchemy,
    *,
    user_model: type[t.Any] | None,
    referral_model: type[ReferralMixin] | None,
    response_model: type[ReferralResponseMixin] | None,
) -> Models:
    """Return the pair of models of a database, building what the host has not declared.

    They are remembered on ``db.metadata``, as long as the tables live: several apps on one database share them.

    :param db: the host's database.
    :param user_model: the host's users, any mapped class with a primary key of one column.
    :param referral_model: the host's own referral, when it has more than one.
    :param response_model: the host's own response, when it has more than one.
    :raises ConfigurationError: two candidates, two user models, or models that do not belong together.
    """
    known: Models | None = db.metadata.info.get(_INFO_KEY)
    if known is None:
        known = db.metadata.info[_INFO_KEY] = _build(db, user_model, referral_model, response_model)
    _check_same("user_model", user_model, known.user)
    _check_same("referral_model", referral_model, known.referral)
    _check_same("response_model", response_model, known.response)
    return known


def _check_same(option: str, given: type[t.Any] | None, known: type[t.Any] | None) -> None:
    if given is not None and given is not known:
        raise ConfigurationError(
            f"{option}={given.__name__} contradicts {known.__name__ if known else None}, with which the referrals of "
            "this database were set up before. One database has one pair of models: give every app the same."
        )


def _build(
    db: SQLAlchemy,
    user_model: type[t.Any] | None,
    referral_model: type[ReferralMixin] | None,
    response_model: type[ReferralResponseMixin] | None,
) -> Models:
    response = response_model or _declared(db, ReferralResponseMixin, "response_model")
    referral = referral_model or _declared(db, ReferralMixin, "referral_model")
    if response is not None:
        if referral is not None and response.__referral_model__ is not referral:
            raise ConfigurationError(f"{response.__name__}.__referral_model__ must be {referral.__name__}.")
        referral = response.__referral_model__
        _check_same_bind(referral, response)
    declared_users = {model.__user_model__ for model in (referral, response) if model is not None}
    if len(declared_users | ({user_model} if user_model else set())) > 1:
        raise ConfigurationError(
            "Two user models: set __user_model__ on each of your own referral models to the one that is given as "
            "user_model."
        )
    users = user_model or next(iter(declared_users), None)
    if users is not None:
        _check_user_model(db, users)
    if referral is None:
        referral = _subclass(db, ReferralMixin, "Referral", __user_model__=users)
    if response is None:
        response = _subclass(
            db,
            ReferralResponseMixin,
            "ReferralResponse",
            __user_model__=users,
            __referral_model__=referral,
            __bind_key__=_bind_key(referral),
        )
    return Models(referral, response, users, totals.new_table(t.cast(sa.Table, sa.inspect(referral).local_table)))


def _declared(db: SQLAlchemy, mixin: type[T], option: str) -> type[T] | None:
    roots = (mapper.class_ for mapper in mappers_of(db) if mapper.inherits is None)
    found = [model for model in roots if issubclass(model, mixin)]
    if len(found) > 1:
        names = " and ".join(sorted(model.__name__ for model in found))
        raise ConfigurationError(f"There are {names}: say which one is meant with Referrals({option}=...).")
    return found[0] if found else None


def _subclass(db: SQLAlchemy, mixin: type[T], name: str, **attributes: t.Any) -> type[T]:
    table = "referral" if name == "Referral" else "referral_response"
    body = {"__tablename__": table, "__module__": __name__, "__doc__": mixin.__doc__, **attributes}
    if issubclass(db.Model, MappedAsDataclass):
        return _plain_subclass(db, mixin, name, body)
    return t.cast("type[T]", type(name, (mixin, db.Model), body))


def _plain_subclass(db: SQLAlchemy, mixin: type[T], name: str, body: dict[str, t.Any]) -> type[T]:
    """Map a class without ``db.Model``, whose subclasses are dataclasses; the columns of a mixin cannot be in one."""
    registry = t.cast(t.Any, db.Model).registry
    metadata = db.metadatas[body.pop("__bind_key__", None)]
    body |= {"__fsa__": db, "__init__": registry.constructor, "metadata": metadata}
    model = type(name, (mixin, Model), body)
    registry.map_declaratively(model)
    return t.cast("type[T]", model)


def _check_same_bind(referral: type[ReferralMixin], response: type[ReferralResponseMixin]) -> None:
    if _bind_key(referral) != _bind_key(response):
        raise ConfigurationError(
            f"{referral.__name__} and {response.__name__} are in two databases: give both the same __bind_key__."
        )


def _bind_key(model: type[t.Any]) -> str | None:
    key: str | None = sa.inspect(model).local_table.metadata.info.get("bind_key")
    return key


def _check_user_model(db: SQLAlchemy, user_model: type[t.Any]) -> None:
    mapper = next((mapper for mapper in mappers_of(db) if mapper.class_ is user_model), None)
    if mapper is None:
        raise ConfigurationError(f"user_model={user_model.__name__} is not a model of this SQLAlchemy().")
    if len(mapper.primary_key) != 1:
        raise ConfigurationError(f"user_model={user_model.__name__} must have a primary key of one column.")
