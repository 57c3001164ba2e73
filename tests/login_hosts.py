"""Small sites, one for each kind of login, as docs/logins.rst says: each function gives an app its users.

What a package needs is imported inside, as not every Python has every package.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import sqlalchemy as sa
from flask import Flask, Response, g, jsonify, request, session
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_referrals import Referral, Referrals
from tests.host import BrowserClient

REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/")


class GiveUsers(Protocol):
    """Gives an app users who can sign up at /signup, log in at /login and log out at /logout."""

    __name__: str

    def __call__(self, app: Flask, db: SQLAlchemy) -> None: ...


class Site:
    """An app with a database, with or without users."""

    def __init__(self, give_users: GiveUsers, url: str, **config: Any) -> None:
        class Base(DeclarativeBase):
            pass

        self.app = Flask(__name__)
        self.app.test_client_class = BrowserClient
        self.app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=url, TESTING=True)
        self.app.config.update(config)
        self.db = SQLAlchemy(self.app, model_class=Base)
        give_users(self.app, self.db)

        @self.app.post("/act/<action>")
        def act(action: str) -> str:
            response = Referral.record_response(action)
            return "" if response is None else response.referral.code


@contextmanager
def opened(give_users: GiveUsers, url: str, **config: Any) -> Iterator[Site]:
    """Open a site with its tables, and drop them in the end."""
    site = Site(give_users, url, **config)
    with site.app.app_context():
        site.db.create_all()
    try:
        yield site
    finally:
        with site.app.app_context():
            site.db.session.remove()
            site.db.drop_all()
            site.db.engine.dispose()


def flask_login(app: Flask, db: SQLAlchemy) -> None:
    """Flask-Login, with views that clear the session first."""
    from flask_login import LoginManager, UserMixin, login_user, logout_user

    class User(UserMixin, db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50), unique=True)

    login = LoginManager(app)
    Referrals(app, user_model=User)

    @login.user_loader  # type: ignore[untyped-decorator]
    def load_user(key: str) -> User | None:
        return db.session.get(User, int(key))

    @app.post("/signup")
    def sign_up() -> str:
        user = User(name=request.form["name"])
        db.session.add(user)
        db.session.commit()
        session.clear()
        login_user(user)
        Referral.record_response("SIGNED_UP")
        return ""

    @app.post("/login")
    def log_in() -> str:
        user = db.session.scalars(sa.select(User).where(User.name == request.form["name"])).one()
        session.clear()
        login_user(user, remember="remember" in request.form)
        return ""

    @app.post("/logout")
    def log_out() -> str:
        logout_user()
        return ""


def flask_session(app: Flask, db: SQLAlchemy) -> None:
    """Flask-Login on Flask-Session: the browser holds the session's id, Redis the rest."""
    from flask_session import Session
    from redis import Redis

    app.config.from_mapping(SESSION_TYPE="redis", SESSION_REDIS=Redis.from_url(REDIS_URL))
    Session(app)
    flask_login(app, db)


def flask_login_without_user_model(app: Flask, db: SQLAlchemy) -> None:
    """Flask-Login with users who are not in the database."""
    from flask_login import LoginManager, UserMixin, login_user, logout_user

    class Employee(UserMixin):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.id = name

    login = LoginManager(app)
    Referrals(app)

    @login.user_loader  # type: ignore[untyped-decorator]
    def load_user(name: str) -> Employee:
        return Employee(name)

    @app.post("/signup", endpoint="signup")
    @app.post("/login")
    def log_in() -> str:
        session.clear()
        login_user(Employee(request.form["name"]), remember="remember" in request.form)
        return ""

    @app.post("/logout")
    def log_out() -> str:
        logout_user()
        return ""


def flask_security(app: Flask, db: SQLAlchemy, *, record_sign_up: bool = True) -> None:
    """Flask-Security, its own views, and its own model."""
    from flask_security.core import Security
    from flask_security.datastore import SQLAlchemyUserDatastore
    from flask_security.models import fsqla_v3
    from flask_security.signals import user_registered

    fsqla: Any = fsqla_v3  # its own types are not complete
    fsqla.FsModels.set_db_info(db)

    class Role(db.Model, fsqla.FsRoleMixin):  # type: ignore[name-defined, misc]
        pass

    class User(db.Model, fsqla.FsUserMixin):  # type: ignore[name-defined, misc]
        pass

    app.config.from_mapping(
        SECURITY_REGISTERABLE=True,
        SECURITY_REGISTER_URL="/signup",
        SECURITY_SEND_REGISTER_EMAIL=False,
        SECURITY_EMAIL_VALIDATOR_ARGS={"check_deliverability": False},
        SECURITY_USE_REGISTER_V2=True,
        SECURITY_PASSWORD_CONFIRM_REQUIRED=False,
        SECURITY_PASSWORD_SALT="a test's salt",
        SECURITY_PASSWORD_HASH="plaintext",
        WTF_CSRF_ENABLED=False,
    )
    Security(app, SQLAlchemyUserDatastore(db, User, Role))
    Referrals(app, user_model=User)

    if record_sign_up:

        @user_registered.connect_via(app)
        def record(app: Flask, user: User, **extra: Any) -> None:
            Referral.record_response("SIGNED_UP", user=user, join=True)


