"""What ``init_app`` stores on an app. Only the top modules ask for it; they hand it to those below."""

from dataclasses import dataclass

from flask import Flask, current_app

from .db.database import Database
from .db.replica import Reports
from .exceptions import ConfigurationError
from .limits import GuessLimit
from .settings import Settings
from .types import Hooks, Recorder, TargetType
from .web.visitor_key import VisitorKeys

EXTENSION_KEY = "referrals"


@dataclass(frozen=True)
class AppState:
    """The referrals of one app.

    :param extension: the :class:`.Referrals` that it was given to.
    :param recorder: takes clicks instead of the database; ``None``: they are stored before the response.
    """

    app: Flask
    extension: object
    settings: Settings
    database: Database
    hooks: Hooks
    target_types: dict[str, TargetType]
    visitor_keys: VisitorKeys
    reports: Reports
    guesses: GuessLimit
    recorder: Recorder | None

    @property
    def raises_failures(self) -> bool:
        """Whether a database failure is raised also where a page could do without the result: mistakes must be seen."""
        return self.app.debug or self.app.testing


def current_state() -> AppState:
    """Return the state of the current app.

    :raises ConfigurationError: ``init_app`` was never called for it.
    """
    try:
        state: AppState = current_app.extensions[EXTENSION_KEY]
    except KeyError:
        raise ConfigurationError(
            "This app has no referrals: call 'referrals.init_app(app)' after 'db.init_app(app)'."
        ) from None
    return state
