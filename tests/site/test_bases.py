"""Every kind of ``SQLAlchemy()``: base classes, naming conventions, binds, schemas."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, DeclarativeBaseNoMeta, Mapped, MappedAsDataclass, mapped_column

from flask_referrals import (
    ConfigurationError,
    Referral,
    ReferralMixin,
    ReferralResponse,
    ReferralResponseMixin,
    Referrals,
)
from tests.databases import NAMES, new_database
from tests.host import BrowserClient

MakeDB = Callable[..., SQLAlchemy]

CONVENTION = {
    "ix": "index_%(table_name)s_on_%(column_0_N_name)s",
    "uq": "unique_%(table_name)s_%(column_0_N_name)s",
    "ck": "check_%(table_name)s_%(constraint_name)s",
    "fk": "foreign_%(table_name)s_%(column_0_N_name)s",
    "pk": "primary_%(table_name)s",
}

dataclasses_on_sqlalchemy_2_0 = pytest.mark.xfail(
    sa.__version__ >= "2.1",
    reason="Flask-SQLAlchemy 3.1 itself cannot make db.Model of it: its issue 1420.",
    raises=sa.exc.InvalidRequestError,
)


@pytest.fixture
def app(database_url: str) -> Flask:
    """An app that has no models yet."""
    return new_app(database_url)


def new_app(url: str, **config: Any) -> Flask:
    app = Flask(__name__)
    app.test_client_class = BrowserClient
    app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=url, TESTING=True, **config)
    return app


@pytest.fixture
def make_db() -> Iterator[MakeDB]:
    """Make a ``SQLAlchemy()`` for an app; its tables are dropped in the end."""
    made: list[tuple[Flask, SQLAlchemy]] = []

    def make(app: Flask, **options: Any) -> SQLAlchemy:
        db = SQLAlchemy(app, **options)
        made.append((app, db))
        return db

    yield make
    for app, db in made:
        with app.app_context():
            db.session.remove()
            db.drop_all()
            for engine in db.engines.values():
                engine.dispose()


def legacy(db: SQLAlchemy) -> Any:
    class User(db.Model):  # type: ignore[name-defined, misc]
        id = db.Column(db.Integer, primary_key=True)
        name = db.Column(db.String(50), nullable=False)

    return User


def mapped(db: SQLAlchemy) -> Any:
    class User(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))

    return User


def dataclass(db: SQLAlchemy) -> Any:
    class User(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str] = mapped_column(sa.String(50))

    return User


def dataclass_of_its_own(db: SQLAlchemy) -> Any:
    class User(MappedAsDataclass, db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str] = mapped_column(sa.String(50))

    return User


def options_of(kind: str) -> dict[str, Any]:
    """What ``SQLAlchemy()`` is given; each time a new base, with tables of its own."""

    class Base(DeclarativeBase):
        pass

    class NoMeta(DeclarativeBaseNoMeta):
        pass

    class Dataclass(MappedAsDataclass, DeclarativeBase):
        pass

    class DataclassNoMeta(MappedAsDataclass, DeclarativeBaseNoMeta):
        pass

    class Convention(DeclarativeBase):
        metadata = sa.MetaData(naming_convention=CONVENTION)

    class NoIndexNames(DeclarativeBase):
        metadata = sa.MetaData(naming_convention={"pk": CONVENTION["pk"]})

    class GivenIndexNames(DeclarativeBase):
        metadata = sa.MetaData(naming_convention={"ix": "shop_%(constraint_name)s"})

    options: dict[str, dict[str, Any]] = {
        "legacy": {},
        "base": {"model_class": Base},
        "no meta": {"model_class": NoMeta},
        "dataclass": {"model_class": Dataclass},
        "dataclass no meta": {"model_class": DataclassNoMeta},
        "convention": {"model_class": Convention},
        "no index names": {"model_class": NoIndexNames},
        "given index names": {"model_class": GivenIndexNames},
        "legacy convention": {"metadata": sa.MetaData(naming_convention=CONVENTION)},
        "no names": {"model_class": Base, "disable_autonaming": True},
    }
    return options[kind]


def check_journey(app: Flask, db: SQLAlchemy, User: Any, referrals: Referrals) -> None:
    """Make a link, follow it, act, become a user, act again, and look at it from every side."""

    @app.post("/act")
    def act() -> str:
        user = db.session.get(User, key) if (key := request.form.get("user")) else None
        if user is not None:
            referrals.link_user(user)
        response = Referral.record_response("ACTED", user=user)
        return "" if response is None else response.referral.code

    with app.app_context():
        db.create_all()
        olga, mia = User(name="olga"), User(name="mia")
        db.session.add_all([olga, mia])
        db.session.commit()
        code = Referral.create("/welcome", user=olga).code
        mia_id = mia.id
    client = app.test_client()
    assert client.get(f"/referrals/{code}").headers["Location"] == "/welcome"
    assert client.post("/act").text == code
    assert client.post("/act", data={"user": str(mia_id)}).text == code
    assert client.post("/act").text == ""
    with app.app_context():
        olga = db.session.execute(sa.select(User).where(User.name == "olga")).scalar_one()
        model: Any = referrals.Referral
        (referral,) = olga.referral_codes
        assert (referral.code, referral.user, referral.response_count) == (code, olga, 1)
        assert [response.user.name for response in referral.responses] == ["mia"] * 3
        assert [str(response) for response in referral.filtered_responses()] == ["ACTED", "ACTED", "RESPONDED"]
        assert Referral.create("/welcome", user=olga) is referral
        assert model.query.filter_by(code=code).one() is referral
        joined = sa.select(Referral.code).join(ReferralResponse.referral).distinct()
        assert db.session.scalars(joined).all() == [code]
        assert repr(referral) == f"<Referral {referral.id}>"


@pytest.mark.parametrize(
    ("kind", "declare"),
    [
        ("legacy", legacy),
        ("base", mapped),
        ("no meta", mapped),
        pytest.param("dataclass", dataclass, marks=dataclasses_on_sqlalchemy_2_0),
        pytest.param("dataclass no meta", dataclass, marks=dataclasses_on_sqlalchemy_2_0),
        ("base", dataclass_of_its_own),
        ("no meta", dataclass_of_its_own),
        ("convention", mapped),
        ("no index names", mapped),
        ("given index names", mapped),
        ("legacy convention", legacy),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_journey_on_every_base(app: Flask, make_db: MakeDB, kind: str, declare: Callable[[SQLAlchemy], Any]) -> None:
    db = make_db(app, **options_of(kind))
    User = declare(db)
    check_journey(app, db, User, Referrals(app, user_model=User))


def test_journey_without_automatic_table_names(app: Flask, make_db: MakeDB) -> None:
    db = make_db(app, **options_of("no names"))

    class User(db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))

    check_journey(app, db, User, Referrals(app, user_model=User))


def test_own_referral_cannot_be_a_dataclass(sqlite_url: str, make_db: MakeDB) -> None:
    """SQLAlchemy takes no columns from a mixin that is none: an error on 2.1, on 2.0 a warning that it will be one."""
    db = make_db(new_app(sqlite_url), **options_of("base"))
    with pytest.raises((sa.exc.SADeprecationWarning, sa.exc.ArgumentError, sa.exc.InvalidRequestError)):

        class Invite(ReferralMixin, MappedAsDataclass, db.Model):  # type: ignore[name-defined, misc]
            pass


KEYS: dict[str, tuple[Any, Any]] = {"int": (sa.Integer(), None), "uuid": (sa.Uuid(), uuid.uuid4)}


@pytest.fixture(scope="module", params=NAMES)
def urls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two databases on one of the servers."""
    folders = [tmp_path_factory.mktemp("database") for _ in range(2)]
    with new_database(request.param, folders[0]) as one, new_database(request.param, folders[1]) as other:
        yield [one, other]


