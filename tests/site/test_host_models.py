"""Hosts' own models, their kinds of keys, and what comes back from each database."""

import pickle
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy.orm import Mapped, mapped_column, relationship

from flask_referrals import (
    ConfigurationError,
    InvalidValueError,
    Referral,
    ReferralMixin,
    ReferralResponse,
    ReferralResponseMixin,
    Referrals,
)
from flask_referrals.actors import parse_user_key
from flask_referrals.state import current_state
from tests.conftest import MakeHost, NewApp
from tests.host import Host, in_parallel
from tests.pages import snippet


def declare_user(db: SQLAlchemy) -> Any:
    class User(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))

    return User


def declare(db: SQLAlchemy, name: str, mixin: Any, **attributes: Any) -> Any:
    """Declare a host's own model, and hold on to it as its module would: SQLAlchemy does not."""
    body = {"__tablename__": name.lower(), "__module__": __name__, **attributes}
    model = type(name, (mixin, db.Model), body)
    setattr(db, name, model)
    return model


def declare_invite(db: SQLAlchemy, user: Any = None, name: str = "Invite") -> Any:
    return declare(db, name, ReferralMixin, __user_model__=user)


def declare_answer(db: SQLAlchemy, referral: Any, user: Any = None, name: str = "Answer") -> Any:
    return declare(db, name, ReferralResponseMixin, __user_model__=user, __referral_model__=referral)


