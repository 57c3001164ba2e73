"""Joining a visitor's history to the user at login."""

from datetime import datetime, timezone
from functools import partial

import pytest
import sqlalchemy as sa
from flask import request, session
from flask.testing import FlaskClient
from flask_login import login_user, logout_user

from flask_referrals import Referral, ReferralResponse, user_linked_to_response
from tests.conftest import MakeHost
from tests.host import Host, follow, in_parallel, statements


def owners(host: Host) -> list[str | None]:
    """Whose the responses are, oldest first."""
    with host.app.app_context():
        return [response.user.name if response.user else None for response in host.responses()]


def has_key(client: FlaskClient) -> bool:
    with client.session_transaction() as browser_session:
        return "_referral" in browser_session


def test_sign_up_that_clears_the_session_and_records_at_once_is_credited(host: Host, client: FlaskClient) -> None:
    follow(host, client)
    client.post("/signup", data={"name": "mia"})
    assert owners(host) == ["mia", "mia"]
    assert not has_key(client)
    assert client.post("/act/BOUGHT").text != ""


def test_login_that_clears_the_session_takes_all_clicks_along(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        host.user("mia")
    for path in ("/a", "/b", "/c"):
        follow(host, client, path)
    client.post("/login", data={"name": "mia"})
    assert owners(host) == ["mia"] * 3
    assert not has_key(client)


def test_link_is_one_update_however_many_rows(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        host.user("mia")
    for path in ("/a", "/b", "/c"):
        follow(host, client, path)
    with host.app.app_context(), statements(host.db) as sent:
        client.post("/login", data={"name": "mia"})
    ours = [statement.split()[0] for statement in sent if "referral" in statement]
    assert ours == ["SELECT", "UPDATE"]  # which of them were clicks on the user's own links, and all of them


def test_remembered_visitor_is_joined_too(host: Host, client: FlaskClient) -> None:
    client.post("/signup", data={"name": "mia", "remember": "1"})
    client.delete_cookie("session")  # the browser was closed
    follow(host, client)
    assert client.post("/act/BOUGHT").text != ""
    assert set(owners(host)) == {"mia"}


def test_next_person_on_the_browser_inherits_nothing(host: Host, client: FlaskClient) -> None:
    follow(host, client)
    before = client.get_cookie("session")
    assert before is not None
    client.post("/signup", data={"name": "mia"})
    client.post("/logout")
    client.post("/signup", data={"name": "next"})
    assert client.post("/act/BOUGHT").text == ""
    client.post("/logout")
    client.set_cookie("session", before.value)  # an old cookie, kept
    assert client.post("/act/BOUGHT").text == ""
    client.post("/login", data={"name": "next"})
    assert client.post("/act/BOUGHT").text == ""
    assert owners(host) == ["mia", "mia"]


def test_logout_drops_the_key(host: Host, client: FlaskClient) -> None:
    follow(host, client)
    assert has_key(client)
    client.post("/logout")
    assert not has_key(client)


class TestViewThatFails:
    """A view cleared the session, and then failed."""

    @pytest.fixture(params=["referral", None], ids=["cookie", "no cookie"])
    def host(self, new_host: MakeHost, request: pytest.FixtureRequest) -> Host:
        host = new_host(PROPAGATE_EXCEPTIONS=False, REFERRALS_COOKIE=request.param)

        @host.app.post("/fail")
        def fail() -> str:
            logout_user()
            session.clear()
            raise RuntimeError

        return host

    def test_visitor_keeps_the_key(self, host: Host, client: FlaskClient) -> None:
        follow(host, client)
        assert client.post("/login", data={"name": "nobody"}).status_code == 500
        client.post("/signup", data={"name": "mia"})
        assert owners(host) == ["mia", "mia"]

    def test_visitor_without_a_key_gets_none(self, host: Host, client: FlaskClient) -> None:
        assert client.post("/login", data={"name": "nobody"}).status_code == 500
        assert not has_key(client)

    def test_key_that_was_dropped_stays_so(self, host: Host, client: FlaskClient) -> None:
        follow(host, client)
        assert client.post("/fail").status_code == 500
        assert not has_key(client)


def test_logout_and_login_in_one_request_pass_nothing_on(host: Host, client: FlaskClient) -> None:
    @host.app.post("/switch")
    def switch() -> str:
        logout_user()
        session.clear()
        login_user(host.db.session.scalars(sa.select(host.User)).one())
        return ""

    with host.app.app_context():
        host.user("mia")
    follow(host, client)
    client.post("/switch")
    assert owners(host) == [None]


def test_only_clicks_on_the_users_own_link_turn_out_to_be_their_own(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        users = [host.user(name) for name in ("mia", "olga", "otto")]
        codes = [Referral.create("/", user=user).code for user in users]
    for code in codes:
        client.get(f"/referrals/{code}")
    client.post("/login", data={"name": "olga"})
    with host.app.app_context():
        assert [response.ignored for response in host.responses()] == [None, "self", None]


def test_reason_why_a_click_did_not_count_outlives_the_login(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        code = Referral.create("/", user=host.user("olga")).code
    client.get(f"/referrals/{code}")
    client.get(f"/referrals/{code}")
    client.post("/login", data={"name": "olga"})
    with host.app.app_context():
        assert [response.ignored for response in host.responses()] == ["self", "repeat"]


def test_clicks_of_other_visitors_stay_unclaimed(host: Host) -> None:
    browsers = [host.client() for _ in range(3)]
    for browser in browsers:
        follow(host, browser)
    with host.app.app_context():
        host.user("mia")
        keys = [response.session_key or "" for response in host.responses()]
    browsers[keys.index(sorted(keys)[1])].post("/login", data={"name": "mia"})
    with host.app.app_context():
        claimed = {response.session_key: response.user is not None for response in host.responses()}
    assert [claimed[key] for key in sorted(keys)] == [False, True, False]


def test_each_joined_response_is_announced_once_in_the_order_of_time(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        host.user("mia")
    for path in ("/a", "/b", "/c"):
        follow(host, client, path)
    follow(host, host.client(), "/d")
    with host.app.app_context():
        model = host.referrals.ReferralResponse
        first = host.responses()[0]
        host.db.session.execute(
            sa.update(model).where(model.id == first.id).values(created_at=datetime.now(timezone.utc))
        )
        host.db.session.commit()
    seen: list[str] = []

    def note(app: object, response: ReferralResponse) -> None:
        seen.append(response.referral.redirect_to)

    with user_linked_to_response.connected_to(note, host.app):
        client.post("/login", data={"name": "mia"})
    assert seen == ["/b", "/c", "/a"]


def test_first_claim_wins_under_a_race(host: Host, client: FlaskClient) -> None:
    for path in ("/a", "/b", "/c"):
        follow(host, client, path)
    cookie = client.get_cookie("session")
    assert cookie is not None
    with host.app.app_context():
        for number in range(4):
            host.user(f"user{number}")
    won: list[str] = []

    def count(app: object, response: ReferralResponse) -> None:
        won.append(response.user.name)

    def log_in(name: str) -> None:
        browser = host.client()
        browser.set_cookie("session", cookie.value)
        browser.post("/login", data={"name": name})

    with user_linked_to_response.connected_to(count, host.app):
        in_parallel([partial(log_in, f"user{number}") for number in range(4)])
    assert len(won) == 3
    assert owners(host) == won[:1] * 3


def test_user_who_is_not_stored_yet_is_flushed_and_joined_with_the_hosts_commit(
    host: Host, client: FlaskClient
) -> None:
    @host.app.post("/late")
    def late() -> str:
        user = host.User(name="late")
        host.db.session.add(user)
        login_user(user)  # as Flask-Security does at registration
        Referral.record_response("SIGNED_UP", commit=False)
        if "fail" in request.args:
            host.db.session.rollback()
        else:
            host.db.session.commit()
        return ""

    follow(host, client)
    client.post("/late?fail=1")
    assert owners(host) == [None]
    assert has_key(client)
    client.post("/late")
    assert owners(host) == ["late", "late"]
    assert not has_key(client)


def test_login_works_when_the_link_cannot_be_written(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with host.app.app_context():
        host.user("mia")
    follow(host, client)
    with host.app.app_context():
        host.referrals.ReferralResponse.__table__.drop(host.db.engine)  # type: ignore[attr-defined]
    assert client.post("/login", data={"name": "mia"}).status_code == 302
    assert len(caplog.records) == 1


class TestWithoutFlaskLogin:
    """A home-made login."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host(with_login=False)

        @host.referrals.user_loader
        def load_user() -> object:
            return host.db.session.get(host.User, session["user_id"]) if "user_id" in session else None

        @host.app.post("/login")
        def log_in() -> str:
            user = host.db.session.scalars(sa.select(host.User).where(host.User.name == "mia")).one()
            if request.form.get("clear"):
                session.clear()
            session["user_id"] = user.id
            if request.form.get("link"):
                host.referrals.link_user(user)
            return ""

        @host.app.post("/refund")
        def refund() -> str:
            other = host.db.session.scalars(sa.select(host.User).where(host.User.name == "other")).one()
            return repr(Referral.record_response("REFUNDED", user=other))

        with host.app.app_context():
            host.user("mia")
        return host

    def test_link_user_joins_after_the_session_was_cleared(self, host: Host, client: FlaskClient) -> None:
        code = follow(host, client)
        client.post("/login", data={"clear": "1", "link": "1"})
        assert owners(host) == ["mia"]
        assert client.post("/act/BOUGHT").text == code

    def test_first_action_joins_when_nothing_else_did(self, host: Host, client: FlaskClient) -> None:
        code = follow(host, client)
        client.post("/login")
        assert client.post("/act/BOUGHT").text == code
        assert owners(host) == ["mia", "mia"]
        assert not has_key(client)

    def test_join_is_committed_when_no_referral_earns_the_credit(self, host: Host, client: FlaskClient) -> None:
        with host.app.app_context():
            mia = host.db.session.scalars(sa.select(host.User)).one()
            code = Referral.create("/", user=mia).code
        client.get(f"/referrals/{code}")
        client.post("/login")
        assert client.post("/act/BOUGHT").text == ""
        assert owners(host) == ["mia"]

    def test_acting_for_another_user_does_not_give_them_ones_own_history(self, host: Host, client: FlaskClient) -> None:
        with host.app.app_context():
            host.user("other")
        follow(host, client)
        client.post("/login")
        assert client.post("/refund").text == "None"
        assert owners(host) == [None]


def test_login_without_a_click_runs_no_statement(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        host.user("mia")
    with host.app.app_context(), statements(host.db) as sent:
        client.post("/login", data={"name": "mia"})
    assert sent and not [statement for statement in sent if "referral" in statement]


def test_login_leaves_the_error_in_what_the_host_is_writing_to_the_hosts_commit(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    @host.app.post("/twice")
    def twice() -> str:
        user = host.db.session.scalars(sa.select(host.User)).one()
        host.db.session.add(host.User(name=user.name))
        login_user(user)
        with pytest.raises(sa.exc.IntegrityError):
            host.db.session.commit()
        return "logged in"

    with host.app.app_context():
        host.user("mia")
    follow(host, client)
    assert client.post("/twice").text == "logged in"
    assert not caplog.records
    assert owners(host) == ["mia"]


@pytest.mark.parametrize("change", ["new", "dirty", "deleted"])
def test_login_leaves_it_to_the_host_to_commit_what_it_is_writing(host: Host, client: FlaskClient, change: str) -> None:
    @host.app.post("/change")
    def change_and_log_in() -> str:
        tea, cake = host.db.session.scalars(sa.select(host.Product).order_by(host.Product.id))
        user = host.db.session.scalars(sa.select(host.User)).one()
        if change == "new":
            host.db.session.add(host.Product(name="cup"))
        elif change == "dirty":
            tea.name = "coffee"
        else:
            host.db.session.delete(cake)
        login_user(user)
        host.db.session.rollback()
        return ""

    with host.app.app_context():
        host.user("mia")
        host.add(host.Product(name="tea"))
        host.add(host.Product(name="cake"))
    follow(host, client)
    client.post("/change")
    assert owners(host) == ["mia"]
    with host.app.app_context():
        assert sorted(host.db.session.scalars(sa.select(host.Product.name))) == ["cake", "tea"]


def test_one_referral_of_many_is_linked_by_hand(host: Host, client: FlaskClient) -> None:
    for path in ("/a", "/b", "/c"):
        follow(host, client, path)
    with host.app.app_context():
        click = host.responses()[1]
        assert click.session_key is not None
        click.referral.link_responses_to_user(host.user("mia"), click.session_key)
    assert owners(host) == [None, "mia", None]


def test_responses_of_one_referral_can_be_linked_by_hand(host: Host, client: FlaskClient) -> None:
    for path in ("/a", "/b"):
        follow(host, client, path)
    with host.app.app_context():
        mia = host.user("mia")
        referral = host.db.session.scalars(sa.select(Referral).where(Referral.redirect_to == "/a")).one()
        key = host.responses()[0].session_key
        assert key is not None
        referral.link_responses_to_user(mia, key)
    assert owners(host) == ["mia", None]
