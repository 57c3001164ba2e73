"""Making a link over HTTP."""

import io
import json
import time
from typing import Any

import pytest
import sqlalchemy as sa
from flask import render_template_string, request
from flask.testing import FlaskClient
from itsdangerous import URLSafeSerializer
from werkzeug.test import TestResponse

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import Host
from tests.site.helpers import needs_flask_31

PAGE = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def member(host: Host, client: FlaskClient) -> FlaskClient:
    """The browser of Mia, who has logged in."""
    with host.app.app_context():
        host.user("mia")
    client.post("/login", data={"name": "mia"})
    return client


def links(host: Host) -> list[tuple[Any, ...]]:
    """Return owner, target page, label and target of all links in the database."""
    model = host.referrals.Referral
    owner = sa.select(host.User.name).where(host.User.id == model.user_id).scalar_subquery()
    found = sa.select(owner, model.redirect_to, model.label, model.target_type, model.target_id).order_by(model.id)
    return [tuple(row) for row in host.db.session.execute(found)]


def token_of(host: Host, target: Any) -> str:
    """Return the value by which a rendered form names a target."""
    with host.app.test_request_context():
        form = render_template_string("{{ create_referral_form('/', target=target) }}", target=target)
    return form.split('name="target" value="')[1].split('"')[0]


def assert_refused(host: Host, answer: TestResponse, status: int, field: str = "") -> None:
    assert (answer.status_code, answer.mimetype) == (status, "application/json")
    assert answer.json is not None and list(answer.json) == ["error"]
    assert answer.json["error"].startswith(field)
    with host.app.app_context():
        assert links(host) == []


@pytest.mark.parametrize("path", ["/referrals", "/referrals/"])
@pytest.mark.parametrize("kind", ["json", "data"])
def test_program_is_answered_with_the_link(host: Host, member: FlaskClient, path: str, kind: str) -> None:
    answer = member.post(path, **{kind: {"redirect_to": "/tea", "label": "my blog"}})
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.json is not None and set(answer.json) == {"url", "code", "html"}
    with host.app.app_context():
        assert links(host) == [("mia", "/tea", "my blog", None, None)]
        code = host.db.session.scalars(sa.select(host.referrals.Referral.code)).one()
    assert answer.json["code"] == code
    assert answer.json["url"] == f"http://localhost/referrals/{code}"
    assert f'value="{answer.json["url"]}"' in answer.json["html"]
    assert host.client().get(answer.json["url"]).headers["Location"] == "/tea"


def test_form_with_a_file_part_is_a_form(host: Host, member: FlaskClient) -> None:
    data = {"redirect_to": "/tea", "label": (io.BytesIO(b"x"), "label.txt")}
    answer = member.post("/referrals/", data=data, content_type="multipart/form-data")
    assert answer.status_code == 200
    with host.app.app_context():
        assert links(host) == [("mia", "/tea", "", None, None)]


def test_browser_that_posts_a_form_is_shown_the_link(host: Host, member: FlaskClient) -> None:
    answer = member.post("/referrals/", data={"redirect_to": "/tea"}, headers=PAGE)
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    with host.app.app_context():
        code = host.db.session.scalars(sa.select(host.referrals.Referral.code)).one()
    assert f'<a href="http://localhost/referrals/{code}">' in answer.text


def test_script_that_sends_json_gets_json_whatever_it_accepts(member: FlaskClient) -> None:
    assert member.post("/referrals/", json={"redirect_to": "/tea"}, headers=PAGE).mimetype == "application/json"


def test_same_link_is_made_once(host: Host, member: FlaskClient) -> None:
    codes = {
        member.post("/referrals/", json=fields).json["code"]  # type: ignore[index]
        for fields in ({"redirect_to": "/tea"}, {"redirect_to": "/tea", "label": ""}, {"redirect_to": "/tea"})
    }
    assert len(codes) == 1
    other = member.post("/referrals/", json={"redirect_to": "/tea", "label": "other"}).json
    assert other is not None and other["code"] not in codes
    with host.app.app_context():
        assert len(links(host)) == 2


def test_form_names_its_target(host: Host, member: FlaskClient) -> None:
    with host.app.app_context():
        product = host.add(host.Product(name="kettle"))
        token, key = token_of(host, product), str(product.id)
    assert member.post("/referrals/", data={"redirect_to": "/kettle", "target": token}).status_code == 200
    with host.app.app_context():
        assert links(host) == [("mia", "/kettle", "", "product", key)]
        referral = host.db.session.scalars(sa.select(Referral)).one()
        assert referral.target.name == "kettle"


