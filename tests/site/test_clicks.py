"""Following a link."""

import sqlite3
import time
from contextlib import closing
from threading import Timer

import pytest
import sqlalchemy as sa
from flask import Response
from flask.testing import FlaskClient
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import Host, follow, make_host, statements, stored_by


@pytest.fixture
def code(host: Host) -> str:
    """The code of a link to /welcome that Olga passes on."""
    with host.app.app_context():
        return Referral.create("/welcome", user=host.user("olga")).code


def ignored(host: Host) -> list[str | None]:
    with host.app.app_context():
        return [response.ignored for response in host.responses()]


@pytest.mark.parametrize("slash", ["", "/"])
def test_click_redirects_and_is_recorded(host: Host, client: FlaskClient, code: str, slash: str) -> None:
    answer = client.get(f"/referrals/{code}{slash}", headers={"Referer": "https://user:pass@blog.example/post?q=1#top"})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/welcome")
    assert answer.headers["Cache-Control"] == "no-store"
    with host.app.app_context():
        (response,) = host.responses()
        assert (response.action, response.is_touch, response.ignored) == ("RESPONDED", True, None)
        assert (response.ip_address, response.http_referrer) == ("127.0.0.0", "https://blog.example/")
        assert response.user_agent is not None and "Firefox" in response.user_agent
        assert response.referral.response_count == 1


def test_click_costs_one_statement_or_two_in_one_transaction(host: Host, client: FlaskClient, code: str) -> None:
    for _ in range(2):  # a new visitor, then a returning one
        with host.app.app_context(), statements(host.db) as sent:
            client.get(f"/referrals/{code}")
            expected = [*stored_by(host.db), "COMMIT"]
        assert [statement.split()[0] for statement in sent] == expected


def test_page_without_a_click_costs_nothing(new_host: MakeHost) -> None:
    host = new_host(with_login=False)  # Flask-Login looks into the session of every page
    with host.app.app_context(), statements(host.db) as sent:
        answer = host.client().get("/")
    assert sent == []
    assert "Set-Cookie" not in answer.headers
    assert "Vary" not in answer.headers


def test_session_grows_by_less_than_200_bytes_whatever_the_number_of_clicks(
    new_host: MakeHost,
) -> None:
    host = new_host(REFERRALS_REPEAT_WINDOW=None)
    client = host.client()
    with host.app.app_context():
        code = Referral.create("/").code
    for _ in range(20):
        client.get(f"/referrals/{code}")
    cookie = client.get_cookie("session")
    assert cookie is not None and len(cookie.value) < 250  # an empty session takes some 50
    assert ignored(host) == [None] * 20


def test_bare_prefix_redirects(client: FlaskClient) -> None:
    assert client.get("/referrals/").headers["Location"] == "/"


@pytest.mark.parametrize("code", ["unknown", "no.code", "x" * 65, "%00", "a%2Fb"])
def test_unknown_code_is_not_found(host: Host, client: FlaskClient, code: str) -> None:
    assert client.get(f"/referrals/{code}").status_code == 404


def test_malformed_code_is_not_looked_up(host: Host, client: FlaskClient) -> None:
    with host.app.app_context(), statements(host.db) as sent:
        client.get("/referrals/no.code")
    assert sent == []


@on_sqlite
@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"User-Agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}, "bot"),
        ({"User-Agent": "facebookexternalhit/1.1"}, "bot"),
        ({"User-Agent": ""}, "bot"),
        ({"Sec-Fetch-Dest": "image"}, "embedded"),
        ({"Sec-Fetch-Dest": "empty"}, "embedded"),
    ],
)
def test_click_of_a_program_is_not_counted_and_sets_no_cookie(
    host: Host, client: FlaskClient, code: str, headers: dict[str, str], reason: str
) -> None:
    answer = client.get(f"/referrals/{code}", headers=headers)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/welcome")
    assert "Set-Cookie" not in answer.headers
    assert ignored(host) == [reason]


