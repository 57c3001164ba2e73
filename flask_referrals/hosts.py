"""The one module that knows the host's database extension: its sessions, engines and declarative base."""

import sys
import typing as t
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import sqlalchemy as sa
from flask import Flask, g
from sqlalchemy.orm import MappedAsDataclass, Mapper, Session, scoped_session, sessionmaker

from .db.build import Base, Choices, get_models
from .db.database import Database, Host, SettingNames
from .exceptions import ConfigurationError
from .failures import log_failure
from .models import ReferralMixin, ReferralResponseMixin
from .settings import Settings
from .state import current_state


def make_database(app: Flask, db: object, choices: Choices, settings: Settings) -> Database:
    """Return the database of an app, with the extension's models on it.

    :param db: the database extension that the host has named; ``None``: the one in ``app.extensions``.
    """
    with app.app_context():
        host = _find_host(app.extensions.get("sqlalchemy") if db is None else db, choices.user)
        _check_report_bind(host, settings.report_bind)
        base = _find_base(host, choices)
        database = Database(
            base=base,
            models=get_models(base, choices, (ReferralMixin, ReferralResponseMixin)),
            host=host,
            log_failure=log_failure,
            zone=settings.timezone,
        )
        if not host.is_late:
            with suppress(sa.exc.UnboundExecutionError):  # the host may still bind its sessions
                database.check_engine()
    return database


def _find_host(db: t.Any, user_model: type[t.Any] | None) -> Host:
    if isinstance(db, scoped_session):
        return _scoped_session(db)
    if _is_instance(db, "flask_sqlalchemy", "SQLAlchemy"):
        return _flask_sqlalchemy(db, user_model)
    if _is_instance(db, "flask_sqlalchemy_lite", "SQLAlchemy"):
        return _flask_sqlalchemy_lite(db)
    if _is_instance(db, "alchemical.flask", "Alchemical"):
        return _alchemical(db)
    raise ConfigurationError(
        "This app has no database: call 'db.init_app(app)' before 'referrals.init_app(app)'. With Alchemical, or a "
        "scoped_session of plain SQLAlchemy, pass Referrals(db=...)."
    )


def _is_instance(db: object, module: str, name: str) -> bool:
    """Return whether an object is of a class of a module, which is not imported to find out."""
    return module in sys.modules and isinstance(db, getattr(sys.modules[module], name))


def _scoped_session(db: scoped_session[t.Any]) -> Host:
    return Host(
        extension=SimpleNamespace(session=db),
        setting_names=SettingNames("", "the URL of the engine", "the arguments of create_engine()"),
        engine_names=[],
        get_engine=dict[str, sa.Engine]().__getitem__,
    )


def _flask_sqlalchemy(db: t.Any, user_model: t.Any) -> Host:
    from flask_sqlalchemy.model import Model
    from flask_sqlalchemy.session import Session as FlaskSession

    if getattr(user_model, "__fsa__", db) is not db:
        raise ConfigurationError(f"user_model={user_model.__name__} is a model of another SQLAlchemy() than the app's.")
    return Host(
        extension=db,  # a test may replace its session
        setting_names=SettingNames(
            "SQLALCHEMY_BINDS", "SQLALCHEMY_DATABASE_URI and SQLALCHEMY_BINDS", "SQLALCHEMY_ENGINE_OPTIONS"
        ),
        engine_names=[name for name in db.engines if name is not None],
        get_engine=lambda name: db.engines[name],
        model=db.Model,
        plain_model=type("Model", (Model,), {"__fsa__": db}),
        plain_get_bind=FlaskSession.get_bind,
    )


def _flask_sqlalchemy_lite(db: t.Any) -> Host:
    # The name in flask.g is private.
    sessions = _KeptSessions(lambda: db.session, lambda: g.setdefault("_sqlalchemy_sessions", {}), "default")
    return Host(
        extension=SimpleNamespace(session=sessions.scoped(db.sessionmaker)),
        setting_names=SettingNames("SQLALCHEMY_ENGINES", "SQLALCHEMY_ENGINES", "SQLALCHEMY_ENGINES['default']"),
        engine_names=[*db.engines],
        get_engine=db.get_engine,
    )


