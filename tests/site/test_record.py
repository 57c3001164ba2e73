"""Recording what visitors do after the click."""

from datetime import datetime, timedelta, timezone
from decimal import Context, Decimal, Inexact, localcontext
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from flask_referrals import InvalidValueError, Referral, ReferralResponse
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import BROWSER, Host, follow, in_parallel, make_host, statements, stored_by


def rows(host: Host) -> int:
    with host.app.app_context():
        return len(host.responses())


def test_action_of_a_visitor_is_credited_to_the_link_they_followed(host: Host, client: FlaskClient) -> None:
    code = follow(host, client)
    assert client.post("/act/BOUGHT").text == code
    with host.app.app_context():
        click, action = host.responses()
        assert (action.action, action.is_touch, action.session_key) == ("BOUGHT", False, click.session_key)
        assert action.referral.response_count == 1


def test_first_thing_a_process_does_may_be_an_action(host: Host, client: FlaskClient, database_url: str) -> None:
    code = follow(host, client)
    cookie = client.get_cookie("session")
    assert cookie is not None
    restarted = make_host(database_url)
    browser = restarted.client()
    browser.set_cookie("session", cookie.value)
    assert browser.post("/act/BOUGHT").text == code
    with restarted.app.app_context():
        restarted.db.engine.dispose()


def test_action_without_a_click_runs_no_statement_and_sets_no_cookie(host: Host, client: FlaskClient) -> None:
    with host.app.app_context(), statements(host.db) as sent:
        answer = client.post("/act/BOUGHT")
    assert (answer.text, sent) == ("", [])
    assert "Set-Cookie" not in answer.headers


def test_action_costs_one_statement_or_two_in_one_transaction(host: Host) -> None:
    @host.app.post("/quiet")
    def quiet() -> str:
        Referral.record_response("BOUGHT")
        return ""

    client = host.client()
    follow(host, client)
    with host.app.app_context(), statements(host.db) as sent:
        client.post("/quiet")
        expected = [*stored_by(host.db), "COMMIT"]
    assert [statement.split()[0] for statement in sent] == expected


def test_action_inside_the_hosts_transaction_adds_no_commit(host: Host) -> None:
    with host.app.app_context():
        mia = host.user("mia")
        Referral.create("/").respond("CAME", user=mia)
        host.add(host.Product(name="something the host reads first"))
        host.db.session.refresh(mia)
        with statements(host.db) as sent:
            Referral.record_response("BOUGHT", user=mia, commit=False)
        ours = [statement.split()[0] for statement in sent if "referral" in statement or statement == "COMMIT"]
        chooses_first = (
            host.db.engine.dialect.name == "sqlite"
        )  # where a write locks everybody out until the host's commit
        assert ours == (["SELECT", "INSERT"] if chooses_first else stored_by(host.db))


@pytest.mark.parametrize(("policy", "winner"), [("last", "/b"), ("first", "/a")])
def test_policy_says_which_of_two_links_gets_credit(new_host: MakeHost, policy: str, winner: str) -> None:
    host = new_host(REFERRALS_ATTRIBUTION=policy)
    client = host.client()
    codes = {path: follow(host, client, path) for path in ("/a", "/b")}
    assert client.post("/act/BOUGHT").text == codes[winner]


def test_repeated_click_is_not_counted_but_was_the_last(host: Host, client: FlaskClient) -> None:
    first = follow(host, client, "/a")
    follow(host, client, "/b")
    client.get(f"/referrals/{first}")
    assert client.post("/act/BOUGHT").text == first


@pytest.mark.parametrize("name", [None, "mia"])
def test_dropping_ignored_clicks_changes_no_credit(new_host: MakeHost, name: str | None) -> None:
    host = new_host(REFERRALS_IGNORED="drop")
    client = host.client()
    if name is not None:
        client.post("/signup", data={"name": name})
    first, second = follow(host, client, "/a"), follow(host, client, "/b")
    for code in (second, first, first, second, first):
        client.get(f"/referrals/{code}")
    assert client.post("/act/BOUGHT").text == first
    with host.app.app_context():
        assert [each.ignored for each in host.responses()] == [None, None, "repeat", "repeat", "repeat", None]


def test_policy_can_be_a_callable(new_host: MakeHost) -> None:
    seen: list[str] = []

    def choose(touches: list[ReferralResponse]) -> ReferralResponse:
        seen.extend(touch.referral.redirect_to for touch in touches)
        return touches[1]

    host = new_host(REFERRALS_ATTRIBUTION=choose)
    client = host.client()
    codes = [follow(host, client, path) for path in ("/a", "/b", "/c")]
    assert client.post("/act/BOUGHT").text == codes[1]
    assert seen == ["/c", "/b", "/a"]


