from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from flask import Blueprint, render_template, request
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required

from flask_referrals import Referral, ReferralResponse, current_referrals

from .extensions import db
from .models import Order, Product

bp = Blueprint("account", __name__)

LINKS_PER_PAGE = 10
ORDERS_PER_PAGE = 20
RESPONSES_PER_LINK = 5


@bp.get("/account")
@login_required  # type: ignore[untyped-decorator]  # Flask-Login has no types
def index() -> ResponseReturnValue:
    own = current_user.referral
    links = db.select(Referral).filter_by(user_id=current_user.id)
    if own is not None:
        links = links.where(Referral.id != own.id)
    links = links.order_by(Referral.created_at.desc(), Referral.id.desc())
    shown = db.paginate(links, page=page("links"), per_page=LINKS_PER_PAGE)
    orders = db.select(Order).filter_by(user_id=current_user.id).order_by(Order.id.desc())
    stats = current_referrals.stats(owner=current_user, by="referral")
    return render_template(
        "account.html",
        own=own,
        links=shown,
        totals={link.id: totals for link, totals in stats.rows},
        responses=newest_responses([own, *shown] if own is not None else shown.items),
        # What links are about. A product that the session holds is not read again.
        products=db.session.scalars(db.select(Product)).all(),
        orders=db.paginate(orders, page=page("orders"), per_page=ORDERS_PER_PAGE),
    )


def newest_responses(links: Sequence[Referral]) -> Mapping[int, list[ReferralResponse]]:
    """Return the newest responses to each of some links, in one statement."""
    order = ReferralResponse.created_at.desc(), ReferralResponse.id.desc()
    number = db.func.row_number().over(partition_by=ReferralResponse.referral_id, order_by=order)
    ranked = db.select(ReferralResponse.id, number.label("number"))
    ranked = ranked.where(ReferralResponse.referral_id.in_([link.id for link in links]))
    ranked = ranked.where(ReferralResponse.action != "VOIDED").subquery()
    newest = db.select(ReferralResponse).join(ranked, ranked.c.id == ReferralResponse.id)
    newest = newest.where(ranked.c.number <= RESPONSES_PER_LINK).order_by(*order)
    responses = defaultdict(list)
    for response in db.session.scalars(newest):
        responses[response.referral_id].append(response)
    return responses


def page(name: str) -> int:
    """Return the number of the page that is asked for, by default the first."""
    text = request.args.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 1
