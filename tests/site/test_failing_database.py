"""Pages survive a failure of the extension's tables; developers, workers and webhooks get the error."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import render_template_string, request, session
from flask.testing import FlaskClient
from flask_login import current_user
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError

from flask_referrals import Referral, current_referrals
from tests.conftest import MakeHost
from tests.host import Host, make_host
from tests.site.helpers import Row, declare_on, engine_of, failing, find_user, key_of, names, rows

#: A site in production.
LIVE: dict[str, Any] = {"TESTING": False, "REFERRALS_BASE_URL": "http://localhost"}


def add_pages(host: Host) -> None:
    """Add pages that call the extension and go on with their own work."""

    @host.app.post("/buy")
    def buy() -> str:
        host.db.session.add(host.Product(name="before"))
        host.db.session.flush()
        response = Referral.record_response("BOUGHT", once="once" in request.args, commit="commit" in request.args)
        host.db.session.add(host.Product(name="after"))
        host.db.session.commit()
        return repr(response)

    @host.app.post("/typed")
    def typed() -> str:
        return repr(Referral.attach("tea"))

    @host.app.post("/pay")
    def pay() -> str:
        with pytest.raises(DBAPIError):
            Referral.record_response("PAID", key="order 1")
        return "raised"

    @host.app.post("/add")
    def add() -> str:
        host.db.session.add(host.User(name="mia"))
        with pytest.raises(IntegrityError):
            Referral.record_response("BOUGHT")
        host.db.session.rollback()
        return "refused"

    @host.app.route("/account", methods=["GET", "POST"])
    def account() -> str:
        if request.method == "POST":
            host.db.session.add(host.Product(name="ordered"))
            host.db.session.flush()
        page = render_template_string("{{ referral_responses(user)|list }}", user=current_user)
        host.db.session.commit()
        return page

    @host.app.post("/enter")
    def enter() -> str:
        mia = find_user(host, "mia")
        host.db.session.add(host.Product(name="entered"))
        host.referrals.link_user(mia, commit="commit" in request.args)
        host.db.session.commit()
        return "entered"

    @host.app.post("/unknown")
    def unknown() -> str:
        with pytest.raises(DBAPIError):
            Referral.attach("tea")
        return "raised"


def drop_tables(host: Host, *kept: str) -> None:
    """Drop the extension's tables."""
    for table in reversed(host.db.metadata.sorted_tables):
        if table.name.startswith("referral") and table.name not in kept:
            table.drop(engine_of(host))


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    host = new_host(**LIVE)
    add_pages(host)
    return host


@pytest.fixture
def visitor(host: Host) -> FlaskClient:
    """A browser that followed a link."""
    with host.app.app_context():
        Referral.create("/", code="tea")
    visitor = host.client()
    visitor.get("/referrals/tea")
    return visitor


