"""What ``init_app`` stores on an app. Modules that a host calls ask for it, and hand it to those below."""

from dataclasses import dataclass

import click
from flask import Flask, current_app, has_request_context
from flask.cli import ScriptInfo

from .db.database import Database
from .db.replica import Reports
from .exceptions import ConfigurationError
from .failures import log_failure
from .limits import GuessLimit
from .settings import Settings
from .types import Hooks, Recorder, TargetType
from .web.visitor_key import VisitorKeys

EXTENSION_KEY = "referrals"


@dataclass(frozen=True)
class AppState:
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

    def is_public(self) -> bool:
        """Return whether the app may serve the public, so that it must warn of what is unsafe then.

        It does not in debug and testing mode, nor for a command that serves no requests, such as ``flask shell``.
        """
        context = click.get_current_context(silent=True)
        has_command = context is not None and context.find_object(ScriptInfo) is not None and context.info_name != "run"
        return not (self.app.debug or self.app.testing or has_command)

    def log_or_raise(self, message: str, *args: object) -> None:
        """Log the database failure that is being handled, so that a page goes on without the result.

        Raise it where somebody must hear of it: outside a request, and in debug and testing mode.
        """
        if self.app.debug or self.app.testing or not has_request_context():
            raise
        log_failure(message, *args)


def current_state() -> AppState:
    state: AppState | None = current_app.extensions.get(EXTENSION_KEY)
    if state is None:
        raise ConfigurationError("This app has no referrals: call 'referrals.init_app(app)' after 'db.init_app(app)'.")
    return state
