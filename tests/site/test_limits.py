"""How long what we store may be: the same on every database and in all characters, and decided before it is asked."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
import time_machine
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from itsdangerous import URLSafeSerializer

from flask_referrals import InvalidValueError, Referral, ReferralResponse, Referrals
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import Host, statements

#: One byte, four bytes, and two characters that are seen as one.
UNITS = {"ascii": "a", "emoji": "\U0001f375", "combining": "e\u0301"}

Store = Callable[[str], object]


def text(unit: str, length: int, start: str = "") -> str:
    """Return a text of a number of characters."""
    return (start + UNITS[unit] * length)[:length]


def store_label(host: Host) -> Store:
    return lambda value: Referral.create("/", label=value)


def store_redirect_to(host: Host) -> Store:
    return lambda value: Referral.create(value)


def store_action(host: Host) -> Store:
    referral = Referral.create("/")
    return lambda value: referral.respond(value)


def store_key(host: Host) -> Store:
    mia = host.db.session.scalar(sa.select(host.User)) or host.user("mia")
    Referral.create("/").respond("CAME", user=mia)
    return lambda value: Referral.record_response("PAID", user=mia, key=value)


def store_reason(host: Host) -> Store:
    response = Referral.create("/").respond("CAME")
    return lambda value: response.void(value)


def store_target(host: Host) -> Store:
    return lambda value: Referral.create("/", target=host.add(host.Product(id=value, name="tea")))


#: By the name of the argument: how it is stored, its limit, how it begins, and where it is then.
ARGUMENTS: dict[str, tuple[Callable[[Host], Store], int, str, str]] = {
    "label": (store_label, 100, "", "label"),
    "redirect_to": (store_redirect_to, 2048, "/", "redirect_to"),
    "action": (store_action, 128, "", "action"),
    "key": (store_key, 128, "", "key"),
    "reason": (store_reason, 200, "", "params"),
    "target": (store_target, 64, "", "target_id"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
class TestArgument:
    """What a host gives us is stored whole, or refused by name. A limit counts characters, not bytes."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Iterator[Host]:
        """A site whose keys are texts, longer than we store."""
        host = new_host(key_type=sa.String(700), new_key=lambda: "1")
        with host.app.app_context():
            yield host

    def test_is_stored_whole_up_to_its_limit(self, host: Host, name: str) -> None:
        prepare, limit, start, where = ARGUMENTS[name]
        model: Any = ReferralResponse if name in ("action", "key", "reason") else Referral
        newest = sa.select(getattr(model, where)).order_by(model.id.desc()).limit(1)
        for value in (text(unit, length, start) for unit in UNITS for length in (limit - 1, limit)):
            prepare(host)(value)
            host.db.session.expire_all()
            stored: Any = host.db.session.scalars(newest).one()
            assert (stored["reason"] if name == "reason" else stored) == value

    @on_sqlite
    def test_is_refused_by_name_over_its_limit(self, host: Host, name: str) -> None:
        prepare, limit, start, _ = ARGUMENTS[name]
        for value in (text(unit, length, start) for unit in UNITS for length in (limit + 1, limit * 10)):
            store = prepare(host)
            with statements(host.db) as sent, pytest.raises(InvalidValueError) as raised:
                store(value)
            assert raised.value.field == name
            assert value not in str(raised.value)
            assert [statement for statement in sent if statement.startswith(("INSERT INTO referral", "UPDATE"))] == []


@pytest.mark.usefixtures("ctx")
@pytest.mark.parametrize("code", ["a" * 63, "a" * 64])
def test_code_is_stored_whole_up_to_its_limit(host: Host, client: FlaskClient, code: str) -> None:
    assert Referral.create("/tea", code=code).code == code
    assert client.get(f"/referrals/{code}").location == "/tea"


@pytest.mark.usefixtures("ctx")
@pytest.mark.parametrize("code", ["a" * 65, "a" * 640, "e\u0301", "\U0001f375", "\u0661"])
def test_code_is_refused_over_its_limit_and_of_other_letters(host: Host, client: FlaskClient, code: str) -> None:
    with statements(host.db) as sent:
        with pytest.raises(InvalidValueError, match=r"^code "):
            Referral.create("/", code=code)
        with pytest.raises(InvalidValueError, match=r"^code "):
            Referral.attach(code)
        assert client.get(f"/referrals/{code}").status_code == 404
    assert sent == []


class TestUserWithoutModel:
    """A user whose key is text."""

    @pytest.fixture
    def ctx(self, database_url: str) -> Iterator[None]:
        """An app without a user model."""
        app, db = Flask(__name__), SQLAlchemy()
        app.config.update(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=database_url)
        db.init_app(app)
        Referrals(app)
        with app.app_context():
            db.create_all()
            yield
            db.session.remove()
            db.drop_all()
            db.engine.dispose()

    def test_is_stored_whole_up_to_its_limit(self, ctx: None) -> None:
        for user in (text(unit, length) for unit in UNITS for length in (254, 255)):
            referral = Referral.create("/", user=user)
            assert (referral.user_id, Referral.create("/", user=user)) == (user, referral)

    @pytest.mark.parametrize("length", [256, 2550])
    def test_is_refused_by_name_over_its_limit(self, ctx: None, length: int) -> None:
        for user in (text(unit, length) for unit in UNITS):
            with pytest.raises(InvalidValueError, match=r"^user "):
                Referral.create("/", user=user)
            with pytest.raises(InvalidValueError, match=r"^user "):
                Referral.record_response("BOUGHT", user=user)


