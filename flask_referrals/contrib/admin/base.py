"""What the pages have in common: who may open them, how they read a query, and how they show rows."""

import re
import typing as t
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

import sqlalchemy as sa
from flask import Flask, abort, current_app, request
from flask_admin import BaseView
from flask_admin.contrib.sqla.filters import FilterConverter, FilterEmpty
from flask_admin.contrib.sqla.tools import get_field_with_path, is_relationship
from flask_admin.helpers import get_redirect_target
from flask_admin.model import BaseModelView
from markupsafe import Markup
from sqlalchemy.orm import scoped_session

from ...db.keys import parse_key
from ...exceptions import ConfigurationError
from ...models import RecordMixin, set_loaded_target
from ...state import EXTENSION_KEY, AppState, current_state
from ...targets import find_type
from ...times import require_aware

if t.TYPE_CHECKING:  # Flask-Admin has no types, so this declares what is used

    class ModelView:
        """Flask-Admin's view of a model."""

        column_type_formatters: dict[t.Any, t.Any]

        def __init__(self, *args: t.Any, **options: t.Any) -> None: ...

        def __getattr__(self, name: str) -> t.Any: ...

        def get_query(self) -> t.Any: ...

        def get_list(self, *args: t.Any, **options: t.Any) -> t.Any: ...

        def get_one(self, id: t.Any) -> t.Any: ...

        def get_column_names(self, only_columns: t.Any, excluded_columns: t.Any) -> t.Any: ...

        def get_sortable_columns(self) -> t.Any: ...

        def init_search(self) -> bool: ...

        def scaffold_filters(self, name: t.Any) -> t.Any: ...

        def create_blueprint(self, admin: t.Any) -> t.Any: ...

        def _apply_sorting(self, query: t.Any, joins: t.Any, sort_column: t.Any, sort_desc: bool) -> t.Any: ...

        def _handle_view(self, name: str, **kwargs: t.Any) -> t.Any: ...

        def _run_view(self, *args: t.Any, **kwargs: t.Any) -> t.Any: ...

    class SecureForm:
        """Flask-Admin's form with a CSRF token."""

        meta: t.Any

        class Meta: ...

        def __init__(self, *args: t.Any, **options: t.Any) -> None: ...

        def validate(self, *args: t.Any, **kwargs: t.Any) -> bool: ...

    class DateTimeField:
        """Flask-Admin's field for a time."""

        def process_formdata(self, valuelist: list[str]) -> None: ...

else:
    from flask_admin.contrib.sqla import ModelView
    from flask_admin.form import DateTimeField, SecureForm

# Numbers in a query, within what every database takes as an offset.
_NUMBERS, _NUMBER = ("page", "page_size", "sort", "desc"), re.compile("[0-9]{0,9}")

# Not all text columns, because one of them may hold password hashes.
_USER_COLUMNS = ("username", "name", "email", "first_name", "last_name")


class CheckedForm(SecureForm):
    """Check a CSRF token, which is Flask-WTF's if the host uses it, also where the host has turned its check off."""

    class Meta(SecureForm.Meta):
        @property
        def csrf(self) -> bool:
            return "csrf" not in current_app.extensions

    def validate(self, *args: t.Any, **kwargs: t.Any) -> bool:
        if not self.meta.csrf:
            current_app.extensions["csrf"].protect()
        return super().validate(*args, **kwargs)


class _Sessions(scoped_session[t.Any]):
    """The host's sessions, as Flask-Admin takes them: as a database extension, or itself as the session."""

    def __init__(self, sessions: scoped_session[t.Any]) -> None:
        super().__init__(sessions.session_factory)
        self.registry = sessions.registry

    @property
    def session(self) -> "_Sessions":
        return self


class TimeField(DateTimeField):
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


def _format_time(view: "RecordView", value: datetime, name: str) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}"


def format_user(view: "RecordView", context: t.Any, row: t.Any, name: str) -> str:
    # row.user is None without a user model, and for a deleted user whose key SQLite kept.
    return view.link_to(row.user) if row.user is not None else str(row.user_id or "")


def format_target(view: "RecordView", context: t.Any, row: t.Any, name: str) -> str:
    if row.target_type is None:
        return ""
    target = row.target
    return view.link_to(target) if target is not None else f"{row.target_type} {row.target_id or ''}".rstrip()


def format_breakable(view: "RecordView", context: t.Any, row: t.Any, name: str) -> str:
    # Without line breaks, one long URL makes the table wider than the page.
    return Markup('<span class="text-break">{}</span>').format(getattr(row, name) or "")


