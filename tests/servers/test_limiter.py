"""Flask-Limiter on Redis, as docs/limits.rst says: the page's snippets are run as they stand there."""

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from flask_limiter import Limiter
from werkzeug.exceptions import TooManyRequests

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.databases import unavailable
from tests.host import Host, in_parallel
from tests.login_hosts import REDIS_URL
from tests.pages import snippets

PAGE = "limits.rst"
SETTINGS, *RECIPE = snippets(PAGE, "python")

#: The numbers on the page.
LINKS = 20
CLICKS = 20
CODES = 10

MakeLimited = Callable[..., Host]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite: nothing here depends on the database."""
    return sqlite_url


@pytest.fixture(scope="module")
def redis_server() -> Iterator[redis.Redis]:
    """The server."""
    with redis.Redis.from_url(REDIS_URL) as server:
        try:
            server.ping()
        except redis.ConnectionError as error:
            unavailable(f"No Redis server ({error}): set TEST_REDIS_URL.")
        yield server


@pytest.fixture
def prefix(redis_server: redis.Redis) -> Iterator[str]:
    """A prefix for keys, which are deleted in the end."""
    prefix = f"flask_referrals_test_{secrets.token_hex(4)}"
    yield prefix
    for key in redis_server.scan_iter(f"{prefix}:*"):
        redis_server.delete(key)


@pytest.fixture
def make_limited(new_host: MakeHost, prefix: str) -> MakeLimited:
    """Make a site, and run the page on it; all sites of a test share their keys in Redis."""

    def make(url: str = REDIS_URL, **config: Any) -> Host:
        host = new_host(**config)
        names = {"__name__": "shop", "app": host.app, "referrals": host.referrals}
        run(SETTINGS, names)
        host.app.config["RATELIMIT_STORAGE_OPTIONS"]["key_prefix"] = prefix
        host.app.config.update(RATELIMIT_STORAGE_URI=url, **config)
        for snippet in RECIPE:
            run(snippet, names)
        return host

    return make


@pytest.fixture
def limited(make_limited: MakeLimited) -> Host:
    """A site with the page's limits."""
    return make_limited()


@pytest.fixture
def dead_redis() -> Iterator[str]:
    """A port that nobody listens on, and that nobody else can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/"


@pytest.fixture
def silent_redis() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/"


def run(snippet: str, names: dict[str, Any]) -> None:
    exec(compile(snippet, PAGE, "exec"), names)


def member(host: Host, name: str = "mia") -> FlaskClient:
    """The browser of somebody who is logged in; their account is made on the first of two sites."""
    client = host.client()
    with host.app.app_context():
        is_new = host.db.session.query(host.User).filter_by(name=name).first() is None
    client.post("/signup" if is_new else "/login", data={"name": name})
    return client


def make_link(client: FlaskClient, **headers: str) -> Any:
    return client.post("/referrals/", data={"redirect_to": "/"}, headers=headers)


def new_link(host: Host) -> str:
    """Store a link of the site's own, and return its path."""
    with host.app.app_context():
        return f"/referrals/{Referral.create('/').code}"


def reasons(host: Host) -> list[str | None]:
    """Why each stored click does not count."""
    with host.app.app_context():
        return [response.ignored for response in host.responses()]