class TestBinds:
    """Users in one database, referrals in another: no foreign key can lead there."""

    @pytest.fixture
    def app(self, urls: list[str]) -> Flask:
        return new_app(urls[0], SQLALCHEMY_BINDS={"other": urls[1]})

    def declare_user(self, db: SQLAlchemy, kind: str = "int", **attributes: Any) -> Any:
        key_type, new_key = KEYS[kind]
        body = {
            "__module__": __name__,
            "id": mapped_column(key_type, primary_key=True, default=new_key),
            "name": mapped_column(sa.String(50)),
            **attributes,
        }
        return type("User", (db.Model,), body)

    def declare_pair(self, db: SQLAlchemy, User: Any, response_bind: str | None = "other") -> tuple[Any, Any]:
        class Referral(ReferralMixin, db.Model):  # type: ignore[name-defined, misc]
            __bind_key__ = "other"
            __user_model__ = User

        class Answer(ReferralResponseMixin, db.Model):  # type: ignore[name-defined, misc]
            __bind_key__ = response_bind
            __user_model__ = User
            __referral_model__ = Referral

        return Referral, Answer

    @pytest.mark.parametrize("kind", KEYS)
    def test_journey_with_own_models_elsewhere(self, app: Flask, make_db: MakeDB, kind: str) -> None:
        db = make_db(app, **options_of("base"))
        User = self.declare_user(db, kind)
        models = self.declare_pair(db, User)
        if kind == "int":
            check_journey(app, db, User, Referrals(app))
        else:
            self.check_key(app, db, User, Referrals(app))
        for model in models:
            column = model.__table__.c.user_id
            assert (type(column.type), column.foreign_keys) == (type(KEYS[kind][0]), set())
            with app.app_context():
                assert model.__tablename__ in sa.inspect(db.engines["other"]).get_table_names()
                assert model.__tablename__ not in sa.inspect(db.engine).get_table_names()

    def check_key(self, app: Flask, db: SQLAlchemy, User: Any, referrals: Referrals) -> None:
        with app.app_context():
            db.create_all()
            olga = User(name="olga")
            db.session.add(olga)
            referral: Any = Referral.create("/", user=olga)
            response = referral.respond("CALLED", user=olga)
            db.session.expire_all()
            assert (referral.user, referral.user_id, response.user) == (olga, olga.id, olga)
            assert olga.referral_codes == [referral]

    @pytest.mark.parametrize("kind", ["legacy", "base", "no meta"])
    def test_journey_with_users_elsewhere(self, app: Flask, make_db: MakeDB, kind: str) -> None:
        db = make_db(app, **options_of(kind))
        User = self.declare_user(db, __bind_key__="other")
        check_journey(app, db, User, Referrals(app, user_model=User))
        with app.app_context():
            assert sa.inspect(db.engines["other"]).get_table_names() == ["user"]

    @dataclasses_on_sqlalchemy_2_0
    def test_journey_with_users_elsewhere_who_are_dataclasses(self, app: Flask, make_db: MakeDB) -> None:
        db = make_db(app, **options_of("dataclass"))

        class User(db.Model):  # type: ignore[name-defined, misc]
            __bind_key__ = "other"
            id: Mapped[int] = mapped_column(primary_key=True, init=False)
            name: Mapped[str] = mapped_column(sa.String(50))

        check_journey(app, db, User, Referrals(app, user_model=User))

    def test_response_is_made_where_the_referral_is(self, app: Flask, make_db: MakeDB) -> None:
        db = make_db(app, **options_of("base"))
        User = self.declare_user(db)

        class Referral(ReferralMixin, db.Model):  # type: ignore[name-defined, misc]
            __bind_key__ = "other"
            __user_model__ = User

        check_journey(app, db, User, Referrals(app))
        with app.app_context():
            assert set(sa.inspect(db.engines["other"]).get_table_names()) == {
                "referral",
                "referral_response",
                "referral_total",
            }

    def test_all_on_one_bind_have_foreign_keys(self, app: Flask, make_db: MakeDB) -> None:
        db = make_db(app, **options_of("base"))
        User = self.declare_user(db, __bind_key__="other")
        models = self.declare_pair(db, User)
        check_journey(app, db, User, Referrals(app))
        for model in models:
            assert [key.column for key in model.__table__.c.user_id.foreign_keys] == [User.__table__.c.id]

    @pytest.mark.parametrize("by", ["session", "statement"])
    def test_deleted_user_leaves_no_page_broken(self, app: Flask, make_db: MakeDB, by: str) -> None:
        db = make_db(app, **options_of("base"))
        User = self.declare_user(db)
        self.declare_pair(db, User)
        Referrals(app)
        with app.app_context():
            db.create_all()
            olga = User(name="olga")
            db.session.add(olga)
            referral: Any = Referral.create("/", user=olga)
            response = referral.respond("CALLED", user=olga)
            if by == "session":
                db.session.delete(olga)
            else:
                db.session.execute(sa.delete(User))
            db.session.commit()
            assert (referral.user, str(referral), response.user) == (None, referral.code, None)
            assert app.test_client().get(f"/referrals/{referral.code}").status_code == 302

    def test_objects_of_equal_tables_in_two_databases_are_two_targets(self, app: Flask, make_db: MakeDB) -> None:
        db = make_db(app, **options_of("base"))
        tea, other_tea = (
            type(name, (db.Model,), {"__module__": __name__, "__tablename__": "tea", "__bind_key__": bind} | columns)
            for name, bind in (("Tea", None), ("OtherTea", "other"))
            if (columns := {"id": mapped_column(sa.Integer, primary_key=True)})
        )
        Referrals(app)
        with app.app_context():
            db.create_all()
            objects = [tea(id=1), other_tea(id=1)]
            db.session.add_all(objects)
            db.session.commit()
            links = [Referral.create("/", target=each) for each in objects]
            db.session.expire_all()
            assert [link.target for link in links] == objects
            assert [link.target_type for link in links] == ["tea", "other:tea"]

    def test_pair_in_two_databases_is_an_error(self, app: Flask, make_db: MakeDB) -> None:
        db = make_db(app, **options_of("base"))
        self.declare_pair(db, self.declare_user(db), response_bind=None)
        with pytest.raises(ConfigurationError, match=r"Referral and Answer are in two databases: .*__bind_key__"):
            Referrals(app)


