"""What a template can use: two functions and a filter."""

import typing as t
from collections.abc import Sequence

from flask import Flask
from flask import current_app
from flask import render_template
from markupsafe import Markup

from . import targets
from .models import ReferralResponseMixin
from .reporting import filtered_responses


def create_referral_form(url: str, target: t.Any = None, label: str = "") -> Markup:
    """Render the form with which the logged-in user makes a link; ``referrals/_create_referral_form.html``.

    :param url: where the link will lead.
    :param target: the object it is about, of a registered model.
    :param label: the link's label.
    """
    token = targets.to_token(target) if target is not None else None
    form = render_template("referrals/_create_referral_form.html", redirect_to=url, target=token, label=label)
    return Markup(form)  # noqa: S704 (the template escapes)


def referral_responses(user: t.Any, limit: int | None = None) -> Sequence[ReferralResponseMixin]:
    """Return the counted responses to all links of a user, newest first.

    :param user: the user; somebody who is not logged in has none.
    :param limit: the most to return.
    """
    return filtered_responses(user=user, limit=limit)


def action_display(action: str) -> str:
    """Return the words for an action from ``REFERRALS_ACTION_DISPLAY``, or the action itself."""
    return str(current_app.config["REFERRALS_ACTION_DISPLAY"].get(action, action))


def init_app(app: Flask) -> None:
    """Give an app's templates the functions and the filter."""
    app.add_template_global(create_referral_form)
    app.add_template_global(referral_responses)
    app.add_template_filter(action_display)
