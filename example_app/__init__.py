"""Kettle & Leaf, a small shop whose customers share links to its products.

``flask --app example_app demo`` prepares the database and serves the shop. Once the database is prepared, any other
server can serve ``example_app:create_app()``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flask import Flask, Response, render_template
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from flask_referrals.contrib.dashboard import create_blueprint as create_dashboard

from . import account, admin, auth, demo, shop
from .extensions import db, login, migrate, referrals
from .instance import secret_key
from .models import User, money


def create_app(config: Mapping[str, Any] | None = None, instance_path: str | None = None) -> Flask:
    """Create the shop; ``config`` overrides ``FLASK_…`` in the environment, which overrides the defaults."""
    app = Flask(__name__, instance_path=instance_path)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI="sqlite:///shop.sqlite",  # in the instance folder
        SESSION_COOKIE_SAMESITE="Lax",  # every change is a POST, which no other site can send with this cookie
        MAX_CONTENT_LENGTH=64 * 1024,
        TRUSTED_HOSTS=["127.0.0.1", "localhost"],  # the links in mails begin with the request's host
        REFERRALS_ACTION_DISPLAY={
            "RESPONDED": "Clicked",
            "SIGNED_UP": "Signed up",
            "PURCHASED": "Purchased",
        },
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})
    if not app.config["SECRET_KEY"]:
        app.config["SECRET_KEY"] = secret_key(Path(app.instance_path))

    db.init_app(app)
    migrate.init_app(app, db, directory=str(Path(__file__).parent / "migrations"))
    login.init_app(app)
    referrals.init_app(app, user_model=User)
    app.register_blueprint(create_dashboard(allow=lambda user: user.is_operator))

    app.register_blueprint(shop.bp)
    app.register_blueprint(auth.bp)
    app.register_blueprint(account.bp)
    admin.init_app(app)
    app.cli.add_command(demo.command)
    app.add_template_filter(money)
    app.add_template_filter(moment)
    app.register_error_handler(404, not_found)
    app.after_request(add_security_headers)
    return app


def moment(value: datetime) -> Markup:
    # PostgreSQL returns times in its own zone; SQLite and MariaDB return UTC without a zone.
    utc = value.astimezone(timezone.utc) if value.tzinfo else value
    html = Markup('<time datetime="{0:%Y-%m-%dT%H:%M}Z">{0:%d %b %Y, %H:%M} UTC</time>')
    return html.format(utc)


def not_found(error: Exception) -> ResponseReturnValue:
    return render_template("404.html"), 404


def add_security_headers(response: Response) -> Response:
    # On a phone, the icon of Flask-Admin's menu is a data: URL.
    response.headers.setdefault("Content-Security-Policy", "default-src 'self'; img-src 'self' data:")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response
