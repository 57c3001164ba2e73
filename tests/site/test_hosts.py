"""Every kind of database extension: the whole journey, and the session that is the host's."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import DeclarativeBase, scoped_session, sessionmaker

from flask_referrals import ConfigurationError, Referral, ReferralMixin, ReferralResponse, Referrals, response_recorded
from flask_referrals.db.transactions import is_in_transaction
from flask_referrals.state import current_state
from tests.any_host import KINDS, AnyHost, flask_sqlalchemy_lite, make_any_host, plain_sqlalchemy

ROOT = Path(__file__).parents[2]

MakeAnyHost = Callable[..., AnyHost]


@pytest.fixture
def new_any_host(database_url: str) -> Iterator[MakeAnyHost]:
    """Make a site with its tables; they are dropped after the test."""
    hosts: list[AnyHost] = []

    def make(kind: Any, **config: Any) -> AnyHost:
        host = make_any_host(kind, database_url, **config)
        hosts.append(host)
        with host.app.app_context():
            host.metadata.create_all(host.engine)
        return host

    yield make
    for host in hosts:
        with host.app.app_context():
            host.get_session().close()
            host.metadata.drop_all(host.engine)
            host.engine.dispose()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def host(request: pytest.FixtureRequest, new_any_host: MakeAnyHost) -> AnyHost:
    return new_any_host(request.param)


def add_user(host: AnyHost, name: str) -> Any:
    user = host.new_user(name)
    host.get_session().add(user)
    host.get_session().commit()
    return user


def responses(host: AnyHost) -> list[tuple[str, bool]]:
    """Return the action of each response and whether it has a user, oldest first, as they are in the database now."""
    host.get_session().rollback()
    model: Any = ReferralResponse
    return [
        (each.action, each.user is not None)
        for each in host.get_session().scalars(sa.select(model).order_by(model.created_at, model.id))
    ]


def checked_out(host: AnyHost) -> int:
    with host.app.app_context():
        pool: Any = host.engine.pool
        return int(pool.checkedout())


def test_journey(host: AnyHost) -> None:
    with host.app.app_context():
        code = Referral.create("/welcome", user=add_user(host, "olga"), label="mail").code
    client = host.app.test_client()
    assert client.get(f"/referrals/{code}").headers["Location"] == "/welcome"
    assert client.post("/signup", data={"name": "mia"}).text == code
    assert client.post("/buy", data={"order": "1"}).text == code
    assert client.post("/buy", data={"order": "1"}).text == code
    assert checked_out(host) == 0
    with host.app.app_context():
        assert responses(host) == [("RESPONDED", True), ("SIGNED_UP", True), ("BOUGHT", True)]
        olga, mia = host.get_session().scalars(sa.select(host.User).order_by(host.User.id))
        (link,) = olga.referral_codes
        assert (link.user, link.response_count, Referral.referrer_of(mia)) == (olga, 1, link)
        assert [str(each) for each in link.filtered_responses()] == ["BOUGHT", "SIGNED_UP", "RESPONDED"]
        assert [each.user for each in link.responses] == [mia] * 3
        current_state().extension.forget_user(mia)  # type: ignore[attr-defined]
        assert responses(host) == [("RESPONDED", False), ("SIGNED_UP", False), ("BOUGHT", False)]
        assert link.response_count == 1


@pytest.mark.skipif(flask_sqlalchemy_lite not in KINDS, reason="Flask-SQLAlchemy-Lite is not installed.")
@pytest.mark.skipif(sa.__version__ >= "2.1", reason="Sessions of SQLAlchemy 2.1 commit the transaction of the test.")
def test_click_joins_the_transaction_of_a_test(new_any_host: MakeAnyHost, caplog: pytest.LogCaptureFixture) -> None:
    """Flask-SQLAlchemy-Lite gives all sessions one connection, and rolls its transaction back."""
    host = new_any_host(flask_sqlalchemy_lite)
    with host.app.extensions["sqlalchemy"].test_isolation():
        with host.app.app_context():
            host.engine.connect().execute(sa.insert(host.User).values(name="olga"))  # SQLite begins with a write
            code = Referral.create("/welcome").code
        client = host.app.test_client()
        client.get(f"/referrals/{code}")
        assert client.post("/signup", data={"name": "mia"}).text == code
        with host.app.app_context():
            assert responses(host) == [("RESPONDED", True), ("SIGNED_UP", True)]
    with host.app.app_context():
        assert host.get_session().scalars(sa.select(host.User)).all() == []
        assert responses(host) == []
    assert caplog.records == []


def test_users_have_foreign_keys(host: AnyHost) -> None:
    with host.app.app_context():
        for table in current_state().database.models.tables[:2]:
            assert table.metadata is host.metadata
            assert [key.column for key in table.c.user_id.foreign_keys] == [host.User.__table__.c.id]


def test_transaction_of_the_host_is_found_without_creating_a_session(host: AnyHost) -> None:
    with host.app.app_context():
        database = current_state().database
        assert not is_in_transaction(database)
        assert not database.host.extension.session.registry.has()
        host.get_session().connection()
        assert is_in_transaction(database)
        assert database.session is host.get_session()


def test_work_of_the_host_is_not_committed(host: AnyHost) -> None:
    with host.app.app_context():
        link = Referral.create("/")
        host.get_session().add(host.new_user("max"))
        link.respond("CALLED", commit=False)
        host.app.test_client().get(f"/referrals/{link.code}")
        host.get_session().rollback()
        assert host.get_session().scalar(sa.select(sa.func.count()).select_from(host.User)) == 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("end", ["commit", "teardown"])
def test_receiver_works_in_the_hosts_session_when_its_transaction_ends(
    new_any_host: MakeAnyHost, kind: Any, end: str
) -> None:
    """Also where a session takes no work: in the commit of ``session.begin()``, and while it is closed."""
    host = new_any_host(kind, REFERRALS_QUERY_PARAM="ref")
    seen: list[Any] = []

    def receive(app: Flask, response: Any) -> None:
        session: Any = host.get_session()
        seen.append((response.referral.code, session.scalar(sa.select(sa.func.count()).select_from(host.User))))

    @host.app.get("/look")
    def look() -> str:
        if end == "commit":
            with host.get_session().begin():
                Referral.record_response("LOOKED", commit=False)
        else:
            host.get_session().connection()
        return ""

    with host.app.app_context():
        code = Referral.create("/").code
    client = host.app.test_client()
    if end == "commit":
        client.get(f"/referrals/{code}")
    with response_recorded.connected_to(receive, host.app):
        client.get("/look" if end == "commit" else f"/look?ref={code}")
    assert seen == [(code, 0)]
    assert checked_out(host) == 0


class TestReportBind:
    """``REFERRALS_REPORT_BIND`` names an engine as the host does."""

    @pytest.mark.skipif(flask_sqlalchemy_lite not in KINDS, reason="Flask-SQLAlchemy-Lite is not installed.")
    def test_engine_of_flask_sqlalchemy_lite_is_read(self, sqlite_url: str, tmp_path: Path) -> None:
        engines = {"replica": f"sqlite:///{tmp_path / 'replica.db'}"}
        host = make_any_host(
            flask_sqlalchemy_lite, sqlite_url, SQLALCHEMY_ENGINES=engines, REFERRALS_REPORT_BIND="replica"
        )
        with host.app.app_context():
            for engine in host.app.extensions["sqlalchemy"].engines.values():
                host.metadata.create_all(engine)
            link: Any = Referral.create("/", user=add_user(host, "olga"))
            link.respond("CALLED")
            assert len(responses(host)) == 1
            assert link.filtered_responses() == []
            host.get_session().close()
            for engine in host.app.extensions["sqlalchemy"].engines.values():
                engine.dispose()

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("flask_sqlalchemy", "SQLALCHEMY_BINDS is empty"),
            ("flask_sqlalchemy_lite", "SQLALCHEMY_ENGINES has only 'default'"),
            ("alchemical", "ALCHEMICAL_BINDS is empty"),
            ("plain_sqlalchemy", "a scoped_session has no named engines"),
        ],
    )
    def test_must_be_there(self, sqlite_url: str, kind: str, message: str) -> None:
        for each in KINDS:
            if each.__name__ == kind:
                with pytest.raises(ConfigurationError, match=f"REFERRALS_REPORT_BIND is 'x', but {message}"):
                    make_any_host(each, sqlite_url, REFERRALS_REPORT_BIND="x")


class TestErrors:
    """What is missing is named."""

    def new_app(self) -> Flask:
        app = Flask(__name__)
        app.config["SECRET_KEY"] = "a test's secret"
        return app

    @pytest.mark.parametrize("db", [None, object(), sessionmaker()], ids=["none", "object", "sessionmaker"])
    def test_what_is_no_database_extension_is_refused(self, db: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"This app has no database: .*Referrals\(db=\.\.\.\)"):
            Referrals(self.new_app(), db=db)

    def test_plain_sqlalchemy_needs_a_model(self) -> None:
        with pytest.raises(ConfigurationError, match="Pass user_model="):
            Referrals(self.new_app(), db=scoped_session(sessionmaker()))

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True, scope="session")
    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
    def test_doctor_names_the_settings_of_the_host(self, new_any_host: MakeAnyHost, kind: Any) -> None:
        expected = {
            "flask_sqlalchemy_lite": "SQLALCHEMY_ENGINES['default']",
            "dataclasses": "SQLALCHEMY_ENGINES['default']",
            "alchemical": "ALCHEMICAL_ENGINE_OPTIONS",
            "plain_sqlalchemy": "the arguments of create_engine()",
        }.get(kind.__name__, "SQLALCHEMY_ENGINE_OPTIONS")
        result = new_any_host(kind).app.test_cli_runner().invoke(args=["referrals", "doctor"])
        assert f"Add 'connect_args': {{'options': '-c lock_timeout=2s'}} to {expected}." in result.output


class TestPlainSQLAlchemy:
    """A ``scoped_session`` without any extension."""

    def test_own_referral_model_gives_the_base_where_there_are_no_users(self, sqlite_url: str) -> None:
        class Base(DeclarativeBase):
            pass

        class Invite(ReferralMixin, Base):
            __tablename__ = "invite"

        db_session = scoped_session(sessionmaker(sa.create_engine(sqlite_url)))
        app = Flask(__name__)
        app.config["SECRET_KEY"] = "a test's secret"
        Referrals(app, referral_model=Invite, db=db_session)
        with app.app_context():
            Base.metadata.create_all(db_session.get_bind())
            assert Referral.create("/", user=None).response_count == 0
            assert set(Base.metadata.tables) == {"invite", "referral_response", "invite_total"}
            db_session.remove()
            db_session.get_bind().engine.dispose()

    @pytest.mark.parametrize("when", ["before the first click", "after it"])
    def test_host_may_bind_its_sessions_later(self, sqlite_url: str, tmp_path: Path, when: str) -> None:
        """As tests do, which give each test a database, or a connection, of its own."""
        host = make_any_host(plain_sqlalchemy, f"sqlite:///{tmp_path / 'first.db'}")
        engines = [host.options["db"].get_bind(), sa.create_engine(sqlite_url)]
        for engine in engines:
            host.metadata.create_all(engine)
        with host.app.app_context():
            code = Referral.create("/", code="tea").code
            host.get_session().close()
        if when == "after it":
            host.app.test_client().get(f"/referrals/{code}")
        host.options["db"].remove()
        host.options["db"].configure(bind=engines[1])
        with host.app.app_context():
            Referral.create("/", code="tea")
            host.get_session().close()
        host.app.test_client().get(f"/referrals/{code}")
        with host.app.app_context():
            assert responses(host) == [("RESPONDED", False)]
            host.options["db"].remove()
        for engine in engines:
            engine.dispose()

    @pytest.mark.slow
    def test_flask_sqlalchemy_and_flask_migrate_are_not_imported(self, tmp_path: Path) -> None:
        script = f"""
import sys
from types import SimpleNamespace

sys.modules |= dict.fromkeys(["flask_sqlalchemy", "flask_migrate", "flask_sqlalchemy_lite", "alchemical"])
import flask
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, mapped_column, scoped_session, sessionmaker
from flask_referrals import Referral, Referrals

class Base(DeclarativeBase): pass

class User(Base):
    __tablename__ = "user"
    id = mapped_column(sa.Integer, primary_key=True)

app = flask.Flask("host")
app.config.update(SECRET_KEY="a test's secret", REFERRALS_BASE_URL="https://shop.example")
db_session = scoped_session(sessionmaker(sa.create_engine("sqlite:///{tmp_path / "host.db"}")))
Referrals(app, user_model=User, db=db_session)
with app.app_context():
    Base.metadata.create_all(db_session.get_bind())
    code = Referral.create("/").code
    db_session.remove()
browser = dict(HTTP_USER_AGENT="Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
app.test_client().get("/referrals/" + code, environ_base=browser)
print(app.test_cli_runner().invoke(args=["referrals", "check"]).output)
with app.app_context():
    print(db_session.scalars(sa.select(Referral)).one().response_count)
"""
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.split("\n\n") == ["The referral tables match the models.", "1\n"], done.stderr