LONGEST = {"redirect_to": "/" + "a" * 2047, "label": "\U0001f375" * 100}


def test_longest_values_are_stored(host: Host, member: FlaskClient) -> None:
    assert member.post("/referrals/", json=LONGEST).status_code == 200
    with host.app.app_context():
        assert links(host) == [("mia", LONGEST["redirect_to"], LONGEST["label"], None, None)]


class OnSQLite:
    """For what is decided before the database is asked."""

    @pytest.fixture
    def database_url(self, shared_sqlite_url: str) -> str:
        """The one database."""
        return shared_sqlite_url


REFUSED = [
    ({"label": "x"}, "redirect_to"),
    ({"redirect_to": ""}, "redirect_to"),
    ({"redirect_to": "tea"}, "redirect_to"),
    ({"redirect_to": "//evil.example"}, "redirect_to"),
    ({"redirect_to": "/\t/evil.example"}, "redirect_to"),
    ({"redirect_to": "https://evil.example/"}, "redirect_to"),
    ({"redirect_to": "javascript:alert(1)"}, "redirect_to"),
    ({"redirect_to": "act"}, "redirect_to"),
    ({"redirect_to": "/a\0"}, "redirect_to"),
    ({"redirect_to": "/" + "a" * 2048}, "redirect_to"),
    ({"redirect_to": "/", "label": "x" * 101}, "label"),
    ({"redirect_to": "/", "label": "\U0001f375" * 101}, "label"),
    ({"redirect_to": "/", "label": "a\0b"}, "label"),
    ({"redirect_to": "/", "target": "a\0b"}, "target"),
    ({"redirect_to": "/", "target": "x" * 5000}, "target"),
]


def test_refused_value_never_reaches_the_database(host: Host, member: FlaskClient) -> None:
    for fields, field in REFUSED:
        assert_refused(host, member.post("/referrals/", json=fields), 400, field)


class TestRefusal(OnSQLite):
    """What is sent cannot be accepted."""

    @pytest.mark.parametrize(
        ("fields", "field"),
        REFUSED,
        ids=lambda value: ascii(value)[:60],
    )
    @pytest.mark.parametrize("kind", ["json", "data"])
    def test_value_that_cannot_be_accepted_is_named(
        self, host: Host, member: FlaskClient, kind: str, fields: dict[str, str], field: str
    ) -> None:
        assert_refused(host, member.post("/referrals/", **{kind: fields}), 400, field)

    @pytest.mark.parametrize("field", ["redirect_to", "label", "target"])
    @pytest.mark.parametrize(
        "value", ["null", "true", "1", "0", "-1", "1.5", "1e999", "NaN", "9" * 4000, "[]", '["/a"]', "{}", '"\\ud800"']
    )
    def test_value_of_the_wrong_type_is_named(self, host: Host, member: FlaskClient, field: str, value: str) -> None:
        fields = {"redirect_to": '"/"', field: value}
        body = "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}"
        answer = member.post("/referrals/", data=body, content_type="application/json")
        assert_refused(host, answer, 400, field)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"redirect_to=/tea",
            b"{'redirect_to': '/tea'}",
            b'{"redirect_to": "/tea"',
            b'{"redirect_to": "\xff"}',
            b'{"redirect_to": "\x00"}',
            b'{"redirect_to": ' + b"9" * 5000 + b"}",
            b'{"redirect_to": ' + b"[" * 16000,
            b'{"a":' * 3000,
            b"[" * 8000 + b"]" * 8000,
            b"null",
            b"true",
            b"1",
            b'"/tea"',
            b'["/tea"]',
            b'[["redirect_to", "/tea"]]',
        ],
        ids=lambda body: str(body[:30]),
    )
    def test_body_that_is_no_json_object_is_refused(self, host: Host, member: FlaskClient, body: bytes) -> None:
        assert_refused(host, member.post("/referrals/", data=body, content_type="application/json"), 400)

    @pytest.mark.parametrize(
        "content_type", [None, "", "text/plain", "text/json", "application/xml", "application/problem+json", "x"]
    )
    def test_other_content_type_is_refused(self, host: Host, member: FlaskClient, content_type: str | None) -> None:
        body = json.dumps({"redirect_to": "/tea"})
        assert_refused(host, member.post("/referrals/", data=body, content_type=content_type), 415)

    @pytest.mark.parametrize("kind", ["json", "data"])
    def test_large_body_is_refused(self, host: Host, member: FlaskClient, kind: str) -> None:
        fields = {"redirect_to": "/tea", "more": "x" * 32 * 1024}
        assert_refused(host, member.post("/referrals/", **{kind: fields}), 413)

    def test_form_of_many_fields_is_refused(self, host: Host, member: FlaskClient) -> None:
        body = "\r\n".join('--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' for _ in range(1001)) + "\r\n--b--"
        answer = member.post("/referrals/", data=body, content_type="multipart/form-data; boundary=b")
        assert_refused(host, answer, 413)

    def test_browser_is_shown_a_page_when_its_form_is_refused(self, host: Host, member: FlaskClient) -> None:
        answer = member.post("/referrals/", data={"redirect_to": "//<b>.example"}, headers=PAGE)
        assert (answer.status_code, answer.mimetype) == (400, "text/html")
        assert "redirect_to" in answer.text and "<b>" not in answer.text
        with host.app.app_context():
            assert links(host) == []


