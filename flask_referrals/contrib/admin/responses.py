"""The list of the responses, and the form that voids one."""

import typing as t
from collections.abc import Sequence

from flask import flash, redirect, request
from flask_admin import expose
from flask_admin.helpers import get_form_data, get_redirect_target
from flask_admin.model.template import BaseListRowAction
from markupsafe import Markup
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import joinedload
from wtforms import StringField
from wtforms.validators import InputRequired, Length

from ...actions import MAX_REASON
from ...exceptions import InvalidValueError
from ...failures import log_failure
from ...templating import action_display
from ...types import Amount
from .base import CheckedForm, RecordView, format_breakable, format_target, format_user


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
    return str(Amount(row.value, row.currency))


class _VoidAction(BaseListRowAction):  # type: ignore[misc]
    """A link to the form that voids a response, and from there back to this page of the list."""

    def render(self, context: t.Any, row_id: str, row: t.Any) -> str:
        if row.ignored == "void":
            return ""
        url = context.resolve("get_url")(".void_view", id=row_id, url=context.resolve("return_url"))
        return Markup('<a class="icon" href="{}" title="{}"><span class="fa fa-ban"></span></a>').format(
            url, self.title
        )


class _VoidForm(CheckedForm):
    reason = StringField(
        "Reason",
        [InputRequired(), Length(max=MAX_REASON)],
        render_kw={"maxlength": MAX_REASON, "autocomplete": "off"},
        description="It is kept with the response, for example: refund of order 17.",
    )


class ReferralResponseAdmin(RecordView):
    """List the responses. Nothing can be edited; a response can be voided, with a reason.

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
        "user": format_user,
        "action": _format_action,
        "target": format_target,
        "http_referrer": _format_referrer,
        "value": _format_value,
        "user_agent": format_breakable,
        "key": format_breakable,
    }
    column_extra_row_actions: t.Any = [_VoidAction("Void")]
    form: t.Any = CheckedForm  # nothing can be edited, so Flask-Admin need not build a form

    _default_name = "Responses"
    _sorted_by = ("created_at", "action", "ignored", "value", "ip_address", "http_referrer")

    @expose("/void/", methods=("GET", "POST"))  # type: ignore[untyped-decorator]
    def void_view(self) -> t.Any:
        """Ask for a reason, and void a response with it."""
        return_url = get_redirect_target() or self.get_url(".index_view")
        response = self.get_one(request.args.get("id", ""))
        if response is None or response.ignored == "void":
            flash("This response is void already." if response else "There is no such response.", "error")
            return redirect(return_url)
        form = _VoidForm(get_form_data())
        if self.validate_form(form):
            try:
                response.void(form.reason.data)
            except InvalidValueError as error:
                form.reason.errors = [f"The {error}."]
            except SQLAlchemyError:
                log_failure("A response could not be voided.")
                form.reason.errors = ["The database raised an error. Try again."]
            else:
                flash(f"The response {response.id} is void.", "success")
                return redirect(return_url)
        shown = ("created_at", "referral", "user", "action", "value")
        columns = [(name, self.get_column_name(name)) for name in shown]
        return self.render(
            "referrals/admin/void.html",
            model=response,
            columns=columns,
            get_value=self.get_detail_value,
            form=form,
            return_url=return_url,
        )

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
