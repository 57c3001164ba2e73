"""What the current app holds for this extension."""

import typing as t
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from flask import current_app
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy.orm import Mapper
from sqlalchemy.orm import Session

from .exceptions import ConfigurationError

if t.TYPE_CHECKING:
    from .attaching import GuessLimit
    from .extension import Referrals
    from .queued import Recorder
    from .registry import Models

EXTENSION_KEY = "referrals"


@dataclass(frozen=True)
class AppState:
    """One app's referrals: who set them up, on which database, with which models."""

    extension: "Referrals"
    db: SQLAlchemy
    models: "Models"
    guesses: "GuessLimit"
    #: Takes clicks instead of the database; ``None``: they are stored before they are answered.
    recorder: "Recorder | None" = None

    @property
    def mappers(self) -> Iterable[Mapper[t.Any]]:
        """Every model of the host's database."""
        return mappers_of(self.db)

    @property
    def session(self) -> Session:
        """The host's database session of this request or task."""
        return self.db.session()

    @property
    def is_in_transaction(self) -> bool:
        """Whether that session has a transaction running; a session is not made to tell."""
        return self.db.session.registry.has() and self.session.in_transaction()

    def bind_of(self, model: type[t.Any]) -> sa.Engine | sa.Connection:
        """Return where that session sends what is about a model; one is made only if the host's have their own way.

        :param model: a model of the host's database.
        """
        mapper = sa.inspect(model)
        sessions = self.db.session
        if sessions.registry.has() or sessions.session_factory.class_.get_bind is not FlaskSession.get_bind:
            return self.session.get_bind(mapper)
        return self.db.engines[t.cast(sa.Table, mapper.local_table).metadata.info.get("bind_key")]


def mappers_of(db: SQLAlchemy) -> Iterable[Mapper[t.Any]]:
    """Return every model of a database."""
    return t.cast("Iterable[Mapper[t.Any]]", t.cast(t.Any, db.Model).registry.mappers)


def signing_keys() -> list[str]:
    """Return the current app's secret keys, the oldest first: itsdangerous signs with the last, and accepts all."""
    fallbacks = current_app.config.get("SECRET_KEY_FALLBACKS") or []
    return [*fallbacks, t.cast(str, current_app.secret_key)]


def current_state() -> AppState:
    """Return what :meth:`.Referrals.init_app` stored on the current app.

    :raises ConfigurationError: it was never called for this app.
    :raises RuntimeError: there is no app context.
    """
    try:
        state: AppState = current_app.extensions[EXTENSION_KEY]
    except KeyError:
        raise ConfigurationError(
            "This app has no referrals: call 'referrals.init_app(app)' after 'db.init_app(app)'."
        ) from None
    return state