def test_policy_is_given_no_actions(new_host: MakeHost) -> None:
    seen: list[list[str]] = []

    def choose(touches: list[ReferralResponse]) -> ReferralResponse:
        seen.append([touch.action for touch in touches])
        return touches[0]

    client = (host := new_host(REFERRALS_ATTRIBUTION=choose)).client()
    follow(host, client)
    client.post("/act/LOOKED")
    client.post("/act/BOUGHT")
    assert seen == [["RESPONDED"]] * 2


@pytest.mark.parametrize(("age", "credited"), [(timedelta(seconds=59), True), (timedelta(seconds=61), False)])
def test_window_is_counted_from_the_click(new_host: MakeHost, age: timedelta, credited: bool) -> None:
    host = new_host(REFERRALS_ATTRIBUTION_WINDOW=60)
    client = host.client()
    follow(host, client)
    with host.app.app_context():
        host.db.session.execute(sa.update(ReferralResponse).values(created_at=datetime.now(timezone.utc) - age))
        host.db.session.commit()
    assert bool(client.post("/act/BOUGHT").text) is credited
    assert rows(host) == 1 + credited


def test_expired_link_gets_no_new_credit_and_an_older_living_one_does(host: Host, client: FlaskClient) -> None:
    living = follow(host, client, "/a")
    follow(host, client, "/b")
    with host.app.app_context():
        expired = host.db.session.scalars(sa.select(Referral).where(Referral.redirect_to == "/b")).one()
        expired.expired_at = datetime.now(timezone.utc)
        host.db.session.commit()
    assert client.post("/act/BOUGHT").text == living


def test_action_works_without_a_request_when_the_user_is_given(host: Host, client: FlaskClient) -> None:
    code = follow(host, client)
    client.post("/signup", data={"name": "mia"})
    with host.app.app_context():
        mia = host.db.session.scalars(sa.select(host.User)).one()
        response = Referral.record_response("PAID", user=mia, value=Decimal("49.90"), currency="EUR")
        assert response is not None
        host.db.session.refresh(response)
        assert (response.referral.code, response.user) == (code, mia)
        assert (response.value, response.currency) == (Decimal("49.9000"), "EUR")
        assert response.ip_address is None


@pytest.mark.usefixtures("ctx")
@pytest.mark.parametrize("context", [Context(prec=3), Context(prec=10, traps=[Inexact]), Context(Emax=2, Emin=-2)])
class TestDecimalContext:
    """The caller's decimal context does not matter."""

    @pytest.mark.parametrize("value", ["12345678.12", "-9999999999.9999", "0.0001"])
    def test_value_is_stored(self, host: Host, context: Context, value: str) -> None:
        with localcontext(context):
            response = Referral.create("/").respond("PAID", value=Decimal(value))
            assert response.value == Decimal(value)

    @on_sqlite
    @pytest.mark.parametrize("value", ["10000000000", "9999999999.99999", "0.00001", "1E+30", "1E-30", "NaN", "sNaN"])
    def test_value_is_refused(self, host: Host, context: Context, value: str) -> None:
        with localcontext(context), pytest.raises(InvalidValueError, match=r"^value must have at most 10 digits"):
            Referral.create("/").respond("PAID", value=Decimal(value))


def test_somebody_acting_for_another_user_does_not_lend_their_own_credit(host: Host, client: FlaskClient) -> None:
    @host.app.post("/refund")
    def refund() -> str:
        other = host.db.session.scalars(sa.select(host.User).where(host.User.name == "mia")).one()
        return repr(Referral.record_response("REFUNDED", user=other))

    follow(host, client)
    client.post("/signup", data={"name": "admin"})
    with host.app.app_context():
        host.user("mia")
    assert client.post("/refund").text == "None"


def test_target_is_stored_and_found_again(host: Host, client: FlaskClient) -> None:
    @host.app.post("/buy")
    def buy() -> str:
        product = host.Product(name="tea")
        host.db.session.add(product)
        Referral.record_response("BOUGHT", target=product)
        return ""

    follow(host, client)
    client.post("/buy")
    with host.app.app_context():
        response = host.responses()[-1]
        assert response.target.name == "tea"
        host.db.session.delete(response.target)
        host.db.session.commit()
        assert host.responses()[-1].target is None


def test_target_is_loaded_once(host: Host) -> None:
    with host.app.app_context():
        mia, product = host.user("mia"), host.add(host.Product(name="tea"))
        response = Referral.create("/").respond("CAME", user=mia, target=product)
        _ = response.id
        del product
        with statements(host.db) as sent:
            assert response.target.name + response.target.name == "teatea"
        assert len(sent) == 1


def test_referral_and_history_of_a_request_are_returned(host: Host, client: FlaskClient) -> None:
    @host.app.get("/who")
    def who() -> str:
        referral = Referral.referral_for_request()
        history = Referral.referral_responses_for_request()
        assert referral is Referral.for_request()
        return " ".join([referral.code if referral else "-", *(response.action for response in history)])

    code = follow(host, client)
    client.post("/act/LOOKED")
    assert client.get("/who").text == f"{code} LOOKED RESPONDED"
    assert host.client().get("/who").text == "-"
    client.post("/signup", data={"name": "mia"})
    assert client.get("/who").text == f"{code} SIGNED_UP LOOKED RESPONDED"


