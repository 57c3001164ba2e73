"""Functions and filters for templates."""

import typing as t
from collections.abc import Sequence
from functools import partial

from flask import Flask, render_template
from markupsafe import Markup

from .actors import user_key
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

    Within a request, a database failure is logged and the list is empty, except in debug and testing mode.
    """
    state = current_state()
    user_key(state, user)  # a new user is flushed here: that error is the host's
    read = partial(counted_responses, state, user=user, limit=limit)
    failure = partial(state.log_or_raise, "Could not list the responses to a user's links.")
    return state.reports.run(read, on_failure=failure) or []


def action_display(action: str) -> str:
    """Return the words for an action from ``REFERRALS_ACTION_DISPLAY``, or the action itself."""
    return current_state().settings.action_display.get(action, action)


def init_app(app: Flask) -> None:
    app.add_template_global(create_referral_form)
    app.add_template_global(referral_responses)
    app.add_template_filter(action_display)