def test_head_request_is_not_counted(host: Host, client: FlaskClient, code: str) -> None:
    assert client.head(f"/referrals/{code}").status_code == 302
    assert ignored(host) == ["head"]


@on_sqlite
@pytest.mark.parametrize("header", ["Sec-Purpose", "Purpose", "X-Moz"])
def test_prefetch_is_refused_so_that_the_click_comes_later(
    host: Host, client: FlaskClient, code: str, header: str
) -> None:
    answer = client.get(f"/referrals/{code}", headers={header: "prefetch;prerender"})
    assert (answer.status_code, answer.headers["Cache-Control"]) == (503, "no-store")
    assert "Set-Cookie" not in answer.headers
    assert ignored(host) == []


def test_repeated_click_is_not_counted_again(host: Host, client: FlaskClient, code: str) -> None:
    for _ in range(3):
        client.get(f"/referrals/{code}")
    assert ignored(host) == [None, "repeat", "repeat"]


def test_repeated_click_writes_no_session(new_host: MakeHost) -> None:
    host = new_host(with_login=False)  # Flask-Login writes to a session by itself
    client = host.client()
    code = follow(host, client)
    assert "Set-Cookie" not in client.get(f"/referrals/{code}").headers


def test_owners_own_click_is_not_counted(host: Host, client: FlaskClient, code: str) -> None:
    client.post("/login", data={"name": "olga"})
    client.get(f"/referrals/{code}")
    assert ignored(host) == ["self"]


def test_owners_click_before_the_login_is_found_out(host: Host, client: FlaskClient, code: str) -> None:
    client.get(f"/referrals/{code}")
    client.post("/login", data={"name": "olga"})
    assert ignored(host) == ["self"]
    assert client.post("/act/BOUGHT").text == ""


def test_member_click_is_recorded_for_the_user_and_leaves_no_key(host: Host, client: FlaskClient, code: str) -> None:
    with host.app.app_context():
        host.user("mia")
    client.post("/login", data={"name": "mia"})
    client.get(f"/referrals/{code}")
    with host.app.app_context():
        (response,) = host.responses()
        assert (response.user.name, response.session_key) == ("mia", None)
    with client.session_transaction() as session:
        assert "_referral" not in session


def test_expired_link_redirects_and_records_nothing(host: Host, client: FlaskClient, code: str) -> None:
    with host.app.app_context():
        referral = host.db.session.scalars(sa.select(Referral)).one()
        referral.expired_at = referral.created_at
        host.db.session.commit()
    answer = client.get(f"/referrals/{code}")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/welcome")
    assert "Set-Cookie" not in answer.headers
    assert ignored(host) == []


@on_sqlite
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.7", "internal"),
        ("::ffff:192.0.2.7", "internal"),
        ("2001:db8::1", "internal"),
        ("198.51.100.1", None),
        ("192.0.2.7:17085", "internal"),
        ("[2001:db8::1%eth0]:443", "internal"),
        ("unknown", None),
        ("", None),
    ],
)
def test_click_from_the_sites_own_network_is_not_counted(new_host: MakeHost, address: str, reason: str | None) -> None:
    host = new_host(REFERRALS_INTERNAL_NETWORKS=["192.0.2.0/24", "2001:db8::/32"])
    with host.app.app_context():
        code = Referral.create("/").code
    answer = host.client().get(f"/referrals/{code}", environ_overrides={"REMOTE_ADDR": address})
    assert ("Set-Cookie" in answer.headers) is (reason is None)
    assert ignored(host) == [reason]


def test_host_classifier_and_consent_are_asked(host: Host, client: FlaskClient, code: str) -> None:
    host.referrals.classifier(lambda request: "internal" if "internal" in request.args else None)
    host.referrals.consent(lambda request: "no" not in request.args)
    client.get(f"/referrals/{code}?internal=1")
    answer = client.get(f"/referrals/{code}?no=1")
    assert "Set-Cookie" not in answer.headers
    assert ignored(host) == ["internal", "no-consent"]


