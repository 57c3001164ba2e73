"""The least that can be done: a driver, one SELECT, one INSERT, which is committed; nothing is signed or checked."""

import os
import secrets
import sqlite3
from datetime import datetime, timezone
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, abort, redirect, request

from benchmarks.contestants.settings import DATABASE, PAGE

_FIND_LINK = "SELECT id, redirect_to, expired_at FROM referral WHERE code = ?"
_FIND_CREDITED = """
    SELECT referral_id FROM referral_response WHERE session_key = ? ORDER BY created_at DESC, id DESC LIMIT 1
"""
_RECORD = """
    INSERT INTO referral_response
        (referral_id, session_key, user_id, action, is_touch, ip_address, http_referrer, user_agent, created_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


@cache
def _connection() -> Any:
    """Connect, once in each process, to commit each statement by itself."""
    url = os.environ[DATABASE]
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection
    if url.startswith("postgresql"):
        import psycopg

        return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
    import pymysql

    server = urlsplit(url)
    login = {"user": server.username, "password": server.password or ""}
    database = server.path.removeprefix("/")
    return pymysql.connect(host=server.hostname, port=server.port or 3306, database=database, autocommit=True, **login)


def _execute(statement: str, *parameters: Any) -> Any:
    cursor = _connection().cursor()
    is_sqlite = isinstance(cursor, sqlite3.Cursor)
    cursor.execute(statement if is_sqlite else statement.replace("?", "%s"), parameters)
    return cursor


def _record(referral_id: int, key: str | None, user_id: int | None, action: str) -> None:
    now = datetime.now(timezone.utc)
    _execute(
        _RECORD,
        referral_id,
        key,
        user_id,
        action,
        action == "RESPONDED",
        request.remote_addr,
        request.headers.get("Referer"),
        request.headers.get("User-Agent"),
        now.isoformat(" ") if isinstance(_connection(), sqlite3.Connection) else now,
    )


def create_app() -> Flask:
    """Build the site."""
    app = Flask(__name__)

    @app.get("/page")
    def page() -> str:
        return PAGE

    @app.get("/login/<int:user_id>")
    def log_in(user_id: int) -> Response:
        response = Response()
        response.set_cookie("user", str(user_id))
        return response

    @app.get("/referrals/<code>")
    def follow(code: str) -> Any:
        link = _execute(_FIND_LINK, code).fetchone()
        if link is None:
            abort(404)
        referral_id, redirect_to, expired_at = link
        key, user_id = request.cookies.get("visitor"), request.cookies.get("user", type=int)
        is_stranger = key is None and user_id is None
        if is_stranger:
            key = secrets.token_urlsafe(32)
        if expired_at is None:
            _record(referral_id, key, user_id, "RESPONDED")
        response = redirect(redirect_to)
        if is_stranger:
            response.set_cookie("visitor", key or "")
        return response

    @app.get("/buy")
    def buy() -> str:
        key = request.cookies.get("visitor")
        credited = _execute(_FIND_CREDITED, key).fetchone() if key is not None else None
        if credited is None:
            return ""
        _record(credited[0], key, None, "BOUGHT")
        return "thanks"

    return app