def test_sign_up_works_without_the_tables(host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    drop_tables(host)
    assert client.post("/signup", data={"name": "mia"}).status_code == 302
    assert names(host, host.User) == ["mia"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("query", ["commit", "commit&once", "", "once"])
def test_host_goes_on_with_its_transaction(
    host: Host, visitor: FlaskClient, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    drop_tables(host)
    assert visitor.post(f"/buy?{query}").text == "None"
    assert names(host, host.Product) == ["after", "before"]
    assert len(caplog.records) == 1


def test_typed_code_that_cannot_be_recorded_is_none(
    host: Host, visitor: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    drop_tables(host, "referral")
    assert visitor.post("/typed").text == "None"
    assert len(caplog.records) == 1


def test_page_that_lists_responses_is_shown(host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    client.post("/signup", data={"name": "mia"})
    drop_tables(host)
    assert client.get("/account").text == "[]"
    assert len(caplog.records) == 1


def test_page_that_lists_responses_keeps_its_own_work(host: Host, client: FlaskClient) -> None:
    client.post("/signup", data={"name": "mia"})
    drop_tables(host)
    assert client.post("/account").text == "[]"
    assert names(host, host.Product) == ["ordered"]


@pytest.mark.parametrize("query", ["commit", ""])
def test_login_goes_on_without_the_join_and_the_next_action_repeats_it(
    host: Host, visitor: FlaskClient, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    with host.app.app_context():
        host.user("mia")
    with failing(host, lambda statement: statement.startswith("UPDATE referral_response")) as failed:
        assert visitor.post(f"/enter?{query}").text == "entered"
    assert len(failed) == len(caplog.records) == 1
    assert names(host, host.Product) == ["entered"]
    assert visitor.post(f"/enter?{query}").text == "entered"
    assert rows(host) == [Row("RESPONDED", "mia")]


def test_callable_attribution_leaves_the_hosts_transaction(new_host: MakeHost) -> None:
    host = new_host(**LIVE, REFERRALS_ATTRIBUTION=lambda touches: touches[0])
    add_pages(host)
    with host.app.app_context():
        Referral.create("/", code="tea")
    visitor = host.client()
    visitor.get("/referrals/tea")
    drop_tables(host)
    assert visitor.post("/buy").text == "None"
    assert names(host, host.Product) == ["after", "before"]


class TestDatabaseOfItsOwn:
    """The extension's tables are on a bind that does not answer."""

    @pytest.fixture
    def host(self, sqlite_url: str, tmp_path: Path) -> Iterator[Host]:
        binds = {"stats": f"sqlite:///{tmp_path / 'nowhere' / 'stats.db'}"}
        host = make_host(sqlite_url, declare=declare_on("stats"), SQLALCHEMY_BINDS=binds, **LIVE)
        add_pages(host)
        with host.app.app_context():
            host.db.create_all(bind_key=None)
            yield host
            host.db.session.remove()
            host.db.engine.dispose()

    def test_sign_up_works(self, host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
        assert client.post("/signup", data={"name": "mia"}).status_code == 302
        assert len(caplog.records) == 1


class TestErrorIsRaised:
    """The error is raised where somebody can act on it."""

    @pytest.mark.parametrize("config", [{"TESTING": True}, {"DEBUG": True}], ids=["testing", "debug"])
    def test_developers_see_it(self, host: Host, new_host: MakeHost, config: dict[str, Any]) -> None:
        other = new_host(**{**LIVE, **config})
        drop_tables(host)
        with pytest.raises(DBAPIError):
            other.client().post("/signup", data={"name": "mia"})
        assert host.client().post("/signup", data={"name": "zoe"}).status_code == 302

    def test_call_with_a_key_raises_it(self, host: Host, visitor: FlaskClient) -> None:
        drop_tables(host)
        assert visitor.post("/pay").text == "raised"
        assert visitor.post("/buy").text == "None"

    def test_call_outside_of_a_request_raises_it(self, host: Host) -> None:
        with host.app.app_context():
            mia = host.user("mia")
            drop_tables(host)
            with pytest.raises(DBAPIError):
                Referral.record_response("PAID", user=mia)
            host.db.session.rollback()
            with host.app.test_request_context():
                assert Referral.record_response("PAID", user=find_user(host, "mia")) is None

    def test_list_outside_of_a_request_raises_it(self, host: Host) -> None:
        with host.app.app_context():
            mia = host.user("mia")
            drop_tables(host)
            with pytest.raises(DBAPIError):
                host.app.jinja_env.from_string("{{ referral_responses(user) }}").render(user=mia)

    def test_code_that_cannot_be_read_raises_it(self, host: Host, visitor: FlaskClient) -> None:
        drop_tables(host)
        assert visitor.post("/unknown").text == "raised"

    @pytest.mark.parametrize("call", ["list", "record"])
    def test_error_of_a_listener_of_the_host_is_raised(self, host: Host, visitor: FlaskClient, call: str) -> None:
        def refuse(session: Any, *args: Any) -> None:
            raise IntegrityError("the host's rule", {}, ValueError("broken"))

        with host.app.test_request_context(), pytest.raises(IntegrityError, match="broken"):
            event.listen(host.db.session(), "before_flush", refuse)
            mia = host.User(name="mia")
            host.db.session.add(mia)
            if call == "list":
                render_template_string("{{ referral_responses(user) }}", user=mia)
            else:
                Referral.record_response("BOUGHT", user=mia)

    def test_error_of_the_host_is_raised(self, host: Host, visitor: FlaskClient) -> None:
        with host.app.app_context():
            host.user("mia")
        assert visitor.post("/add").text == "refused"
        drop_tables(host)
        assert visitor.post("/buy").text == "None"

    @pytest.mark.parametrize(
        "call",
        [
            lambda link, user: Referral.create("/tea"),
            lambda link, user: link.respond("CAME"),
            lambda link, user: link.link_responses_to_user(user, "x" * 43),
            lambda link, user: link.response_count,
            lambda link, user: link.filtered_responses(),
            lambda link, user: Referral.referral_for_request(),
            lambda link, user: Referral.referral_responses_for_request(),
            lambda link, user: Referral.explain(user),
            lambda link, user: Referral.referrer_of(user),
            lambda link, user: Referral.referred_by(user),
            lambda link, user: current_referrals.forget_user(user),
        ],
    )
    def test_page_that_needs_the_result_gets_it(
        self, host: Host, visitor: FlaskClient, call: Callable[[Any, Any], object]
    ) -> None:
        """It is raised in production, within a request."""
        key = key_of(visitor)
        with host.app.test_request_context():
            session["_referral"] = key
            link, mia = Referral.create("/"), host.user("mia")
            assert link.id and mia.id  # load them: it is not their refreshing that fails
            for each in (link, mia):
                host.db.session.expunge(each)
            host.db.session.rollback()
            drop_tables(host)
            with pytest.raises(DBAPIError):
                call(link, mia)
            host.db.session.rollback()