def _alchemical(db: t.Any) -> Host:
    sessions = _KeptSessions(lambda: db.session, lambda: vars(g), "alchemical_session")
    return Host(
        extension=SimpleNamespace(session=sessions.scoped(lambda: db.Session())),
        setting_names=SettingNames(
            "ALCHEMICAL_BINDS", "ALCHEMICAL_DATABASE_URL and ALCHEMICAL_BINDS", "ALCHEMICAL_ENGINE_OPTIONS"
        ),
        engine_names=[*(db.binds or ())],
        get_engine=db.get_engine,
        model=db.Model,
        is_late=True,
    )


@dataclass(frozen=True)
class _KeptSessions:
    """The registry of a scoped_session, for an extension that keeps the session of an app context in ``flask.g``."""

    get_session: Callable[[], Session]
    get_kept: Callable[[], MutableMapping[str, t.Any]]
    name: str

    def scoped(self, factory: sessionmaker[t.Any] | Callable[[], Session]) -> scoped_session[t.Any]:
        sessions: t.Any = scoped_session(t.cast("sessionmaker[t.Any]", factory))
        sessions.registry = self
        return t.cast("scoped_session[t.Any]", sessions)

    def __call__(self) -> Session:
        return self.get_session()

    def has(self) -> bool:
        return self.name in self.get_kept()

    def set(self, session: Session) -> None:
        self.get_kept()[self.name] = session


def _check_report_bind(host: Host, bind: t.Any) -> None:
    if bind is not None and bind not in host.engine_names:
        names = ", ".join(map(repr, host.engine_names))
        found = f"has only {names}" if names else "is empty"
        binds = host.setting_names.binds
        where = f"{binds} {found}" if binds else "a scoped_session has no named engines"
        raise ConfigurationError(f"REFERRALS_REPORT_BIND is {bind!r}, but {where}.")


def _find_base(host: Host, choices: Choices) -> Base:
    """Return the declarative base of the models that the host has named, or else of the host's extension."""
    inspected = [sa.inspect(each, raiseerr=False) for each in (choices.referral, choices.response, choices.user)]
    mappers = [each for each in inspected if isinstance(each, Mapper)]
    registries = [each.registry for each in mappers]
    if host.model is not None:
        registries.append(host.model.registry)
    if not registries:
        raise ConfigurationError(
            "Pass user_model=..., or referral_model=... without users of your own: the models of the referrals are "
            "built on its declarative base, and this app has no db.Model."
        )
    registry = registries[0]
    parent: type[t.Any] | None
    plain_model: type[t.Any] = object
    if host.model is not None and host.model.registry is registry:
        parent, plain_model, metadata = host.model, host.plain_model, host.model.metadata
    else:
        above = reversed(mappers[0].class_.__mro__)
        parent = next((each for each in above if vars(each).get("registry") is registry), None)
        metadata = t.cast(sa.Table, mappers[0].local_table).metadata if parent is None else parent.metadata

    def new_model(name: str, mixin: type[t.Any], attributes: dict[str, t.Any]) -> type[t.Any]:
        body: dict[str, t.Any] = {"__module__": __name__, "__doc__": mixin.__doc__, **attributes}
        if parent is not None and not issubclass(parent, MappedAsDataclass):
            return type(name, (mixin, parent), body)
        # Without the base, if its subclasses are dataclasses: the columns of a mixin cannot be in one.
        body = {"__init__": registry.constructor, "metadata": metadata} | body
        model = type(name, (mixin, plain_model), body)
        registry.map_declaratively(model)
        return model

    return Base(tuple(dict.fromkeys(registries)), new_model)


def __getattr__(name: str) -> t.Any:
    """Return a model of the current app, so that pickle finds the class of its instances here."""
    if name not in ("Referral", "ReferralResponse"):
        raise AttributeError(name)
    models = current_state().database.models
    return models.referral if name == "Referral" else models.response
