"""Setting the extension up: what it needs, what it refuses, and how apps share it."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_referrals import ConfigurationError, Referral, ReferralMixin, ReferralResponse, Referrals, current_referrals
from flask_referrals.settings import Settings
from tests.host import BROWSER

MakeApp = Callable[..., Flask]


def new_db() -> SQLAlchemy:
    class Base(DeclarativeBase):
        pass

    return SQLAlchemy(model_class=Base)


def new_user_model(db: SQLAlchemy, name: str = "User") -> Any:
    columns = {"id": mapped_column(sa.Integer, primary_key=True), "__annotations__": {"id": Mapped[int]}}
    return type(name, (db.Model,), {"__tablename__": name.lower(), "__module__": __name__, **columns})


@pytest.fixture
def db() -> SQLAlchemy:
    """The host's database."""
    return new_db()


@pytest.fixture
def new_app(sqlite_url: str) -> Iterator[MakeApp]:
    """Make an app with a database, without referrals."""
    apps: list[Flask] = []

    def make(db: SQLAlchemy | None = None, **config: Any) -> Flask:
        app = Flask("host")
        app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=sqlite_url, **config)
        if db is not None:
            db.init_app(app)
            apps.append(app)
        return app

    yield make
    for app in apps:
        with app.app_context():
            db = app.extensions["sqlalchemy"]
            db.session.remove()
            db.engine.dispose()


@pytest.fixture
def app(new_app: MakeApp, db: SQLAlchemy) -> Flask:
    """An app with a database, without referrals."""
    return new_app(db)


class TestMissing:
    """What the extension cannot do without."""

    def test_database(self, new_app: MakeApp) -> None:
        with pytest.raises(ConfigurationError, match=re.escape("call 'db.init_app(app)'")):
            Referrals(new_app())

    def test_database_that_comes_too_late(self, new_app: MakeApp, db: SQLAlchemy) -> None:
        app = new_app()
        with pytest.raises(ConfigurationError, match=re.escape("call 'db.init_app(app)' before")):
            Referrals(app)
        db.init_app(app)
        Referrals(app)

    def test_something_else_in_the_place_of_the_database(self, new_app: MakeApp) -> None:
        app = new_app()
        app.extensions["sqlalchemy"] = object()
        with pytest.raises(ConfigurationError, match="no database"):
            Referrals(app)

    @pytest.mark.parametrize("secret", [None, ""])
    def test_secret_key(self, app: Flask, secret: str | None) -> None:
        app.config["SECRET_KEY"] = secret
        with pytest.raises(ConfigurationError, match="SECRET_KEY is not set"):
            Referrals(app)

    def test_referrals(self, app: Flask) -> None:
        with app.app_context():
            with pytest.raises(ConfigurationError, match=re.escape("'referrals.init_app(app)'")):
                Referral.create("/")
            with pytest.raises(ConfigurationError, match=re.escape("'referrals.init_app(app)'")):
                sa.select(ReferralResponse)
            with pytest.raises(ConfigurationError, match=re.escape("'referrals.init_app(app)'")):
                _ = Referrals().ReferralResponse

    def test_app_context(self, app: Flask) -> None:
        referrals = Referrals(app)
        for use in (
            lambda: Referral.create("/"),
            lambda: Referral.record_response("BOUGHT"),
            lambda: sa.select(Referral),
            lambda: referrals.Referral,
            lambda: current_referrals.targets,
        ):
            with pytest.raises(RuntimeError, match="application context"):
                use()

    def test_configuration_error_is_a_runtime_error(self) -> None:
        assert issubclass(ConfigurationError, RuntimeError)