class TestLogin(OnSQLite):
    """Links belong to the logged-in user."""

    @pytest.mark.parametrize("kind", ["json", "data"])
    def test_program_that_is_not_logged_in_gets_401(self, host: Host, client: FlaskClient, kind: str) -> None:
        assert_refused(host, client.post("/referrals/", **{kind: {"redirect_to": "/tea"}}), 401)

    def test_program_that_is_not_logged_in_learns_nothing_else(self, host: Host, client: FlaskClient) -> None:
        answer = client.post("/referrals/", data="{", content_type="application/json")
        assert_refused(host, answer, 401)

    def test_browser_gets_the_answer_of_flask_login(self, host: Host, client: FlaskClient) -> None:
        answer = client.post("/referrals/", data={"redirect_to": "/tea"}, headers=PAGE)
        assert (answer.status_code, answer.mimetype) == (401, "text/html")
        host.app.login_manager.login_view = "index"  # type: ignore[attr-defined]
        answer = client.post("/referrals/", data={"redirect_to": "/tea"}, headers=PAGE)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/?next=%2Freferrals%2F")
        with host.app.app_context():
            assert links(host) == []

    def test_site_without_flask_login_refuses_a_browser_too(self, new_host: MakeHost) -> None:
        host = new_host(with_login=False)
        answer = host.client().post("/referrals/", data={"redirect_to": "/tea"}, headers=PAGE)
        assert (answer.status_code, answer.mimetype) == (401, "text/html")
        with host.app.app_context():
            assert links(host) == []

    def test_user_is_whom_the_site_says(self, new_host: MakeHost) -> None:
        host = new_host(with_login=False)
        with host.app.app_context():
            key = host.user("olga").id
        host.referrals.user_loader(lambda: host.db.session.get(host.User, key))
        assert host.client().post("/referrals/", json={"redirect_to": "/tea"}).status_code == 200
        with host.app.app_context():
            assert links(host) == [("olga", "/tea", "", None, None)]


