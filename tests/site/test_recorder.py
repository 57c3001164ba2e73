"""Clicks that a recorder takes: what it is given, what becomes of it, and who gets credit meanwhile."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
import time_machine
from flask import Flask
from flask.testing import FlaskClient

from flask_referrals import InvalidValueError, Referral, ReferralResponse, Referrals, signals
from flask_referrals.db.totals import roll_up
from flask_referrals.queue import Event, store
from flask_referrals.state import current_state
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import BROWSER, Host, in_parallel, statements

NOON = datetime(2026, 5, 20, 12, tzinfo=timezone.utc)
MARKS = {"sub": "spring"}
DESCRIPTION = {"REMOTE_ADDR": "192.0.2.7", "HTTP_REFERER": "https://blog.example/tea"}


class Queue(list[Event]):
    """A recorder that keeps the events until somebody stores them."""

    def __call__(self, event: Event) -> None:
        self.append(json.loads(json.dumps(event)))

    def deliver(self, host: Host) -> None:
        """Store all, as a worker does, and forget them."""
        with host.app.app_context():
            store(self)
        self.clear()


@pytest.fixture
def queue() -> Queue:
    """The recorder."""
    return Queue()


@pytest.fixture
def make_queued(new_host: MakeHost, queue: Queue) -> MakeHost:
    """Make a site with the recorder."""
    return lambda **config: new_host(make_recorder=lambda app: queue, **config)


@pytest.fixture
def host(make_queued: MakeHost) -> Host:
    """A site with the recorder, and everything else at its default."""
    return make_queued()


def new_link(host: Host, path: str = "/", user: str | None = None, **options: Any) -> str:
    """Store a link, with or without an owner, and return its path."""
    with host.app.app_context():
        owner = host.db.session.scalar(sa.select(host.User).filter_by(name=user)) if user is not None else None
        return f"/referrals/{Referral.create(path, user=owner, **options).code}"


def follow(client: FlaskClient, link: str, **options: Any) -> Any:
    return client.get(link, environ_overrides=DESCRIPTION, query_string=MARKS, **options)


def rows(host: Host, *names: str) -> list[Any]:
    """Return columns of all responses, oldest first."""
    with host.app.app_context():
        found = [tuple(getattr(response, name) for name in names) for response in host.responses()]
    return [each[0] for each in found] if len(names) == 1 else found


def user_id(host: Host, name: str) -> Any:
    with host.app.app_context():
        return host.db.session.scalar(sa.select(host.User.id).filter_by(name=name))


def count(host: Host) -> int:
    with host.app.app_context():
        return sum(referral.response_count for referral in host.db.session.scalars(sa.select(Referral)))


class TestTheRequest:
    def test_click_is_one_select_and_an_event(self, host: Host, queue: Queue) -> None:
        link = new_link(host, "/tea")
        with host.app.app_context(), statements(host.db) as sent:
            answer = follow(host.client(), link)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/tea")
        assert [statement.split()[0] for statement in sent if statement != "COMMIT"] == ["SELECT"]
        assert rows(host, "id") == []
        (event,) = queue
        assert event == {
            "id": event["id"],
            "code": link.rpartition("/")[2],
            "time": event["time"],
            "user": None,
            "visitor": event["visitor"],
            "ignored": None,
            "params": MARKS,
            "ip_address": "192.0.2.0",
            "http_referrer": "https://blog.example/",
            "user_agent": BROWSER,
        }
        assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)

    def test_unknown_and_expired_links_make_no_event(self, host: Host, queue: Queue) -> None:
        expired = new_link(host, expires_at=datetime.now(timezone.utc) - timedelta(seconds=1))
        statuses = [host.client().get(path).status_code for path in ("/referrals/unknown", expired)]
        assert (statuses, queue) == ([404, 302], [])

    def test_program_gets_no_key(self, host: Host, queue: Queue) -> None:
        answer = host.client().get(new_link(host), headers={"User-Agent": "curl/8.0"})
        (event,) = queue
        assert (event["ignored"], event["visitor"]) == ("bot", None)
        assert "Set-Cookie" not in answer.headers

    def test_what_does_not_count_may_be_dropped(self, make_queued: MakeHost, queue: Queue) -> None:
        host = make_queued(REFERRALS_IGNORED="drop")
        link, client = new_link(host), host.client()
        client.get(link, headers={"User-Agent": "curl/8.0"})
        for _ in range(2):
            follow(client, link)
        queue.deliver(host)
        assert rows(host, "ignored") == [None]

    def test_visitor_who_opts_out_is_anonymous(self, make_queued: MakeHost, queue: Queue) -> None:
        host = make_queued(REFERRALS_RESPECT_GPC=True)
        client = host.client()
        client.post("/signup", data={"name": "mia"})
        for link in (new_link(host), new_link(host, "/tea", "mia")):
            follow(client, link, headers={"Sec-GPC": "1"})
        told = [(event["user"], event["visitor"], event["user_agent"], event["ignored"]) for event in queue]
        assert told == [(None, None, None, None), (None, None, None, "self")]

    def test_link_that_cannot_be_read_makes_an_event_all_the_same(self, host: Host, queue: Queue) -> None:
        link, client = new_link(host, "/tea"), host.client()
        with host.app.app_context():
            table = sa.inspect(host.referrals.Referral).local_table
            host.db.session.execute(sa.text(f"ALTER TABLE {table.name} RENAME TO away"))
            host.db.session.commit()
        try:
            answers = [follow(client, path) for path in (link, "/referrals/unknown")]
        finally:
            with host.app.app_context():
                host.db.session.execute(sa.text(f"ALTER TABLE away RENAME TO {table.name}"))
                host.db.session.commit()
        assert [answer.status_code for answer in answers] == [302, 302]
        assert client.post("/act/BOUGHT").text == link.rpartition("/")[2]
        queue.deliver(host)
        assert rows(host, "action", "ignored") == [("RESPONDED", None), ("BOUGHT", None)]


class TestRecorderFails:
    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        def refuse(event: Event) -> None:
            raise ConnectionError("no broker")

        return new_host(make_recorder=lambda app: refuse)

    def test_click_is_stored_at_once(self, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        link, client = new_link(host), host.client()
        assert follow(client, link).status_code == 302
        assert rows(host, "ignored", "user_agent", "params") == [(None, BROWSER, MARKS)]
        assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
            f"A click on the link {link.rpartition('/')[2]!r} could not be queued"
        ]
        assert client.post("/act/BOUGHT").text == link.rpartition("/")[2]

    def test_visitor_arrives_when_the_database_fails_too(self, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        link = new_link(host, "/tea")

        def fail(*args: Any) -> None:
            raise sa.exc.OperationalError("INSERT", {}, Exception("no database"))

        with host.app.app_context():
            sa.event.listen(host.db.engine, "before_cursor_execute", fail_inserts(fail))
        answer = follow(host.client(), link)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/tea")
        assert "Set-Cookie" not in answer.headers
        assert len(caplog.records) == 2


def fail_inserts(fail: Callable[..., None]) -> Callable[..., None]:
    def listen(connection: Any, cursor: Any, statement: str, *args: Any) -> None:
        if statement.startswith("INSERT"):
            fail()

    return listen


class TestStoring:
    def test_row_is_that_of_a_click_stored_at_once(self, host: Host, queue: Queue, new_host: MakeHost) -> None:
        names = ("action", "is_touch", "ignored", "ip_address", "http_referrer", "user_agent", "params", "user_id")
        follow(host.client(), new_link(host))
        (event,) = queue
        queue.deliver(host)
        stored = rows(host, *names)
        assert rows(host, "session_key", "created_at") == [(event["visitor"], datetime.fromisoformat(event["time"]))]
        with host.app.app_context():
            host.db.session.execute(sa.delete(host.referrals.ReferralResponse))
            host.db.session.commit()
        at_once = new_host()
        follow(at_once.client(), new_link(at_once))
        assert rows(at_once, *names) == stored

    def test_number_of_statements_is_the_same_for_any_number_of_clicks(self, host: Host, queue: Queue) -> None:
        link = new_link(host)
        sent: dict[int, list[str]] = {}
        for number in (2, 60):
            for _ in range(number):
                follow(host.client(), link)
            with host.app.app_context(), statements(host.db) as sent[number]:
                store(queue)
            queue.clear()
        assert len(sent[60]) == len(sent[2]) <= 7
        assert len(rows(host, "id")) == 62

    def test_each_is_stored_once_however_often_it_comes(self, host: Host, queue: Queue) -> None:
        link = new_link(host)
        for _ in range(3):
            follow(host.client(), link)
        events = [*queue, queue[0]]
        for _ in range(2):
            queue[:] = events
            queue.deliver(host)
        assert len(rows(host, "id")) == 3

    def test_each_is_stored_once_by_parallel_workers(self, host: Host, queue: Queue) -> None:
        link = new_link(host)
        for _ in range(20):
            follow(host.client(), link)
        events = list(queue)

        def deliver(order: int) -> Callable[[], None]:
            def run() -> None:
                with host.app.app_context():
                    store(events[::order])

            return run

        in_parallel([deliver(order) for order in (1, -1, 1, -1)])
        assert len(rows(host, "id")) == 20
        assert count(host) == 20

    @on_sqlite
    @pytest.mark.parametrize(
        "change",
        [
            *({"time": "soon"}, {"time": 7}, {"code": None}, {"id": "x" * 101}, {"visitor": 7}, {"params": []}),
            *({"user_agent": "x" * 256}, {"ignored": "\0"}, {"params": {"sub": "\ud800"}}),
        ],
    )
    def test_malformed_event_is_refused(self, host: Host, queue: Queue, change: dict[str, Any]) -> None:
        follow(host.client(), new_link(host))
        (event,) = queue
        for malformed in ({**event, **change}, {"id": "no click"}, None):
            with host.app.app_context(), pytest.raises(InvalidValueError):
                store([event, malformed])  # type: ignore[list-item]
        assert rows(host, "id") == []

    @pytest.mark.parametrize("batches", [[[0, 1]], [[1, 0]], [[0], [1]], [[1], [0]]])
    def test_repeats_count_once_in_any_order(self, host: Host, queue: Queue, batches: list[list[int]]) -> None:
        client, link = host.client(), new_link(host)
        for _ in range(2):
            follow(client, link)
        events = list(queue)
        for batch in batches:
            queue[:] = [events[number] for number in batch]
            queue.deliver(host)
        assert sorted(rows(host, "ignored"), key=str) == [None, "repeat"]

    @pytest.mark.parametrize("name", [None, "mia"])
    @pytest.mark.parametrize("order", ["120", "102", "201", "210"])
    def test_clicks_that_come_late_count_as_if_stored_in_order(
        self, host: Host, queue: Queue, order: str, name: str | None
    ) -> None:
        client, link = host.client(), new_link(host)
        with time_machine.travel(NOON - timedelta(days=2), tick=False) as clock:
            if name is not None:
                client.post("/signup", data={"name": name})
            for _ in range(3):
                follow(client, link)
                clock.shift(timedelta(minutes=20))
        events = list(queue)
        with time_machine.travel(NOON, tick=False), host.app.app_context():
            roll_up(current_state().database)
            for number in order:
                store([events[int(number)]])
                store([events[int(number)]])
            assert count(host) == 2
            assert rows(host, "ignored") == [None, "repeat", None]

    def test_late_click_before_a_voided_one(self, host: Host, queue: Queue) -> None:
        client, link = host.client(), new_link(host)
        with time_machine.travel(NOON, tick=False) as clock:
            for _ in range(3):
                follow(client, link)
                clock.shift(timedelta(minutes=20))
            events = list(queue)
            with host.app.app_context():
                store(events[:1])
                host.responses()[0].void("a fraud")
                store(events[1:])
                assert (rows(host, "ignored")[:3], count(host)) == (["void", "void", None], 1)

    def test_members_repeats_and_own_clicks_do_not_count(self, host: Host, queue: Queue) -> None:
        client = host.client()
        client.post("/signup", data={"name": "mia"})
        link, own = new_link(host), new_link(host, "/own", "mia")
        for path in (link, own, link):
            follow(client, path)
        queue.deliver(host)
        assert rows(host, "ignored") == [None, "self", "repeat"]
        assert set(rows(host, "user_id")) == {user_id(host, "mia")}

    def test_clicks_far_apart_all_count(self, host: Host, queue: Queue) -> None:
        client, link = host.client(), new_link(host)
        now = datetime.now(timezone.utc)
        for minutes in (70, 35, 0):
            with time_machine.travel(now - timedelta(minutes=minutes), tick=False):
                follow(client, link)
        queue.deliver(host)
        assert rows(host, "ignored") == [None] * 3

    def test_link_counts_as_it_was_when_it_was_followed(self, host: Host, queue: Queue) -> None:
        links = [new_link(host), new_link(host, "/tea")]
        for link in links:
            follow(host.client(), link)
        with host.app.app_context():
            first, second = host.db.session.scalars(sa.select(Referral).order_by(Referral.id))
            first.expired_at = datetime.now(timezone.utc)
            second.expired_at = datetime.now(timezone.utc) - timedelta(minutes=1)
            host.db.session.commit()
            code = first.code
        queue.deliver(host)
        with host.app.app_context():
            assert [response.referral.code for response in host.responses()] == [code]

    def test_click_on_a_deleted_link_is_dropped(self, host: Host, queue: Queue) -> None:
        follow(host.client(), new_link(host))
        with host.app.app_context():
            host.db.session.execute(sa.delete(host.referrals.Referral))
            host.db.session.commit()
        queue.deliver(host)
        assert rows(host, "id") == []

    def test_late_click_is_the_users_who_has_claimed_the_key(self, host: Host, queue: Queue) -> None:
        client = host.client()
        links = [new_link(host, path) for path in ("/", "/tea", "/milk")]
        for link in links:
            follow(client, link)
        client.post("/signup", data={"name": "mia"})
        queue.deliver(host)
        assert set(rows(host, "user_id")) == {user_id(host, "mia")}
        assert len(rows(host, "id")) == 4

    def test_late_click_on_a_link_of_the_user_who_has_claimed_the_key_does_not_count(
        self, host: Host, queue: Queue
    ) -> None:
        with host.app.app_context():
            host.user("mia")
        client = host.client()
        for link in (new_link(host), new_link(host, "/own", "mia"), new_link(host, "/tea")):
            follow(client, link)
        client.post("/login", data={"name": "mia"})
        queue.deliver(host)
        assert rows(host, "ignored") == [None, "self", None]

    def test_of_a_user_who_is_gone_nothing_is_kept(self, host: Host, queue: Queue) -> None:
        client, link = host.client(), new_link(host)
        client.post("/signup", data={"name": "mia"})
        follow(client, link)
        with host.app.app_context():
            host.db.session.delete(host.db.session.scalar(sa.select(host.User)))
            host.db.session.commit()
        queue.deliver(host)
        names = ("ignored", "user_id", "session_key", "ip_address", "http_referrer", "user_agent")
        assert rows(host, *names) == [(None,) * len(names)]

    def test_counts_stay_exact_when_the_day_is_rolled_up(self, host: Host, queue: Queue) -> None:
        link = new_link(host)
        with time_machine.travel(datetime.now(timezone.utc) - timedelta(days=3), tick=False):
            for _ in range(2):
                follow(host.client(), link)
        late = [queue.pop(), queue.pop(0)][0]
        queue[:] = []
        follow(host.client(), link)
        queue.deliver(host)
        with host.app.app_context():
            response = host.responses()[0]
            response.created_at -= timedelta(days=5)
            host.db.session.commit()
            roll_up(current_state().database)
        assert count(host) == 1
        queue.append(late)
        queue.deliver(host)
        assert count(host) == 2

    def test_signal_is_sent_for_what_is_stored(self, host: Host, queue: Queue) -> None:
        sent = []

        def receive(app: Flask, response: Any) -> None:
            sent.append(response.ignored)

        client, link = host.client(), new_link(host)
        for _ in range(2):
            follow(client, link)
        with signals.response_recorded.connected_to(receive, host.app):
            queue.deliver(host)
            assert sent == [None, "repeat"]


class TestCredit:
    @pytest.mark.parametrize("cookie", [None, "referral"])
    def test_action_is_credited_before_the_click_is_stored(
        self, make_queued: MakeHost, queue: Queue, cookie: str | None
    ) -> None:
        host = make_queued(REFERRALS_COOKIE=cookie)
        client = host.client()
        links = [new_link(host), new_link(host, "/tea")]
        for link in links:
            follow(client, link)
        assert [client.post(f"/act/{action}").text for action in ("A", "B")] == [links[1].rpartition("/")[2]] * 2
        assert rows(host, "action", "user_agent") == [("RESPONDED", None)] * 2 + [("A", BROWSER), ("B", BROWSER)]
        events = list(queue)
        for _ in range(2):
            queue[:] = events
            queue.deliver(host)
        assert (
            rows(host, "action", "user_agent", "params", "ip_address")[:2]
            == [("RESPONDED", BROWSER, MARKS, "192.0.2.0")] * 2
        )
        assert len(rows(host, "id")) == 4

    def test_first_and_last_click_are_enough(self, make_queued: MakeHost) -> None:
        for policy, winner in (("first", 0), ("last", 3)):
            host = make_queued(REFERRALS_ATTRIBUTION=policy)
            client = host.client()
            links = [new_link(host, f"/{number}") for number in range(4)]
            for link in links:
                follow(client, link)
            assert client.post("/act/BOUGHT").text == links[winner].rpartition("/")[2]

    @pytest.mark.parametrize("case", ["own", "expired"])
    @pytest.mark.parametrize("number", [2, 20])
    def test_touch_that_earns_nothing_hides_no_other(self, host: Host, queue: Queue, case: str, number: int) -> None:
        with host.app.app_context():
            host.user("mia")
        client = host.client()
        links = [new_link(host, f"/{each}") for each in range(number)]
        last = new_link(host, "/last", "mia" if case == "own" else None)
        for link in (*links, last):
            follow(client, link)
        if case == "expired":
            with host.app.app_context():
                update = sa.update(Referral).where(Referral.redirect_to == "/last")
                host.db.session.execute(update.values(expired_at=datetime.now(timezone.utc)))
                host.db.session.commit()
        client.post("/login", data={"name": "mia"})
        assert client.post("/act/BOUGHT").text == links[-1].rpartition("/")[2]
        queue.deliver(host)
        with host.app.app_context():
            mia = host.db.session.scalars(sa.select(host.User)).one()
            referral = Referral.referrer_of(mia)
            assert referral is not None and referral.redirect_to == f"/{number - 1}"

    def test_click_of_a_member_outlives_another_login(self, host: Host) -> None:
        client, link = host.client(), new_link(host)
        client.post("/signup", data={"name": "mia"})
        follow(client, link)
        client.post("/signup", data={"name": "olga"})
        assert client.post("/act/BOUGHT").text == ""
        client.post("/login", data={"name": "mia"})
        assert client.post("/act/BOUGHT").text == link.rpartition("/")[2]

    def test_member_is_credited(self, host: Host) -> None:
        client = host.client()
        client.post("/signup", data={"name": "mia"})
        link = new_link(host)
        follow(client, link)
        assert client.post("/act/BOUGHT").text == link.rpartition("/")[2]
        assert set(rows(host, "user_id")) == {user_id(host, "mia")}

    def test_sign_up_is_credited_though_the_view_clears_the_session(self, host: Host, queue: Queue) -> None:
        client, link = host.client(), new_link(host)
        follow(client, link)
        client.post("/signup", data={"name": "mia"})
        queue.deliver(host)
        assert rows(host, "action", "user_id") == [
            (action, user_id(host, "mia")) for action in ("RESPONDED", "SIGNED_UP")
        ]
        assert rows(host, "user_agent") == [BROWSER] * 2

    def test_reading_tells_it_too(self, host: Host, queue: Queue) -> None:
        read: list[Any] = []

        @host.app.get("/read")
        def view() -> str:
            credited = Referral.referral_for_request()
            read.append(credited.code if credited is not None else None)
            read.append(len(Referral.referral_responses_for_request()))
            read.append([verdict.rule for verdict in Referral.explain()])
            return ""

        client, link = host.client(), new_link(host)
        follow(client, link)
        client.get("/read")
        assert read == [link.rpartition("/")[2], 1, ["won"]]
        queue.deliver(host)
        assert rows(host, "user_agent") == [BROWSER]

    def test_what_the_host_rolls_back_stays_pending(self, host: Host, queue: Queue) -> None:
        @host.app.post("/fail")
        def fail() -> str:
            Referral.record_response("BOUGHT", commit=False)
            host.db.session.rollback()
            return ""

        client, link = host.client(), new_link(host)
        follow(client, link)
        client.post("/fail")
        assert rows(host, "id") == []
        assert client.post("/act/BOUGHT").text == link.rpartition("/")[2]

    def test_logout_stores_what_is_pending(self, host: Host, queue: Queue) -> None:
        client = host.client()
        client.post("/signup", data={"name": "mia"})
        follow(client, new_link(host))
        client.post("/logout")
        assert rows(host, "user_id") == [user_id(host, "mia")]
        assert client.post("/act/BOUGHT").text == ""

    def test_session_keeps_two_clicks_at_most_and_none_when_they_are_stored(self, host: Host) -> None:
        client, link = host.client(), new_link(host)
        lengths = []
        for _ in range(5):
            follow(client, link)
            with client.session_transaction() as session:
                lengths.append(len(session["_referral"]))
        assert lengths == [115 + 97, *[115 + 97 + 53] * 4]
        client.post("/act/BOUGHT")
        with client.session_transaction() as session:
            assert len(session["_referral"]) == 115

    def test_pending_clicks_cannot_be_forged_or_passed_on(self, make_queued: MakeHost) -> None:
        host = make_queued(REFERRALS_COOKIE="referral")
        link = new_link(host)
        mine, others = host.client(), host.client()
        for client in (mine, others):
            follow(client, link)
        cookies = [client.get_cookie("referral") for client in (mine, others)]
        (token, _), (_, pending) = [cookie.value.split("~", 1) for cookie in cookies if cookie is not None]
        for forged in (f"{token}~{pending}", f"{token}~x.y.1~z", f"{token}~", f"{token}~a~b~c", f"~{pending}"):
            thief = host.client()
            thief.set_cookie("referral", forged)
            assert thief.post("/act/BOUGHT").text == ""
        assert rows(host, "id") == []

    def test_old_click_is_not_stored_again(self, host: Host, queue: Queue) -> None:
        client, link = host.client(), new_link(host)
        follow(client, link)
        with time_machine.travel(datetime.now(timezone.utc) + timedelta(days=2), tick=False):
            assert client.post("/act/BOUGHT").text == ""


@pytest.mark.parametrize("hook", ["user_loader", "classifier", "consent", "client_ip"])
def test_host_callable_that_fails_costs_no_click(host: Host, queue: Queue, hook: str) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("the host's fault")

    link = new_link(host, "/welcome")
    getattr(host.referrals, hook)(fail)
    assert follow(host.client(), link).location == "/welcome"
    assert len(queue) == 1


@pytest.mark.parametrize("is_deleted", [True, False])
class TestForgottenUser:
    """``forget_user`` before the queue is empty."""

    def forget(self, host: Host, is_deleted: bool) -> None:
        with host.app.app_context():
            mia = host.db.session.scalars(sa.select(host.User)).one()
            host.referrals.forget_user(mia)
            if is_deleted:
                host.db.session.delete(mia)
                host.db.session.commit()

    def check(self, host: Host, number: int) -> None:
        """See that some clicks are counted, and that nothing says whose they were."""
        names = ("user_id", "session_key", "ip_address", "http_referrer", "user_agent", "key")
        assert rows(host, *names) == [(None,) * len(names)] * number
        assert count(host) == number

    def test_nothing_returns_from_the_queue(self, host: Host, queue: Queue, is_deleted: bool) -> None:
        client = host.client()
        links = [new_link(host, f"/{each}") for each in range(4)]
        for link in links[:2]:
            follow(client, link)
        client.post("/signup", data={"name": "mia"})
        for link in links[2:]:
            follow(client, link)
        with host.app.app_context():
            host.db.session.execute(sa.delete(ReferralResponse).where(ReferralResponse.action == "SIGNED_UP"))
            host.db.session.commit()
        self.forget(host, is_deleted)
        for _ in range(2):
            events = list(queue)
            queue.deliver(host)
            queue[:] = events
            self.check(host, 4)

    def test_nothing_returns_after_the_totals_are_rebuilt(self, host: Host, queue: Queue, is_deleted: bool) -> None:
        client = host.client()
        client.post("/signup", data={"name": "mia"})
        follow(client, new_link(host))
        self.forget(host, is_deleted)
        with host.app.app_context():
            roll_up(current_state().database, rebuild=True)
        queue.deliver(host)
        assert rows(host, "session_key", "user_agent", "key") == [(None, None, None)]

    def test_nothing_returns_from_the_browser(self, host: Host, queue: Queue, is_deleted: bool) -> None:
        client = host.client()
        client.post("/signup", data={"name": "mia"})
        follow(client, new_link(host))
        self.forget(host, is_deleted)
        client.post("/logout")
        client.post("/act/BOUGHT")
        self.check(host, 1)
        queue.deliver(host)
        self.check(host, 1)

    def test_later_clicks_are_their_own(self, host: Host, queue: Queue, is_deleted: bool) -> None:
        client = host.client()
        client.post("/signup", data={"name": "mia"})
        self.forget(host, is_deleted)
        if is_deleted:
            client.post("/signup", data={"name": "mia"})
        with time_machine.travel(datetime.now(timezone.utc) + timedelta(seconds=1), tick=False):
            follow(client, new_link(host))
        queue.deliver(host)
        assert rows(host, "user_id", "user_agent") == [(user_id(host, "mia"), BROWSER)]


def test_anonymous_click_is_not_stored_again(host: Host, queue: Queue) -> None:
    follow(host.client(), new_link(host))
    events = list(queue)
    queue.deliver(host)
    with time_machine.travel(datetime.now(timezone.utc) + timedelta(days=2), tick=False):
        for _ in range(2):
            assert (
                host.app.test_cli_runner().invoke(args=["referrals", "anonymize", "--older-than", "1"]).exit_code == 0
            )
    queue[:] = events
    queue.deliver(host)
    assert rows(host, "user_agent") == [None]


def test_tombstones_are_removed_after_a_month(host: Host) -> None:
    with host.app.app_context():
        totals = host.db.metadata.tables["referral_total"]
        for days in (0, 31, 62):
            with time_machine.travel(NOON + timedelta(days=days), tick=False):
                host.referrals.forget_user(host.user(f"user {days}"))
                assert len(host.db.session.execute(sa.select(totals)).all()) == 1


def test_recorder_of_one_app_is_not_anothers(new_host: MakeHost, sqlite_url: str, queue: Queue) -> None:
    host = new_host()
    with_queue = Referrals(recorder=queue)
    app = Flask("other")
    app.config.from_mapping(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI=sqlite_url, TESTING=True)
    host.db.init_app(app)
    with_queue.init_app(app, user_model=host.User)
    follow(host.client(), new_link(host))
    assert queue == []
    assert len(rows(host, "id")) == 1
