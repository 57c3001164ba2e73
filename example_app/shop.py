from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user

from flask_referrals import Referral

from .extensions import db
from .models import Order, OutboxMail, Product

bp = Blueprint("shop", __name__)


@bp.get("/")
def index() -> ResponseReturnValue:
    products = db.session.scalars(db.select(Product).order_by(Product.id))
    return render_template("index.html", products=products)


@bp.get("/tea/<slug>")
def product(slug: str) -> ResponseReturnValue:
    return render_template("product.html", product=find(slug))


@bp.post("/tea/<slug>/buy")
def buy(slug: str) -> ResponseReturnValue:
    product = find(slug)
    if not current_user.is_authenticated:
        flash(f"Sign up or log in, and {product} is one more click.")
        return redirect(url_for("auth.signup", next=url_for(".product", slug=slug)))
    order = Order(user=current_user, product=product, price=product.price)
    db.session.add(order)
    db.session.commit()
    Referral.record_response("PURCHASED", target=order, value=order.pounds, currency="GBP")
    flash(f"Thank you! {order}.")
    return redirect(url_for("account.index"))


@bp.get("/outbox")
def outbox() -> ResponseReturnValue:
    mails = db.session.scalars(db.select(OutboxMail).order_by(OutboxMail.id.desc()).limit(20))
    return render_template("outbox.html", mails=mails.all())


def find(slug: str) -> Product:
    product: Product = db.first_or_404(db.select(Product).filter_by(slug=slug))
    return product
