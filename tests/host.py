"""A small site that uses the extension as its README says."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from flask import Flask, redirect, request, session
from flask.testing import FlaskClient
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, UserMixin, login_user, logout_user
from flask_sqlalchemy import SQLAlchemy
from jinja2 import FileSystemBytecodeCache
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_referrals import Referral, ReferralResponse, Referrals

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


class BrowserClient(FlaskClient):
    """A test client that says what a browser says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.environ_base["HTTP_USER_AGENT"] = BROWSER


@dataclass
class Host:
    """The parts of the site; ``User`` and ``Product`` are its models."""

    app: Flask
    db: SQLAlchemy
    referrals: Referrals
    User: Any
    Product: Any

    def client(self) -> FlaskClient:
        """Return a browser with a cookie jar of its own."""
        return self.app.test_client()

    def add(self, obj: Any) -> Any:
        """Store an object, and return it."""
        self.db.session.add(obj)
        self.db.session.commit()
        return obj

    def user(self, name: str) -> Any:
        """Store a user."""
        return self.add(self.User(name=name))

    def responses(self) -> list[ReferralResponse]:
        """Return all responses, oldest first, as they are in the database now."""
        self.db.session.rollback()
        model = self.referrals.ReferralResponse
        return list(self.db.session.scalars(sa.select(model).order_by(model.created_at, model.id)))


@cache
def _sqlite_dialect() -> sa.Dialect:
    engine = sa.create_engine("sqlite://")
    engine.connect().close()  # tells the dialect what the database can do
    engine.dispose()
    return engine.dialect


class _Database(SQLAlchemy):
    """Compiles a statement once for all apps: what is compiled belongs to the dialect, which their engines share."""

    _engines: dict[str, sa.Engine] = {}
    _compiled: Any = sa.util.LRUCache(1000)

    def _make_engine(self, bind_key: str | None, options: dict[str, Any], app: Flask) -> sa.Engine:
        engine = super()._make_engine(bind_key, options, app)
        pool, dialect = engine.pool, engine.dialect
        if dialect.name != "sqlite":
            try:
                key = json.dumps({**options, "url": engine.url.render_as_string(hide_password=False)}, sort_keys=True)
            except TypeError:  # a pool's class, or a function that connects
                return engine
            first = self._engines.setdefault(key, engine)
            pool, dialect = first.pool.recreate(), first.dialect
        elif options.keys() == {"url", "echo", "echo_pool"}:
            dialect = _sqlite_dialect()
        execution_options = {**engine.get_execution_options(), "compiled_cache": self._compiled}
        return sa.Engine(pool, dialect, engine.url, execution_options=execution_options)


class _Models(NamedTuple):
    db: SQLAlchemy
    User: Any
    Product: Any


