from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_user, logout_user
from sqlalchemy.exc import IntegrityError

from flask_referrals import Referral

from . import mail
from .extensions import db
from .models import User

bp = Blueprint("auth", __name__)


@bp.route("/signup", methods=["GET", "POST"])
def signup() -> ResponseReturnValue:
    if current_user.is_authenticated:
        return redirect(next_page())
    if request.method == "GET":
        return render_template("auth/signup.html")

    name = request.form.get("name", "").strip()
    email = request.form.get("email", "").strip()
    password = request.form.get("password", "")
    if error := signup_error(name, email, password):
        flash(error, "error")
        return render_template("auth/signup.html"), 400
    user = User(name=name, email=email)
    user.set_password(password)
    db.session.add(user)
    try:
        db.session.commit()
    except IntegrityError:
        db.session.rollback()
        flash(f"The name {name} is taken. Please choose another.", "error")
        return render_template("auth/signup.html"), 400

    user.referral = Referral.create("/", user=user, label="welcome mail")
    db.session.commit()
    mail.send(user.email, "Welcome to Kettle & Leaf", "mail/welcome.txt", user=user)

    session.clear()  # protects against session fixation
    login_user(user)
    # The link that the visitor followed still gets the credit.
    Referral.record_response("SIGNED_UP")
    flash(f"Welcome, {user.name}! We have sent you a mail with your own link.")
    return redirect(next_page())


@bp.route("/login", methods=["GET", "POST"])
def login() -> ResponseReturnValue:
    if current_user.is_authenticated:
        return redirect(next_page())
    if request.method == "GET":
        return render_template("auth/login.html")

    name = request.form.get("name", "").strip()
    user = None
    if name.isprintable():  # PostgreSQL refuses a NUL character even in a query
        user = db.session.scalar(db.select(User).filter_by(name=name))
    if user is None or not user.check_password(request.form.get("password", "")):
        flash("Name or password is wrong.", "error")
        return render_template("auth/login.html"), 400
    session.clear()
    login_user(user)
    return redirect(next_page())


@bp.post("/logout")
def logout() -> ResponseReturnValue:
    logout_user()
    flash("You are logged out. Come back for a cup.")
    return redirect(url_for("shop.index"))


def signup_error(name: str, email: str, password: str) -> str | None:
    if not 1 <= len(name) <= 40 or not name.isprintable():
        return "Please choose a name of 1 to 40 characters."
    if not 3 <= len(email) <= 254 or not email.isprintable() or "@" not in email[1:-1]:
        return "Please enter a mail address."
    if not password:
        return "Please choose a password."
    return None


def next_page() -> str:
    """Return the page to show after the login; never a page of another site."""
    path = request.values.get("next", "")
    # Browsers take "//host" and "/\host" for another site, after removing tabs and line ends.
    local = path.startswith("/") and not path.startswith("//")
    if local and "\\" not in path and path.isprintable():
        return path
    return url_for("account.index")