class TestCrossSite(OnSQLite):
    """Another site cannot make its visitors' browsers make links."""

    @pytest.mark.parametrize(
        "headers",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "unheard-of"},
            {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
            {"Origin": "https://evil.example"},
            {"Origin": "http://localhost.evil.example"},
            {"Origin": "http://localhost:8000"},
            {"Origin": "http://evil@localhost"},
            {"Origin": "null"},
            {"Origin": "localhost"},
            {"Origin": ""},
            {"Origin": "http://["},
            {"Origin": "http://[evil]"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("kind", ["json", "data"])
    def test_request_of_another_site_is_refused(
        self, host: Host, member: FlaskClient, headers: dict[str, str], kind: str
    ) -> None:
        answer = member.post("/referrals/", headers=headers, **{kind: {"redirect_to": "/tea"}})
        assert_refused(host, answer, 403)

    def test_browser_is_shown_a_page(self, host: Host, member: FlaskClient) -> None:
        headers = {**PAGE, "Sec-Fetch-Site": "cross-site"}
        answer = member.post("/referrals/", headers=headers, data={"redirect_to": "/tea"})
        assert (answer.status_code, answer.mimetype) == (403, "text/html")
        with host.app.app_context():
            assert links(host) == []

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "none"},
            {"Sec-Fetch-Site": "same-origin", "Origin": "http://proxied.example"},
            {"Origin": "http://localhost"},
        ],
        ids=str,
    )
    def test_request_of_the_site_itself_is_accepted(self, member: FlaskClient, headers: dict[str, str]) -> None:
        assert member.post("/referrals/", headers=headers, json={"redirect_to": "/tea"}).status_code == 200

    @pytest.mark.parametrize(("same_site", "status"), [("Lax", 200), ("strict", 200), ("None", 403), (None, 403)])
    def test_form_without_a_referrer_is_accepted_with_a_session_that_other_sites_cannot_send(
        self, new_host: MakeHost, same_site: str | None, status: int
    ) -> None:
        host = new_host(SESSION_COOKIE_SAMESITE=same_site, REMEMBER_COOKIE_DURATION=60)
        client = host.client()
        client.post("/signup", data={"name": "olga", "remember": "1"})
        sent = {"headers": {"Origin": "null"}, "data": {"redirect_to": "/tea"}}
        assert client.post("/referrals/", **sent).status_code == status
        client.delete_cookie("session")  # as from another site: the cookie that logs in is not SameSite
        assert client.post("/referrals/", **sent).status_code == 403

    @pytest.mark.parametrize(
        ("origin", "status"),
        [
            ("https://app.example", 200),
            ("http://[::1]:3000", 200),
            ("http://app.example", 403),
            ("https://app.example:8443", 403),
            ("https://www.app.example", 403),
            ("https://app.example.evil.example", 403),
            ("null", 403),
        ],
    )
    @pytest.mark.parametrize("site", ["cross-site", "same-site", None])
    def test_page_of_a_trusted_origin_is_accepted(
        self, new_host: MakeHost, origin: str, status: int, site: str | None
    ) -> None:
        host = new_host(REFERRALS_TRUSTED_ORIGINS=["https://App.example:443", "http://[::1]:3000"])
        member = host.client()
        member.post("/signup", data={"name": "olga"})
        headers = {"Origin": origin} if site is None else {"Origin": origin, "Sec-Fetch-Site": site}
        assert member.post("/referrals/", headers=headers, json={"redirect_to": "/tea"}).status_code == status

    def test_preflight_needs_no_login_and_creates_nothing(self, host: Host, client: FlaskClient) -> None:
        headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        answer = client.options("/referrals/", headers=headers)
        assert (answer.status_code, "POST" in answer.headers["Allow"]) == (200, True)
        # The header is the host's to send: two of them would be refused by browsers.
        assert "Access-Control-Allow-Origin" not in answer.headers

    def test_site_on_a_port_is_itself(self, member: FlaskClient) -> None:
        for port, status in ((5000, 200), (5001, 403)):
            answer = member.post(
                "/referrals/",
                base_url="http://localhost:5000",
                headers={"Origin": f"http://localhost:{port}"},
                json={"redirect_to": "/tea"},
            )
            assert answer.status_code == status


