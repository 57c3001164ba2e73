"""The absolute address of a referral."""

from collections.abc import Iterator

import pytest
from flask import Flask, render_template_string
from flask_sqlalchemy import SQLAlchemy
from werkzeug.test import TestResponse

from flask_referrals import ConfigurationError, Referral, Referrals
from tests.conftest import MakeHost
from tests.site.helpers import needs_flask_31


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """An address is the same on every database."""
    return shared_sqlite_url


def test_mail_rendered_in_a_worker_has_the_configured_address(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_BASE_URL="https://shop.example/app/")
    with host.app.app_context():
        referral = Referral.create("/", code="alice")
        mail = host.app.jinja_env.from_string("Your link: {{ referral.url }}").render(referral=referral)
    assert mail == "Your link: https://shop.example/app/referrals/alice"


def test_server_name_is_used_without_a_base_url(new_host: MakeHost) -> None:
    host = new_host(SERVER_NAME="shop.example", PREFERRED_URL_SCHEME="https", APPLICATION_ROOT="/app")
    with host.app.app_context():
        assert Referral.create("/", code="alice").url == "https://shop.example/app/referrals/alice"


def test_server_name_leaves_the_scheme_to_the_request(new_host: MakeHost) -> None:
    host = new_host(SERVER_NAME="shop.example")
    with host.app.test_request_context(base_url="https://shop.example/app"):
        assert Referral.create("/", code="alice").url == "https://shop.example/app/referrals/alice"


def test_request_is_used_without_either(new_host: MakeHost) -> None:
    host = new_host()
    with host.app.test_request_context(base_url="https://here.example/mounted"):
        assert Referral.create("/", code="alice").url == "https://here.example/mounted/referrals/alice"


@needs_flask_31
@pytest.mark.parametrize("config", [{"REFERRALS_BASE_URL": "https://shop.example"}, {"SERVER_NAME": "shop.example"}])
def test_host_header_does_not_change_a_configured_address(new_host: MakeHost, config: dict[str, str]) -> None:
    host = new_host(**config)
    with host.app.test_request_context(base_url="https://evil.example/"):
        assert "://shop.example/referrals/alice" in Referral.create("/", code="alice").url


def test_address_without_any_of_them_is_an_error_that_names_the_setting(new_host: MakeHost) -> None:
    host = new_host()
    with host.app.app_context(), pytest.raises(ConfigurationError, match="REFERRALS_BASE_URL"):
        _ = Referral.create("/").url


def test_code_is_part_of_an_address_that_the_host_chose(new_host: MakeHost) -> None:
    host = new_host(REFERRALS_URL_PREFIX="/r", REFERRALS_BASE_URL="https://shop.example")
    with host.app.app_context():
        assert Referral.create("/", code="alice").url == "https://shop.example/r/alice"
    assert host.client().get("/r/alice").status_code == 302


