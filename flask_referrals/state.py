"""What ``init_app`` stores on an app. Modules that a host calls ask for it, and hand it to those below."""

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
    """The referrals of one app."""

    app: Flask
    #: The :class:`.Referrals` of the app.
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
        """Whether a database failure is raised, not logged, also where a page could do without the result."""
        return self.app.debug or self.app.testing


def current_state() -> AppState:
    """Return the state of the current app."""
    state: AppState | None = current_app.extensions.get(EXTENSION_KEY)
    if state is None:
        raise ConfigurationError("This app has no referrals: call 'referrals.init_app(app)' after 'db.init_app(app)'.")
    return state