class TestTarget:
    """The answer does not show which objects exist."""

    @pytest.fixture
    def token(self, host: Host) -> str:
        """The value that names the kettle."""
        with host.app.app_context():
            return token_of(host, host.add(host.Product(name="kettle")))

    @pytest.fixture
    def refusal(self, host: Host, member: FlaskClient) -> str:
        """The one answer."""
        answer = member.post("/referrals/", json={"redirect_to": "/", "target": "x"})
        assert_refused(host, answer, 400, "target")
        return answer.text

    def assert_refusal(self, host: Host, member: FlaskClient, target: str, refusal: str) -> None:
        answer = member.post("/referrals/", json={"redirect_to": "/", "target": target})
        assert_refused(host, answer, 400, "target")
        assert answer.text == refusal

    def test_token_is_accepted(self, member: FlaskClient, token: str) -> None:
        assert member.post("/referrals/", json={"redirect_to": "/", "target": token}).status_code == 200

    def test_target_that_is_gone(self, host: Host, member: FlaskClient, token: str, refusal: str) -> None:
        with host.app.app_context():
            host.db.session.delete(host.db.session.scalars(sa.select(host.Product)).one())
            host.db.session.commit()
        self.assert_refusal(host, member, token, refusal)

    def test_target_that_is_not_permitted(self, host: Host, member: FlaskClient, token: str, refusal: str) -> None:
        asked: list[tuple[str, str]] = []

        def can_refer(user: Any, product: Any) -> bool:
            asked.append((user.name, product.name))
            return False

        host.referrals.register_target(host.Product, can_refer=can_refer)
        self.assert_refusal(host, member, token, refusal)
        assert asked == [("mia", "kettle")]

    def test_target_that_is_no_longer_registered(
        self, host: Host, member: FlaskClient, token: str, refusal: str
    ) -> None:
        host.referrals.targets.clear()
        self.assert_refusal(host, member, token, refusal)

    def test_forged_target(self, host: Host, member: FlaskClient, token: str, refusal: str) -> None:
        payload, signature = token.split(".")
        for forged in (
            payload,
            f".{signature}",
            f"{payload}.",
            f"{payload}.{signature[:-1]}",
            f"{payload}.{signature[::-1]}",
            f"{payload[::-1]}.{signature}",
            f"{payload}A.{signature}",
            f"{token}.x",
            f" {token}",
            '["product", "1"]',
            "product:1",
            "1",
            "\u8336",
        ):
            self.assert_refusal(host, member, forged, refusal)

    @on_sqlite
    @pytest.mark.parametrize("payload", [None, 1, "product", [], ["product"], ["product", "1", "2"], {"product": "1"}])
    def test_alien_target(self, host: Host, member: FlaskClient, payload: Any, refusal: str) -> None:
        signed = URLSafeSerializer(str(host.app.secret_key), salt="flask-referrals.target").dumps(payload)
        self.assert_refusal(host, member, str(signed), refusal)

    def test_signature_of_another_use_is_no_target(
        self, host: Host, member: FlaskClient, token: str, refusal: str
    ) -> None:
        for salt in ("itsdangerous", "cookie-session", "flask-referrals.visitor"):
            signed = URLSafeSerializer(str(host.app.secret_key), salt=salt).dumps(["product", "1"])
            self.assert_refusal(host, member, str(signed), refusal)

    @needs_flask_31
    def test_token_outlives_the_change_of_the_secret(self, host: Host, member: FlaskClient, token: str) -> None:
        host.app.config.update(SECRET_KEY="new", SECRET_KEY_FALLBACKS=[host.app.secret_key])
        assert member.post("/referrals/", json={"redirect_to": "/", "target": token}).status_code == 200


@on_sqlite
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_other_method_is_not_allowed(host: Host, member: FlaskClient, method: str) -> None:
    assert member.open("/referrals/", method=method, json={"redirect_to": "/tea"}).status_code == 405
    with host.app.app_context():
        assert links(host) == []


def test_link_is_stored_with_what_a_before_request_function_left_pending(host: Host, client: FlaskClient) -> None:
    @host.app.before_request
    def count_requests() -> None:
        host.db.session.add(host.Product(name=request.path))

    client.post("/signup", data={"name": "mia"})
    assert client.post("/referrals/", json={"redirect_to": "/tea"}).status_code == 200
    with host.app.app_context():
        assert len(links(host)) == 1
        assert host.db.session.scalars(sa.select(host.Product.name)).all() == ["/signup", "/referrals/"]


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_link_that_cannot_be_stored_now_is_to_be_tried_again(
    host: Host, member: FlaskClient, accept: str, caplog: pytest.LogCaptureFixture
) -> None:
    with host.app.app_context():
        host.db.session.remove()
        for name in ("referral_response", "referral_total", "referral"):
            host.db.metadata.tables[name].drop(host.db.engine)
    answer = member.post("/referrals/", data={"redirect_to": "/"}, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    assert len(caplog.records) == 1


def test_value_that_the_database_refuses_for_good_is_not_to_be_tried_again(host: Host, member: FlaskClient) -> None:
    with host.app.app_context(), host.db.engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX the_hosts_own ON referral (label)")
    statuses = [member.post("/referrals/", json={"redirect_to": path}).status_code for path in ("/", "/tea", "/")]
    assert statuses == [200, 400, 200]


def test_character_outside_the_character_set_is_refused(host: Host, member: FlaskClient) -> None:
    with host.app.app_context(), host.db.engine.begin() as connection:
        if connection.dialect.name != "mysql":
            pytest.skip("Only MySQL has character sets for single columns.")
        connection.exec_driver_sql("ALTER TABLE referral MODIFY label VARCHAR(100) CHARACTER SET utf8mb3 NOT NULL")
    answer = member.post("/referrals/", json={"redirect_to": "/", "label": "\U0001f375"})
    assert_refused(host, answer, 400, "redirect_to or label is not accepted")


def test_large_accept_header_costs_little(host: Host) -> None:
    header = ",".join(f"a/b{number}" for number in range(90 * 8192 // 8))
    start = time.process_time()
    assert host.client().post("/referrals/", headers={"Accept": header}).status_code == 401
    assert host.client().get("/referrals/x", headers={"Accept": header}).status_code == 404
    assert time.process_time() - start < 0.5
