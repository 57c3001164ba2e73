"""The form on a site that uses Flask-WTF's CSRFProtect, and on one that does not."""

import re
from typing import Any

import pytest
import sqlalchemy as sa
from flask import render_template_string
from flask.testing import FlaskClient
from flask_wtf import CSRFProtect
from werkzeug.test import TestResponse

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host, follow

PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
SCRIPT = {"Accept": "application/json"}


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    return shared_sqlite_url


def add_page(host: Host) -> None:
    @host.app.get("/tea")
    def tea() -> str:
        return render_template_string("{{ create_referral_form('/tea', label='blog') }}")


@pytest.fixture
def new_protected_host(new_host: MakeHost) -> MakeHost:
    """Make the site with Flask-WTF's protection of every form."""

    def make(**config: Any) -> Host:
        host = new_host(**config)
        protect = CSRFProtect(host.app)
        for view in ("signup", "act"):  # their forms are not what is tried here
            protect.exempt(host.app.view_functions[view])
        add_page(host)
        return host

    return make


def member_of(host: Host) -> FlaskClient:
    """A browser in which Mia is logged in."""
    client = host.client()
    client.post("/signup", data={"name": "mia"})
    return client


def fields_of(page: TestResponse) -> dict[str, str]:
    """The hidden fields of the one form of a page."""
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', page.text))


def links(host: Host) -> list[tuple[str, str]]:
    with host.app.app_context():
        return [(link.redirect_to, link.label) for link in host.db.session.scalars(sa.select(Referral))]


class TestProtected:
    """With CSRFProtect."""

    @pytest.fixture
    def host(self, new_protected_host: MakeHost) -> Host:
        return new_protected_host()

    @pytest.fixture
    def member(self, host: Host) -> FlaskClient:
        return member_of(host)

    def test_form_is_accepted_with_its_token(self, host: Host, member: FlaskClient) -> None:
        fields = fields_of(member.get("/tea"))
        assert set(fields) == {"csrf_token", "redirect_to", "label"}
        answer = member.post("/referrals/", data=fields, headers=PAGE)
        assert (answer.status_code, answer.mimetype) == (200, "text/html")
        assert links(host) == [("/tea", "blog")]

    def test_what_the_script_sends_is_accepted(self, host: Host, member: FlaskClient) -> None:
        fields = fields_of(member.get("/tea"))
        answer = member.post("/referrals/", data=fields, headers=SCRIPT, content_type="multipart/form-data")
        assert answer.json is not None and set(answer.json) == {"url", "code", "html"}
        assert links(host) == [("/tea", "blog")]

    @pytest.mark.parametrize("header", ["X-CSRFToken", "X-CSRF-Token"])
    def test_json_is_accepted_with_the_token_in_a_header(self, host: Host, member: FlaskClient, header: str) -> None:
        token = fields_of(member.get("/tea"))["csrf_token"]
        answer = member.post("/referrals/", json={"redirect_to": "/tea"}, headers={header: token})
        assert answer.status_code == 200
        assert links(host) == [("/tea", "")]

    @pytest.mark.parametrize("kind", ["data", "json"])
    @pytest.mark.parametrize("token", [None, "", "forged", "of another"])
    def test_request_without_the_token_is_refused(
        self, host: Host, member: FlaskClient, kind: str, token: str | None
    ) -> None:
        member.get("/tea")
        if token == "of another":
            token = fields_of(host.client().get("/tea"))["csrf_token"]
        fields = {"redirect_to": "/tea"}
        if kind == "json":
            answer = member.post("/referrals/", json=fields, headers={} if token is None else {"X-CSRFToken": token})
        else:
            answer = member.post("/referrals/", data=fields if token is None else {**fields, "csrf_token": token})
        assert answer.status_code == 400
        assert links(host) == []

    def test_form_is_accepted_over_https(self, host: Host, member: FlaskClient) -> None:
        fields = fields_of(member.get("/tea", base_url="https://localhost"))
        headers = {**PAGE, "Referer": "https://localhost/tea", "Origin": "https://localhost"}
        answer = member.post("/referrals/", base_url="https://localhost", data=fields, headers=headers)
        assert answer.status_code == 200
        headers["Referer"] = "https://evil.example/"
        answer = member.post("/referrals/", base_url="https://localhost", data=fields, headers=headers)
        assert answer.status_code == 400

    def test_form_without_a_referrer_is_accepted_with_its_token(self, host: Host, member: FlaskClient) -> None:
        fields = fields_of(member.get("/tea"))
        assert member.post("/referrals/", data=fields, headers={**PAGE, "Origin": "null"}).status_code == 200
        assert links(host) == [("/tea", "blog")]

    def test_token_does_not_hide_that_another_site_sent_it(self, host: Host, member: FlaskClient) -> None:
        fields = fields_of(member.get("/tea"))
        answer = member.post("/referrals/", data=fields, headers={**PAGE, "Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403
        assert links(host) == []

    def test_click_needs_no_token(self, host: Host) -> None:
        client = host.client()
        code = follow(host, client)
        assert client.post("/act/BOUGHT").text == code

    def test_token_goes_under_the_name_that_the_site_gives_it(self, new_protected_host: MakeHost) -> None:
        host = new_protected_host(WTF_CSRF_FIELD_NAME="proof")
        member = member_of(host)
        fields = fields_of(member.get("/tea"))
        assert set(fields) == {"proof", "redirect_to", "label"}
        assert member.post("/referrals/", data=fields, headers=PAGE).status_code == 200

    def test_site_with_tokens_of_its_own_exempts_the_blueprint(self, host: Host, member: FlaskClient) -> None:
        host.app.extensions["csrf"].exempt(host.app.blueprints["referrals"])
        assert member.post("/referrals/", json={"redirect_to": "/tea"}).status_code == 200


class TestUnprotected:
    """Without CSRFProtect, or with it switched off."""

    @pytest.fixture(params=["without", "switched off"])
    def host(self, request: pytest.FixtureRequest, new_host: MakeHost, new_protected_host: MakeHost) -> Host:
        if request.param == "switched off":
            return new_protected_host(WTF_CSRF_ENABLED=False)
        host = new_host()
        add_page(host)
        return host

    def test_form_is_accepted(self, host: Host) -> None:
        member = member_of(host)
        fields = fields_of(member.get("/tea"))
        assert member.post("/referrals/", data=fields, headers=PAGE).mimetype == "text/html"
        assert links(host) == [("/tea", "blog")]

    def test_json_is_accepted(self, host: Host) -> None:
        assert member_of(host).post("/referrals/", json={"redirect_to": "/tea"}).status_code == 200

    def test_request_of_another_site_is_refused_all_the_same(self, host: Host) -> None:
        headers = {"Sec-Fetch-Site": "cross-site"}
        answer = member_of(host).post("/referrals/", data={"redirect_to": "/tea"}, headers=headers)
        assert answer.status_code == 403
        assert links(host) == []
