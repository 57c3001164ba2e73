"""A site with Flask-Referrals, set up as its README says; and the same site without it."""

from collections.abc import Callable
from typing import Any

from flask import Flask
from flask_login import LoginManager, UserMixin, login_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from benchmarks.contestants.settings import PAGE, configure
from flask_referrals import Referral, Referrals


def create_app(with_referrals: bool = True, make_recorder: Callable[[Flask], Any] | None = None) -> Flask:
    """Build the site.

    :param with_referrals: ``False``: the same without the extension.
    :param make_recorder: makes what takes the clicks.
    """
    app = Flask(__name__)
    configure(app)
    app.config["REFERRALS_BASE_URL"] = "http://localhost"
    db = SQLAlchemy(app)
    login = LoginManager(app)

    class User(UserMixin, db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)

    @login.user_loader  # type: ignore[untyped-decorator]
    def load_user(key: str) -> Any:
        return db.session.get(User, int(key))

    @app.get("/page")
    def page() -> str:
        return PAGE

    @app.get("/login/<int:user_id>")
    def log_in(user_id: int) -> str:
        login_user(db.get_or_404(User, user_id))
        return ""

    if with_referrals:
        Referrals(app, user_model=User, recorder=make_recorder(app) if make_recorder is not None else None)

        @app.get("/buy")
        def buy() -> str:
            response = Referral.record_response("BOUGHT")
            return "" if response is None else "thanks"

    return app