class TestOwnModels:
    """A host's subclasses of the mixins are the referrals of its app."""

    def test_pair_is_picked_up(self, new_app: NewApp) -> None:
        app, db = new_app()
        User = declare_user(db)

        class Invite(ReferralMixin, db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "invite"
            __user_model__ = User
            campaign: Mapped[str | None] = mapped_column(sa.String(40))

        class Answer(ReferralResponseMixin, db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "answer"
            __user_model__ = User
            __referral_model__ = Invite
            score: Mapped[int | None]

        referrals = Referrals(app)
        assert set(db.metadata.tables) == {"user", "invite", "answer", "invite_total"}
        with app.app_context():
            db.create_all()
            assert (referrals.Referral, referrals.ReferralResponse) == (Invite, Answer)
            user = User(name="olga")
            db.session.add(user)
            invite = Invite.create("/", user=user)
            invite.campaign = "spring"
            answer: Any = invite.respond("CALLED")
            answer.score = 3
            db.session.commit()
            columns = sa.select(Invite.campaign, Answer.score).join(ReferralResponse.referral)
            found = db.session.execute(columns).all()
            assert found == [("spring", 3)]
            assert user.referral_codes == [invite]

    def test_pair_of_the_documentation(self, new_app: NewApp) -> None:
        app, db = new_app()
        User = declare_user(db)
        models: dict[str, Any] = {"__name__": __name__, "db": db, "User": User}
        exec(snippet("migrations.rst", "python", "class Invite"), models)
        Referrals(app, user_model=User)
        assert set(db.metadata.tables) == {"user", "invite", "answer", "invite_total"}
        with app.app_context():
            db.create_all()
            assert Referral.create("/").respond("CALLED").referral.__class__ is models["Invite"]

    def test_default_response_answers_the_own_referral(self, new_app: NewApp) -> None:
        app, db = new_app()
        Invite = declare_invite(db)
        Referrals(app)
        with app.app_context():
            db.create_all()
            assert Referral.create("/").respond("CALLED").referral.__class__ is Invite
            assert set(db.metadata.tables) == {"invite", "referral_response", "invite_total"}

    def test_own_response_names_its_referral(self, new_app: NewApp) -> None:
        app, db = new_app()
        User = declare_user(db)
        Invite = declare_invite(db, User)
        Answer = declare_answer(db, Invite, User)
        referrals = Referrals(app, response_model=Answer, user_model=User)
        with app.app_context():
            assert referrals.Referral is Invite

    def test_user_model_of_the_own_models_is_that_of_the_app(self, new_app: NewApp) -> None:
        app, db = new_app()
        User = declare_user(db)
        declare_invite(db, User)
        Referrals(app)
        with app.app_context():
            db.create_all()
            user = User(name="olga")
            db.session.add(user)
            db.session.commit()
            assert Referral.create("/").respond("CALLED", user=user).user is user

    def test_one_of_two_is_chosen_by_the_host(self, new_app: NewApp) -> None:
        app, db = new_app()
        Invite = declare_invite(db)
        declare_invite(db, name="Voucher")
        referrals = Referrals(app, referral_model=Invite)
        with app.app_context():
            assert referrals.Referral is Invite


class TestMistakes:
    """Models that do not belong together are an error that names them."""

    def test_two_referrals(self, new_app: NewApp) -> None:
        app, db = new_app()
        declare_invite(db)
        declare_invite(db, name="Voucher")
        with pytest.raises(ConfigurationError, match=r"Invite and Voucher: .*Referrals\(referral_model=\.\.\.\)"):
            Referrals(app)

    def test_two_responses(self, new_app: NewApp) -> None:
        app, db = new_app()
        Invite = declare_invite(db)
        declare_answer(db, Invite)
        declare_answer(db, Invite, name="Reply")
        with pytest.raises(ConfigurationError, match=r"Answer and Reply: .*Referrals\(response_model=\.\.\.\)"):
            Referrals(app)

    def test_response_of_another_referral(self, new_app: NewApp) -> None:
        app, db = new_app()
        Invite = declare_invite(db)
        Voucher = declare_invite(db, name="Voucher")
        declare_answer(db, Invite)
        with pytest.raises(ConfigurationError, match=r"Answer\.__referral_model__ must be Voucher"):
            Referrals(app, referral_model=Voucher)

    def test_user_model_that_is_not_given_to_the_own_model(self, new_app: NewApp) -> None:
        app, db = new_app()
        User = declare_user(db)
        declare_invite(db)
        with pytest.raises(ConfigurationError, match="__user_model__"):
            Referrals(app, user_model=User)

    def test_pair_with_two_user_models(self, new_app: NewApp) -> None:
        app, db = new_app()
        User = declare_user(db)
        declare_answer(db, declare_invite(db, User))
        with pytest.raises(ConfigurationError, match="__user_model__"):
            Referrals(app)

    @pytest.mark.parametrize("option", ["referral", "response"])
    def test_own_model_that_is_declared_too_late(self, new_app: NewApp, option: str) -> None:
        app, db = new_app()
        referrals = Referrals(app)
        with app.app_context():
            model = referrals.Referral
        with pytest.raises(ConfigurationError, match=rf"declared after .*Referrals\({option}_model=\.\.\.\)"):
            declare_invite(db) if option == "referral" else declare_answer(db, model)


class TestTablesOfOwnModels:
    """A host may add to a table; what the extension needs stays."""

    @pytest.mark.parametrize("is_tuple", [False, True])
    def test_table_args_of_the_host_keep_the_indexes(self, new_app: NewApp, is_tuple: bool) -> None:
        app, db = new_app()
        comment: dict[str, Any] = {"comment": "links"}
        args: Any = (sa.Index("host_index", "label"), sa.Index("same", "user_id"), comment) if is_tuple else comment
        Invite = declare(db, "Invite", ReferralMixin, __table_args__=args)
        Answer = declare(db, "Answer", ReferralResponseMixin, __table_args__=comment, __referral_model__=Invite)
        Referrals(app)
        with app.app_context():
            db.create_all()
        table = Invite.__table__
        names = {"host_index", "same"} if is_tuple else {"ix_invite_user_id"}
        assert {index.name for index in table.indexes} == {*names, "ix_invite_folded_code"}
        assert (table.comment, table.dialect_options["sqlite"]["autoincrement"]) == ("links", True)
        names = {"ix_answer_session_key", "ix_answer_user_id", "ix_answer_referral_id"}
        assert {index.name for index in Answer.__table__.indexes} == names

    def test_columns_of_an_index_may_have_other_names(self, new_app: NewApp) -> None:
        app, db = new_app()
        column = mapped_column("visitor", sa.String(43))
        declare(db, "Answer", ReferralResponseMixin, session_key=column, __referral_model__=declare_invite(db))
        Referrals(app)
        assert "ix_answer_visitor" in {index.name for index in db.metadata.tables["answer"].indexes}

    def test_index_is_made_once_for_models_in_one_table(self, new_app: NewApp) -> None:
        app, db = new_app()
        Invite = declare(db, "Invite", ReferralMixin, __mapper_args__={"polymorphic_on": "label"})
        gift = type("Gift", (Invite,), {"__module__": __name__, "__mapper_args__": {"polymorphic_identity": "gift"}})
        Referrals(app)
        with app.app_context():
            db.create_all()
            link = gift(code="gift", redirect_to="/", identity="any")
            db.session.add(link)
            db.session.commit()
            db.session.delete(link)
            db.session.commit()

    def test_links_that_are_not_the_apps_can_be_deleted(self, new_app: NewApp) -> None:
        app, db = new_app()
        User = declare_user(db)
        Voucher = declare(db, "Voucher", ReferralMixin, __user_model__=User, __user_backref__=None)
        Invite = declare_invite(db, User)
        Answer = declare_answer(db, Invite, User)
        declare(
            db,
            "Reply",
            ReferralResponseMixin,
            __user_model__=User,
            __referral_model__=Invite,
            __referral_backref__=None,
        )
        Referrals(app, referral_model=Invite, response_model=Answer)
        with app.app_context():
            db.create_all()
            db.session.add(Voucher(code="any", redirect_to="/", identity="any"))
            Referral.create("/").respond("CALLED")
            db.session.commit()
            for model in (Voucher, Invite):
                db.session.delete(db.session.scalars(sa.select(model)).one())
                db.session.commit()
            assert db.session.scalars(sa.select(ReferralResponse)).all() == []


def test_instances_can_be_pickled(host: Host, ctx: None) -> None:
    response = Referral.create("/").respond("CALLED")
    code = response.referral.code
    copy = pickle.loads(pickle.dumps(response))
    assert (copy.id, copy.action, copy.referral.code) == (response.id, "CALLED", code)
    assert host.db.session.merge(copy) is response
    host.db.session.expunge_all()
    host.db.session.add(copy)
    assert (type(copy), copy.referral.responses.count()) == (type(response), 1)


def test_apps_on_one_database_are_set_up_in_threads(sqlite_url: str) -> None:
    db = SQLAlchemy()
    apps = [Flask(__name__) for _ in range(8)]
    for app in apps:
        app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=sqlite_url)
        db.init_app(app)
    in_parallel([partial(Referrals, app) for app in apps])
    assert len({app.extensions["referrals"].database.models.referral for app in apps}) == 1


class TestNamesInHostModels:
    """The host's models name those of the extension by string, before or after these are built."""

    def test_foreign_key_and_relationship(self, new_app: NewApp) -> None:
        app, db = new_app()

        class Order(db.Model):  # type: ignore[name-defined, misc]
            id: Mapped[int] = mapped_column(primary_key=True)
            referral_id: Mapped[int | None] = mapped_column(sa.ForeignKey("referral.id"))
            referral: Mapped[Any] = relationship("Referral", backref="orders")

        Referrals(app)

        class Mail(db.Model):  # type: ignore[name-defined, misc]
            id: Mapped[int] = mapped_column(primary_key=True)
            response_id: Mapped[int] = mapped_column(sa.ForeignKey("referral_response.id"))
            response: Mapped[Any] = relationship("ReferralResponse")

        with app.app_context():
            db.create_all()
            referral: Any = Referral.create("/")
            mail = Mail(response=referral.respond("CALLED"))
            order = Order(referral=referral)
            db.session.add_all([order, mail])
            db.session.commit()
            db.session.expire_all()
            assert order.referral is referral
            assert referral.orders == [order]
            assert mail.response.referral is referral

    def test_relationship_to_the_concrete_class(self, new_app: NewApp) -> None:
        app, db = new_app()
        referrals = Referrals(app)
        with app.app_context():

            class Order(db.Model):  # type: ignore[name-defined, misc]
                id: Mapped[int] = mapped_column(primary_key=True)
                referral_id: Mapped[int | None] = mapped_column(sa.ForeignKey("referral.id"))
                referral = relationship(referrals.Referral)

            db.create_all()
            order = Order(referral=Referral.create("/"))
            db.session.add(order)
            db.session.commit()
            assert order.referral_id == order.referral.id


class UuidAsBytes(sa.TypeDecorator[uuid.UUID]):
    """A host's own type of keys."""

    impl = sa.BINARY(16).with_variant(sa.LargeBinary(), "postgresql")
    cache_ok = True
    python_type = uuid.UUID

    def process_bind_param(self, value: uuid.UUID | None, dialect: sa.Dialect) -> bytes | None:
        return None if value is None else value.bytes

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> uuid.UUID | None:
        return None if value is None else uuid.UUID(bytes=value)


KEYS = {
    "int": (sa.Integer(), None),
    "str": (sa.String(36), lambda: str(uuid.uuid4())),
    "uuid": (sa.Uuid(), uuid.uuid4),
    "own type": (UuidAsBytes(), uuid.uuid4),
}


@pytest.fixture(params=KEYS)
def keyed_host(request: pytest.FixtureRequest, new_host: MakeHost) -> Host:
    """The site with one kind of keys, on a database that enforces foreign keys."""
    key_type, new_key = KEYS[request.param]
    host = new_host(key_type=key_type, new_key=new_key)
    enforce_foreign_keys(host)
    return host


def enforce_foreign_keys(host: Host) -> None:
    """Make SQLite do what the servers do."""
    with host.app.app_context():
        engine = host.db.engine
        if engine.dialect.name == "sqlite":
            engine.dispose()
            event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))