class TestRefusedSettings:
    """A setting that cannot be used is named at start-up."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("REFERRALS_URL_PREFIX", None),
            ("REFERRALS_URL_PREFIX", ""),
            ("REFERRALS_URL_PREFIX", "/"),
            ("REFERRALS_URL_PREFIX", "r"),
            ("REFERRALS_URL_PREFIX", 1),
            ("REFERRALS_BASE_URL", ""),
            ("REFERRALS_BASE_URL", "shop.example"),
            ("REFERRALS_BASE_URL", "//shop.example"),
            ("REFERRALS_BASE_URL", "https://"),
            ("REFERRALS_BASE_URL", "ftp://shop.example"),
            ("REFERRALS_BASE_URL", "https://["),
            ("REFERRALS_BASE_URL", "https://shop.example:x"),
            ("REFERRALS_BASE_URL", "https://shop.example?a=1"),
            ("REFERRALS_BASE_URL", "https://shop.example/#top"),
            ("REFERRALS_BASE_URL", ["https://shop.example"]),
            ("REFERRALS_REDIRECT_PARAM", None),
            ("REFERRALS_REDIRECT_PARAM", ""),
            ("REFERRALS_REDIRECT_PARAM", 1),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", None),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", "shop.example"),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", {"shop.example": True}),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", ["*"]),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", ["shop.example", ""]),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", ["."]),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", ["*."]),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", ["https://shop.example"]),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", ["shop.example/"]),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", ["shop.example:0"]),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", [None]),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", [["shop.example"]]),
            ("REFERRALS_TRUSTED_ORIGINS", "https://app.example"),
            ("REFERRALS_TRUSTED_ORIGINS", ["app.example"]),
            ("REFERRALS_TRUSTED_ORIGINS", ["https://app.example/"]),
            ("REFERRALS_TRUSTED_ORIGINS", ["https://app.example:0"]),
            ("REFERRALS_TRUSTED_ORIGINS", ["https://user@app.example"]),
            ("REFERRALS_TRUSTED_ORIGINS", ["https://*.app.example"]),
            ("REFERRALS_TRUSTED_ORIGINS", ["null"]),
            ("REFERRALS_TRUSTED_ORIGINS", ["*"]),
            ("REFERRALS_FALLBACK_URL", None),
            ("REFERRALS_FALLBACK_URL", ""),
            ("REFERRALS_FALLBACK_URL", "home"),
            ("REFERRALS_FALLBACK_URL", "//evil.example"),
            ("REFERRALS_FALLBACK_URL", "https://shop.example/"),
            ("REFERRALS_ATTRIBUTION", None),
            ("REFERRALS_ATTRIBUTION", "best"),
            ("REFERRALS_ATTRIBUTION", ["last"]),
            ("REFERRALS_IP_STORAGE", None),
            ("REFERRALS_IP_STORAGE", "rot13"),
            ("REFERRALS_IP_STORAGE", ["full"]),
            ("REFERRALS_REFERRER_STORAGE", True),
            ("REFERRALS_REFERRER_STORAGE", "all"),
            ("REFERRALS_QUERY_PARAM", 1),
            ("REFERRALS_QUERY_PARAM", [""]),
            ("REFERRALS_INTERNAL_NETWORKS", "192.0.2.0/24"),
            ("REFERRALS_INTERNAL_NETWORKS", ["192.0.2.1/24"]),
            ("REFERRALS_INTERNAL_NETWORKS", ["the office"]),
            ("REFERRALS_IGNORED", "count"),
            ("REFERRALS_CAMPAIGN_PARAMS", "utm_source"),
            ("REFERRALS_FORWARD_QUERY", "yes"),
            *(
                ("REFERRALS_TIMEZONE", zone)
                for zone in ("Europe/Atlantis", "Europe", "../UTC", "/etc", "", None, 1, b"UTC")
            ),
            ("REFERRALS_RESERVED_CODES", None),
            ("REFERRALS_GUESS_LIMIT", 0),
            ("REFERRALS_GUESS_LIMIT", True),
            ("REFERRALS_ACTION_DISPLAY", None),
            ("REFERRALS_ACTION_DISPLAY", [("BOUGHT", "Bought")]),
            *(
                (name, value)
                for name in ("REFERRALS_ATTRIBUTION_WINDOW", "REFERRALS_REPEAT_WINDOW")
                for value in (
                    0,
                    0.0,
                    -1,
                    True,
                    False,
                    "30",
                    timedelta(0),
                    timedelta(-1),
                    timedelta.max,
                    10**30,
                    float("inf"),
                    float("nan"),
                )
            ),
        ],
        ids=repr,
    )
    def test_setting_is_named(self, app: Flask, name: str, value: Any) -> None:
        app.config[name] = value
        with pytest.raises(ConfigurationError, match=name):
            Referrals(app)
        assert "referrals" not in app.extensions

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("ALLOWED_REDIRECT_HOSTS", "hosts"), ("TRUSTED_ORIGINS", "origins"), ("CAMPAIGN_PARAMS", "names")],
    )
    def test_setting_that_takes_a_list_says_of_what(self, app: Flask, name: str, kind: str) -> None:
        app.config[f"REFERRALS_{name}"] = "https://app.example"
        with pytest.raises(ConfigurationError, match=f"REFERRALS_{name} must be a list of {kind}"):
            Referrals(app)

    @pytest.mark.parametrize("value", ["old", b"old"])
    def test_one_fallback_key_is_no_list_of_keys(self, app: Flask, value: str | bytes) -> None:
        app.config["SECRET_KEY_FALLBACKS"] = value
        with pytest.raises(ConfigurationError, match="SECRET_KEY_FALLBACKS must be a list"):
            Referrals(app)

    def test_app_starts_once_the_setting_is_repaired(self, app: Flask) -> None:
        referrals = Referrals()
        app.config["REFERRALS_IP_STORAGE"] = "rot13"
        with pytest.raises(ConfigurationError):
            referrals.init_app(app)
        app.config["REFERRALS_IP_STORAGE"] = "full"
        referrals.init_app(app)


class TestSettings:
    """A setting that can be used."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("REFERRALS_URL_PREFIX", "/r"),
            ("REFERRALS_BASE_URL", "https://shop.example"),
            ("REFERRALS_BASE_URL", "http://localhost:5000/mount/"),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", ["shop.example", ".tea.example", "*.cups.example:8443", "[::1]"]),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", {"shop.example"}),
            ("REFERRALS_ALLOWED_REDIRECT_HOSTS", ()),
            ("REFERRALS_TRUSTED_ORIGINS", ["https://app.example", "http://[::1]:3000"]),
            ("REFERRALS_FALLBACK_URL", "/home?a=1"),
            ("REFERRALS_ATTRIBUTION", "first"),
            ("REFERRALS_ATTRIBUTION", lambda touches: touches[0]),
            ("REFERRALS_ATTRIBUTION_WINDOW", 60),
            ("REFERRALS_ATTRIBUTION_WINDOW", 0.5),
            ("REFERRALS_ATTRIBUTION_WINDOW", timedelta(days=3650)),
            ("REFERRALS_REPEAT_WINDOW", None),
            ("REFERRALS_TIMEZONE", "America/Argentina/Buenos_Aires"),
            ("REFERRALS_IP_STORAGE", "none"),
            ("REFERRALS_REFERRER_STORAGE", "full"),
            ("REFERRALS_ACTION_DISPLAY", {}),
            ("REFERRALS_QUERY_PARAM", "ref"),
            ("REFERRALS_QUERY_PARAM", ["ref", "r"]),
            ("REFERRALS_INTERNAL_NETWORKS", ["192.0.2.0/24", "2001:db8::/32"]),
            ("REFERRALS_IGNORED", "drop"),
            ("REFERRALS_CAMPAIGN_PARAMS", ()),
            ("REFERRALS_FORWARD_QUERY", True),
            ("REFERRALS_RESERVED_CODES", {"shop"}),
            ("REFERRALS_GUESS_LIMIT", None),
            ("SECRET_KEY_FALLBACKS", []),
            ("SECRET_KEY_FALLBACKS", ("old", b"older")),
        ],
    )
    def test_setting_is_left_as_it_is(self, app: Flask, name: str, value: Any) -> None:
        app.config[name] = value
        Referrals(app)
        assert app.config[name] == value

    def test_fallback_may_be_on_an_allowed_host(self, app: Flask) -> None:
        app.config["REFERRALS_ALLOWED_REDIRECT_HOSTS"] = ["shop.example"]
        app.config["REFERRALS_FALLBACK_URL"] = "https://shop.example/"
        Referrals(app)

    def test_fallback_may_be_on_the_sites_own_address(self, app: Flask) -> None:
        app.config["REFERRALS_BASE_URL"] = "https://shop.example"
        app.config["REFERRALS_FALLBACK_URL"] = "https://shop.example/home"
        Referrals(app)

    def test_every_setting_has_its_default(self, app: Flask) -> None:
        Referrals(app)
        assert {name: app.config[name] for name in Settings.defaults()} == Settings.defaults()

    def test_prefix_is_where_the_routes_are(self, app: Flask, db: SQLAlchemy) -> None:
        app.config["REFERRALS_URL_PREFIX"] = "/r"
        Referrals(app)
        with app.test_request_context():
            db.create_all()
            url = Referral.create("/tea").url
        assert url.startswith("http://localhost/r/")
        client = app.test_client()
        assert client.get(url, headers={"User-Agent": BROWSER}).headers["Location"] == "/tea"
        assert client.post("/r/", json={}).status_code == 401
        assert client.get(url.replace("/r/", "/referrals/")).status_code == 404

    def test_name_of_the_redirect_parameter(self, app: Flask, db: SQLAlchemy) -> None:
        app.config["REFERRALS_REDIRECT_PARAM"] = "next"
        Referrals(app)
        with app.test_request_context():
            db.create_all()
            code = Referral.create("/tea").code
        answer = app.test_client().get(f"/referrals/{code}?next=/cups&redirect_to=/x")
        assert answer.headers["Location"] == "/cups"


