"""The extension: what an app is given, and what a host says about itself."""

import typing as t
from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask
from flask import got_request_exception
from flask_sqlalchemy import SQLAlchemy
from werkzeug.wrappers import Request

from . import cli
from . import config
from . import joining
from . import registry
from . import retention
from . import targets
from . import templating
from . import views
from . import visitors
from .attaching import GuessLimit
from .context import EXTENSION_KEY
from .context import AppState
from .context import current_state
from .exceptions import ConfigurationError
from .identity import user_id
from .models import ReferralMixin
from .models import ReferralResponseMixin
from .queued import Recorder

F = t.TypeVar("F", bound=Callable[..., t.Any])


@dataclass
class Hooks:
    """The host's own callables; ``None``: what the extension does by itself."""

    user_loader: Callable[[], t.Any] | None = None
    code_generator: Callable[[ReferralMixin], str] | None = None
    client_ip: Callable[[Request], str | None] | None = None
    responses_filter: Callable[..., t.Any] | None = None
    classifier: Callable[[Request], str | None] | None = None
    consent: Callable[[Request], bool] | None = None


class Referrals:
    """Lets the users of a Flask site pass on links, and tells who brought whom.

    Nothing of an app is kept here: one instance serves many apps.

    :param app: call :meth:`init_app` with it at once.
    :param user_model: the host's users, a model with a primary key of one column. Without it users are told apart by
        Flask-Login's ``get_id()``, and no foreign key leads to them.
    :param referral_model: the host's own subclass of :class:`.ReferralMixin`; needed only when there are several.
    :param response_model: the host's own subclass of :class:`.ReferralResponseMixin`; likewise.
    :param recorder: takes each click, a dict that is JSON, and returns once it is safe; somebody hands it to
        :func:`.queued.store` later. Without it a click is stored before it is answered.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        user_model: type[t.Any] | None = None,
        referral_model: type[ReferralMixin] | None = None,
        response_model: type[ReferralResponseMixin] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._user_model = user_model
        self._referral_model = referral_model
        self._response_model = response_model
        self._recorder = recorder
        self.hooks: Hooks = Hooks()
        self.targets: dict[str, targets.TargetType] = {}
        if app is not None:
            self.init_app(app)

    def init_app(
        self,
        app: Flask,
        *,
        user_model: type[t.Any] | None = None,
        referral_model: type[ReferralMixin] | None = None,
        response_model: type[ReferralResponseMixin] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Give an app its models, its two routes under ``REFERRALS_URL_PREFIX``, and its template functions.

        Call it after ``db.init_app(app)``. The parameters are those of the constructor, and win over them.

        :raises ConfigurationError: the database or the secret key is missing, a setting cannot be used, the app has
            referrals already, or its models do not belong together.
        """
        if EXTENSION_KEY in app.extensions:
            raise ConfigurationError("This app has referrals already: call 'referrals.init_app(app)' once.")
        db = app.extensions.get("sqlalchemy")
        if not isinstance(db, SQLAlchemy):
            raise ConfigurationError("This app has no Flask-SQLAlchemy: call 'db.init_app(app)' before the referrals'.")
        config.apply(app)
        models = registry.get_models(
            db,
            user_model=user_model or self._user_model,
            referral_model=referral_model or self._referral_model,
            response_model=response_model or self._response_model,
        )
        app.extensions[EXTENSION_KEY] = AppState(
            self, db, models, GuessLimit(), recorder if recorder is not None else self._recorder
        )
        app.register_blueprint(views.blueprint, url_prefix=app.config["REFERRALS_URL_PREFIX"])
        if app.config["REFERRALS_QUERY_PARAM"]:
            app.before_request(views.follow_from_query)
        app.cli.add_command(cli.group)
        templating.init_app(app)
        got_request_exception.connect(visitors.restore, app)
        _follow_logins(app)
        _warn(app)

    @property
    def Referral(self) -> type[ReferralMixin]:
        """The current app's concrete referral model, for ``relationship(referrals.Referral)``."""
        return current_state().models.referral

    @property
    def ReferralResponse(self) -> type[ReferralResponseMixin]:
        """The current app's concrete response model."""
        return current_state().models.response

    def user_loader(self, function: F) -> F:
        """Decorate a function that returns the user of the current request, or ``None``; instead of Flask-Login."""
        self.hooks.user_loader = function
        return function

    def code_generator(self, function: F) -> F:
        """Decorate a function that makes the code of a new referral, which it is given.

        It is called again, up to ten times, when the code is taken.
        """
        self.hooks.code_generator = function
        return function

    def client_ip(self, function: F) -> F:
        """Decorate a function that returns the client's address for a request, instead of ``request.remote_addr``."""
        self.hooks.client_ip = function
        return function

    def responses_filter(self, function: F) -> F:
        """Decorate ``function(responses, *, user, referral)`` that narrows a select of responses before it is listed.

        It is given the select, and either the user whose referrals' responses are listed or the referral.
        """
        self.hooks.responses_filter = function
        return function

    def classifier(self, function: F) -> F:
        """Decorate a function that returns why a request on a link is no click, in at most 20 characters, or ``None``.

        It is asked when nothing else has told so.
        """
        self.hooks.classifier = function
        return function

    def consent(self, function: F) -> F:
        """Decorate a function that says whether a request's visitor may be given a key and recognised later."""
        self.hooks.consent = function
        return function

    def link_user(self, user: t.Any, *, commit: bool = True) -> None:
        """Make what the current visitor did so far that of a user: call it at login, where Flask-Login does not.

        All responses that nobody has claimed get the user in one UPDATE, the visitor's key is dropped, and
        ``user_linked_to_response`` is sent for each. It works after ``session.clear()`` too.

        :param user: the user; one without a primary key yet is flushed first.
        :param commit: commit the session; ``False`` flushes only, inside the host's transaction.
        :raises InvalidValueError: it is no user of this app.
        """
        joining.link_user(user, commit=commit)

    def forget_user(self, user: t.Any, *, commit: bool = True) -> None:
        """Take a user out of both tables: call it before you delete their account.

        Their responses stay, and count, but tell nobody's name, address, referrer, agent or key. Their links lead on,
        and are nobody's: without a label, expired; whoever came by them stays bound to them. Where the user is the
        target of a row, it has none.

        :param user: the user.
        :param commit: commit the session after every 1,000 rows, so that a call that failed goes on when it is
            repeated; ``False`` flushes only, inside the host's transaction.
        :raises InvalidValueError: it is no user of this app.
        """
        retention.forget_user(user_id(user), commit=commit)

    def register_target(
        self,
        model: type[t.Any],
        name: str | None = None,
        load: Callable[[str], t.Any] | None = None,
        can_refer: Callable[[t.Any, t.Any], bool] | None = None,
    ) -> None:
        """Let users make links to the instances of a model with the form.

        :param model: the class.
        :param name: how the kind is called in the database, at most 100 characters; by default its table's name.
        :param load: finds an instance by its key, which it is given as text; by default by primary key.
        :param can_refer: ``can_refer(user, target)`` says whether a user may; by default everyone may.
        :raises ConfigurationError: the name is taken by another model, or too long.
        """
        name = name or targets.table_name(model)
        if len(name) > 100 or (name in self.targets and self.targets[name].model is not model):
            raise ConfigurationError(f"The target name {name!r} is too long, or another model's.")
        self.targets[name] = targets.TargetType(model, load, can_refer)


def _warn(app: Flask) -> None:
    if app.config["SESSION_COOKIE_SAMESITE"] == "Strict" and app.config["REFERRALS_COOKIE"] is None:
        app.logger.warning(
            "SESSION_COOKIE_SAMESITE is 'Strict': a click from another site arrives without the session, and the key "
            "that it sets replaces it, so that users are logged out. Set REFERRALS_COOKIE to the name of a cookie."
        )
    is_public = not (app.debug or app.testing)
    names = ("REFERRALS_BASE_URL", "SERVER_NAME", "TRUSTED_HOSTS")
    if is_public and not any(app.config.get(name) for name in names):
        app.logger.warning(
            "Links are made with whatever host name a request brings. Set REFERRALS_BASE_URL or TRUSTED_HOSTS."
        )


def _follow_logins(app: Flask) -> None:
    try:
        import flask_login
    except ImportError:  # it is not required
        return
    flask_login.user_logged_in.connect(joining.link_at_login, app)
    flask_login.user_loaded_from_cookie.connect(joining.link_at_login, app)
    flask_login.user_logged_out.connect(joining.forget_at_logout, app)