class TestRequest:
    """What a client sends is cut, and the click is recorded."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Iterator[Host]:
        """A site that keeps all of a referrer, and what its classifier says."""
        host = new_host(REFERRALS_REFERRER_STORAGE="full")
        host.referrals.classifier(lambda request: request.args.get("why"))
        with host.app.app_context():
            Referral.create("/tea", code="tea")
            yield host

    def texts(self, limit: int, start: str = "") -> list[str]:
        lengths = (limit - 1, limit, limit + 1, limit * 10)
        return [text(unit, length, start) for unit in UNITS for length in lengths]

    def click(self, host: Host, query: str = "", **environ: str) -> Any:
        """Click with headers as they are on the wire, and return the row."""
        raw = {name: on_the_wire(value) for name, value in environ.items()}
        before = len(host.responses())
        assert host.client().get(f"/referrals/tea{query}", environ_overrides=raw).location == "/tea"
        (response,) = host.responses()[before:]
        return response

    def test_agent(self, host: Host) -> None:
        for agent in self.texts(255):
            assert self.click(host, HTTP_USER_AGENT=agent).user_agent == on_the_wire(agent)[:255]

    def test_referrer(self, host: Host) -> None:
        for referrer in self.texts(1024, "https://blog.example/"):
            assert self.click(host, HTTP_REFERER=referrer).http_referrer == on_the_wire(referrer)[:1024]

    def test_campaign_argument(self, host: Host) -> None:
        for mark in self.texts(100):
            params = self.click(host, f"?utm_source={quote(mark)}&sub={quote(mark)}").params
            assert params == {"utm_source": mark[:100], "sub": mark[:100]}

    def test_reason_of_the_hosts_classifier(self, host: Host) -> None:
        for reason in self.texts(20):
            assert self.click(host, f"?why={quote(reason)}").ignored == reason[:20]


def on_the_wire(text: str) -> str:
    """Return a header's value as WSGI has it."""
    return text.encode().decode("latin-1")


@pytest.mark.parametrize("storage", ["full", "truncated", "hashed"])
def test_longest_address_fits(new_host: MakeHost, storage: str) -> None:
    host = new_host(REFERRALS_IP_STORAGE=storage)
    with host.app.app_context():
        Referral.create("/", code="tea")
        address = ":".join(["ffff"] * 8)
        host.client().get("/referrals/tea", environ_overrides={"REMOTE_ADDR": address})
        (response,) = host.responses()
        assert response.ip_address is not None and len(response.ip_address) <= 45
        assert (response.ip_address == address) is (storage == "full")


@pytest.mark.parametrize("session_key", ["a" * 42, "a" * 44, "a" * 430, "\U0001f375", "\0", "\ud800", ""])
def test_key_that_no_visitor_has_claims_nothing(host: Host, client: FlaskClient, session_key: str) -> None:
    with host.app.app_context():
        referral = Referral.create("/", code="tea")
        client.get("/referrals/tea")
        referral.link_responses_to_user(host.user("mia"), session_key)
        assert [response.user for response in host.responses()] == [None]


@pytest.mark.parametrize(
    "key", [-1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, "1.0", "True", "NaN", "1e3", "\0"]
)
def test_key_that_no_row_has_is_no_target(host: Host, client: FlaskClient, key: object) -> None:
    client.post("/signup", data={"name": "mia"})
    serializer = URLSafeSerializer(str(host.app.secret_key), salt="flask-referrals.target")
    answer = client.post("/referrals/", json={"redirect_to": "/", "target": serializer.dumps(["product", str(key)])})
    assert (answer.status_code, answer.json) == (400, {"error": "target is not something you can refer to"})


class TestExpiry:
    """A link has expired when its time is now."""

    START = datetime(2030, 1, 31, 12, 0, 0, 123456, tzinfo=timezone.utc)

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Iterator[Host]:
        """A site with a link that lasts an hour, and a visitor who has followed it."""
        host = new_host()
        with time_machine.travel(self.START, tick=False), host.app.app_context():
            Referral.create("/tea", code="tea", expires_at=self.START + timedelta(hours=1))
            yield host

    @pytest.mark.parametrize(("early", "counts"), [(timedelta(microseconds=1), True), (timedelta(0), False)])
    def test_is_exact_to_the_microsecond(self, host: Host, client: FlaskClient, early: timedelta, counts: bool) -> None:
        client.get("/referrals/tea")
        with time_machine.travel(self.START + timedelta(hours=1) - early, tick=False):
            assert host.client().get("/referrals/tea").location == "/tea"
            assert bool(client.post("/act/BOUGHT").text) is counts
            if counts:
                response = Referral.attach("tea")
                assert response is not None and response.action == "ATTACHED"
            else:
                with pytest.raises(InvalidValueError, match=r"^code "):
                    Referral.attach("tea")
        assert len(host.responses()) == (4 if counts else 1)