class TestKeys:
    """Users and targets with keys that are integers, text, UUIDs or of the host's own type."""

    def test_journey_of_a_visitor(self, keyed_host: Host) -> None:
        host, client = keyed_host, keyed_host.client()
        with host.app.app_context():
            olga = host.user("olga")
            code = Referral.create("/", user=olga).code
        client.get(f"/referrals/{code}")
        assert client.post("/act/TRIED").text == code
        client.post("/signup", data={"name": "nils"})
        assert client.post("/act/BOUGHT").text == code
        with host.app.app_context():
            responses = host.responses()
            assert [response.action for response in responses] == ["RESPONDED", "TRIED", "SIGNED_UP", "BOUGHT"]
            nils = host.db.session.scalars(sa.select(host.User).filter_by(name="nils")).one()
            assert {response.user for response in responses} == {nils}
            assert {response.user_id for response in responses} == {nils.id}
            assert {response.referral.user.name for response in responses} == {"olga"}
            (referral,) = responses[0].referral.user.referral_codes
            assert (referral.code, str(referral)) == (code, f"{referral.user} ({code})")

    def test_target(self, keyed_host: Host) -> None:
        host = keyed_host
        with host.app.app_context():
            tea, cup = host.add(host.Product(name="tea")), host.add(host.Product(name="cup"))
            referral = Referral.create("/", target=tea)
            response = referral.respond("CALLED", target=cup)
            host.db.session.expire_all()
            assert (referral.target, response.target) == (tea, cup)
            assert (referral.target_type, referral.target_id) == ("product", str(tea.id))
            assert Referral.create("/", target=tea) is referral
            assert Referral.create("/", target=cup) is not referral

            host.db.session.delete(tea)
            host.db.session.commit()
            assert (referral.target, response.target) == (None, cup)

    def test_statistics_have_the_owners(self, keyed_host: Host) -> None:
        host, client = keyed_host, keyed_host.client()
        with host.app.app_context():
            code = Referral.create("/", user=host.user("olga")).code
        client.get(f"/referrals/{code}")
        with host.app.app_context():
            ((of_all, _),) = host.referrals.stats(by="owner").rows
            ((largest, _),) = host.referrals.stats(by="owner", limit=1).rows
            ((best, _),) = host.referrals.leaderboard("RESPONDED")
            assert of_all.name == largest.name == best.name == "olga"

    @pytest.mark.parametrize("by", ["session", "statement"])
    def test_deleted_user_leaves_rows_and_pages(self, keyed_host: Host, by: str) -> None:
        host, client = keyed_host, keyed_host.client()
        with host.app.app_context():
            code = Referral.create("/welcome", user=host.user("olga")).code
        client.get(f"/referrals/{code}")
        client.post("/signup", data={"name": "nils"})
        with host.app.app_context():
            if by == "session":
                for user in host.db.session.scalars(sa.select(host.User)).all():
                    host.db.session.delete(user)
            else:
                host.db.session.execute(sa.delete(host.User))
            host.db.session.commit()
            (referral,) = host.db.session.scalars(sa.select(Referral)).all()
            assert (referral.user, referral.user_id, str(referral)) == (None, None, code)
            assert [response.user for response in host.responses()] == [None, None]
            assert [str(response) for response in referral.filtered_responses()] == ["SIGNED_UP", "RESPONDED"]
        # A browser that is still logged in as the deleted user is anonymous.
        assert client.post("/act/BOUGHT").text == ""
        assert client.get(f"/referrals/{code}").headers["Location"] == "/welcome"
        assert host.client().get(f"/referrals/{code}").headers["Location"] == "/welcome"