def load_targets(state: AppState, records: Iterable[RecordMixin]) -> None:
    """Load the targets of records, in one statement for each type that was not registered with ``load``."""
    by_type: dict[str, dict[RecordMixin, str]] = {}
    for record in records:
        if record.target_type is not None and record.target_id is not None:
            by_type.setdefault(record.target_type, {})[record] = record.target_id
    for name, of_type in by_type.items():
        target_type = find_type(state, name)
        if target_type is None or target_type.load is not None:
            continue
        model = target_type.model
        keys = {record: parse_key(model, key, state.database.dialect.name) for record, key in of_type.items()}
        column = sa.inspect(model).primary_key[0]
        wanted = sa.select(model).where(column.in_({key for key in keys.values() if key is not None}))
        # As text: a key of a type of the host's own may differ in Python from what it was parsed from.
        by_key = {str(sa.inspect(obj).identity[0]): obj for obj in state.database.objects(wanted)}
        for record, key in keys.items():
            set_loaded_target(record, by_key.get(str(key)))


def state_of(app: Flask) -> AppState:
    """Return the state of an app, or raise :exc:`.ConfigurationError`."""
    state: AppState | None = app.extensions.get(EXTENSION_KEY)
    if state is None:
        raise ConfigurationError(
            "This app has no referrals. Call 'referrals.init_app(app)' before you create the admin views."
        )
    return state


class Page:
    """The common base of all pages: they link to each other, and warn if everybody may open them."""

    #: Flask-Admin sets these.
    admin: t.Any
    name: t.Any

    def create_blueprint(self, admin: t.Any) -> t.Any:
        """Return the blueprint. Warn if the page will be open to everybody."""
        is_public = state_of(admin.app).is_public()
        blueprint = super().create_blueprint(admin)  # type: ignore[misc]
        if is_public and self.is_open():
            admin.app.logger.warning(
                "The admin page %r is open to everybody. Give Admin an index_view whose is_accessible() checks users.",
                str(self.name),
            )
        return blueprint

    def is_open(self) -> bool:
        """Return whether everybody may open the page."""
        raise NotImplementedError

    def has_own_check(self, inherited: t.Any) -> bool:
        """Return whether a class of the host's checks the user, and not only the class that it inherits from."""
        own: t.Any = type(self)
        return own.is_accessible is not inherited.is_accessible or own._handle_view is not inherited._handle_view

    def link_to(self, obj: t.Any, text: str | None = None) -> str:
        """Return the text of an object, linked to its page if this admin has an accessible one.

        :param text: what to show instead of the object's own text.
        """
        text = str(obj) if text is None else text
        views = [view for view in self.admin._views if isinstance(view, BaseModelView) and isinstance(obj, view.model)]
        for view in sorted(views, key=lambda view: view.model is not type(obj)):
            page = "details_view" if view.can_view_details else "edit_view" if view.can_edit else None
            if page and view.is_accessible():
                url = view.get_url(f"{view.endpoint}.{page}", id=view.get_pk_value(obj))
                return Markup('<a href="{}">{}</a>').format(url, text)
        return text


class RecordView(Page, ModelView):
    """The common base of the lists.

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
    form_base_class: t.Any = CheckedForm

    model: t.Any  # Flask-Admin sets it

    _default_name: t.ClassVar[str]
    _sorted_by: t.ClassVar[Sequence[str]]

    def __init__(self, app: Flask, name: str | None = None, category: str | None = None, **options: t.Any) -> None:
        state = state_of(app)
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
        sessions = _Sessions(state.database.host.extension.session)
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

    def init_search(self) -> bool:
        """Search by attributes. Flask-Admin takes their columns, whose names may be others, and fails in a join."""
        is_searched = super().init_search()
        if is_searched:
            self._search_fields = [get_field_with_path(self.model, name) for name in self.column_searchable_list]
        return is_searched

    def scaffold_filters(self, name: t.Any) -> t.Any:
        """Return the filters of an attribute, by the attribute for the same reason."""
        filters, (attribute, _) = super().scaffold_filters(name), get_field_with_path(self.model, name)
        if not is_relationship(attribute):
            for each in filters or ():
                each.column = attribute
        return filters

    def is_open(self) -> bool:
        """Return whether everybody may open the view: neither it nor the admin's index view has an own access check."""
        is_checked = type(self.admin.index_view).is_accessible is not BaseView.is_accessible
        return not is_checked and not self.has_own_check(RecordView)

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
            load_targets(current_state(), rows)
        return count, rows

    def get_one(self, id: t.Any) -> t.Any:
        """Return the row with a key, or ``None``. PostgreSQL raises an error for a key that is not a number."""
        return super().get_one(id) if str(id).isdecimal() and len(id) < 19 else None
