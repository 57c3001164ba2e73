"""Conversions happen once, can be voided, and have campaign arguments."""

from datetime import datetime, timedelta, timezone
from functools import partial

import pytest
import sqlalchemy as sa
import time_machine
from flask.testing import FlaskClient

from flask_referrals import InvalidValueError, Referral, ReferralResponse
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import Host, follow, in_parallel


class TestOnce:
    """once=True."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host()

        @host.app.post("/once")
        def once() -> str:
            response = Referral.record_response("SUBSCRIBED", once=True)
            return "" if response is None else str(response.id)

        return host

    def test_user_does_it_once(self, host: Host, client: FlaskClient) -> None:
        follow(host, client)
        client.post("/signup", data={"name": "mia"})
        assert client.post("/once").text == client.post("/once").text != ""

    def test_visitor_does_it_once_also_after_becoming_a_user(self, host: Host, client: FlaskClient) -> None:
        follow(host, client)
        first = client.post("/once").text
        assert client.post("/once").text == first
        client.post("/signup", data={"name": "mia"})
        assert client.post("/once").text == first

    def test_each_user_does_it_once(self, host: Host) -> None:
        ids = set()
        for name in ("mia", "max"):
            client = host.client()
            follow(host, client)
            client.post("/signup", data={"name": name})
            ids.add(client.post("/once").text)
        assert len(ids) == 2

    def test_key_and_once_together_are_an_error(self, host: Host) -> None:
        with host.app.app_context(), pytest.raises(InvalidValueError, match=r"^once "):
            Referral.record_response("PAID", key="1", once=True)


@pytest.mark.usefixtures("ctx")
class TestVoid:
    """response.void."""

    def test_voided_response_leaves_counts_and_credit_and_stays_on_record(self, host: Host) -> None:
        mia, referral = host.user("mia"), Referral.create("/")
        click = referral.respond("RESPONDED", user=mia)
        paid = Referral.record_response("PAID", user=mia, key="order 1", value=5, currency="EUR")
        assert paid is not None
        record = paid.void("refunded")
        assert (paid.ignored, record.action, record.ignored) == ("void", "VOIDED", "void")
        assert record.params == {"response": paid.id, "reason": "refunded", "ignored": None}
        assert [response.action for response in referral.filtered_responses()] == ["RESPONDED"]
        assert Referral.referrer_of(mia) is None
        click.void("a fraud")
        assert referral.response_count == 0
        assert Referral.record_response("PAID", user=mia, key="order 2") is None

    def test_second_call_changes_nothing(self, host: Host) -> None:
        response = Referral.create("/").respond("CAME", user=host.user("mia"))
        assert response.void("first") is response.void("second")
        assert len(host.responses()) == 2

    def test_row_is_voided_as_it_is_now(self, host: Host) -> None:
        mia = host.user("mia")
        response = Referral.create("/").respond("CAME", user=mia)
        assert response.user is mia
        host.db.session.expunge(response)
        host.referrals.forget_user(mia)
        assert (response.user_id, response.void("a fraud").user_id) == (mia.id, None)

    def test_deleted_response_cannot_be_voided(self, host: Host) -> None:
        response = Referral.create("/").respond("CAME", user=host.user("mia"))
        assert response.ignored is None
        host.db.session.expunge(response)
        host.db.session.execute(sa.delete(ReferralResponse))
        host.db.session.commit()
        with pytest.raises(InvalidValueError, match=r"^response is not in the database"):
            response.void("a fraud")

    def test_void_is_rolled_back_with_the_host(self, host: Host) -> None:
        response = Referral.create("/").respond("CAME", user=host.user("mia"))
        response.void("a mistake", commit=False)
        host.db.session.rollback()
        assert [response.ignored for response in host.responses()] == [None]

    @pytest.mark.parametrize("reason", ["", "x" * 201, "\0"])
    def test_reason_is_checked(self, host: Host, reason: str) -> None:
        response = Referral.create("/").respond("CAME", user=host.user("mia"))
        with pytest.raises(InvalidValueError, match=r"^reason "):
            response.void(reason)


class TestVoidedClick:
    """response.void for a click that was repeated."""

    @pytest.mark.parametrize("name", [None, "mia"])
    def test_repeats_earn_nothing(self, host: Host, client: FlaskClient, name: str | None) -> None:
        if name is not None:
            client.post("/signup", data={"name": name})
        other = follow(host, client, "/other")
        code = follow(host, client)
        for each in (other, code, code):
            client.get(f"/referrals/{each}")
        another = host.client()
        for _ in range(2):
            another.get(f"/referrals/{code}")
        with host.app.app_context():
            host.responses()[1].void("a fraud")
            assert [each.ignored for each in host.responses()[:5]] == [None, "void", "repeat", "void", "void"]
            assert Referral.referral_for_request() is None
        assert client.post("/act/BOUGHT").text == other
        assert another.post("/act/BOUGHT").text == code

    def test_repeats_of_another_visitor_stay(self, host: Host, client: FlaskClient) -> None:
        another = host.client()
        code = follow(host, another)
        for browser in (client, another, client):
            browser.get(f"/referrals/{code}")
        with host.app.app_context():
            host.responses()[1].void("a fraud")
            assert [each.ignored for each in host.responses()[:4]] == [None, "void", "repeat", "void"]

    def test_repeats_of_a_typed_code_stay(self, host: Host, client: FlaskClient) -> None:
        client.post("/signup", data={"name": "mia"})
        with host.app.app_context():
            mia = host.db.session.scalars(sa.select(host.User)).one()
            code = Referral.create("/").code
            Referral.attach(code, user=mia)
            client.get(f"/referrals/{code}")
            Referral.attach(code, user=mia)
            host.responses()[1].void("a fraud")
            assert [each.ignored for each in host.responses()[:3]] == [None, "void", "repeat"]

    def test_repeat_that_is_loaded_is_void_before_the_commit(self, host: Host, client: FlaskClient) -> None:
        code = follow(host, client)
        client.get(f"/referrals/{code}")
        with host.app.app_context():
            click, repeat = host.responses()
            click.void("a fraud", commit=False)
            assert repeat.ignored == "void"

    def test_later_click_that_is_counted_keeps_its_repeats(self, host: Host, client: FlaskClient) -> None:
        with time_machine.travel(datetime(2026, 5, 20, tzinfo=timezone.utc), tick=False) as clock:
            code = follow(host, client)
            for _ in range(3):
                clock.shift(timedelta(minutes=20))
                client.get(f"/referrals/{code}")
        with host.app.app_context():
            host.responses()[0].void("a fraud")
            assert [each.ignored for each in host.responses()[:4]] == ["void", "void", None, "repeat"]

    def test_anonymous_touch_is_voided_alone(self, host: Host, client: FlaskClient) -> None:
        code = follow(host, client)
        client.get(f"/referrals/{code}")
        with host.app.app_context():
            nobodys = host.db.session.scalars(sa.select(Referral)).one().respond("CAME")
            host.db.session.execute(sa.update(ReferralResponse).values(created_at=nobodys.created_at))
            host.db.session.commit()
            nobodys.void("a fraud")
            assert sorted(str(each.ignored) for each in host.responses()) == ["None", "repeat", "void", "void"]


@pytest.mark.slow
def test_eight_threads_record_one_key_once_in_every_round(host: Host) -> None:
    rounds = 100
    with host.app.app_context():
        mia = host.user("mia")
        Referral.create("/").respond("CAME", user=mia)
        user_id = mia.id

    def pay(key: str) -> None:
        with host.app.app_context():
            Referral.record_response("PAID", user=host.db.session.get(host.User, user_id), key=key)

    for number in range(rounds):
        in_parallel([partial(pay, f"order {number}")] * 8)
    with host.app.app_context():
        assert len(host.responses()) == 1 + rounds


class TestCampaign:
    """Campaign arguments of a link."""

    def test_listed_arguments_are_stored_and_others_are_not(self, host: Host, client: FlaskClient) -> None:
        with host.app.app_context():
            code = Referral.create("/").code
        client.get(f"/referrals/{code}?utm_source=mail&sub={'x' * 200}&email=mia@example.com&utm_term=")
        with host.app.app_context():
            (response,) = host.responses()
            assert response.params == {"utm_source": "mail", "sub": "x" * 100}

    @on_sqlite
    @pytest.mark.parametrize(
        ("query", "location"),
        [
            ("", "/here?a=1#top"),
            ("b=2&b=3&utm_source=mail", "/here?a=1&b=2&b=3&utm_source=mail#top"),
            ("a=2", "/here?a=1#top"),
            ("redirect_to=/there&b=2", "/there?b=2"),
            ("ref=alice&b=%0d%0a", "/here?a=1&b=%0d%0a#top"),
            ("b=%E9&c=%e2%82%ac&d=%7e+%2B", "/here?a=1&b=%E9&c=%e2%82%ac&d=%7e+%2B#top"),
            ("b&&c=&%61=2&=3", "/here?a=1&b&&c=&=3#top"),
            ("b=\\\xe9|", "/here?a=1&b=%5C%E9%7C#top"),
            ("red%69rect_to=/there&b=2&&=", "/there?b=2&&="),
            ("b=" + "x" * 2048, "/here?a=1#top"),
        ],
    )
    def test_query_is_forwarded_when_asked_for(self, new_host: MakeHost, query: str, location: str) -> None:
        host = new_host(REFERRALS_FORWARD_QUERY=True, REFERRALS_QUERY_PARAM="ref")
        with host.app.app_context():
            code = Referral.create("/here?a=1#top").code
        environ = {"QUERY_STRING": query}
        assert host.client().get(f"/referrals/{code}", environ_overrides=environ).headers["Location"] == location

    def test_query_is_not_forwarded_by_default(self, host: Host, client: FlaskClient) -> None:
        with host.app.app_context():
            code = Referral.create("/here").code
        assert client.get(f"/referrals/{code}?b=2").headers["Location"] == "/here"


def test_ignored_clicks_are_dropped_when_asked_for(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_IGNORED="drop")
    client = host.client()
    code = follow(host, client)
    assert client.head(f"/referrals/{code}").status_code == 302
    assert client.get(f"/referrals/{code}").status_code == 302
    with host.app.app_context():
        assert len(host.responses()) == 1