class TestMountedApp:
    """The app is mounted under /shop, as by DispatcherMiddleware or ProxyFix(x_prefix=1)."""

    @staticmethod
    def location(new_host: MakeHost, target: str, query: str = "", root: str = "/shop") -> str | None:
        host = new_host(REFERRALS_ALLOWED_REDIRECT_HOSTS=["tea.example"], REFERRALS_FORWARD_QUERY=True)
        with host.app.app_context():
            code = Referral.create(target).code
        environ = {"SCRIPT_NAME": root}
        answer = host.client().get(f"/referrals/{code}?{query}", environ_overrides=environ)
        return answer.headers["Location"]

    @pytest.mark.parametrize(
        ("target", "location"),
        [
            ("/", "/shop/"),
            ("/tea?a=1#top", "/shop/tea?a=1#top"),
            ("/shopping", "/shop/shopping"),
            ("/shop/tea", "/shop/tea"),
            ("/shop?a=1", "/shop?a=1"),
            ("index", "/shop/"),
            ("https://tea.example/tea", "https://tea.example/tea"),
        ],
    )
    def test_target_is_under_the_mount_path(self, new_host: MakeHost, target: str, location: str) -> None:
        assert self.location(new_host, target) == location

    @pytest.mark.parametrize(
        ("query", "location"),
        [
            ("redirect_to=/cups", "/shop/cups"),
            ("redirect_to=//evil.example", "/shop/tea"),
            ("redirect_to=/shop/cups&b=2", "/shop/cups?b=2"),
        ],
    )
    def test_page_that_the_query_names_is_too(self, new_host: MakeHost, query: str, location: str) -> None:
        assert self.location(new_host, "/tea", query) == location

    @pytest.mark.parametrize(("root", "location"), [("/caf\xc3\xa9", "/caf%C3%A9/tea"), ("//evil.example", "/tea")])
    def test_mount_path_is_sent_as_it_may_be(self, new_host: MakeHost, root: str, location: str) -> None:
        assert self.location(new_host, "/tea", root=root) == location

    @pytest.mark.parametrize(("fallback", "location"), [("/", "/shop/"), ("/home", "/shop/home")])
    def test_fallback_is_under_the_mount_path(self, new_host: MakeHost, fallback: str, location: str) -> None:
        host = new_host(REFERRALS_FALLBACK_URL=fallback)
        answer = host.client().get("/referrals/", environ_overrides={"SCRIPT_NAME": "/shop"})
        assert answer.headers["Location"] == location


class TestHostMatching:
    """``Flask(host_matching=True)``: a rule that names no host would match none."""

    @pytest.fixture(params=[{}, {"SERVER_NAME": "shop.example"}], ids=["", "SERVER_NAME"])
    def app(self, sqlite_url: str, request: pytest.FixtureRequest) -> Iterator[Flask]:
        app = Flask("shop", host_matching=True, static_host="shop.example")
        app.config.from_mapping(SECRET_KEY="s" * 32, SQLALCHEMY_DATABASE_URI=sqlite_url, TESTING=True, **request.param)
        db = SQLAlchemy(app)
        Referrals(app)

        @app.get("/tea", host="shop.example")
        def tea() -> str:
            return render_template_string("{{ create_referral_form('/tea') }} {{ url }}", url=Referral.create("/").url)

        with app.app_context():
            db.create_all()
            engine = db.engine
        yield app
        engine.dispose()

    @staticmethod
    def get(app: Flask, path: str, host: str) -> TestResponse:
        return app.test_client().get(path, base_url=f"http://{host}")

    @pytest.mark.parametrize("host", ["shop.example", "other.example:5000"])
    def test_links_and_the_script_are_on_every_host(self, app: Flask, host: str) -> None:
        with app.app_context():
            Referral.create("/cups", code="alice")
        assert self.get(app, "/referrals/alice", host).headers["Location"] == "/cups"
        assert self.get(app, "/referrals/unknown", host).status_code == 404
        with self.get(app, "/referrals/static/referrals.js", host) as answer:
            assert answer.status_code == 200

    def test_form_and_url_are_of_the_same_host(self, app: Flask) -> None:
        page = self.get(app, "/tea", "shop.example").text
        assert 'action="/referrals/"' in page
        assert 'src="/referrals/static/referrals.js"' in page
        assert " http://shop.example/referrals/" in page

    @needs_flask_31
    def test_endpoint_leads_to_its_host(self, app: Flask) -> None:
        with app.app_context():
            Referral.create("tea", code="alice")
        assert self.get(app, "/referrals/alice", "shop.example").headers["Location"] == "/tea"
        assert self.get(app, "/referrals/alice", "other.example").headers["Location"] == "http://shop.example/tea"

    def test_configured_urls_work_outside_a_request(self, app: Flask) -> None:
        app.config["SERVER_NAME"] = "shop.example"
        with app.app_context():
            assert Referral.create("/", code="alice").url == "http://shop.example/referrals/alice"