class TestResponsesOfAReferral:
    """``referral.responses``."""

    @pytest.fixture
    def referral(self, host: Host, ctx: None) -> Any:
        """A link with three responses that were stored out of order."""
        enforce_foreign_keys(host)
        referral: Any = Referral.create("/", user=host.user("olga"))
        start = datetime(2026, 1, 1, tzinfo=timezone.utc)
        for action, minute in [("SECOND", 2), ("THIRD", 3), ("FIRST", 1), ("SECOND AGAIN", 2)]:
            created_at = start + timedelta(minutes=minute)
            host.db.session.add(ReferralResponse(referral=referral, action=action, created_at=created_at))
            host.db.session.commit()
        return referral

    def test_are_newest_first(self, referral: Any) -> None:
        assert [str(response) for response in referral.responses] == ["THIRD", "SECOND AGAIN", "SECOND", "FIRST"]

    def test_are_a_query(self, referral: Any) -> None:
        assert [str(response) for response in referral.responses.limit(2)] == ["THIRD", "SECOND AGAIN"]
        assert referral.responses.count() == 4
        assert referral.responses.filter_by(action="FIRST").one().referral is referral

    @pytest.mark.parametrize("by", ["session", "statement"])
    def test_are_deleted_with_it(self, host: Host, referral: Any, by: str) -> None:
        other = Referral.create("/other").respond("KEPT")
        if by == "session":
            host.db.session.delete(referral)
        else:
            host.db.session.execute(sa.delete(Referral).where(Referral.id == referral.id))
        host.db.session.commit()
        assert host.responses() == [other]