def stored_addresses(host: Host) -> list[str | None]:
    with host.app.app_context():
        return [response.ip_address for response in host.responses()]


def test_host_says_what_the_clients_address_is(host: Host, client: FlaskClient, code: str) -> None:
    host.referrals.client_ip(lambda request: request.headers.get("X-Edge-Address"))
    client.get(f"/referrals/{code}", headers={"X-Edge-Address": "2001:db8:1:2::3"})
    client.get(f"/referrals/{code}", headers={"X-Edge-Address": "<b>1.1.1.1</b>"})
    assert stored_addresses(host) == ["2001:db8:1::", None]


def test_forwarding_headers_count_through_proxyfix_alone(host: Host, client: FlaskClient, code: str) -> None:
    spoofed = {"X-Forwarded-For": "192.0.2.9, 198.51.100.7", "X-Real-IP": "192.0.2.9", "Forwarded": "for=192.0.2.9"}
    client.get(f"/referrals/{code}", headers=spoofed)
    host.app.wsgi_app = ProxyFix(host.app.wsgi_app)  # type: ignore[method-assign]
    client.get(f"/referrals/{code}", headers=spoofed)
    assert stored_addresses(host) == ["127.0.0.0", "198.51.100.0"]


@pytest.mark.parametrize(("storage", "address"), [("full", "127.0.0.1"), ("none", None)])
def test_what_is_kept_of_an_address_is_a_setting(new_host: MakeHost, storage: str, address: str | None) -> None:
    host = new_host(REFERRALS_IP_STORAGE=storage)
    follow(host, host.client())
    assert stored_addresses(host) == [address]


@pytest.mark.parametrize(("storage", "kept"), [("full", "https://blog.example/post?q=1"), ("none", None)])
def test_what_is_kept_of_the_referrer_is_a_setting(new_host: MakeHost, storage: str, kept: str | None) -> None:
    host = new_host(REFERRALS_REFERRER_STORAGE=storage)
    with host.app.app_context():
        code = Referral.create("/").code
    host.client().get(f"/referrals/{code}", headers={"Referer": "https://user:pass@blog.example/post?q=1#top"})
    with host.app.app_context():
        assert [response.http_referrer for response in host.responses()] == [kept]


@on_sqlite
@pytest.mark.parametrize(
    ("referrer", "kept"),
    [
        ("android-app://com.slack", "android-app://com.slack/"),
        ("android-app://com.google.android.gm/path?q=1", "android-app://com.google.android.gm/"),
        ("javascript://%0aalert(1)", None),
        ("about:client", None),
    ],
)
def test_app_is_kept_as_the_referrer_and_a_script_is_not(
    host: Host, client: FlaskClient, code: str, referrer: str, kept: str | None
) -> None:
    client.get(f"/referrals/{code}", headers={"Referer": referrer})
    with host.app.app_context():
        assert [response.http_referrer for response in host.responses()] == [kept]


@on_sqlite
class TestLocation:
    """Where a click leads."""

    @pytest.mark.parametrize(
        ("override", "location"),
        [
            ("/special?a=1", "/special?a=1"),
            ("index", "/"),
            ("act", "/welcome"),  # an endpoint that needs arguments
            ("nowhere", "/welcome"),
            ("https://evil.example/", "/welcome"),
            ("//evil.example/", "/welcome"),
            ("/%09/evil.example", "/welcome"),
            ("http://localhost/here", "http://localhost/here"),
            ("", "/welcome"),
        ],
    )
    def test_override_is_taken_when_it_is_allowed(
        self, client: FlaskClient, code: str, override: str, location: str
    ) -> None:
        assert client.get(f"/referrals/{code}?redirect_to={override}").headers["Location"] == location

    def test_target_that_is_no_longer_allowed_gives_way_to_the_fallback(self, new_host: MakeHost) -> None:
        host = new_host(REFERRALS_ALLOWED_REDIRECT_HOSTS=["shop.example"], REFERRALS_FALLBACK_URL="/home")
        with host.app.app_context():
            code = Referral.create("https://shop.example/tea").code
        assert host.client().get(f"/referrals/{code}").headers["Location"] == "https://shop.example/tea"
        host = new_host(REFERRALS_FALLBACK_URL="/home")  # started again, with other settings
        assert host.client().get(f"/referrals/{code}").headers["Location"] == "/home"