def flask_security_without_sign_up(app: Flask, db: SQLAlchemy) -> None:
    """The same, when nothing is recorded before its view has logged the new user in."""
    flask_security(app, db, record_sign_up=False)


def flask_jwt_extended(app: Flask, db: SQLAlchemy) -> None:
    """Flask-JWT-Extended: nobody is logged in, the user comes with each request."""
    from flask_jwt_extended import JWTManager, create_access_token, get_current_user, verify_jwt_in_request
    from flask_jwt_extended.exceptions import JWTExtendedException
    from jwt import PyJWTError

    class User(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50), unique=True)

    app.config.from_mapping(JWT_SECRET_KEY="another secret of a test, of 32 bytes at least")
    jwt = JWTManager(app)
    referrals = Referrals(app, user_model=User)

    @jwt.user_lookup_loader
    def load_user(header: dict[str, Any], data: dict[str, Any]) -> User | None:
        return db.session.get(User, int(data["sub"]))

    @referrals.user_loader
    def user_of_token() -> User | None:
        try:
            verify_jwt_in_request(optional=True)
        except (JWTExtendedException, PyJWTError):
            return None
        user: User | None = get_current_user()
        return user

    @app.post("/signup")
    def sign_up() -> Response:
        user = User(name=request.form["name"])
        db.session.add(user)
        db.session.commit()
        Referral.record_response("SIGNED_UP", user=user, join=True)
        return jsonify(access_token=create_access_token(str(user.id)))

    @app.post("/login")
    def log_in() -> Response:
        user = db.session.scalars(sa.select(User).where(User.name == request.form["name"])).one()
        referrals.link_user(user)
        return jsonify(access_token=create_access_token(str(user.id)))

    @app.post("/logout")
    def log_out() -> str:
        referrals.drop_visitor_key()
        return ""


def flask_jwt_extended_without_user_model(app: Flask, db: SQLAlchemy) -> None:
    """Flask-JWT-Extended with tokens of somebody else's users; a token that is no good fails as it will."""
    from flask_jwt_extended import JWTManager, create_access_token, get_jwt_identity, verify_jwt_in_request

    app.config.from_mapping(JWT_SECRET_KEY="another secret of a test, of 32 bytes at least")
    JWTManager(app)
    referrals = Referrals(app)

    @referrals.user_loader
    def identity_of_token() -> str | None:
        verify_jwt_in_request(optional=True)
        identity: str | None = get_jwt_identity()
        return identity

    @app.post("/signup", endpoint="signup")
    @app.post("/login")
    def log_in() -> Response:
        return jsonify(access_token=create_access_token(request.form["name"]))

    @app.post("/logout")
    def log_out() -> str:
        referrals.drop_visitor_key()
        return ""


def flask_jwt_extended_with_pages_on_another_origin(app: Flask, db: SQLAlchemy) -> None:
    """Flask-JWT-Extended as the API of a single-page app."""
    from flask_cors import CORS

    app.config["REFERRALS_TRUSTED_ORIGINS"] = ["https://app.example"]
    CORS(app, origins=app.config["REFERRALS_TRUSTED_ORIGINS"], allow_headers=["Authorization", "Content-Type"])
    flask_jwt_extended(app, db)


def tutorial(app: Flask, db: SQLAlchemy) -> None:
    """A login as in Flask's tutorial."""

    class User(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50), unique=True)

    referrals = Referrals(app, user_model=User)

    @app.before_request
    def load_logged_in_user() -> None:
        key = session.get("user_id")
        g.user = None if key is None else db.session.get(User, key)

    @referrals.user_loader
    def logged_in_user() -> User | None:
        user: User | None = g.get("user")
        return user

    @app.post("/signup")
    def sign_up() -> str:
        user = User(name=request.form["name"])
        db.session.add(user)
        db.session.commit()
        session.clear()
        session["user_id"] = user.id
        Referral.record_response("SIGNED_UP", user=user, join=True)
        return ""

    @app.post("/login")
    def log_in() -> str:
        user = db.session.scalars(sa.select(User).where(User.name == request.form["name"])).one()
        session.clear()
        session["user_id"] = user.id
        referrals.link_user(user)
        return ""

    @app.post("/logout")
    def log_out() -> str:
        session.clear()
        referrals.drop_visitor_key()
        return ""


def no_users(app: Flask, db: SQLAlchemy) -> None:
    """A site without users."""
    Referrals(app)