TOKYO = timezone(timedelta(hours=9))
NOON = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=timezone.utc)


class TestTimes:
    """Stored in UTC, and aware, in UTC, when they are read."""

    def test_time_is_read_as_it_was_stored(self, host: Host, ctx: None) -> None:
        referral = Referral.create("/", expires_at=NOON.astimezone(TOKYO))
        referral.created_at = NOON.astimezone(TOKYO)
        host.db.session.commit()
        session = host.db.session
        reloads: dict[str, Callable[[], None]] = {
            "commit": session.commit,
            "refresh": lambda: session.refresh(referral),
            "refresh of attributes": lambda: session.refresh(referral, ["created_at", "expired_at"]),
            "expire of an attribute": lambda: session.expire(referral, ["created_at"]),
            "rollback": session.rollback,
        }
        for name, reload in reloads.items():
            reload()
            for time in (referral.created_at, referral.expired_at):
                assert (name, time, time and time.tzinfo) == (name, NOON, timezone.utc)
        host.db.session.expunge_all()
        found = host.db.session.scalars(sa.select(Referral)).one()
        assert (found.created_at, found.created_at.tzinfo) == (NOON, timezone.utc)
        assert host.db.session.scalars(sa.select(Referral).where(Referral.created_at == NOON)).all() == [found]
        assert not found.is_active()

    def test_time_is_in_utc_before_it_is_stored(self, ctx: None) -> None:
        referral = Referral(created_at=NOON.astimezone(TOKYO), expired_at=NOON.astimezone(TOKYO))
        assert (referral.created_at.tzinfo, referral.expired_at and referral.expired_at.tzinfo) == (timezone.utc,) * 2

    def test_default_is_now(self, ctx: None) -> None:
        before = datetime.now(timezone.utc)
        response = Referral.create("/").respond("CALLED")
        for time in (response.created_at, response.referral.created_at):
            assert before - timedelta(seconds=1) <= time <= datetime.now(timezone.utc)
            assert time.tzinfo is timezone.utc

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    def test_zone_of_the_connection_does_not_matter(self, host: Host, ctx: None) -> None:
        referral = Referral.create("/", expires_at=NOON)
        host.db.session.execute(sa.text("SET TIME ZONE 'Asia/Tokyo'"))
        host.db.session.expire_all()
        assert referral.expired_at is not None
        assert (referral.expired_at, referral.expired_at.tzinfo) == (NOON, timezone.utc)

    def test_naive_time_is_refused(self, ctx: None) -> None:
        naive = NOON.replace(tzinfo=None)
        referral = Referral.create("/")
        for name in ("created_at", "expired_at"):
            with pytest.raises(InvalidValueError, match=rf"^{name} must be an aware time"):
                setattr(referral, name, naive)
        with pytest.raises(InvalidValueError, match=r"^created_at must be an aware time"):
            ReferralResponse(created_at=naive)
        with pytest.raises(InvalidValueError, match=r"^expires_at must be an aware time"):
            Referral.create("/other", expires_at=naive)


