"""The one module that knows the host's database extension: its session, engines and declarative base."""

import typing as t
from datetime import tzinfo
from functools import partial

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.model import Model
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy.orm import MappedAsDataclass

from .db.build import Base, Choices, bind_key, get_models
from .db.database import Database
from .exceptions import ConfigurationError
from .failures import log_failure
from .models import ReferralMixin, ReferralResponseMixin
from .state import current_state


def find_host(app: Flask) -> SQLAlchemy:
    """Return the database extension of an app."""
    db = app.extensions.get("sqlalchemy")
    if not isinstance(db, SQLAlchemy):
        raise ConfigurationError("This app has no Flask-SQLAlchemy: call 'db.init_app(app)' before the referrals'.")
    return db


def make_database(app: Flask, db: SQLAlchemy, choices: Choices, zone: tzinfo) -> Database:
    """Return the database of an app, with the extension's models on it."""
    base = _base_of(db)
    models = get_models(base, choices, (ReferralMixin, ReferralResponseMixin))
    with app.app_context():
        engine = db.engines.get(bind_key(models.response))
    if engine is not None:
        _refuse_autocommit(engine)
    return Database(
        base=base,
        models=models,
        sessions=db.session,
        get_engines=partial(getattr, db, "engines"),
        plain_get_bind=FlaskSession.get_bind,
        log_failure=log_failure,
        zone=zone,
    )


def _base_of(db: SQLAlchemy) -> Base:
    registry = t.cast(t.Any, db.Model).registry

    def new_model(name: str, mixin: type[t.Any], attributes: dict[str, t.Any]) -> type[t.Any]:
        body: dict[str, t.Any] = {"__module__": __name__, "__doc__": mixin.__doc__, **attributes}
        if not issubclass(db.Model, MappedAsDataclass):
            return type(name, (mixin, db.Model), body)
        # Without db.Model, whose subclasses are dataclasses: the columns of a mixin cannot be in one.
        metadata = db.metadatas[body.pop("__bind_key__", None)]
        body |= {"__fsa__": db, "__init__": registry.constructor, "metadata": metadata}
        model = type(name, (mixin, Model), body)
        registry.map_declaratively(model)
        return model

    return Base(registry, new_model)


def __getattr__(name: str) -> t.Any:
    """Return a model of the current app, so that pickle finds the class of its instances here."""
    if name not in ("Referral", "ReferralResponse"):
        raise AttributeError(name)
    models = current_state().database.models
    return models.referral if name == "Referral" else models.response


def _refuse_autocommit(engine: sa.Engine) -> None:
    options: t.Any = engine.get_execution_options()
    # SQLAlchemy keeps the argument of create_engine() in a private attribute only.
    level = options.get("isolation_level") or getattr(engine.dialect, "_on_connect_isolation_level", None)
    if str(level).upper() == "AUTOCOMMIT":
        raise ConfigurationError(
            "The engine has isolation_level='AUTOCOMMIT', so that nothing can be rolled back. Remove it from the "
            "engine's options, or put the models of the referrals on a bind without it."
        )
