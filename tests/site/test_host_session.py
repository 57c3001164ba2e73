"""Only the host's own calls flush or commit the pending work in its session."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, render_template_string, request
from flask.testing import FlaskClient
from flask_login import current_user, login_user
from sqlalchemy.exc import IntegrityError

from flask_referrals import Referral, ReferralResponse, user_linked_to_response
from tests.conftest import MakeHost
from tests.host import Host, follow
from tests.site.helpers import ONE_CONNECTION, Row, connections_in_use, find_user, has_key, names, rows

Write = Callable[[Host, Any], None]


def add(host: Host, model: Any) -> None:
    """Leave a new row to the next flush."""
    host.db.session.add(model(name="half"))


def flush(host: Host, model: Any) -> None:
    """Write a row through the session."""
    add(host, model)
    host.db.session.flush()


def insert(host: Host, model: Any) -> None:
    """Write a row without a flush."""
    host.db.session.execute(sa.insert(model).values(name="half"))


def add_incomplete(host: Host, model: Any) -> None:
    """Leave a row to the next flush that lacks a value."""
    host.db.session.add(model())


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    """A site with one connection, and a hook that leaves work pending before the extension's own hook."""
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS=ONE_CONNECTION, REFERRALS_QUERY_PARAM="ref")

    def write() -> None:
        if "X-Write" in request.headers:
            WRITES[request.headers["X-Write"]](host, host.Product)

    host.app.before_request_funcs.setdefault(None, []).insert(0, write)
    return host


class TestLogin:
    """A view writes, logs in another user, and then ends its transaction or leaves it open."""

    @pytest.fixture
    def host(self, host: Host) -> Host:
        @host.app.post("/enter/<write>/<end>")
        def enter(write: str, end: str) -> str:
            mia = find_user(host, "mia")
            WRITES[write](host, host.User)
            login_user(mia)
            if end != "nothing":
                getattr(host.db.session, end)()
            return "entered"

        with host.app.app_context():
            host.user("mia")
        return host

    @pytest.mark.parametrize("end", ["rollback", "nothing"])
    @pytest.mark.parametrize("write", ["add", "flush", "insert"])
    def test_half_done_work_is_not_committed_and_the_history_is_joined(
        self, host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture, write: str, end: str
    ) -> None:
        def receive(app: Flask, response: ReferralResponse) -> None:
            seen.append((response.action, *host.db.session.scalars(sa.select(host.User.name))))

        seen: list[tuple[str, ...]] = []
        follow(host, client)
        with user_linked_to_response.connected_to(receive, host.app):
            assert client.post(f"/enter/{write}/{end}").text == "entered"
        assert connections_in_use(host) == 0
        assert seen == [("RESPONDED", "mia")]
        assert names(host, host.User) == ["mia"]
        assert rows(host) == [Row("RESPONDED", "mia")]
        assert not has_key(client)
        assert caplog.records == []

    def test_incomplete_row_is_not_flushed(self, host: Host, client: FlaskClient) -> None:
        follow(host, client)
        assert client.post("/enter/add_incomplete/rollback").text == "entered"
        assert rows(host) == [Row("RESPONDED", "mia")]

    def test_new_user_who_is_rolled_back_gets_no_history(self, host: Host, client: FlaskClient) -> None:
        @host.app.post("/register")
        def register() -> str:
            user = host.User(name="ghost")
            host.db.session.add(user)
            host.db.session.flush()
            login_user(user)
            host.db.session.rollback()
            return "sorry"

        follow(host, client)
        assert client.post("/register").text == "sorry"
        assert names(host, host.User) == ["mia"]
        host.client().post("/signup", data={"name": "next"})  # may get the key of the user who was rolled back
        assert rows(host) == [Row("RESPONDED")]
        client.post("/signup", data={"name": "zoe"})
        assert rows(host) == [Row("RESPONDED", "zoe"), Row("SIGNED_UP", "zoe")]


