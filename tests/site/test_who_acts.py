"""Who acts in a request: a user, a visitor, or neither; and when a visitor's history becomes a user's."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Request, current_app, request
from flask.testing import FlaskClient
from flask_login import AnonymousUserMixin, LoginManager, UserMixin, login_user
from werkzeug.test import EnvironBuilder

from flask_referrals import InvalidValueError, Referral, ReferralResponseMixin
from tests.conftest import MakeHost
from tests.host import Host
from tests.site.helpers import Row, add_own_login, find_user, has_key, rows

ANONYMOUS = {"anonymous": AnonymousUserMixin(), "none": None}

#: Ways to record something in a request; a link is there with the code "coffee".
CALLS: dict[str, Callable[..., ReferralResponseMixin | None]] = {
    "record_response": lambda **options: Referral.record_response("BOUGHT", **options),
    "respond": lambda **options: find_link("coffee").respond("CAME", **options),
    "attach": lambda **options: Referral.attach("coffee", **options),
}


def find_link(code: str) -> Referral:
    """Return a stored link."""
    session = current_app.extensions["sqlalchemy"].session
    link: Referral = session.scalars(sa.select(Referral).where(Referral.code == code)).one()
    return link


def code_of(response: ReferralResponseMixin | None) -> str:
    """Return the code of the link that got the credit."""
    return response.referral.code if response is not None else ""


def link_of(host: Host, name: str | None = None, code: str = "tea") -> None:
    """Store a link of a new user, or without an owner."""
    with host.app.app_context():
        Referral.create(f"/{code}", code=code, user=host.user(name) if name is not None else None)


class TestAnonymous:
    """The host passes an anonymous user, or ``None``, where a user is needed."""

    @pytest.fixture(params=ANONYMOUS)
    def anonymous(self, request: pytest.FixtureRequest) -> Any:
        return ANONYMOUS[request.param]

    def test_history_cannot_be_linked(self, host: Host, client: FlaskClient, anonymous: Any) -> None:
        @host.app.post("/link")
        def link() -> str:
            with pytest.raises(InvalidValueError, match=r"^user ") as raised:
                host.referrals.link_user(anonymous)
            return raised.value.field

        link_of(host)
        client.get("/referrals/tea")
        assert client.post("/link").text == "user"
        assert rows(host) == [Row("RESPONDED")]
        assert has_key(client)
        assert client.post("/act/BOUGHT").text == "tea"

    def test_responses_of_a_link_cannot_be_linked(self, host: Host, client: FlaskClient, anonymous: Any) -> None:
        link_of(host)
        client.get("/referrals/tea")
        with host.app.app_context():
            (click,) = host.responses()
            assert click.session_key is not None
            with pytest.raises(InvalidValueError, match=r"^user "):
                click.referral.link_responses_to_user(anonymous, click.session_key)
        assert rows(host) == [Row("RESPONDED")]

    def test_referrer_and_referred_users_are_none(self, host: Host, client: FlaskClient, anonymous: Any) -> None:
        link_of(host)
        client.get("/referrals/tea")
        client.post("/signup", data={"name": "mia"})
        with host.app.app_context():
            assert Referral.referrer_of(find_user(host, "mia")) is not None
            assert Referral.referrer_of(anonymous) is None
            assert [*Referral.referred_by(anonymous)] == []


class TestActionForAUser:
    """``user=`` in the request of an anonymous visitor: the two may be different people."""

    @pytest.fixture
    def host(self, host: Host) -> Host:
        @host.app.post("/checkout/<call>")
        def checkout(call: str) -> str:
            join = {"join": True} if "join" in request.args else {}
            return code_of(CALLS[call](user=find_user(host, request.form["name"]), **join))

        with host.app.app_context():
            host.user("mia")
        link_of(host, "attacker")
        link_of(host, code="coffee")
        return host

    def test_history_of_the_visitor_earns_nothing(self, host: Host, client: FlaskClient) -> None:
        client.get("/referrals/tea")
        assert client.post("/checkout/record_response", data={"name": "mia"}).text == ""
        assert rows(host) == [Row("RESPONDED")]
        assert has_key(client)
        with host.app.app_context():
            assert Referral.referrer_of(find_user(host, "mia")) is None
        client.post("/signup", data={"name": "visitor"})
        assert rows(host) == [Row("RESPONDED", "visitor"), Row("SIGNED_UP", "visitor")]

    def test_users_own_history_earns_the_credit(self, host: Host, client: FlaskClient) -> None:
        mias = host.client()
        mias.post("/login", data={"name": "mia"})
        mias.get("/referrals/coffee")
        client.get("/referrals/tea")
        assert client.post("/checkout/record_response", data={"name": "mia"}).text == "coffee"
        assert rows(host) == [Row("RESPONDED", "mia"), Row("RESPONDED"), Row("BOUGHT", "mia")]
        assert has_key(client)

    @pytest.mark.parametrize("call", ["respond", "attach"])
    def test_response_is_the_users_and_the_history_stays_the_visitors(
        self, host: Host, client: FlaskClient, call: str
    ) -> None:
        client.get("/referrals/tea")
        assert client.post(f"/checkout/{call}", data={"name": "mia"}).text == "coffee"
        assert [row.user for row in rows(host)] == [None, "mia"]
        with host.app.app_context():
            assert host.responses()[-1].session_key is None
        assert client.post("/act/BOUGHT").text == "tea"

    def test_reward_of_the_referrer_leaves_the_history_of_the_guest(self, host: Host, client: FlaskClient) -> None:
        client.get("/referrals/tea")
        client.post("/checkout/record_response", data={"name": "attacker"})
        assert rows(host) == [Row("RESPONDED")]
        assert client.post("/act/BOUGHT").text == "tea"

    @pytest.mark.parametrize(
        ("call", "code"), [("record_response", "tea"), ("respond", "coffee"), ("attach", "coffee")]
    )
    def test_caller_may_say_that_the_visitor_is_the_user(
        self, host: Host, client: FlaskClient, call: str, code: str
    ) -> None:
        client.get("/referrals/tea")
        assert client.post(f"/checkout/{call}?join", data={"name": "mia"}).text == code
        assert [row.user for row in rows(host)] == ["mia", "mia"]
        assert not has_key(client)
        assert client.post("/act/LOOKED").text == ""


class TestInactiveUser:
    """A user who is not active, such as one who has not confirmed an address: Flask-Login says not authenticated."""

    @pytest.fixture
    def host(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
        @host.app.post("/confirm")
        def confirm() -> str:
            return code_of(Referral.record_response("BOUGHT", user=find_user(host, "mia"), key="order 1"))

        with host.app.app_context():
            mia = host.user("mia")
            Referral.create("/coffee", code="coffee").respond("CAME", user=mia)
        link_of(host, "olga")
        monkeypatch.setattr(host.User, "is_active", property(lambda user: user.name != "mia"), raising=False)
        return host

    def test_action_is_that_of_the_user_who_is_given(self, host: Host, client: FlaskClient) -> None:
        client.get("/referrals/tea")
        client.post("/signup", data={"name": "clerk"})
        assert client.post("/confirm").text == "coffee"
        assert rows(host)[-1] == Row("BOUGHT", "mia")

    def test_user_has_links_and_can_be_forgotten(self, host: Host) -> None:
        with host.app.app_context():
            mia = find_user(host, "mia")
            assert Referral.create("/", user=mia).user is mia
            assert Referral.explain(mia) != []
            host.referrals.forget_user(mia)
            assert mia.referral_codes == []


class Staff(UserMixin):  # type: ignore[misc]
    """A user of Flask-Login who is not of the user model."""

    id = "staff"


class TestUserOfAnotherClass:
    """Staff and customers log in with the same Flask-Login."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host(with_login=False)

        @LoginManager(host.app).user_loader  # type: ignore[untyped-decorator]
        def load_user(key: str) -> Any:
            return Staff() if key == Staff.id else host.db.session.get(host.User, int(key))

        @host.app.post("/login")
        def log_in() -> str:
            login_user(find_user(host, request.form["name"]) if "name" in request.form else Staff())
            return ""

        @host.app.post("/book")
        def book() -> str:
            with pytest.raises(InvalidValueError, match=r"^user "):
                Referral.record_response("BOOKED", user=Staff())
            return code_of(Referral.record_response("BOOKED", user=find_user(host, "mia")))

        with host.app.app_context():
            host.user("mia")
        link_of(host)
        return host

    def test_action_is_recorded_for_the_customer_who_is_given(self, host: Host, client: FlaskClient) -> None:
        customer = host.client()
        customer.post("/login", data={"name": "mia"})
        customer.get("/referrals/tea")
        client.post("/login")
        assert client.post("/book").text == "tea"
        assert rows(host) == [Row("RESPONDED", "mia"), Row("BOOKED", "mia")]

    def test_staff_is_anonymous_before_and_after_the_login(
        self, host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.get("/referrals/tea")
        client.post("/login")
        assert client.post("/act/LOOKED").text == "tea"
        client.get("/referrals/tea")
        assert rows(host) == [Row("RESPONDED"), Row("LOOKED"), Row("RESPONDED", ignored="repeat")]
        assert caplog.records == []

    def test_staff_is_asked_to_log_in_before_making_a_link(self, client: FlaskClient) -> None:
        client.post("/login")
        assert client.post("/referrals/", json={"redirect_to": "/"}).status_code == 401


@pytest.mark.parametrize("user", [False, Staff()], ids=["false", "staff"])
def test_user_loader_that_returns_no_user_of_the_model_means_anonymous(
    new_host: MakeHost, caplog: pytest.LogCaptureFixture, user: Any
) -> None:
    host = new_host(with_login=False)
    host.referrals.user_loader(lambda: user)
    link_of(host)
    client = host.client()
    client.get("/referrals/tea")
    assert client.post("/act/BOUGHT").text == "tea"
    assert rows(host) == [Row("RESPONDED"), Row("BOUGHT")]
    assert caplog.records == []


def request_of(client: FlaskClient) -> Request:
    """Return a request of a browser that is not the current request."""
    cookie = client.get_cookie("session")
    cookies = {"HTTP_COOKIE": f"session={cookie.value}"} if cookie is not None else {}
    return Request(EnvironBuilder(environ_overrides=cookies).get_environ())


class TestAnotherRequest:
    """``request=`` of another request than the current one: its visitor acts."""

    @pytest.fixture
    def given(self) -> list[Request]:
        return []

    @pytest.fixture
    def host(self, new_host: MakeHost, given: list[Request]) -> Host:
        host = new_host(with_login=False)
        add_own_login(host)

        @host.app.post("/replay/<call>")
        def replay(call: str) -> str:
            joined = {"user": find_user(host, "mia"), "join": True} if "join" in request.args else {}
            return code_of(CALLS[call](request=given[0], **joined))

        with host.app.app_context():
            host.user("mia")
        for code in ("tea", "coffee", "cake"):
            link_of(host, code=code)
        return host

    @pytest.fixture
    def other(self, host: Host) -> FlaskClient:
        """The browser of the other request; it has followed a link."""
        other = host.client()
        other.get("/referrals/tea")
        return other

    def test_key_of_the_current_request_is_not_dropped(
        self, host: Host, client: FlaskClient, other: FlaskClient, given: list[Request]
    ) -> None:
        given.append(request_of(other))
        client.get("/referrals/cake")
        assert client.post("/replay/record_response?join").text == "tea"
        assert rows(host) == [Row("RESPONDED", "mia"), Row("RESPONDED"), Row("BOUGHT", "mia")]
        assert has_key(client)
        assert client.post("/act/BOUGHT").text == "cake"

    @pytest.mark.parametrize("call", ["respond", "attach"])
    def test_key_of_the_current_request_is_not_replaced(
        self, host: Host, client: FlaskClient, given: list[Request], call: str
    ) -> None:
        given.append(request_of(host.client()))
        client.get("/referrals/tea")
        answer = client.post(f"/replay/{call}")
        assert answer.text == "coffee"
        assert "Set-Cookie" not in answer.headers
        assert client.post("/act/BOUGHT").text == "tea"

    @pytest.mark.parametrize("call", ["respond", "attach"])
    def test_current_visitor_gets_no_key(
        self, host: Host, client: FlaskClient, given: list[Request], call: str
    ) -> None:
        given.append(request_of(host.client()))
        assert "Set-Cookie" not in client.post(f"/replay/{call}").headers
        assert client.post("/act/BOUGHT").text == ""

    @pytest.mark.parametrize(
        ("call", "code"), [("record_response", "tea"), ("respond", "coffee"), ("attach", "coffee")]
    )
    def test_user_of_the_current_request_is_not_the_others(
        self, host: Host, client: FlaskClient, other: FlaskClient, given: list[Request], call: str, code: str
    ) -> None:
        given.append(request_of(other))
        client.post("/login", data={"name": "mia"})
        assert client.post(f"/replay/{call}").text == code
        with host.app.app_context():
            click, response = host.responses()
            assert (click.user, response.user) == (None, None)
            assert response.session_key == click.session_key

    def test_user_loader_is_not_asked_outside_of_a_request(self, host: Host, other: FlaskClient) -> None:
        with host.app.app_context():
            assert code_of(Referral.record_response("BOUGHT", request=request_of(other))) == "tea"
        assert rows(host) == [Row("RESPONDED"), Row("BOUGHT")]
