"""The least with Flask-SQLAlchemy: one statement of its Core, committed, and a key in the session of Flask."""

import secrets
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from flask import Flask, abort, redirect, request, session
from flask_sqlalchemy import SQLAlchemy

from benchmarks.contestants.idiomatic import Link, LinkResponse
from benchmarks.contestants.settings import PAGE, configure

_COLUMNS = ("session_key", "action", "is_touch", "ip_address", "http_referrer", "user_agent", "created_at")


def _record() -> Any:
    link, response = Link.__table__, LinkResponse.__table__
    values = [sa.bindparam(f"new_{name}", type_=response.c[name].type) for name in _COLUMNS]
    is_alive = sa.or_(link.c.expired_at.is_(None), link.c.expired_at > sa.bindparam("new_created_at"))
    chosen = sa.select(link.c.id, *values).where(link.c.code == sa.bindparam("code"), is_alive)
    # As text, for SQLAlchemy takes it for another table of the subquery's.
    redirect_to = "(SELECT redirect_to FROM referral WHERE referral.id = referral_response.referral_id)"
    return sa.insert(response).from_select(["referral_id", *_COLUMNS], chosen).returning(sa.literal_column(redirect_to))


def create_app() -> Flask:
    """Build the site; it only knows clicks."""
    app = Flask(__name__)
    configure(app)
    db = SQLAlchemy(app)
    record = _record()

    @app.get("/page")
    def page() -> str:
        return PAGE

    @app.get("/referrals/<code>")
    def follow(code: str) -> Any:
        key = session.get("visitor") or secrets.token_urlsafe(32)
        row = {
            "code": code,
            "new_session_key": key,
            "new_action": "RESPONDED",
            "new_is_touch": True,
            "new_ip_address": request.remote_addr,
            "new_http_referrer": request.referrer,
            "new_user_agent": request.headers.get("User-Agent"),
            "new_created_at": datetime.now(timezone.utc),
        }
        with db.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            redirect_to = connection.execute(record, row).scalar()
            connection.commit()
        if redirect_to is None:
            abort(404)
        if "visitor" not in session:
            session["visitor"] = key
        return redirect(redirect_to)

    return app