class TestRememberedUser:
    """Reading ``current_user`` logs in a visitor with a remember-me cookie."""

    @pytest.fixture
    def host(self, host: Host) -> Host:
        @host.app.get("/profile/<write>")
        def profile(write: str) -> str:
            WRITES[write](host, host.Product)
            with host.db.session.no_autoflush:  # Flask-Login's user_loader is the host's
                name: str = current_user.name
            host.db.session.rollback()
            return name

        return host

    @pytest.mark.parametrize("write", ["add", "flush", "insert", "add_incomplete"])
    def test_reading_the_user_commits_and_flushes_nothing(
        self, host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture, write: str
    ) -> None:
        other = host.client()
        other.post("/signup", data={"name": "mia", "remember": "1"})
        cookie = other.get_cookie("remember_token")
        assert cookie is not None
        follow(host, client)
        client.set_cookie("remember_token", cookie.value)
        assert client.get(f"/profile/{write}").text == "mia"
        assert names(host, host.Product) == []
        assert rows(host) == [Row("RESPONDED", "mia")]
        assert not has_key(client)
        assert caplog.records == []


@pytest.mark.parametrize("path", ["/referrals/tea", "/?ref=tea"])
@pytest.mark.parametrize("write", ["add", "flush", "insert", "add_incomplete"])
def test_click_is_stored_and_the_pending_work_is_not(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture, path: str, write: str
) -> None:
    with host.app.app_context():
        Referral.create("/", code="tea")
    assert client.get(path, headers={"X-Write": write}).status_code in (200, 302)
    assert connections_in_use(host) == 0
    assert names(host, host.Product) == []
    assert rows(host) == [Row("RESPONDED")]
    assert client.post("/act/BOUGHT").text == "tea"
    assert caplog.records == []


READS: dict[str, Callable[[Host, Any], object]] = {
    "referral_for_request": lambda host, mia: Referral.referral_for_request(),
    "referral_responses_for_request": lambda host, mia: Referral.referral_responses_for_request(),
    "explain": lambda host, mia: Referral.explain(),
    "referrer_of": lambda host, mia: Referral.referrer_of(mia),
    "referred_by": lambda host, mia: Referral.referred_by(mia),
    "response_count": lambda host, mia: mia.referral_codes[0].response_count,
    "filtered_responses": lambda host, mia: mia.referral_codes[0].filtered_responses(),
    "template": lambda host, mia: render_template_string("{{ referral_responses(user)|length }}", user=mia),
}