class TestSchemas:
    """PostgreSQL's namespaces."""

    @pytest.fixture
    def app(self, tmp_path: Path) -> Iterator[Flask]:
        with new_database("postgresql", tmp_path) as url:
            engine = sa.create_engine(url)
            with engine.begin() as connection:
                for schema in ("shop", "accounts"):
                    connection.execute(sa.schema.CreateSchema(schema))
            engine.dispose()
            yield new_app(url)

    def test_all_tables_in_one(self, app: Flask, make_db: MakeDB) -> None:
        db = make_db(app, metadata=sa.MetaData(schema="shop"))
        User = legacy(db)
        check_journey(app, db, User, Referrals(app, user_model=User))
        with app.app_context():
            tables = {"user", "referral", "referral_response", "referral_total"}
            assert set(sa.inspect(db.engine).get_table_names("shop")) == tables

    def test_each_table_in_another(self, app: Flask, make_db: MakeDB) -> None:
        db = make_db(app, **options_of("base"))

        class User(db.Model):  # type: ignore[name-defined, misc]
            __table_args__ = {"schema": "accounts"}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(50))

        class Referral(ReferralMixin, db.Model):  # type: ignore[name-defined, misc]
            __table_args__ = {"schema": "shop"}
            __user_model__ = User

        check_journey(app, db, User, Referrals(app))
        with app.app_context():
            inspector = sa.inspect(db.engine)
            assert [inspector.get_table_names(name) for name in ("accounts", "shop", "public")] == [
                ["user"],
                ["referral", "referral_total"],
                ["referral_response"],
            ]
            (key,) = inspector.get_foreign_keys("referral", "shop")
            assert (key["referred_schema"], key["referred_table"]) == ("accounts", "user")
