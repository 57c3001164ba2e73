"""Views of both models for Flask-Admin. Install ``Flask-Referrals[admin]``.

::

    admin = Admin(app, index_view=OnlyForStaff())
    add_views(admin)
"""

import re
import typing as t
from collections.abc import Sequence
from datetime import datetime, timezone

import sqlalchemy as sa
from flask import Flask, abort, current_app, request
from flask_admin import BaseView
from flask_admin.contrib.sqla.filters import FilterConverter, FilterEmpty
from flask_admin.form import DateTimeField, SecureForm
from flask_admin.helpers import get_redirect_target
from flask_admin.model import BaseModelView
from markupsafe import Markup
from sqlalchemy.orm import joinedload, scoped_session

from ..exceptions import ConfigurationError
from ..models import set_loaded_target
from ..reports import counts_of
from ..state import EXTENSION_KEY, AppState, current_state
from ..targets import load_targets
from ..templating import action_display
from ..times import require_aware

if t.TYPE_CHECKING:  # Flask-Admin has no types, so this declares what is used
    Admin: t.TypeAlias = t.Any

    class ModelView:
        """Flask-Admin's view of a model."""

        column_type_formatters: dict[t.Any, t.Any]

        def __init__(self, *args: t.Any, **options: t.Any) -> None: ...

        def __getattr__(self, name: str) -> t.Any: ...

        def get_query(self) -> t.Any: ...

        def get_list(self, *args: t.Any, **options: t.Any) -> t.Any: ...

        def get_one(self, id: t.Any) -> t.Any: ...

        def create_blueprint(self, admin: t.Any) -> t.Any: ...

        def _handle_view(self, name: str, **kwargs: t.Any) -> t.Any: ...

        def _run_view(self, *args: t.Any, **kwargs: t.Any) -> t.Any: ...

else:
    from flask_admin import Admin
    from flask_admin.contrib.sqla import ModelView

# Numbers in a query, within what every database takes as an offset.
_NUMBERS, _NUMBER = ("page", "page_size", "sort", "desc"), re.compile("[0-9]{0,9}")

# Not all text columns, because one of them may hold password hashes.
_USER_COLUMNS = ("username", "name", "email", "first_name", "last_name")


class _Form(SecureForm):  # type: ignore[misc]  # Flask-Admin has no types
    """Check a CSRF token, which is Flask-WTF's if the host uses it, also where the host has turned its check off."""

    class Meta(SecureForm.Meta):  # type: ignore[misc]
        @property
        def csrf(self) -> bool:
            return "csrf" not in current_app.extensions

    def validate(self, *args: t.Any, **kwargs: t.Any) -> bool:
        if not self.meta.csrf:
            current_app.extensions["csrf"].protect()
        return bool(super().validate(*args, **kwargs))


class _Sessions(scoped_session[t.Any]):
    """The host's sessions, as Flask-Admin takes them: as a database extension, or itself as the session."""

    def __init__(self, sessions: scoped_session[t.Any]) -> None:
        super().__init__(sessions.session_factory)
        self.registry = sessions.registry

    @property
    def session(self) -> "_Sessions":
        return self


class _TimeField(DateTimeField):  # type: ignore[misc]
    """Show and read a time in UTC."""

    data: datetime | None

    def process_formdata(self, valuelist: list[str]) -> None:
        super().process_formdata(valuelist)
        if self.data is not None:
            self.data = require_aware("time", self.data.replace(tzinfo=timezone.utc))


class _InUTC:
    """Read the times of a filter as UTC. PostgreSQL would use the time zone of the connection."""

    def clean(self, value: str) -> t.Any:
        cleaned = super().clean(value)  # type: ignore[misc]
        if isinstance(cleaned, list):
            return [each.replace(tzinfo=timezone.utc) for each in cleaned]
        return cleaned.replace(tzinfo=timezone.utc)


class _FilterConverter(FilterConverter):  # type: ignore[misc]
    datetime_filters = tuple(
        kind if kind is FilterEmpty else type(kind.__name__, (_InUTC, kind), {})
        for kind in FilterConverter.datetime_filters
    )


def _format_time(view: "_RecordView", value: datetime, name: str) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}"


def _format_user(view: "_RecordView", context: t.Any, row: t.Any, name: str) -> str:
    # row.user is None without a user model, and for a deleted user whose key SQLite kept.
    return view.link_to(row.user) if row.user is not None else str(row.user_id or "")


