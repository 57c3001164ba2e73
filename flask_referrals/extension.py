"""The extension, as a host gives it to an app."""

import typing as t
from collections.abc import Callable
from decimal import Decimal

from flask import Flask, got_request_exception
from werkzeug.local import LocalProxy

from . import cli, logins, templating
from .actors import classes_with_own_id, require_user_key
from .db.build import Choices
from .db.keys import table_name
from .db.replica import Reports
from .exceptions import ConfigurationError
from .hosts import make_database
from .limits import GuessLimit
from .models import ReferralMixin, ReferralResponseMixin
from .privacy import forget_user
from .settings import Settings
from .state import EXTENSION_KEY, AppState, current_state
from .stats import Stats, Time, get_leaderboard, get_stats
from .types import Hooks, Recorder, TargetType
from .views import create_blueprint
from .web.client import resolve_request
from .web.visitor_key import VisitorKeys

F = t.TypeVar("F", bound=Callable[..., t.Any])


class Referrals:
    """Gives the users of a Flask site referral links, and shows which links bring clicks, sign-ups and sales.

    One instance serves many apps.

    :param user_model: the host's users, a model with a primary key of one column. Without it, users are stored by
        Flask-Login's ``get_id()``, which must never change, without a foreign key. Choose before the first migration.
    :param referral_model: the host's own subclass of :class:`.ReferralMixin`; needed only if there are several.
    :param response_model: the host's own subclass of :class:`.ReferralResponseMixin`; likewise.
    :param recorder: takes each click, a dict that can be written as JSON, and returns once it is safe; a worker hands
        it to :func:`.queue.store` later. Without a recorder, a click is stored before the response.
    :param db: Alchemical's ``db``, or the ``scoped_session`` of plain SQLAlchemy. Flask-SQLAlchemy (also
        Flask-AppBuilder's) and Flask-SQLAlchemy-Lite are found without it.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        user_model: type[t.Any] | None = None,
        referral_model: type[ReferralMixin] | None = None,
        response_model: type[ReferralResponseMixin] | None = None,
        recorder: Recorder | None = None,
        db: object = None,
    ) -> None:
        self._choices = Choices(user_model, referral_model, response_model)
        self._recorder = recorder
        self._db = db
        self.hooks: Hooks = Hooks()
        self.targets: dict[str, TargetType] = {}
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
        db: object = None,
    ) -> None:
        """Give an app its models, its two routes under ``REFERRALS_URL_PREFIX``, and its template functions.

        Call it after ``db.init_app(app)``. The settings are read once, here. The parameters override those of the
        constructor.

        :raises ConfigurationError: the database or the secret key is missing, a setting is invalid, the app has
            referrals already, or its models do not belong together.
        """
        if EXTENSION_KEY in app.extensions:
            raise ConfigurationError("This app has referrals already: call 'referrals.init_app(app)' once.")
        own = self._choices
        choices = Choices(user_model or own.user, referral_model or own.referral, response_model or own.response)
        settings = Settings.from_config(app.config)
        database = make_database(app, self._db if db is None else db, choices, settings)
        state = app.extensions[EXTENSION_KEY] = AppState(
            app=app,
            extension=self,
            settings=settings,
            database=database,
            hooks=self.hooks,
            target_types=self.targets,
            visitor_keys=VisitorKeys(app, settings, self.hooks, database.without_flush),
            reports=Reports(database, settings.report_bind),
            guesses=GuessLimit(),
            recorder=recorder if recorder is not None else self._recorder,
        )
        app.register_blueprint(create_blueprint(state), url_prefix=settings.url_prefix)
        app.cli.add_command(cli.group)
        templating.init_app(app)
        got_request_exception.connect(_on_failure, app)
        _follow_logins(app)
        _warn(state)

    @property
    def Referral(self) -> type[ReferralMixin]:
        """The current app's referral model, for ``relationship(referrals.Referral)``."""
        return t.cast("type[ReferralMixin]", current_state().database.models.referral)

    @property
    def ReferralResponse(self) -> type[ReferralResponseMixin]:
        """The current app's response model."""
        return t.cast("type[ReferralResponseMixin]", current_state().database.models.response)

    def user_loader(self, function: F) -> F:
        """Decorate a function that returns the user of the current request, or ``None``, instead of Flask-Login."""
        self.hooks.user_loader = function
        return function

    def code_generator(self, function: F) -> F:
        """Decorate a function that is given a new referral and returns its code. It has ten attempts."""
        self.hooks.code_generator = function
        return function

    def client_ip(self, function: F) -> F:
        """Decorate a function that returns the client's address for a request, instead of ``request.remote_addr``."""
        self.hooks.client_ip = function
        return function

    def responses_filter(self, function: F) -> F:
        """Decorate ``function(responses, *, user, referral)`` that narrows a select of responses to list.

        They are either those of a user's links or those of one referral.
        """
        self.hooks.responses_filter = function
        return function

    def classifier(self, function: F) -> F:
        """Decorate a function that returns the reason to ignore a request's click, or ``None``.

        The reason has at most 20 characters. The function is called if nothing else has found one.
        """
        self.hooks.classifier = function
        return function

    def consent(self, function: F) -> F:
        """Decorate a function that returns whether a request's visitor may have a key and be recognised later."""
        self.hooks.consent = function
        return function

    def display_name(self, function: F) -> F:
        """Decorate a function that returns the name of a user to show to other users, or ``None``.

        Without it, nobody sees who followed their links. In an app without a user model it is given the stored key.
        """
        self.hooks.display_name = function
        return function

    def link_user(self, user: t.Any, *, commit: bool = True) -> None:
        """Join the history of the current visitor to a user. Call it at login, unless Flask-Login does the login.

        All unclaimed responses of the visitor get the user, ``user_linked_to_response`` is sent for each, and the
        visitor key is dropped. It works after ``session.clear()`` too. A database failure is logged within a request,
        except in debug and testing mode; the next recorded action joins then.

        :param user: the user. A user without a primary key yet is flushed first.
        :param commit: commit the session; ``False`` only flushes, in the host's transaction.
        :raises InvalidValueError: the user is anonymous, or not a user of this app.
        """
        logins.link_user(current_state(), resolve_request(), user, commit=commit)

    def drop_visitor_key(self) -> None:
        """Drop the visitor key of the current request's browser, in the session and in the cookie.

        Call it when a visitor withdraws consent, and at a logout, unless Flask-Login does the logout. Unclaimed
        responses can no longer be joined to a user.
        """
        logins.drop_key(current_state())

    def stats(
        self,
        *,
        owner: t.Any = None,
        referral: ReferralMixin | None = None,
        label: str | None = None,
        since: Time | None = None,
        until: Time | None = None,
        by: str | None = None,
        compare: bool = False,
        limit: int | None = None,
    ) -> Stats:
        """Return the counted responses of a period and their values, by action.

        :param owner: count the links of this user only.
        :param referral: count this link only.
        :param label: count the links with this label only.
        :param since: the first day of the period in ``REFERRALS_TIMEZONE``, or an aware time; from the beginning
            without it.
        :param until: the last day, or an aware time that is not included; until now without it.
        :param by: fill ``rows`` too. With ``day``, ``week`` or ``month`` the keys are first days, also of periods
            without a response. Else the row with the most clicks comes first. With ``referral`` and ``owner`` the keys
            are the objects; users' stored keys in an app without a user model. With ``referrer``, or a name in
            ``REFERRALS_CAMPAIGN_PARAMS``, an action has those of the last click before it. The others are ``label``
            and ``ignored``, the reason of ignored responses. Only ``referrer``, campaign arguments and ``ignored`` lack
            what ``purge`` has deleted.
        :param compare: read the period of the same length before it as well.
        :param limit: the most rows, except those of periods; those with the most clicks stay.
        :raises InvalidValueError: an argument is invalid.
        """
        state = current_state()
        owner_key = require_user_key(state, owner) if owner is not None else None
        return get_stats(
            state,
            owner_key=owner_key,
            referral=referral,
            label=label,
            since=since,
            until=until,
            by=by,
            compare=compare,
            limit=limit,
        )

    def leaderboard(
        self, action: str, *, since: Time | None = None, until: Time | None = None, limit: int = 10
    ) -> list[tuple[t.Any, int | Decimal]]:
        """Return the users whose links brought most, with their numbers, the largest first.

        In an app without a user model they are stored keys. Links without an owner are left out.

        :param action: the action to count, such as ``RESPONDED`` for clicks; ``value:EUR`` adds up values in euros.
        :param since: as in :meth:`stats`.
        :param until: likewise.
        :param limit: how many users.
        :raises InvalidValueError: an argument is invalid.
        """
        return get_leaderboard(current_state(), action, since=since, until=until, limit=limit)

    def forget_user(self, user: t.Any, *, commit: bool = True) -> None:
        """Remove a user from both tables. Call it before you delete their account.

        Their responses stay and count, but hold no user, address, referrer, agent or key. Their links still redirect,
        without an owner or a label, and are no longer tracked; users who came by them stay bound to them. Where the
        user is the target of a row, the row has none.

        :param commit: commit the session after every 1,000 rows: a repeated call continues where one failed. ``False``
            only flushes, in the host's transaction.
        :raises InvalidValueError: as in :meth:`link_user`.
        """
        state = current_state()
        forget_user(state, require_user_key(state, user), commit=commit)

    def register_target(
        self,
        model: type[t.Any],
        name: str | None = None,
        load: Callable[[str], t.Any] | None = None,
        can_refer: Callable[[t.Any, t.Any], bool] | None = None,
    ) -> None:
        """Let users create links to the instances of a model with the form.

        :param model: the class.
        :param name: the name of the type in the database, at most 100 characters; by default its table's name.
        :param load: returns an instance by its key, as text; by default it is read by primary key.
        :param can_refer: ``can_refer(user, target)`` returns whether a user may refer to it; by default everyone may.
        :raises ConfigurationError: the name is too long, or belongs to another model.
        """
        name = name or table_name(model)
        if len(name) > 100 or (name in self.targets and self.targets[name].model is not model):
            raise ConfigurationError(f"The target name {name!r} is too long, or belongs to another model.")
        self.targets[name] = TargetType(model, load, can_refer)


