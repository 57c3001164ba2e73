"""Helpers for the tests in this folder: stored rows, failing statements, and a home-made login."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from flask import request, session
from flask.testing import FlaskClient
from sqlalchemy import event

from flask_referrals import ReferralMixin, ReferralResponseMixin
from tests.host import Host

#: Flask 3.1 brought TRUSTED_HOSTS and SECRET_KEY_FALLBACKS. It also answers other hosts than SERVER_NAME, reads the
#: session later, and requires a Werkzeug that copes with broken host names.
needs_flask_31 = pytest.mark.skipif(
    tuple(map(int, version("flask").split(".")[:2])) < (3, 1), reason="This needs Flask 3.1."
)

#: A request that asks for a second connection fails after a second.
ONE_CONNECTION: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1}

#: Errors: a retry may succeed after a conflict, and does not after a refusal. A deadlock ends MariaDB's transaction.
CONFLICT, REFUSAL, DEADLOCK = "conflict", "refusal", "deadlock"

_SQLSTATES = {CONFLICT: "40001", REFUSAL: "57014"}
_ERRNOS = {CONFLICT: 1205, REFUSAL: 1969, DEADLOCK: 1213}
_SQLITE_CODES = {CONFLICT: 517, REFUSAL: 10}


class Row(NamedTuple):
    """A stored response: its action, user and reason why it is ignored."""

    action: str
    user: str | None = None
    ignored: str | None = None


def rows(host: Host) -> list[Row]:
    """Return all responses, oldest first."""
    with host.app.app_context():
        return [
            Row(response.action, response.user.name if response.user else None, response.ignored)
            for response in host.responses()
        ]


def names(host: Host, model: Any) -> list[str]:
    """Return the names of all stored users, or products."""
    with host.app.app_context():
        return sorted(host.db.session.scalars(sa.select(model.name)))


def key_of(client: FlaskClient) -> str | None:
    """Return the signed visitor key in a browser's session."""
    with client.session_transaction() as browser_session:
        return browser_session.get("_referral")


def has_key(client: FlaskClient) -> bool:
    """Whether a browser's session has a visitor key."""
    return key_of(client) is not None


def engine_of(host: Host) -> sa.Engine:
    """Return the engine, for use outside of an app context."""
    with host.app.app_context():
        return host.db.engine


def connections_in_use(host: Host) -> int:
    """Return how many connections are held."""
    in_use: int = engine_of(host).pool.checkedout()  # type: ignore[attr-defined]
    return in_use


def call_by_name(monkeypatch: pytest.MonkeyPatch, *models: Any) -> None:
    """Let the objects of some models be called by their names in a test: other tests share the models."""
    for model in models:
        monkeypatch.setattr(model, "__str__", lambda self: self.name, raising=False)


def find_user(host: Host, name: str) -> Any:
    """Return a stored user."""
    return host.db.session.scalars(sa.select(host.User).where(host.User.name == name)).one()


def add_own_login(host: Host) -> None:
    """Add a login that does not call ``link_user``: the next recorded action joins."""

    @host.referrals.user_loader
    def load_user() -> Any:
        return host.db.session.get(host.User, session["user_id"]) if "user_id" in session else None

    @host.app.post("/login")
    def log_in() -> str:
        session["user_id"] = find_user(host, request.form["name"]).id
        return ""


def declare_on(bind_key: str) -> Callable[[Any, Any], None]:
    """Return a function that declares the host's own referral models on a bind."""

    def declare(db: Any, User: Any) -> None:
        class Invite(ReferralMixin, db.Model):  # type: ignore[misc]
            __tablename__ = "invite"
            __bind_key__ = bind_key
            __user_model__ = User

        class Answer(ReferralResponseMixin, db.Model):  # type: ignore[misc]
            __tablename__ = "answer"
            __bind_key__ = bind_key
            __user_model__ = User
            __referral_model__ = Invite

    return declare


@contextmanager
def failing(host: Host, matches: Callable[[str], bool], error: str = REFUSAL, times: int = 1) -> Iterator[list[str]]:
    """Make the database refuse some statements.

    :param matches: tells whether a statement fails.
    :param error: :data:`CONFLICT` or :data:`REFUSAL`, on MariaDB also :data:`DEADLOCK`.
    :param times: how many statements fail.
    :return: the statements that failed.
    """
    failed: list[str] = []
    engine = engine_of(host)

    def fail(cursor: Any, statement: str, *args: Any) -> None:
        if len(failed) < times and matches(statement):
            failed.append(statement)
            _fail(engine.dialect, cursor, error)

    # SQLAlchemy wraps errors from these events as it wraps the driver's.
    for name in ("do_execute", "do_executemany"):
        event.listen(engine, name, fail)
    try:
        yield failed
    finally:
        for name in ("do_execute", "do_executemany"):
            event.remove(engine, name, fail)


def _fail(dialect: sa.Dialect, cursor: Any, error: str) -> None:
    if dialect.name == "sqlite":
        failure: Any = dialect.loaded_dbapi.OperationalError("injected")
        failure.sqlite_errorcode = _SQLITE_CODES[error]
        raise failure
    if dialect.name == "postgresql":
        cursor.execute(f"DO $$BEGIN RAISE EXCEPTION 'injected' USING ERRCODE = '{_SQLSTATES[error]}'; END$$")
    else:
        if error == DEADLOCK:
            cursor.execute("ROLLBACK")
        cursor.execute(f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {_ERRNOS[error]}, MESSAGE_TEXT = 'injected'")


def on_connect(host: Host, *statements: str, bind: str | None = None) -> None:
    """Send statements on each new connection of an engine."""
    with host.app.app_context():
        engine = host.db.engines[bind]

    def send(connection: Any, record: Any) -> None:
        for statement in statements:
            connection.cursor().execute(statement)
        connection.commit()

    engine.dispose()
    event.listen(engine, "connect", send)