def _format_target(view: "_RecordView", context: t.Any, row: t.Any, name: str) -> str:
    if row.target_type is None:
        return ""
    target = row.target
    return view.link_to(target) if target is not None else f"{row.target_type} {row.target_id or ''}".rstrip()


def _format_breakable(view: "_RecordView", context: t.Any, row: t.Any, name: str) -> str:
    # Without line breaks, one long URL makes the table wider than the page.
    return Markup('<span class="text-break">{}</span>').format(getattr(row, name))


class _RecordView(ModelView):
    """The common base of both views.

    :param app: an app with ``referrals.init_app(app)``.
    :param name: the name of the view in the menu.
    :param category: the menu that contains the view.
    :param options: other options of Flask-Admin, such as ``endpoint`` and ``url``.
    :raises ConfigurationError: if the app has no referrals.
    """

    #: The columns of the user model to search; the first one sorts the users. By default, the text columns among
    #: username, name, email, first_name and last_name.
    user_columns: t.ClassVar[Sequence[str] | None] = None

    can_create: bool = False
    can_edit: bool = False
    can_delete: bool = False
    can_view_details: bool = True
    # Visitors wrote some of the text, and a spreadsheet would run it as formulas. "flask referrals export" escapes it.
    can_export: bool = False
    can_set_page_size: bool = True
    page_size: int = 50
    named_filter_urls: bool = True
    column_default_sort: t.Any = [("created_at", True), ("id", True)]
    column_searchable_list: t.Any = None
    column_sortable_list: t.Any = None
    column_labels: t.Any = None
    column_auto_select_related: bool = False  # get_query loads the related rows
    column_type_formatters: t.Any = {**ModelView.column_type_formatters, datetime: _format_time}
    column_type_formatters_detail: t.Any = column_type_formatters
    filter_converter: t.Any = _FilterConverter()
    form_base_class: t.Any = _Form

    #: Flask-Admin sets these.
    admin: t.Any
    model: t.Any

    _default_name: t.ClassVar[str]
    _sorted_by: t.ClassVar[Sequence[str]]

    def __init__(self, app: Flask, name: str | None = None, category: str | None = None, **options: t.Any) -> None:
        state: AppState | None = app.extensions.get(EXTENSION_KEY)
        if state is None:
            raise ConfigurationError(
                "This app has no referrals. Call 'referrals.init_app(app)' before you create the admin views."
            )
        self._models = state.database.models
        user_columns = self._user_columns()
        if self.column_searchable_list is None:
            self.column_searchable_list = self._searched(user_columns)
        if self.column_sortable_list is None:
            # Sort by id as well, so that equal rows keep their order from page to page.
            by_user = [("user", (f"user.{user_columns[0]}" if user_columns else "user_id", "id"))]
            self.column_sortable_list = by_user + [(column, (column, "id")) for column in self._sorted_by]
        labels = {f"user.{column}": f"user's {column}" for column in user_columns}
        labels |= {f"referral.user.{column}": f"owner's {column}" for column in user_columns}
        self.column_labels = {**labels, **(self.column_labels or {})}
        sessions = _Sessions(state.database.sessions)
        super().__init__(self._model(), sessions, name or self._default_name, category, **options)

    def _model(self) -> t.Any:
        raise NotImplementedError

    def _searched(self, user_columns: Sequence[str]) -> list[str]:
        raise NotImplementedError

    def _user_columns(self) -> Sequence[str]:
        if self._models.user is None:
            return ()
        if self.user_columns is not None:
            return self.user_columns
        columns = sa.inspect(self._models.user).columns
        return [name for name in _USER_COLUMNS if name in columns and isinstance(columns[name].type, sa.String)]

    def create_blueprint(self, admin: t.Any) -> t.Any:
        """Return the blueprint. Warn if the view will be open to everybody."""
        blueprint = super().create_blueprint(admin)
        if self.is_open() and admin.app.extensions[EXTENSION_KEY].is_public():
            admin.app.logger.warning(
                "The admin page %r is open to everybody. Give Admin an index_view whose is_accessible() checks users.",
                self.name,
            )
        return blueprint

    def is_open(self) -> bool:
        """Return whether everybody may open the view: neither it nor the admin's index view has an own access check."""
        is_checked = type(self.admin.index_view).is_accessible is not BaseView.is_accessible
        own, inherited = type(self), _RecordView
        has_check = own.is_accessible is not inherited.is_accessible or own._handle_view is not inherited._handle_view
        return not is_checked and not has_check

    def is_accessible(self) -> bool:
        """Return whether the admin's index view is accessible. Flask-Admin's default allows everyone."""
        return bool(self.admin.index_view.is_accessible())

    def inaccessible_callback(self, name: str, **kwargs: t.Any) -> t.Any:
        """Refuse access as the admin's index view does."""
        return self.admin.index_view.inaccessible_callback(name, **kwargs)

    def _handle_view(self, name: str, **kwargs: t.Any) -> t.Any:
        """Refuse a query that Flask-Admin or the database cannot read, such as a page below zero."""
        refusal = super()._handle_view(name, **kwargs)
        if refusal is None:
            if not request.args.get("id", "").isascii():
                abort(404)
            if any("\0" in value for value in request.values.values()):
                abort(400)
            if not all(_NUMBER.fullmatch(request.args.get(number, "")) for number in _NUMBERS):
                abort(400)
            try:
                get_redirect_target()
            except ValueError:
                abort(400)
        return refusal

    def _run_view(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        try:
            return super()._run_view(*args, **kwargs)
        except sa.exc.DataError:  # PostgreSQL refuses a search that ends with a backslash
            current_state().database.session.rollback()  # the page for 400 may query
            abort(400)

    def get_list(self, *args: t.Any, **kwargs: t.Any) -> tuple[int | None, t.Any]:
        """Return the rows of a page, with all their targets loaded."""
        count, rows = super().get_list(*args, **kwargs)
        if isinstance(rows, list):
            for row, target in load_targets(current_state(), rows).items():
                set_loaded_target(row, target)
        return count, rows

    def get_one(self, id: t.Any) -> t.Any:
        """Return the row with a key, or ``None``. PostgreSQL raises an error for a key that is not a number."""
        return super().get_one(id) if str(id).isdecimal() and len(id) < 19 else None

    def link_to(self, obj: t.Any) -> str:
        """Return the text of an object, linked to its page if this admin has an accessible one."""
        views = [view for view in self.admin._views if isinstance(view, BaseModelView) and isinstance(obj, view.model)]
        for view in sorted(views, key=lambda view: view.model is not type(obj)):
            page = "details_view" if view.can_view_details else "edit_view" if view.can_edit else None
            if page and view.is_accessible():
                url = view.get_url(f"{view.endpoint}.{page}", id=view.get_pk_value(obj))
                return Markup('<a href="{}">{}</a>').format(url, str(obj))
        return str(obj)


def _format_clicks(view: "ReferralAdmin", context: t.Any, row: t.Any, name: str) -> str:
    clicks = vars(row).get("_clicks")
    return view.link_to_responses(row, str(row.response_count if clicks is None else clicks))


class ReferralAdmin(_RecordView):
    """List the links. Only the time of expiry can be edited.

    ``Referral.create`` keeps one link for each user, target page, label and target, so none of these four can be
    edited. A link cannot be deleted, because that would delete its responses, and its URL would answer 404. Expire the
    link instead.
    """

    can_edit: bool = True
    column_list: t.Any = (
        "user",
        "code",
        "label",
        "response_count",
        "redirect_to",
        "target",
        "expired_at",
        "created_at",
        "url",
    )
    column_details_list: t.Any = column_list
    column_filters: t.Any = ("target_type", "created_at", "expired_at", "label")
    column_labels: t.Any = {
        "redirect_to": "Redirects to",
        "url": "URL",
        "expired_at": "Expires (UTC)",
        "created_at": "Created (UTC)",
        "response_count": "Clicks",
    }
    column_formatters: t.Any = {
        "user": _format_user,
        "response_count": _format_clicks,
        "redirect_to": _format_breakable,
        "target": _format_target,
        "url": _format_breakable,  # no link, because following it would count as a click
    }
    form_columns: t.Any = ("expired_at",)
    form_overrides: t.Any = {"expired_at": _TimeField}

    _default_name = "Links"
    _sorted_by = ("code", "label", "redirect_to", "expired_at", "created_at")

    def _model(self) -> t.Any:
        return self._models.referral

    def _searched(self, user_columns: Sequence[str]) -> list[str]:
        users = [f"user.{column}" for column in user_columns]
        return ["code", "label", *(users or ["user_id"])]

    def get_query(self) -> t.Any:
        """Return a query that also loads the users."""
        query = super().get_query()
        return query.options(joinedload(self.model.user)) if self._models.user else query

    def get_list(self, *args: t.Any, **kwargs: t.Any) -> tuple[int | None, t.Any]:
        """Return the links of a page, with the clicks of all counted by one query."""
        count, rows = super().get_list(*args, **kwargs)
        if isinstance(rows, list):
            counts = counts_of(
                current_state(), sa.select(self.model).where(self.model.id.in_([row.id for row in rows]))
            )
            for row in rows:
                row._clicks, _ = counts.get(row.id, (0, 0))
        return count, rows

    def link_to_responses(self, referral: t.Any, text: str) -> str:
        """Return a text, linked to the responses of a referral if this admin shows them."""
        for view in self.admin._views:
            if isinstance(view, ReferralResponseAdmin) and view.is_accessible():
                url = view.get_url(f"{view.endpoint}.index_view", flt0_code_equals=referral.code)
                return Markup('<a href="{}">{}</a>').format(url, text)
        return text


def _format_referral(view: "ReferralResponseAdmin", context: t.Any, row: t.Any, name: str) -> str:
    return view.link_to(row.referral) if row.referral is not None else str(row.referral_id)


def _format_action(view: "ReferralResponseAdmin", context: t.Any, row: t.Any, name: str) -> str:
    return Markup('<span title="{}">{}</span>').format(row.action, action_display(row.action))


def _format_referrer(view: "ReferralResponseAdmin", context: t.Any, row: t.Any, name: str) -> str:
    referrer = row.http_referrer or ""
    if not referrer.lower().startswith(("http://", "https://")):
        return str(referrer)
    return Markup('<a class="text-break" href="{0}" rel="nofollow noreferrer">{0}</a>').format(referrer)


def _format_value(view: "ReferralResponseAdmin", context: t.Any, row: t.Any, name: str) -> str:
    if row.value is None:
        return ""
    cents = round(row.value, 2)
    return f"{cents if cents == row.value else row.value:f} {row.currency or ''}"


class ReferralResponseAdmin(_RecordView):
    """List the responses. Nothing can be edited.

    The visitor key is not shown, because it identifies a browser.
    """

    column_list: t.Any = (
        "created_at",
        "referral",
        "user",
        "action",
        "target",
        "ignored",
        "value",
        "ip_address",
        "http_referrer",
    )
    column_details_list: t.Any = (*column_list, "user_agent", "is_touch", "key", "params")
    column_filters: t.Any = ("action", "ignored", "created_at", "referral.code", "is_touch")
    column_labels: t.Any = {
        "created_at": "Time (UTC)",
        "referral": "Link",
        "referral.code": "Code",  # names the filter in flt0_code_equals
        "ignored": "Ignored",
        "ip_address": "IP address",
        "http_referrer": "Referrer",
        "is_touch": "Touch",
    }
    column_descriptions: t.Any = {
        "ignored": "The reason why this response is not counted. Counted responses have none."
    }
    column_formatters: t.Any = {
        "referral": _format_referral,
        "user": _format_user,
        "action": _format_action,
        "target": _format_target,
        "http_referrer": _format_referrer,
        "value": _format_value,
    }
    form: t.Any = _Form  # nothing can be edited, so Flask-Admin need not build a form

    _default_name = "Responses"
    _sorted_by = ("created_at", "action", "ignored", "value", "ip_address", "http_referrer")

    def _model(self) -> t.Any:
        return self._models.response

    def _searched(self, user_columns: Sequence[str]) -> list[str]:
        users = [f"user.{column}" for column in user_columns] or ["user_id"]
        return ["referral.code", *(f"referral.{column}" for column in users), *users, "ip_address"]

    def get_query(self) -> t.Any:
        """Return a query that also loads the links and the users of both."""
        referral = joinedload(self.model.referral)
        if self._models.user is None:
            return super().get_query().options(referral)
        return super().get_query().options(referral.joinedload(self._models.referral.user), joinedload(self.model.user))


def add_views(admin: Admin, category: str = "Referrals") -> None:
    """Add both views to an admin. To customise a view, add your own subclass with ``admin.add_view`` instead.

    :param admin: the admin of an app with ``referrals.init_app(app)``.
    :param category: the menu that contains the views.
    :raises ConfigurationError: if the admin has no app, or the app has no referrals.
    """
    if admin.app is None:
        raise ConfigurationError("This admin has no app. Call 'admin.init_app(app)' before you add the views.")
    for view in (ReferralAdmin, ReferralResponseAdmin):
        admin.add_view(view(admin.app, category=category))