class TestUserModel:
    """Whose links they are."""

    def test_it_is_given_to_the_constructor_or_with_the_app(self, new_app: MakeApp) -> None:
        for how in ("constructor", "app"):
            db = new_db()
            user_model, app = new_user_model(db), new_app(db)
            if how == "constructor":
                Referrals(app, user_model=user_model)
            else:
                Referrals().init_app(app, user_model=user_model)
            with app.app_context():
                (key,) = Referral.__table__.c.user_id.foreign_keys  # type: ignore[attr-defined]
                assert key.column is user_model.__table__.c.id

    def test_the_apps_wins_over_the_constructors(self, new_app: MakeApp, db: SQLAlchemy) -> None:
        user_model, other_db = new_user_model(db), new_db()
        other_user_model = new_user_model(other_db)
        referrals = Referrals(user_model=user_model)
        referrals.init_app(new_app(db))
        other = new_app(other_db)
        referrals.init_app(other, user_model=other_user_model)
        with other.app_context():
            (key,) = Referral.__table__.c.user_id.foreign_keys  # type: ignore[attr-defined]
            assert key.column is other_user_model.__table__.c.id

    def test_two_on_one_database_are_refused(self, new_app: MakeApp, db: SQLAlchemy) -> None:
        users, members = new_user_model(db), new_user_model(db, "Member")
        Referrals(new_app(db), user_model=users)
        with pytest.raises(ConfigurationError, match="user_model=Member contradicts User"):
            Referrals(new_app(db), user_model=members)

    def test_one_after_none_is_refused(self, new_app: MakeApp, db: SQLAlchemy) -> None:
        Referrals(new_app(db))
        with pytest.raises(ConfigurationError, match="user_model=User contradicts None"):
            Referrals(new_app(db), user_model=new_user_model(db))

    def test_that_of_another_database_is_refused(self, app: Flask) -> None:
        with pytest.raises(ConfigurationError, match=r"user_model=User is a model of another SQLAlchemy\(\)"):
            Referrals(app, user_model=new_user_model(new_db()))

    @pytest.mark.parametrize("user", [dict, "User"])
    def test_what_is_no_model_is_refused(self, app: Flask, user: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"user_model={user!r} is not a model: pass the class"):
            Referrals(app, user_model=user)

    def test_key_of_two_columns_is_refused(self, app: Flask, db: SQLAlchemy) -> None:
        class Account(db.Model):  # type: ignore[name-defined, misc]
            site: Mapped[int] = mapped_column(primary_key=True)
            number: Mapped[int] = mapped_column(primary_key=True)

        with pytest.raises(ConfigurationError, match="user_model=Account must have a primary key of one column"):
            Referrals(app, user_model=Account)

    def test_app_can_do_without_users_and_flask_login(self, app: Flask, db: SQLAlchemy) -> None:
        Referrals(app)

        @app.post("/buy")
        def buy() -> str:
            response = Referral.record_response("BOUGHT")
            return "" if response is None else response.referral.code

        with app.app_context():
            db.create_all()
            code = Referral.create("/tea", label="poster").code
            assert Referral.__table__.c.user_id.foreign_keys == set()  # type: ignore[attr-defined]
        client = app.test_client()
        client.get(f"/referrals/{code}", headers={"User-Agent": BROWSER})
        assert client.post("/buy").text == code
        with app.app_context():
            response = db.session.scalars(sa.select(ReferralResponse).where(ReferralResponse.action == "BOUGHT")).one()
            assert (response.user_id, response.user, response.referral.label) == (None, None, "poster")


