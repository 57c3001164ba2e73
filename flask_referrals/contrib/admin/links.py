"""The list of the links."""

import typing as t
from collections.abc import Sequence

import sqlalchemy as sa
from flask import Flask
from markupsafe import Markup
from sqlalchemy.orm import joinedload

from ...state import current_state
from ...stats import Totals, rank_links, step_label, totals_of
from ...types import CLICK, amounts_of
from .base import RecordView, TimeField, format_breakable, format_target, format_user, state_of
from .responses import ReferralResponseAdmin

#: What the names of the columns of actions begin with.
_COUNT = "count:"


def _totals(row: t.Any) -> Totals:
    """Return the totals of a link, which were read for all links of a list at once."""
    if "_totals" not in vars(row):
        row._totals = totals_of(current_state(), [row])[row.id]
    return t.cast(Totals, row._totals)


def _format_clicks(view: "ReferralAdmin", context: t.Any, row: t.Any, name: str) -> str:
    return view.link_to_responses(row, str(_totals(row)[CLICK].count))


def _format_count(view: "ReferralAdmin", context: t.Any, row: t.Any, name: str) -> int:
    return _totals(row)[name.removeprefix(_COUNT)].count


def _format_value(view: "ReferralAdmin", context: t.Any, row: t.Any, name: str) -> str:
    amounts = Markup("<br>").join(map(str, amounts_of(_totals(row).value)))
    return Markup('<span class="text-nowrap">{}</span>').format(amounts)


class ReferralAdmin(RecordView):
    """List the links. Only the time of expiry can be edited.

    ``Referral.create`` keeps one link for each user, target page, label and target, so none of these four can be
    edited. A link cannot be deleted, because that would delete its responses, and its URL would answer 404. Expire the
    link instead.

    In ``column_list``, ``"funnel"`` stands for the columns of the further steps of ``REFERRALS_FUNNEL``, such as
    ``"count:SIGNED_UP"``.
    """

    can_edit: bool = True
    column_list: t.Any = (
        "user",
        "code",
        "label",
        "response_count",
        "funnel",
        "total_value",
        "redirect_to",
        "target",
        "expired_at",
        "created_at",
    )
    column_details_list: t.Any = (*column_list, "url")
    column_filters: t.Any = ("target_type", "created_at", "expired_at", "label")
    column_labels: t.Any = {
        "redirect_to": "Redirects to",
        "url": "URL",
        "expired_at": "Expires (UTC)",
        "created_at": "Created (UTC)",
        "response_count": "Clicks",
        "total_value": "Value",
    }
    column_descriptions: t.Any = {
        "total_value": "The values of all actions. Sorted by the currency that most of them have, of all links."
    }
    column_formatters: t.Any = {
        "user": format_user,
        "response_count": _format_clicks,
        "total_value": _format_value,
        "redirect_to": format_breakable,
        "target": format_target,
        "url": format_breakable,  # no link, because following it would count as a click
    }
    form_columns: t.Any = ("expired_at",)
    form_overrides: t.Any = {"expired_at": TimeField}

    _default_name = "Links"
    _sorted_by = ("code", "label", "redirect_to", "expired_at", "created_at")

    def __init__(self, app: Flask, *args: t.Any, **options: t.Any) -> None:
        settings = state_of(app).settings
        steps = {f"{_COUNT}{step}": step for step in settings.funnel if step != CLICK}
        self._steps = list(steps)
        #: What the links are sorted by: the action of a column, or ``None`` for the value.
        self._ranked = (
            {"response_count": CLICK, **steps, "total_value": None} if self.column_sortable_list is None else {}
        )
        labels = {name: step_label(settings, step) for name, step in steps.items()}
        self.column_labels = {**labels, **(self.column_labels or {})}
        self.column_formatters = {**dict.fromkeys(steps, _format_count), **self.column_formatters}
        super().__init__(app, *args, **options)

    def get_column_names(self, only_columns: t.Any, excluded_columns: t.Any) -> t.Any:
        """Return the names and labels of columns, with the steps of the funnel."""
        names = [name for each in only_columns for name in (self._steps if each == "funnel" else [each])]
        return super().get_column_names(names, excluded_columns)

    def get_sortable_columns(self) -> t.Any:
        """Return the columns that can be sorted, with those of numbers."""
        return {**super().get_sortable_columns(), **dict.fromkeys(self._ranked)}

    def _apply_sorting(self, query: t.Any, joins: t.Any, sort_column: t.Any, sort_desc: bool) -> t.Any:
        """Sort by a number in the database, and by id, so that equal links keep their order from page to page."""
        if sort_column not in self._ranked:
            return super()._apply_sorting(query, joins, sort_column, sort_desc)
        ranked = rank_links(current_state(), self._ranked[sort_column])
        in_order = sa.desc if sort_desc else sa.asc
        query = query.outerjoin(ranked, ranked.c.referral_id == self.model.id)
        return query.order_by(in_order(sa.func.coalesce(ranked.c.number, 0)), in_order(self.model.id)), joins

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
        """Return the links of a page, with the numbers of all read by two statements."""
        count, rows = super().get_list(*args, **kwargs)
        if isinstance(rows, list):
            totals = totals_of(current_state(), rows)
            for row in rows:
                row._totals = totals[row.id]
        return count, rows

    def link_to_responses(self, referral: t.Any, text: str) -> str:
        """Return a text, linked to the responses of a referral if this admin shows them."""
        for view in self.admin._views:
            if isinstance(view, ReferralResponseAdmin) and view.is_accessible():
                url = view.get_url(f"{view.endpoint}.index_view", flt0_code_equals=referral.code)
                return Markup('<a href="{}">{}</a>').format(url, text)
        return text