@pytest.mark.parametrize("value", ["49.99", "0.0001", "-12.5", "9999999999.9999", "0.1", "1234567890.1234", "0"])
def test_money_is_read_as_it_was_stored(host: Host, ctx: None, value: str) -> None:
    response = Referral.create("/").respond("BOUGHT", value=Decimal(value), currency="EUR")
    host.db.session.expire_all()
    assert isinstance(response.value, Decimal)
    assert (response.value, response.currency) == (Decimal(value), "EUR")


def test_parameters_are_read_as_they_were_stored(host: Host, ctx: None) -> None:
    response = Referral.create("/").respond("CALLED")
    response.params = {"utm_source": "häfen", "n": 1}
    host.db.session.commit()
    assert response.params == {"utm_source": "häfen", "n": 1}
    response.params = None
    host.db.session.commit()
    without = sa.select(ReferralResponse).where(ReferralResponse.params.is_(None))
    assert host.db.session.scalars(without).all() == [response]


def test_column_of_another_name_is_filled_by_a_click(new_app: NewApp) -> None:
    app, db = new_app()
    Invite = declare_invite(db)

    class Answer(ReferralResponseMixin, db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "answer"
        __referral_model__ = Invite
        ip_address: Mapped[str | None] = mapped_column("address", sa.String(45))

    Referrals(app)
    with app.app_context():
        db.create_all()
        code = Referral.create("/").code
        app.test_client().get(f"/referrals/{code}")
        assert db.session.scalars(sa.select(Answer.ip_address)).all() == ["127.0.0.0"]


def test_target_of_a_joined_subclass_is_stored_by_its_base_and_found_again(new_app: NewApp) -> None:
    app, db = new_app()

    class Thing(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "thing"}

    class Book(Thing):
        id: Mapped[int] = mapped_column(sa.ForeignKey("thing.id"), primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "book"}

    Referrals(app)
    with app.app_context():
        db.create_all()
        book = Book()
        db.session.add(book)
        link = Referral.create("/", target=book)
        assert (link.target_type, link.target) == ("thing", book)


def test_users_without_a_model_differ_by_case(new_app: NewApp) -> None:
    app, db = new_app()
    Referrals(app)
    with app.app_context():
        db.create_all()
        Referral.create("/", "site").respond("CALLED", user="olga")
        Referral.record_response("BOUGHT", user="olga")
        assert Referral.referrer_of("Olga") is None
        assert Referral.referrer_of("olga") is not None


@pytest.mark.parametrize("text", ["7_0", " 70", "+70", "070", "\N{ARABIC-INDIC DIGIT SEVEN}0"])
@pytest.mark.usefixtures("ctx")
def test_number_that_is_written_otherwise_is_no_key(host: Host, text: str) -> None:
    assert parse_user_key(current_state(), "70") == 70
    assert parse_user_key(current_state(), text) is None