def _declare_models(key_type: Any, new_key: Any, binds: tuple[str, ...]) -> _Models:
    class Base(DeclarativeBase):
        pass

    db = _Database(model_class=Base)

    class User(UserMixin, db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[Any] = mapped_column(key_type, primary_key=True, default=new_key)
        name: Mapped[str] = mapped_column(sa.String(50), unique=True)

    class Product(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[Any] = mapped_column(key_type, primary_key=True, default=new_key)
        name: Mapped[str] = mapped_column(sa.String(50))

    return _Models(db, User, Product)


_shared_models = lru_cache(maxsize=16)(_declare_models)


def make_host(
    url: str,
    *,
    key_type: Any = sa.Integer,
    new_key: Any = None,
    with_login: bool = True,
    declare: Callable[[SQLAlchemy, Any], object] | None = None,
    make_recorder: Callable[[Flask], Any] | None = None,
    **config: Any,
) -> Host:
    """Build the site on a database; its tables are made by the caller.

    Sites share their models, and those of the extension, unless a test declares models of its own: to map them takes
    longer than most tests.

    :param key_type: the type of the users' and products' keys.
    :param new_key: makes a key, where the database does not.
    :param with_login: give it Flask-Login, and the pages that need it.
    :param declare: declares models of referrals, given the database and the user model.
    :param make_recorder: makes what takes the clicks.
    :param config: settings of the app.
    """

    declare_models = _shared_models if declare is None else _declare_models
    db, User, Product = declare_models(key_type, new_key, tuple(config.get("SQLALCHEMY_BINDS", ())))
    app = Flask(__name__)
    app.test_client_class = BrowserClient
    app.jinja_options = {"bytecode_cache": FileSystemBytecodeCache()}  # templates are compiled once for all apps
    app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=url, TESTING=True)
    app.config.update(config)
    db.init_app(app)
    if declare is not None:
        declare(db, User)
    referrals = Referrals(app, user_model=User, recorder=make_recorder(app) if make_recorder is not None else None)
    referrals.register_target(Product)

    @app.get("/")
    def index() -> str:
        return "a page that has nothing to do with referrals"

    @app.post("/act/<action>")
    def act(action: str) -> str:
        response = Referral.record_response(action, key=request.form.get("key"))
        return "" if response is None else response.referral.code

    host = Host(app, db, referrals, User, Product)
    if with_login:
        _add_login(host, key_type)
    return host


def _add_login(host: Host, key_type: Any) -> None:
    app, db, User = host.app, host.db, host.User
    login = LoginManager(app)

    @login.user_loader  # type: ignore[untyped-decorator]
    def load_user(key: str) -> Any:
        return db.session.get(User, sa.types.to_instance(key_type).python_type(key))

    @app.post("/signup")
    def signup() -> ResponseReturnValue:
        session.clear()
        user = User(name=request.form["name"])
        db.session.add(user)
        db.session.commit()
        login_user(user, remember="remember" in request.form)
        Referral.record_response("SIGNED_UP")
        return redirect("/")

    @app.post("/login")
    def log_in() -> ResponseReturnValue:
        session.clear()
        user = db.session.scalar(sa.select(User).where(User.name == request.form["name"]))
        login_user(user, remember="remember" in request.form)
        return redirect("/")

    @app.post("/logout")
    def log_out() -> ResponseReturnValue:
        logout_user()
        return redirect("/")


def get_one(db: SQLAlchemy, model: Any, key: Any) -> Any:
    """Return the object with a key, which is stored. ``Session.get_one`` came with SQLAlchemy 2.0.22."""
    obj = db.session.get(model, key)
    assert obj is not None
    return obj


@contextmanager
def statements(db: SQLAlchemy) -> Iterator[list[str]]:
    """Collect the statements that are sent to a database, and its commits as ``"COMMIT"``."""
    sent: list[str] = []

    def on_execute(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
        sent.append(statement)

    def on_commit(conn: Any) -> None:
        sent.append("COMMIT")

    engine = db.engine
    event.listen(engine, "before_cursor_execute", on_execute)
    event.listen(engine, "commit", on_commit)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", on_execute)
        event.remove(engine, "commit", on_commit)


@contextmanager
def sent_by_requests(host: Host) -> Iterator[list[str]]:
    """Collect the same while the block sends requests, each of which has an app context of its own."""
    with ExitStack() as stack:
        with host.app.app_context():
            sent = stack.enter_context(statements(host.db))
        yield sent


def stored_by(db: SQLAlchemy) -> list[str]:
    """The statements that choose a referral and write a response to it."""
    return ["INSERT"] if db.engine.dialect.name in ("postgresql", "sqlite") else ["SELECT", "INSERT"]


def follow(host: Host, client: FlaskClient, path: str = "/") -> str:
    """Make a link, click on it, and return its code."""
    with host.app.app_context():
        code = Referral.create(path).code
    client.get(f"/referrals/{code}")
    return code


def in_parallel(functions: Sequence[Callable[[], object]]) -> None:
    """Call all at the same moment, each in a thread, and raise what one of them raises."""
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], object]) -> None:
        start.wait(timeout=30)
        function()

    with ThreadPoolExecutor(len(functions)) as pool:
        for done in [pool.submit(run, function) for function in functions]:
            done.result()