class TestMakingLinks:
    def test_all_processes_share_a_users_limit(self, make_limited: MakeLimited) -> None:
        browsers = [member(make_limited()), member(make_limited())]
        answers = [make_link(browsers[number % 2]) for number in range(LINKS)]
        assert {answer.status_code for answer in answers} == {200}
        for client in browsers:
            answer = make_link(client)
            assert answer.status_code == 429
            assert answer.json == {"error": "Too many links at once: please try again later."}
            assert 0 < int(answer.headers["Retry-After"]) <= 3600

    def test_each_user_has_their_own(self, limited: Host) -> None:
        for name in ("mia", "tom"):
            client = member(limited, name)
            assert {make_link(client).status_code for _ in range(LINKS)} == {200}

    def test_requests_in_parallel_do_not_pass_it(self, make_limited: MakeLimited) -> None:
        hosts = [make_limited(), make_limited()]
        cookie = member(hosts[0]).get_cookie("session")
        assert cookie is not None
        answers: list[int] = []

        def send(host: Host) -> None:
            browser = host.client()
            browser.set_cookie("session", cookie.value)
            for _ in range(4):
                answers.append(make_link(browser).status_code)

        in_parallel([lambda host=host: send(host) for host in hosts * 3])  # type: ignore[misc]
        assert sorted(answers) == [200] * LINKS + [429] * 4

    def test_plain_form_gets_a_page(self, limited: Host) -> None:
        client = member(limited)
        answers = [make_link(client, Accept="text/html") for _ in range(LINKS + 1)]
        assert (answers[-2].status_code, answers[-1].status_code) == (200, 429)
        assert answers[-1].mimetype == "text/html"
        assert "Retry-After" in answers[-1].headers

    def test_sites_own_page_for_429_is_shown_to_plain_forms_alone(self, limited: Host) -> None:
        @limited.app.errorhandler(429)
        def slow_down(error: TooManyRequests) -> Any:
            return error.response or ("our own page", 429)

        client = member(limited)
        for _ in range(LINKS):
            make_link(client)
        assert make_link(client, Accept="text/html").text == "our own page"
        assert list(make_link(client).json) == ["error"]

    def test_visitors_are_limited_by_network(self, limited: Host) -> None:
        def status(address: str) -> int:
            code: int = limited.client().post("/referrals/", environ_overrides={"REMOTE_ADDR": address}).status_code
            return code

        assert {status(f"2001:db8::{number}") for number in range(LINKS)} == {401}
        assert status("2001:db8::ffff") == 429
        assert status("2001:db8:0:1::1") == 401
        assert {status("::ffff:192.0.2.1") for _ in range(LINKS)} == {401}
        assert (status("192.0.2.1"), status("::ffff:192.0.2.2")) == (429, 401)

    def test_other_apps_in_the_process_are_not_limited(self, make_limited: MakeLimited, new_host: MakeHost) -> None:
        before = new_host()
        make_limited()
        for host in (before, new_host()):
            client = member(host)
            assert {make_link(client).status_code for _ in range(LINKS + 1)} == {200}

    def test_factory_that_runs_twice_limits_once(self, new_host: MakeHost, prefix: str) -> None:
        limiter = Limiter(str, storage_uri=REDIS_URL, storage_options={"key_prefix": prefix})

        def everybody() -> str:
            return "everybody"

        def limit(app: Flask) -> None:
            limiter.init_app(app)
            views: dict[str, Any] = app.view_functions
            views["referrals.create"] = limiter.limit("2 per hour", key_func=everybody)(views["referrals.create"])

        hosts = [new_host(), new_host()]
        for host in hosts:
            limit(host.app)
        statuses = [make_link(member(host)).status_code for host in (hosts[0], hosts[1], hosts[0])]
        assert statuses == [200, 200, 429]


