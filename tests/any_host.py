"""The same small site on each kind of database extension."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import sqlalchemy as sa
from flask import Flask, request
from flask_login import LoginManager, UserMixin, login_user
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    declarative_base,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from flask_referrals import Referral, Referrals
from tests.host import BrowserClient


@dataclass
class AnyHost:
    """A site: its users, the session of the current app context, and what the referrals are given."""

    app: Flask
    User: Any
    get_session: Callable[[], Session]
    new_user: Callable[[str], Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> sa.MetaData:
        """The metadata of all tables."""
        metadata: sa.MetaData = self.User.metadata
        return metadata

    @property
    def engine(self) -> sa.Engine:
        """The engine of the session. It needs an app context."""
        return self.get_session().get_bind().engine


def _declare_user(base: Any) -> Any:
    class User(UserMixin, base):  # type: ignore[misc]
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))

    return User


def _new_base() -> Any:
    class Base(DeclarativeBase):
        pass

    return Base


def _of(app: Flask, user_model: Any, get_session: Callable[[], Any], **options: Any) -> AnyHost:
    return AnyHost(app, user_model, get_session, lambda name: user_model(name=name), options)


def flask_sqlalchemy(app: Flask, url: str) -> AnyHost:
    from flask_sqlalchemy import SQLAlchemy

    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db = SQLAlchemy(app, model_class=_new_base())
    return _of(app, _declare_user(db.Model), db.session)


def users_beside_db_model(app: Flask, url: str) -> AnyHost:
    """Flask-SQLAlchemy, whose session also works on models of a declarative base of the host's own."""
    from flask_sqlalchemy import SQLAlchemy

    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db = SQLAlchemy(app)
    return _of(app, _declare_user(declarative_base()), db.session)


def flask_appbuilder(app: Flask, url: str) -> AnyHost:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flask_appbuilder import AppBuilder
        from flask_appbuilder.models.sqla.base import SQLA
        from flask_appbuilder.security.sqla.models import User

        app.config.update(SQLALCHEMY_DATABASE_URI=url, WTF_CSRF_ENABLED=False, FAB_UPDATE_PERMS=False)
        db = SQLA(app)
        with app.app_context():
            AppBuilder(app, db.session)

    def new_user(name: str) -> Any:
        return User(username=name, first_name=name, last_name=name, email=f"{name}@shop.example", active=True)

    return AnyHost(app, User, db.session, new_user)


def flask_sqlalchemy_lite(app: Flask, url: str) -> AnyHost:
    from flask_sqlalchemy_lite import SQLAlchemy

    app.config.setdefault("SQLALCHEMY_ENGINES", {})["default"] = url
    db = SQLAlchemy(app)
    return _of(app, _declare_user(_new_base()), lambda: db.session)


def dataclasses(app: Flask, url: str) -> AnyHost:
    """Flask-SQLAlchemy-Lite with a base whose subclasses are dataclasses."""
    from flask_sqlalchemy_lite import SQLAlchemy

    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str] = mapped_column(sa.String(50))

        is_active = is_authenticated = True

        def get_id(self) -> str:
            return str(self.id)

    app.config.setdefault("SQLALCHEMY_ENGINES", {})["default"] = url
    db = SQLAlchemy(app)
    return _of(app, User, lambda: db.session)


def alchemical(app: Flask, url: str) -> AnyHost:
    from alchemical.core import BaseModel
    from alchemical.flask import Alchemical

    class Base(BaseModel, DeclarativeBase):  # type: ignore[misc]
        __abstract__ = True
        __metadatas__: dict[str | None, sa.MetaData] = {}  # otherwise all bases of a process share one

    app.config["ALCHEMICAL_DATABASE_URL"] = url
    db = Alchemical(model_class=Base)
    db.init_app(app)
    return _of(app, _declare_user(db.Model), lambda: db.session, db=db)


def plain_sqlalchemy(app: Flask, url: str) -> AnyHost:
    db_session = scoped_session(sessionmaker(sa.create_engine(url)))

    @app.teardown_appcontext
    def remove_session(error: BaseException | None) -> None:
        db_session.remove()

    return _of(app, _declare_user(_new_base()), db_session, db=db_session)


_PACKAGES = {
    flask_sqlalchemy: "flask_sqlalchemy",
    users_beside_db_model: "flask_sqlalchemy",
    flask_appbuilder: "flask_appbuilder",
    flask_sqlalchemy_lite: "flask_sqlalchemy_lite",
    dataclasses: "flask_sqlalchemy_lite",
    alchemical: "alchemical",
    plain_sqlalchemy: "sqlalchemy",
}
#: The kinds that are installed. Flask-AppBuilder has an environment of its own: Flask-Admin does not work beside its
#: Flask-Babel. Flask-SQLAlchemy-Lite needs a newer SQLAlchemy than we do.
KINDS = [kind for kind, package in _PACKAGES.items() if find_spec(package)]


def make_any_host(kind: Callable[[Flask, str], AnyHost], url: str, **config: Any) -> AnyHost:
    """Build the site on a database; its tables are made by the caller."""
    app = Flask(__name__)
    app.test_client_class = BrowserClient
    app.config.from_mapping(SECRET_KEY="a test's secret of 32 characters", TESTING=True, **config)
    host = kind(app, url)
    if not hasattr(app, "login_manager"):
        LoginManager(app).user_loader(lambda key: host.get_session().get(host.User, int(key)))
    Referrals(app, user_model=host.User, **host.options)

    @app.post("/signup")
    def signup() -> str:
        user = host.new_user(request.form["name"])
        host.get_session().add(user)
        host.get_session().commit()
        login_user(user)
        return code_of(Referral.record_response("SIGNED_UP"))

    @app.post("/buy")
    def buy() -> str:
        return code_of(Referral.record_response("BOUGHT", key=request.form["order"], value=5, currency="EUR"))

    return host


def code_of(response: Any) -> str:
    """Return the code of the link that gets the credit."""
    return "" if response is None else response.referral.code