class TestSharing:
    """Apps, databases and extensions in one process."""

    def test_app_is_set_up_once(self, app: Flask) -> None:
        referrals = Referrals(app)
        for another in (referrals, Referrals()):
            with pytest.raises(ConfigurationError, match=re.escape("call 'referrals.init_app(app)' once")):
                another.init_app(app)
        with app.app_context():
            assert current_referrals == referrals

    @pytest.mark.parametrize("shared", [True, False], ids=["one extension", "two extensions"])
    def test_two_apps_on_one_database_share_the_models(self, new_app: MakeApp, db: SQLAlchemy, shared: bool) -> None:
        user_model, apps = new_user_model(db), [new_app(db), new_app(db)]
        first = Referrals(apps[0], user_model=user_model)
        second = first if shared else Referrals(user_model=user_model)
        second.init_app(apps[1])
        models = []
        for app, referrals in zip(apps, (first, second), strict=True):
            with app.app_context():
                models.append((referrals.Referral, referrals.ReferralResponse))
                assert current_referrals._get_current_object() is referrals  # type: ignore[attr-defined]
        assert models[0] == models[1]
        with apps[0].app_context():
            db.create_all()
            code = Referral.create("/tea").code
        assert apps[1].test_client().get(f"/referrals/{code}").headers["Location"] == "/tea"

    def test_second_app_need_not_name_the_user_model_again(self, new_app: MakeApp, db: SQLAlchemy) -> None:
        user_model = new_user_model(db)
        Referrals(new_app(db), user_model=user_model)
        app = new_app(db)
        referrals = Referrals(app)
        with app.app_context():
            assert referrals.Referral.__user_model__ is user_model

    def test_two_databases_have_models_of_their_own(self, new_app: MakeApp, tmp_path: Any) -> None:
        referrals, found = Referrals(), {}
        for name, type_ in (("first", sa.Integer), ("second", sa.String(36))):
            db = new_db()
            attributes = {"id": mapped_column(type_, primary_key=True), "__module__": __name__}
            user_model = type("User", (db.Model,), {"__tablename__": f"{name}_user", **attributes})
            app = Flask(name)
            app.config.from_mapping(SECRET_KEY=name, SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / name}.db")
            db.init_app(app)
            referrals.init_app(app, user_model=user_model)
            with app.app_context():
                assert isinstance(referrals.Referral.__table__.c.user_id.type, type(sa.types.to_instance(type_)))  # type: ignore[attr-defined]
                found[name] = referrals.Referral, app, db
        (first, first_app, first_db), (second, second_app, second_db) = found.values()
        assert first is not second
        with first_app.app_context():
            first_db.create_all()
            Referral.create("/")
            assert first_db.session.scalar(sa.select(sa.func.count()).select_from(Referral)) == 1
            first_db.session.remove()
            first_db.engine.dispose()
        with second_app.app_context():
            second_db.create_all()
            assert second_db.session.scalar(sa.select(sa.func.count()).select_from(Referral)) == 0
            second_db.session.remove()
            second_db.engine.dispose()

    def test_extension_keeps_nothing_of_an_app(self, new_app: MakeApp) -> None:
        referrals = Referrals()
        before = dict(vars(referrals))
        apps = []
        for _ in range(2):
            db = new_db()
            apps.append(new_app(db))
            referrals.init_app(apps[-1], user_model=new_user_model(db))
        assert vars(referrals) == before
        assert not any(isinstance(value, (Flask, SQLAlchemy)) for value in vars(referrals).values())

    def test_constructor_with_an_app_sets_it_up(self, app: Flask) -> None:
        referrals = Referrals(app)
        with app.app_context():
            assert issubclass(referrals.Referral, ReferralMixin)
            assert current_referrals == referrals
        assert {"referrals.create", "referrals.redirect"} <= set(app.view_functions)

    def test_target_name_belongs_to_one_model(self, db: SQLAlchemy) -> None:
        referrals = Referrals()
        users, members = new_user_model(db), new_user_model(db, "Member")
        referrals.register_target(users, name="person")
        referrals.register_target(users, name="person")
        with pytest.raises(ConfigurationError, match="'person'"):
            referrals.register_target(members, name="person")
        with pytest.raises(ConfigurationError, match="too long"):
            referrals.register_target(members, name="x" * 101)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["import flask_referrals", "import flask_referrals; flask_referrals.Referrals()"])
def test_import_does_not_load_what_an_app_may_do_without(code: str) -> None:
    script = (
        f"import sys; {code}; "
        "print([name for name in sys.modules if name.split('.')[0] in ('flask_login', 'flask_migrate', 'alembic')])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("config", "is_warned"),
    [
        ({}, True),
        ({"TESTING": True}, False),
        ({"TRUSTED_HOSTS": ["shop.example"]}, False),
        ({"REFERRALS_BASE_URL": "https://shop.example"}, False),
        ({"SERVER_NAME": "shop.example"}, False),
    ],
)
def test_site_that_believes_any_host_name_is_warned(
    app: Flask, config: dict[str, Any], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app.config["TESTING"] = False
    app.config.update(config)
    Referrals(app)
    assert ("TRUSTED_HOSTS" in caplog.text) is is_warned