class TestClicks:
    def test_too_many_clicks_redirect_and_are_not_counted(self, make_limited: MakeLimited) -> None:
        hosts = [make_limited(), make_limited()]
        link = new_link(hosts[0])
        answers = [hosts[number % 2].client().get(link) for number in range(CLICKS + 2)]
        assert {(answer.status_code, answer.headers["Location"]) for answer in answers} == {(302, "/")}
        assert reasons(hosts[0]) == [None] * CLICKS + ["too-many"] * 2
        assert ["Set-Cookie" in answer.headers for answer in answers] == [True] * CLICKS + [False] * 2
        with hosts[0].app.app_context():
            assert hosts[0].db.session.scalars(sa.select(Referral)).one().response_count == CLICKS

    def test_other_networks_count_on(self, limited: Host) -> None:
        link = new_link(limited)
        for _ in range(CLICKS + 1):
            limited.client().get(link)
        limited.client().get(link, environ_overrides={"REMOTE_ADDR": "192.0.2.1"})
        assert reasons(limited)[-2:] == ["too-many", None]

    def test_too_many_may_be_dropped(self, make_limited: MakeLimited) -> None:
        host = make_limited(REFERRALS_IGNORED="drop")
        link = new_link(host)
        assert {host.client().get(link).status_code for _ in range(CLICKS + 1)} == {302}
        assert reasons(host) == [None] * CLICKS

    def test_redirect_says_nothing_of_limits(self, limited: Host) -> None:
        link = new_link(limited)
        for _ in range(CLICKS + 1):
            names = {name.lower() for name, _ in limited.client().get(link).headers}
            assert not any(name.startswith("x-ratelimit") or name == "retry-after" for name in names)

    def test_limits_of_the_whole_site_do_not_apply_to_links(self, make_limited: MakeLimited) -> None:
        host = make_limited(RATELIMIT_DEFAULT="1 per hour", RATELIMIT_APPLICATION="3 per hour")
        link = new_link(host)
        assert [host.client().get("/").status_code for _ in range(2)] == [200, 429]
        assert {host.client().get(link).status_code for _ in range(5)} == {302}
        assert reasons(host) == [None] * 5

    def test_page_with_a_code_in_its_query_keeps_its_own_limit(self, make_limited: MakeLimited) -> None:
        host = make_limited(RATELIMIT_DEFAULT="3 per hour", REFERRALS_QUERY_PARAM="ref")
        code = new_link(host).rpartition("/")[2]
        assert [host.client().get(f"/?ref={code}").status_code for _ in range(5)] == [200] * 3 + [429] * 2
        assert set(reasons(host)) == {None}


def test_all_processes_share_the_limit_of_typed_codes(make_limited: MakeLimited) -> None:
    hosts = [make_limited(), make_limited()]
    code = new_link(hosts[0]).rpartition("/")[2]

    def status(number: int, typed: str) -> int:
        answer: int = hosts[number % 2].client().post("/code", data={"code": typed}).status_code
        return answer

    assert status(0, code) == 302
    assert {status(number, "wrong") for number in range(1, CODES)} == {400}
    assert [status(number, code) for number in range(2)] == [429, 429]


class TestRedisDown:
    @pytest.mark.parametrize(
        ("setting", "afterwards"),
        [("RATELIMIT_IN_MEMORY_FALLBACK_ENABLED", [200, 429]), ("RATELIMIT_SWALLOW_ERRORS", [200, 200])],
    )
    def test_links_are_made_all_the_same(
        self, make_limited: MakeLimited, dead_redis: str, setting: str, afterwards: list[int]
    ) -> None:
        host = make_limited(dead_redis, **({"RATELIMIT_IN_MEMORY_FALLBACK_ENABLED": False} | {setting: True}))
        client = member(host)
        statuses = [make_link(client).status_code for _ in range(LINKS + 1)]
        assert statuses[-2:] == afterwards

    def test_links_are_refused_without_a_setting(self, make_limited: MakeLimited, dead_redis: str) -> None:
        host = make_limited(dead_redis, RATELIMIT_IN_MEMORY_FALLBACK_ENABLED=False, PROPAGATE_EXCEPTIONS=False)
        assert make_link(member(host)).status_code == 500

    def test_clicks_count_and_nothing_is_logged(
        self, make_limited: MakeLimited, dead_redis: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = make_limited(dead_redis)
        link = new_link(host)
        client = host.client()
        assert {client.get(link).status_code for _ in range(2)} == {302}
        assert reasons(host) == [None, "repeat"]
        assert client.post("/act/BOUGHT").text == link.rpartition("/")[2]
        assert caplog.records == []

    def test_click_does_not_wait_for_a_silent_server(self, make_limited: MakeLimited, silent_redis: str) -> None:
        host = make_limited(silent_redis)
        link = new_link(host)
        began = time.monotonic()
        assert host.client().get(link).status_code == 302
        assert 0.2 <= time.monotonic() - began < 1
        assert reasons(host) == [None]

    def test_classifier_that_lets_the_error_out_stops_no_click(
        self, make_limited: MakeLimited, dead_redis: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = make_limited(dead_redis)

        @host.referrals.classifier
        def careless(request: Any) -> str | None:
            redis.Redis.from_url(dead_redis).ping()
            return None

        assert host.client().get(new_link(host)).status_code == 302
        assert reasons(host) == [None]
        assert len(caplog.records) == 1