@pytest.mark.parametrize("path", ["/referrals/tea", "/?ref=tea", "/credit?ref=tea"])
def test_loading_the_user_does_not_flush_what_the_host_has_not_completed(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    @host.app.get("/credit")
    def credit() -> str:
        referral = Referral.referral_for_request()
        return "" if referral is None else referral.code

    with host.app.app_context():
        Referral.create("/", code="tea")
    client.post("/signup", data={"name": "mia"})
    assert client.get(path, headers={"X-Write": "add_incomplete"}).status_code in (200, 302)
    assert rows(host) == [Row("RESPONDED", "mia")]
    assert caplog.records == []


@pytest.mark.parametrize("path", ["/referrals/tea", "/?ref=tea"])
def test_classifier_that_reads_does_not_flush_what_the_host_has_not_completed(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    @host.referrals.classifier
    def classify(request: Any) -> str | None:
        return None if host.db.session.scalars(sa.select(host.Product)).all() == [] else "known"

    with host.app.app_context():
        Referral.create("/", code="tea")
    assert client.get(path, headers={"X-Write": "add_incomplete"}).status_code in (200, 302)
    assert rows(host) == [Row("RESPONDED")]
    assert caplog.records == []


@pytest.mark.parametrize("hook", ["consent", "attribution"])
def test_hook_that_reads_does_not_flush_what_the_host_has_not_completed(new_host: MakeHost, hook: str) -> None:
    def query(argument: Any) -> Any:
        assert site.db.session.scalars(sa.select(site.Product)).all() == []
        return argument[0] if isinstance(argument, list) else True

    site = new_host(**({"REFERRALS_ATTRIBUTION": query} if hook == "attribution" else {}))
    if hook == "consent":
        site.referrals.consent(query)

    @site.app.post("/add")
    def add_product() -> str:
        product = site.Product()
        site.db.session.add(product)
        referral = Referral.referral_for_request()
        assert referral is not None
        product.name = referral.code
        site.db.session.commit()
        return referral.code

    client = site.client()
    code = follow(site, client)
    assert client.post("/add").text == code


@pytest.mark.parametrize("read", READS)
def test_reading_does_not_flush_what_the_host_has_not_completed(host: Host, client: FlaskClient, read: str) -> None:
    @host.app.post("/add")
    def add_product() -> str:
        mia = find_user(host, "mia")
        assert len(mia.referral_codes) == 1
        product = host.Product()
        host.db.session.add(product)
        READS[read](host, mia)
        product.name = "tea"
        host.db.session.commit()
        return "added"

    with host.app.app_context():
        Referral.create("/", user=host.user("mia"))
    follow(host, client)
    assert client.post("/add").text == "added"
    assert names(host, host.Product) == ["tea"]


class TestHostsOwnError:
    """The host's session has no autoflush, and a pending row that the database refuses."""

    @pytest.fixture
    def host(self, host: Host) -> Host:
        host.db.session.session_factory.configure(autoflush=False)
        with host.app.app_context():
            host.user("mia")
            Referral.create("/", code="tea")
        return host

    @pytest.mark.parametrize("commit", [True, False])
    @pytest.mark.parametrize(
        "call",
        [
            lambda commit: Referral.create("/new", commit=commit),
            lambda commit: Referral.record_response("BOUGHT", key="order 1", commit=commit),
            lambda commit: Referral.record_response("BOUGHT", once=True, commit=commit),
        ],
        ids=["create", "key", "once"],
    )
    def test_error_of_the_hosts_row_is_raised(
        self, host: Host, client: FlaskClient, call: Callable[[bool], object], commit: bool
    ) -> None:
        @host.app.post("/add")
        def add_user() -> str:
            host.db.session.add(host.User(name="mia"))
            with pytest.raises(IntegrityError):
                call(commit)
                host.db.session.commit()
            host.db.session.rollback()
            return "refused"

        client.get("/referrals/tea")
        assert client.post("/add").text == "refused"
        assert rows(host) == [Row("RESPONDED")]


WRITES: dict[str, Write] = {each.__name__: each for each in (add, flush, insert, add_incomplete)}


class TestPushedContext:
    """A host's own test has pushed an app context, which its requests share: their session is the test's."""

    def count(self, host: Host, user: str | None = None) -> int:
        """Return the number of responses that the session sees, without ending its transaction."""
        model = host.referrals.ReferralResponse
        select = sa.select(sa.func.count()).select_from(model)
        if user is not None:
            select = select.join(model.user).where(host.User.name == user)
        return host.db.session.scalar(select) or 0

    def test_click_is_seen_at_once_and_stored_in_the_end(self, host: Host, client: FlaskClient) -> None:
        with host.app.app_context():
            code = Referral.create("/").code
            assert self.count(host) == 0  # the session has a transaction from here on
            client.get(f"/referrals/{code}")
            assert self.count(host) == 1
        assert rows(host) == [Row("RESPONDED")]

    def test_login_joins_at_once_and_in_the_end(self, host: Host, client: FlaskClient) -> None:
        follow(host, client)
        with host.app.app_context():
            host.user("mia")
            assert self.count(host, "mia") == 0
            client.post("/login", data={"name": "mia"})
            assert self.count(host, "mia") == 1
        assert rows(host) == [Row("RESPONDED", "mia")]

    def test_commit_of_the_test_stores_the_click_once(self, host: Host, client: FlaskClient) -> None:
        with host.app.app_context():
            code = Referral.create("/").code
            assert self.count(host) == 0
            client.get(f"/referrals/{code}")
            host.db.session.commit()
        assert rows(host) == [Row("RESPONDED")]
