from __future__ import annotations

import re

from flask import Blueprint, render_template, request
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required

from flask_referrals import Referral

from .extensions import db
from .models import Order

bp = Blueprint("account", __name__)

LINKS_PER_PAGE = 10
ORDERS_PER_PAGE = 20
RESPONSES_PER_LINK = 10


@bp.get("/account")
@login_required  # type: ignore[untyped-decorator]  # Flask-Login has no types
def index() -> ResponseReturnValue:
    own = current_user.referral
    links = db.select(Referral).filter_by(user_id=current_user.id)
    if own is not None:
        links = links.where(Referral.id != own.id)
    links = links.order_by(Referral.created_at.desc(), Referral.id.desc())
    orders = db.select(Order).filter_by(user_id=current_user.id).order_by(Order.id.desc())
    return render_template(
        "account.html",
        own=own,
        links=db.paginate(links, page=page("links"), per_page=LINKS_PER_PAGE),
        orders=db.paginate(orders, page=page("orders"), per_page=ORDERS_PER_PAGE),
        responses_per_link=RESPONSES_PER_LINK,
    )


def page(name: str) -> int:
    """Return the number of the page that is asked for, by default the first."""
    text = request.args.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 1
