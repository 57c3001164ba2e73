"""Keys of users and rows that change, are issued again, or look alike."""

import json
from enum import Enum
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from flask_login import LoginManager, UserMixin
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from flask_referrals import Referral, Referrals
from tests.conftest import NewApp
from tests.host import Host
from tests.site.helpers import Row, engine_of, on_connect, rows


@pytest.fixture
def new_app(new_app: NewApp) -> NewApp:
    """Make an app with Flask-Login, whose referrals the test sets up."""

    def make(**config: Any) -> tuple[Flask, SQLAlchemy]:
        app, db = new_app(TESTING=True, **config)
        LoginManager(app)
        return app, db

    return make


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True, scope="session")
class TestRotatingKey:
    """Without a user model, ``get_id()`` identifies users, and a new password may change it."""

    def declare(self, db: SQLAlchemy, kind: str) -> Any:
        """Return a user model."""
        if kind == "Flask-Login":

            class Member(UserMixin, db.Model):  # type: ignore[name-defined, misc]
                id: Mapped[int] = mapped_column(primary_key=True)

            return Member
        if kind == "Flask-Security":
            security = pytest.importorskip("flask_security")

            class Account(security.UserMixin, db.Model):  # type: ignore[name-defined, misc]
                id: Mapped[int] = mapped_column(primary_key=True)
                fs_uniquifier: Mapped[str] = mapped_column(sa.String(64), unique=True)

            return Account
        if kind == "mixin":

            class HasToken:
                token: Mapped[str] = mapped_column(sa.String(64), unique=True)

                def get_id(self) -> str:
                    return self.token

            class Person(HasToken, UserMixin, db.Model):  # type: ignore[name-defined, misc]
                id: Mapped[int] = mapped_column(primary_key=True)

            return Person

        class User(UserMixin, db.Model):  # type: ignore[name-defined, misc]
            id: Mapped[int] = mapped_column(primary_key=True)
            token: Mapped[str] = mapped_column(sa.String(64), unique=True)

            def get_id(self) -> str:
                return self.token

        return User

    @pytest.mark.parametrize("kind", ["Flask-Security", "own", "mixin"])
    def test_start_warns(self, new_app: NewApp, caplog: pytest.LogCaptureFixture, kind: str) -> None:
        app, db = new_app()
        model = self.declare(db, kind)
        Referrals(app)
        assert f"user_model={model.__name__}" in caplog.text
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_start_does_not_warn_of_keys_that_stay(self, new_app: NewApp, caplog: pytest.LogCaptureFixture) -> None:
        app, db = new_app()
        self.declare(db, "Flask-Login")
        Referrals(app)
        app, db = new_app()
        Referrals(app, user_model=self.declare(db, "own"))
        assert caplog.records == []
        app, db = new_app()
        model = self.declare(db, "own")
        Referrals(app)
        assert [model.__name__ in record.getMessage() for record in caplog.records] == [True]

    @pytest.mark.parametrize("kind", ["Flask-Security", "own", "mixin"])
    def test_doctor_warns(self, new_app: NewApp, kind: str) -> None:
        app, db = new_app()
        model = self.declare(db, kind)
        Referrals(app)
        output = app.test_cli_runner().invoke(args=["referrals", "doctor", "--json"]).stdout
        findings = [json.loads(line) for line in output.splitlines()]
        warnings = [f"{each['message']} {each['fix']}" for each in findings if each["level"] == "warning"]
        assert [each for each in warnings if f"user_model={model.__name__}" in each]


def test_user_with_the_key_of_a_deleted_user_gets_a_new_response(host: Host) -> None:
    if engine_of(host).dialect.name == "sqlite":
        on_connect(host, "PRAGMA foreign_keys=ON")
    with host.app.app_context():
        otto = host.user("otto")
        key = otto.id
        Referral.create("/tea", code="tea").respond("CAME", user=otto)
        assert Referral.record_response("WELCOMED", user=otto, once=True) is not None
        host.db.session.delete(otto)
        host.db.session.commit()

        mia = host.add(host.User(id=key, name="mia"))
        Referral.create("/coffee", code="coffee").respond("CAME", user=mia)
        welcomed = Referral.record_response("WELCOMED", user=mia, once=True)
        assert welcomed is not None
        assert (welcomed.user, welcomed.referral.code) == (mia, "coffee")
        assert Referral.record_response("WELCOMED", user=mia, once=True) is welcomed
    assert rows(host) == [Row("CAME"), Row("WELCOMED"), Row("CAME", "mia"), Row("WELCOMED", "mia")]


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True, scope="session")
class TestTrailingBlank:
    """MariaDB ignores trailing blanks in comparisons, unless the collation is a NOPAD one."""

    def test_another_user_is_not_forgotten(self, new_app: NewApp) -> None:
        app, db = new_app()
        referrals = Referrals(app)
        with app.app_context():
            db.create_all()
            links = [Referral.create("/", user=name) for name in ("mia", "mia ")]
            links[1].respond("CAME", user="zoe")
            assert Referral.record_response("BOUGHT", user="zoe") is not None
            assert [*Referral.referred_by("mia")] == []
            referrals.forget_user("mia")
            assert [(link.user_id, link.is_active()) for link in links] == [(None, False), ("mia ", True)]

    def test_another_action_is_recorded_once(self, host: Host) -> None:
        with host.app.app_context():
            mia = host.user("mia")
            Referral.create("/").respond("CAME", user=mia)
            responses = [Referral.record_response(action, user=mia, once=True) for action in ("PAID", "PAID ")]
            assert responses[0] is not responses[1]


class Word(str, Enum):
    """Text that a host keeps in an enumeration."""

    ACTION = "PAID"
    KEY = "order 1"
    PLACE = "/tea"
    LABEL = "spring"
    CODE = "tea"


class TestEnumeration:
    """A member of a ``str`` enumeration and its value are the same."""

    @pytest.mark.parametrize(("action", "key"), [(Word.ACTION, "order 1"), ("PAID", Word.KEY), (Word.ACTION, Word.KEY)])
    def test_action_is_recorded_once(self, host: Host, action: str, key: str) -> None:
        with host.app.app_context():
            mia = host.user("mia")
            Referral.create("/").respond("CAME", user=mia)
            paid = Referral.record_response(action, user=mia, key=key)
            assert Referral.record_response("PAID", user=mia, key="order 1") is paid
        assert rows(host) == [Row("CAME", "mia"), Row("PAID", "mia")]

    @pytest.mark.parametrize(
        ("place", "label"), [(Word.PLACE, "spring"), ("/tea", Word.LABEL), (Word.PLACE, Word.LABEL)]
    )
    def test_link_is_made_once(self, host: Host, place: str, label: str) -> None:
        with host.app.app_context():
            link = Referral.create(place, label=label)
            assert Referral.create("/tea", label="spring") is link

    def test_code_is_that_of_the_url(self, host: Host, client: FlaskClient) -> None:
        with host.app.test_request_context():
            link = Referral.create("/", code=Word.CODE, commit=False)
            assert link.url == "http://localhost/referrals/tea"
            host.db.session.commit()
        assert client.get("/referrals/tea").status_code == 302