#: The :class:`Referrals` of the current app.
current_referrals: Referrals = t.cast(Referrals, LocalProxy(lambda: current_state().extension))


def _warn(state: AppState) -> None:
    app, settings = state.app, state.settings
    if app.config["SESSION_COOKIE_SAMESITE"] == "Strict" and settings.cookie is None:
        app.logger.warning(
            "SESSION_COOKIE_SAMESITE is 'Strict': a click from another site arrives without the session, and the key "
            "that it sets replaces it, so that users are logged out. Set REFERRALS_COOKIE to the name of a cookie."
        )
    if state.is_public() and not any((settings.base_url, app.config["SERVER_NAME"], app.config.get("TRUSTED_HOSTS"))):
        app.logger.warning("Links use the request's Host header. Set REFERRALS_BASE_URL or TRUSTED_HOSTS.")
    for name in classes_with_own_id(state) if state.database.models.user is None else ():
        app.logger.warning(
            "%s has its own get_id(), and users are stored by it: when it changes, a user loses all links and credit. "
            "Pass user_model=%s to Referrals before the first migration, or see 'flask referrals rekey'.",
            name,
            name,
        )


def _follow_logins(app: Flask) -> None:
    try:
        import flask_login
    except ImportError:  # it is not required
        return
    flask_login.user_logged_in.connect(_on_login, app)
    flask_login.user_loaded_from_cookie.connect(_on_login, app)
    flask_login.user_logged_out.connect(_on_logout, app)


def _on_login(app: Flask, user: t.Any, **extra: t.Any) -> None:
    logins.join_at_login(current_state(), user)


def _on_logout(app: Flask, user: t.Any = None, **extra: t.Any) -> None:
    logins.drop_key(current_state())


def _on_failure(app: Flask, **extra: t.Any) -> None:
    logins.restore_key(current_state())
