"""The pair of models of a database: found among the host's models, or built on the host's declarative base, once."""

import typing as t
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Mapper

from ..exceptions import ConfigurationError
from .tables import RecordColumns, ReferralColumns, ResponseColumns, new_total_table

_INFO_KEY = "flask_referrals"


class Query(t.Protocol):
    """A hashable value that names a statement and can build it."""

    def build(self, models: "Models") -> t.Any: ...


@dataclass(frozen=True)
class Models:
    """The models and tables of one database."""

    referral: type[ReferralColumns]
    response: type[ResponseColumns]
    user: type[t.Any] | None
    #: Columns by the names of their attributes; a host may have renamed some.
    referrals: t.Any
    responses: t.Any
    total: sa.Table
    #: The mapper of the responses, which tells the session where to send a statement.
    mapper: Mapper[t.Any]
    #: The statements that were built, by the classes and values of their queries.
    statements: dict[t.Any, t.Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def response_table(self) -> sa.Table:
        """The table of the responses."""
        return t.cast(sa.Table, sa.inspect(self.response).local_table)

    @property
    def tables(self) -> Sequence[sa.Table]:
        """The three tables of the extension."""
        return [t.cast(sa.Table, sa.inspect(self.referral).local_table), self.response_table, self.total]


@dataclass(frozen=True)
class Base:
    """The host's declarative base."""

    #: Remembers the models as long as the tables live: several apps on one database share them.
    metadata: sa.MetaData
    mappers: Callable[[], Iterable[Mapper[t.Any]]]
    #: Maps a new class, given its name, its mixin and its attributes.
    new_model: Callable[[str, type[t.Any], dict[str, t.Any]], type[t.Any]]


@dataclass(frozen=True)
class Choices:
    """The models that the host has named."""

    user: type[t.Any] | None = None
    referral: type[ReferralColumns] | None = None
    response: type[ResponseColumns] | None = None


def get_models(base: Base, choices: Choices, mixins: tuple[type[ReferralColumns], type[ResponseColumns]]) -> Models:
    """Return the models of a database; build those that the host has not declared, from the two mixins."""
    models: Models | None = base.metadata.info.get(_INFO_KEY)
    if models is None:
        models = base.metadata.info[_INFO_KEY] = _build(base, choices, mixins)
    for option in ("user", "referral", "response"):
        given, known = getattr(choices, option), getattr(models, option)
        if given is not None and given is not known:
            raise ConfigurationError(
                f"{option}_model={given.__name__} contradicts {known.__name__ if known else None}, with which the "
                "referrals of this database were set up before. One database has one pair of models: give every app "
                "the same."
            )
    return models


def bind_key(model: type[t.Any]) -> str | None:
    """Return the key of the bind that a model's table is on."""
    return t.cast("str | None", sa.inspect(model).local_table.metadata.info.get("bind_key"))


def _build(base: Base, choices: Choices, mixins: tuple[type[ReferralColumns], type[ResponseColumns]]) -> Models:
    response = choices.response or _find_declared(base, ResponseColumns, "response_model")
    referral = choices.referral or _find_declared(base, ReferralColumns, "referral_model")
    if response is not None:
        if referral is not None and response.__referral_model__ is not referral:
            raise ConfigurationError(f"{response.__name__}.__referral_model__ must be {referral.__name__}.")
        referral = t.cast("type[ReferralColumns]", response.__referral_model__)
        if bind_key(referral) != bind_key(response):
            raise ConfigurationError(
                f"{referral.__name__} and {response.__name__} are in two databases: give both the same __bind_key__."
            )
    user = _find_user_model(base, choices.user, referral, response)
    attributes: dict[str, t.Any] = {"__user_model__": user}
    if referral is None:
        referral = base.new_model("Referral", mixins[0], {"__tablename__": "referral"} | attributes)
    if response is None:
        attributes |= {"__referral_model__": referral, "__bind_key__": bind_key(referral)}
        response = base.new_model("ReferralResponse", mixins[1], {"__tablename__": "referral_response"} | attributes)
    total = new_total_table(t.cast(sa.Table, sa.inspect(referral).local_table))
    mapper = sa.inspect(response)
    return Models(referral, response, user, sa.inspect(referral).columns, mapper.columns, total, mapper)


def _find_declared(base: Base, mixin: type[RecordColumns], option: str) -> t.Any:
    roots = (mapper.class_ for mapper in base.mappers() if mapper.inherits is None)
    found = [model for model in roots if issubclass(model, mixin)]
    if len(found) > 1:
        names = " and ".join(sorted(model.__name__ for model in found))
        raise ConfigurationError(f"There are {names}: name the right one with Referrals({option}=...).")
    return found[0] if found else None


def _find_user_model(
    base: Base, given: type[t.Any] | None, *declared: type[RecordColumns] | None
) -> type[t.Any] | None:
    of_models = {model.__user_model__ for model in declared if model is not None}
    if len(of_models | ({given} if given else set())) > 1:
        raise ConfigurationError(
            "Two user models: set __user_model__ on each of your own referral models to the model that is given as "
            "user_model."
        )
    user = given or next(iter(of_models), None)
    if user is not None:
        mapper = next((mapper for mapper in base.mappers() if mapper.class_ is user), None)
        if mapper is None:
            raise ConfigurationError(f"user_model={user.__name__} is not a model of this SQLAlchemy().")
        if len(mapper.primary_key) != 1:
            raise ConfigurationError(f"user_model={user.__name__} must have a primary key of one column.")
    return user
