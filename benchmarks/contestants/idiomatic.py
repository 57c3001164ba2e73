"""What a Flask developer writes who needs this once: Flask-SQLAlchemy's models and session, and Flask's session."""

import secrets
from datetime import datetime, timezone
from typing import Any

from flask import Flask, redirect, request, session
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import BigInteger, DateTime, ForeignKey, Integer
from sqlalchemy.orm import Mapped, mapped_column

from benchmarks.contestants.settings import PAGE, configure

db = SQLAlchemy()

KEY = BigInteger().with_variant(Integer(), "sqlite")


class Link(db.Model):  # type: ignore[name-defined, misc]
    """A link that is passed on."""

    __tablename__ = "referral"
    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    code: Mapped[str]
    redirect_to: Mapped[str]
    expired_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class LinkResponse(db.Model):  # type: ignore[name-defined, misc]
    """A click on it, or what was done later."""

    __tablename__ = "referral_response"
    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    referral_id: Mapped[int] = mapped_column(ForeignKey("referral.id"))
    session_key: Mapped[str | None]
    user_id: Mapped[int | None]
    action: Mapped[str]
    is_touch: Mapped[bool]
    ip_address: Mapped[str | None]
    http_referrer: Mapped[str | None]
    user_agent: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(timezone.utc))


def _record(referral_id: int, action: str) -> None:
    db.session.add(
        LinkResponse(
            referral_id=referral_id,
            session_key=session.get("visitor"),
            user_id=session.get("user"),
            action=action,
            is_touch=action == "RESPONDED",
            ip_address=request.remote_addr,
            http_referrer=request.referrer,
            user_agent=request.user_agent.string,
        )
    )
    db.session.commit()


def create_app() -> Flask:
    """Build the site."""
    app = Flask(__name__)
    configure(app)
    db.init_app(app)

    @app.get("/page")
    def page() -> str:
        return PAGE

    @app.get("/login/<int:user_id>")
    def log_in(user_id: int) -> str:
        session["user"] = user_id
        return ""

    @app.get("/referrals/<code>")
    def follow(code: str) -> Any:
        link = db.first_or_404(db.select(Link).where(Link.code == code))
        response = redirect(link.redirect_to)
        if "visitor" not in session and "user" not in session:
            session["visitor"] = secrets.token_urlsafe(32)
        if link.expired_at is None:
            _record(link.id, "RESPONDED")
        return response

    @app.get("/buy")
    def buy() -> str:
        key = session.get("visitor")
        latest = db.select(LinkResponse).where(LinkResponse.session_key == key)
        latest = latest.order_by(LinkResponse.created_at.desc(), LinkResponse.id.desc())
        credited = db.session.scalar(latest.limit(1)) if key is not None else None
        if credited is None:
            return ""
        _record(credited.referral_id, "BOUGHT")
        return "thanks"

    return app