def test_request_can_be_given(host: Host, client: FlaskClient) -> None:
    code = follow(host, client)
    cookie = client.get_cookie("session")
    assert cookie is not None
    environ = {"HTTP_COOKIE": f"session={cookie.value}", "HTTP_USER_AGENT": BROWSER}
    with host.app.test_request_context(environ_overrides=environ) as context:
        request = context.request
    with host.app.app_context():
        referral = Referral.referral_for_request(request)
        assert referral is not None and referral.code == code
        assert Referral.record_response("BOUGHT", request=request) is not None


def test_respond_counts_like_a_click(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        code = Referral.create("/", code="typed").code

    @host.app.post("/typed")
    def typed() -> str:
        referral = host.db.session.scalars(sa.select(Referral)).one()
        return referral.respond("TYPED").action

    assert client.post("/typed").text == "TYPED"
    assert client.post("/act/BOUGHT").text == code


def test_owners_own_response_does_not_count(host: Host) -> None:
    with host.app.app_context():
        olga = host.user("olga")
        referral = Referral.create("/", user=olga)
        assert referral.respond("CAME", user=olga).ignored == "self"
        assert Referral.record_response("BOUGHT", user=olga) is None


class TestOnce:
    """A key makes an action happen once."""

    def test_second_call_returns_the_first_response(self, host: Host) -> None:
        with host.app.app_context():
            mia = host.user("mia")
            Referral.create("/").respond("CAME", user=mia)
            first = Referral.record_response("PAID", user=mia, key="order 1", value=5)
            assert first is Referral.record_response("PAID", user=mia, key="order 1", value=7)
            assert first is not None and first.value == 5
            assert first is not Referral.record_response("PAID", user=mia, key="order 2")
            assert first is not Referral.record_response("SHIPPED", user=mia, key="order 1")
            assert first is not Referral.record_response("PAID", user=mia, key="ORDER 1")

    def test_parallel_calls_make_one_row(self, host: Host) -> None:
        with host.app.app_context():
            mia = host.user("mia")
            Referral.create("/").respond("CAME", user=mia)
            user_id = mia.id

        def pay() -> None:
            with host.app.app_context():
                Referral.record_response("PAID", user=host.db.session.get(host.User, user_id), key="order 1")

        in_parallel([pay] * 8)
        assert rows(host) == 2


class TestHostTransaction:
    """What belongs to the host stays the host's."""

    def test_commit_false_is_rolled_back_with_the_host(self, host: Host) -> None:
        with host.app.app_context():
            mia = host.user("mia")
            Referral.create("/").respond("CAME", user=mia)
            host.db.session.rollback()
            Referral.record_response("BOUGHT", user=mia, commit=False)
            host.db.session.rollback()
            assert len(host.responses()) == 1

    @pytest.mark.parametrize("commit", [True, False])
    def test_failing_record_leaves_the_hosts_pending_rows(self, host: Host, commit: bool) -> None:
        def refuse(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
            if statement.startswith("INSERT INTO referral_response"):
                raise RuntimeError("the disk is full")

        with host.app.app_context():
            mia = host.user("mia")
            Referral.create("/").respond("CAME", user=mia)
            sa.event.listen(host.db.engine, "before_cursor_execute", refuse)
            host.db.session.add(host.User(name="pending"))
            with pytest.raises(RuntimeError, match="the disk is full"):
                Referral.record_response("BOUGHT", user=mia, commit=commit)
            host.db.session.commit()
            assert host.db.session.scalar(sa.select(host.User.name).where(host.User.name == "pending"))


@on_sqlite
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"action": ""}, "action"),
        ({"action": " "}, "action"),
        ({"action": "x" * 129}, "action"),
        ({"action": "A\0"}, "action"),
        ({"action": "A\n"}, "action"),
        ({"action": None}, "action"),
        ({"key": ""}, "key"),
        ({"key": "x" * 129}, "key"),
        ({"key": 12}, "key"),
        ({"value": 1.5}, "value"),
        ({"value": True}, "value"),
        ({"value": Decimal("NaN")}, "value"),
        ({"value": Decimal("0.00001")}, "value"),
        ({"value": 10**10}, "value"),
        ({"currency": "eur"}, "currency"),
        ({"currency": "EURO"}, "currency"),
        ({"user": "mia"}, "user"),
    ],
)
def test_bad_argument_is_a_value_error_before_anything_is_written(
    host: Host, arguments: dict[str, Any], field: str
) -> None:
    with (
        host.app.app_context(),
        statements(host.db) as sent,
        pytest.raises(InvalidValueError, match=f"^{field} "),
    ):
        Referral.record_response(**{"action": "BOUGHT", **arguments})
    assert sent == []
