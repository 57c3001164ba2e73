"""The pair of models of a database: found among the host's models, or built on the host's declarative base, once."""

import typing as t
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapper, registry

from ..exceptions import ConfigurationError
from .tables import RecordColumns, ReferralColumns, ResponseColumns, new_total_table

_INFO_KEY = "flask_referrals"
_LOCK = Lock()


class Query(t.Protocol):
    """A hashable value that names a statement and can build it."""

    def build(self, models: "Models") -> t.Any: ...


@dataclass(frozen=True)
class Models:
    referral: type[ReferralColumns]
    response: type[ResponseColumns]
    user: type[t.Any] | None
    #: Columns by the names of their attributes; a host may have renamed some.
    referrals: t.Any
    responses: t.Any
    total: sa.Table
    #: The models that the host has named.
    choices: "Choices"
    #: The mapper of the responses, which tells the session where to send a statement.
    mapper: Mapper[t.Any]
    #: The statements that were built, by the classes and values of their queries.
    statements: dict[t.Any, t.Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def response_table(self) -> sa.Table:
        return t.cast(sa.Table, sa.inspect(self.response).local_table)

    @property
    def tables(self) -> Sequence[sa.Table]:
        return [t.cast(sa.Table, sa.inspect(self.referral).local_table), self.response_table, self.total]


@dataclass(frozen=True)
class Base:
    #: The registries of all the host's models; that of new models is the first. Its metadata remembers the models as
    #: long as the tables live: several apps on one database share them.
    registries: tuple[registry, ...]
    #: Maps a new class, given its name, its mixin and its attributes.
    new_model: Callable[[str, type[t.Any], dict[str, t.Any]], type[t.Any]]

    @property
    def mappers(self) -> Iterator[Mapper[t.Any]]:
        return (mapper for each in self.registries for mapper in each.mappers)


@dataclass(frozen=True)
class Choices:
    """The models that the host has named."""

    user: type[t.Any] | None = None
    referral: type[ReferralColumns] | None = None
    response: type[ResponseColumns] | None = None


def get_models(base: Base, choices: Choices, mixins: tuple[type[ReferralColumns], type[ResponseColumns]]) -> Models:
    """Return the models of a database; build those that the host has not declared, from the two mixins."""
    known_models = base.registries[0].metadata.info
    with _LOCK:  # apps may be set up in several threads
        if _INFO_KEY not in known_models:
            known_models[_INFO_KEY] = _build(base, choices, mixins)
    models: Models = known_models[_INFO_KEY]
    for option in ("user", "referral", "response"):
        given, known = getattr(choices, option), getattr(models, option)
        if given is not None and given is not known:
            raise ConfigurationError(
                f"{option}_model={given.__name__} contradicts {known.__name__ if known else None}, with which the "
                "referrals of this database were set up before. One database has one pair of models: give every app "
                "the same."
            )
    return models


def _build(base: Base, choices: Choices, mixins: tuple[type[ReferralColumns], type[ResponseColumns]]) -> Models:
    response = choices.response or _find_declared(base, ResponseColumns, "response_model", "__referral_backref__")
    referral = choices.referral or _find_declared(base, ReferralColumns, "referral_model", "__user_backref__")
    if response is not None:
        if referral is not None and response.__referral_model__ is not referral:
            raise ConfigurationError(f"{response.__name__}.__referral_model__ must be {referral.__name__}.")
        referral = t.cast("type[ReferralColumns]", response.__referral_model__)
        if referral.metadata is not response.metadata:
            raise ConfigurationError(
                f"{referral.__name__} and {response.__name__} are in two databases: give both the same __bind_key__, "
                "or the same metadata."
            )
    user = _find_user_model(choices.user, referral, response)
    attributes: dict[str, t.Any] = {"__user_model__": user}
    if referral is None:
        referral = base.new_model("Referral", mixins[0], {"__tablename__": "referral"} | attributes)
    if response is None:
        attributes |= {"__referral_model__": referral, "metadata": referral.metadata}
        response = base.new_model("ReferralResponse", mixins[1], {"__tablename__": "referral_response"} | attributes)
    total = new_total_table(t.cast(sa.Table, sa.inspect(referral).local_table))
    mapper = sa.inspect(response)
    return Models(referral, response, user, sa.inspect(referral).columns, mapper.columns, total, choices, mapper)


def _find_declared(base: Base, mixin: type[RecordColumns], option: str, backref: str) -> t.Any:
    roots = (mapper.class_ for mapper in base.mappers if mapper.inherits is None)
    found = [model for model in roots if issubclass(model, mixin)]
    if len(found) > 1:
        names = " and ".join(sorted(model.__name__ for model in found))
        raise ConfigurationError(
            f"There are {names}: name the right one with Referrals({option}=...), and set {backref} = None on others."
        )
    return found[0] if found else None


@event.listens_for(RecordColumns, "after_mapper_constructed", propagate=True)
def _refuse_late_model(mapper: Mapper[t.Any], model: type[RecordColumns]) -> None:
    models: Models | None = mapper.registry.metadata.info.get(_INFO_KEY)
    option = "referral" if issubclass(model, ReferralColumns) else "response"
    if models is not None and mapper.inherits is None and getattr(models.choices, option) is None:
        raise ConfigurationError(
            f"{model.__name__} was declared after 'referrals.init_app(app)', which uses "
            f"{getattr(models, option).__name__}. Declare it before, or name the right one with "
            f"Referrals({option}_model=...)."
        )


@event.listens_for(ReferralColumns, "before_delete", propagate=True)
def _delete_responses(mapper: Mapper[t.Any], connection: sa.Connection, referral: ReferralColumns) -> None:
    """Do what the foreign keys say: SQLite enforces them only when the host asks for it."""
    models: Models | None = mapper.registry.metadata.info.get(_INFO_KEY)
    if models is not None and isinstance(referral, models.referral):
        column = models.total.c.referral_id
        connection.execute(sa.update(models.total).where(column == referral.id).values({column: None}))
    if "responses" in mapper.relationships:
        column = mapper.relationships["responses"].mapper.columns.referral_id
        connection.execute(sa.delete(column.table).where(column == referral.id))


def _find_user_model(given: type[t.Any] | None, *declared: type[RecordColumns] | None) -> type[t.Any] | None:
    of_models = {model.__user_model__ for model in declared if model is not None}
    if len(of_models | ({given} if given else set())) > 1:
        raise ConfigurationError(
            "Two user models: set __user_model__ on each of your own referral models to the model that is given as "
            "user_model."
        )
    user = given or next(iter(of_models), None)
    if user is not None:
        mapper = sa.inspect(user, raiseerr=False)
        if not isinstance(mapper, Mapper):
            raise ConfigurationError(f"user_model={user!r} is not a model: pass the class of your users.")
        if len(mapper.primary_key) != 1:
            raise ConfigurationError(f"user_model={user.__name__} must have a primary key of one column.")
    return user
