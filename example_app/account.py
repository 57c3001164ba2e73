from __future__ import annotations

from flask import Blueprint, render_template
from flask.typing import ResponseReturnValue
from flask_login import login_required

bp = Blueprint("account", __name__)


@bp.get("/account")
@login_required  # type: ignore[untyped-decorator]  # Flask-Login has no types
def index() -> ResponseReturnValue:
    # The template reads everything from current_user: orders, referral, and the backref referral_codes.
    return render_template("account.html")
