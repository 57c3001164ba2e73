"""Functions and filters for templates."""

import typing as t
from collections.abc import Sequence

from flask import Flask, render_template
from markupsafe import Markup
from sqlalchemy.exc import SQLAlchemyError

from .db.transactions import recover
from .failures import log_failure
from .models import ReferralResponseMixin
from .reports import counted_responses
from .state import current_state
from .targets import to_token


def create_referral_form(url: str, target: t.Any = None, label: str = "") -> Markup:
    """Render ``referrals/_create_referral_form.html``, with which the logged-in user creates a link to ``url``."""
    token = to_token(current_state(), target) if target is not None else None
    form = render_template("referrals/_create_referral_form.html", redirect_to=url, target=token, label=label)
    return Markup(form)  # noqa: S704 (the template escapes)


def referral_responses(user: t.Any, limit: int | None = None) -> Sequence[ReferralResponseMixin]:
    """Return at most ``limit`` counted responses to all links of a user, newest first.

    A database failure is logged and the list is empty then, except in debug and testing mode.
    """
    state = current_state()
    try:
        return counted_responses(state, user=user, limit=limit)
    except SQLAlchemyError:
        if state.raises_failures:
            raise
        log_failure("Could not list the responses to a user's links.")
        recover(state.database)
        return []


def action_display(action: str) -> str:
    """Return the words for an action from ``REFERRALS_ACTION_DISPLAY``, or the action itself."""
    return current_state().settings.action_display.get(action, action)


def init_app(app: Flask) -> None:
    """Add the functions and the filter to an app's templates."""
    app.add_template_global(create_referral_form)
    app.add_template_global(referral_responses)
    app.add_template_filter(action_display)