def test_consent_that_fails_is_a_no(
    host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    @host.referrals.consent
    def fail(request: object) -> bool:
        raise RuntimeError("the host's fault")

    assert "Set-Cookie" not in client.get(f"/referrals/{code}").headers
    assert ignored(host) == ["no-consent"]


class TestBrokenBookkeeping:
    """A visitor who follows a living link always arrives."""

    @pytest.mark.parametrize("setting", [{}, {"REFERRALS_QUERY_PARAM": "ref"}])
    def test_query_of_bytes_that_are_no_text_is_none(self, new_host: MakeHost, setting: dict[str, str]) -> None:
        host = new_host(**setting)
        with host.app.app_context():
            code = Referral.create("/welcome").code
        raw = {"QUERY_STRING": "a=\xff"}
        assert host.client().get(f"/referrals/{code}", environ_overrides=raw).headers["Location"] == "/welcome"
        assert host.client().get("/", environ_overrides=raw).status_code == 200
        with host.app.app_context():
            assert len(host.responses()) == 1

    def test_click_that_cannot_be_written_redirects(
        self, host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with host.app.app_context():
            host.referrals.ReferralResponse.__table__.drop(host.db.engine)  # type: ignore[attr-defined]
        answer = client.get(f"/referrals/{code}")
        assert (answer.status_code, answer.headers["Location"]) == (302, "/welcome")
        assert len(caplog.records) == 1
        assert "Set-Cookie" not in answer.headers

    def test_link_that_cannot_be_read_leads_to_the_fallback(
        self, host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with host.app.app_context():
            host.db.drop_all()
        answer = client.get(f"/referrals/{code}")
        assert (answer.status_code, answer.headers["Location"]) == (302, "/")
        assert client.get(f"/referrals/{code}?redirect_to=/x").headers["Location"] == "/x"
        assert len(caplog.records) == 2

    @pytest.mark.parametrize("hook", ["user_loader", "classifier", "consent", "client_ip"])
    def test_host_callable_that_fails_is_logged(
        self, host: Host, client: FlaskClient, code: str, hook: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*args: object) -> None:
            raise RuntimeError("the host's fault")

        getattr(host.referrals, hook)(fail)
        assert client.get(f"/referrals/{code}").headers["Location"] == "/welcome"
        assert len(caplog.records) == 1

    def test_classifier_that_fails_keeps_the_visitor_key(
        self, host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.get(f"/referrals/{code}")

        @host.referrals.classifier
        def fail(request: object) -> None:
            raise RuntimeError("the host's fault")

        client.get(f"/referrals/{code}")
        with host.app.app_context():
            assert len({response.session_key for response in host.responses()}) == 1
        assert ignored(host) == [None, "repeat"]

    def test_pending_work_of_a_before_request_hook_survives(self, host: Host, client: FlaskClient, code: str) -> None:
        @host.app.before_request
        def leave_something_pending() -> None:
            host.db.session.add(host.Product(name="pending"))

        @host.app.after_request
        def commit(response: Response) -> Response:
            host.db.session.commit()
            return response

        with host.app.app_context():
            host.referrals.ReferralResponse.__table__.drop(host.db.engine)  # type: ignore[attr-defined]
        assert client.get(f"/referrals/{code}").status_code == 302
        with host.app.app_context():
            assert host.db.session.scalar(sa.select(host.Product.name)) == "pending"


class TestLockedSQLite:
    """A click does not wait for long when somebody else writes: ``REFERRALS_LOCK_TIMEOUT``."""

    @pytest.mark.parametrize(("hosts_own", "ours", "longest"), [(5, 0.1, 1), (0.1, 5, 1), (0.1, None, 1)])
    def test_shorter_of_both_times_counts_and_the_hosts_own_is_back_afterwards(
        self, sqlite_url: str, hosts_own: float, ours: float | None, longest: float
    ) -> None:
        options = {"connect_args": {"timeout": hosts_own}}
        host = make_host(sqlite_url, SQLALCHEMY_ENGINE_OPTIONS=options, REFERRALS_LOCK_TIMEOUT=ours)
        with host.app.app_context():
            host.db.create_all()
            code = Referral.create("/welcome").code
            host.db.session.remove()
            other = sa.create_engine(host.db.engine.url)
        with other.connect() as writer:
            writer.exec_driver_sql("BEGIN IMMEDIATE")
            started = time.monotonic()
            assert host.client().get(f"/referrals/{code}").headers["Location"] == "/welcome"
            assert time.monotonic() - started < longest
            writer.rollback()
        with host.app.app_context():
            assert host.db.session.execute(sa.text("PRAGMA busy_timeout")).scalar() == hosts_own * 1000
            assert host.responses() == []
            host.db.session.remove()
            host.db.engine.dispose()
        other.dispose()

    def test_it_is_the_time_of_all_waits_together(self, sqlite_url: str) -> None:
        host = make_host(sqlite_url, REFERRALS_LOCK_TIMEOUT=1)
        with host.app.app_context():
            host.db.create_all()
            code = Referral.create("/welcome").code
        path = sqlite_url.removeprefix("sqlite:///")
        with (
            closing(sqlite3.connect(path, isolation_level=None)) as reader,
            closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as writer,
        ):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM referral").fetchall()
            writer.execute("BEGIN IMMEDIATE")
            # The INSERT waits for the writer, and then the COMMIT for the reader.
            end_of_writing = Timer(0.7, writer.execute, ["ROLLBACK"])
            end_of_writing.start()
            started = time.monotonic()
            assert host.client().get(f"/referrals/{code}").location == "/welcome"
            assert time.monotonic() - started < 1.4
            end_of_writing.join()
            reader.execute("ROLLBACK")
        with host.app.app_context():
            assert host.responses() == []
            host.db.session.remove()
            host.db.engine.dispose()

    def test_click_that_waits_for_the_hosts_transaction_waits_no_longer_afterwards(self, sqlite_url: str) -> None:
        host = make_host(sqlite_url, REFERRALS_LOCK_TIMEOUT=0.1)

        @host.app.before_request
        def read() -> None:
            host.db.session.execute(sa.select(host.Product.id))

        with host.app.app_context():
            host.db.create_all()
            code = Referral.create("/welcome").code
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            assert host.client().get(f"/referrals/{code}").location == "/welcome"
            assert time.monotonic() - started < 1
        with host.app.app_context():
            assert host.responses() == []
            host.db.session.remove()
            host.db.engine.dispose()


def test_log_line_tells_nothing_of_the_visitor(
    host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with host.app.app_context():
        host.referrals.ReferralResponse.__table__.drop(host.db.engine)  # type: ignore[attr-defined]
    client.get(f"/referrals/{code}", headers={"Referer": "https://blog.example/"})
    (record,) = caplog.records
    assert record.getMessage().startswith(f"A click on the link '{code}' could not be recorded. ")
    assert len(record.getMessage().splitlines()) == 1
    assert record.exc_info is None
    assert not any(told in caplog.text for told in ("127.0.0", "blog.example", "Firefox"))
