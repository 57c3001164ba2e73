"""The ways in beside the link itself: a code in any page's query, and a code that is typed."""

import re
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from flask import redirect, request
from flask.testing import FlaskClient
from wtforms import Form, StringField

from flask_referrals import InvalidValueError, Referral, TooManyGuessesError
from flask_referrals.contrib.wtforms import ReferralCode
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import Host, statements
from tests.site.helpers import needs_flask_31


def make_link(host: Host, code: str = "alice", **arguments: Any) -> str:
    with host.app.app_context():
        return Referral.create("/", code=code, **arguments).code


def actions(host: Host) -> list[str]:
    with host.app.app_context():
        return [response.action for response in host.responses()]


def reasons(host: Host) -> list[str | None]:
    with host.app.app_context():
        return [response.ignored for response in host.responses()]


class TestQuery:
    """REFERRALS_QUERY_PARAM."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host(REFERRALS_QUERY_PARAM=("ref", "r"), with_login=False)
        make_link(host)
        return host

    @pytest.mark.parametrize("name", ["ref", "r"])
    def test_code_on_any_page_is_a_click(self, host: Host, name: str) -> None:
        client = host.client()
        assert client.get(f"/?{name}=alice&other=1").status_code == 200
        assert client.post("/act/BOUGHT").text == "alice"

    @on_sqlite
    @pytest.mark.parametrize("query", ["", "?other=1", "?ref=", "?ref=not.a.code", "?ref=" + "x" * 65])
    def test_page_without_a_code_costs_nothing(self, host: Host, query: str) -> None:
        with host.app.app_context(), statements(host.db) as sent:
            answer = host.client().get(f"/{query}")
        assert sent == []
        assert "Vary" not in answer.headers

    def test_unknown_code_does_no_harm_to_good_credit(self, host: Host) -> None:
        client = host.client()
        client.get("/?ref=alice")
        make_link(host, "expired", expires_at=datetime.now(timezone.utc), label="expired")
        for code in ("unknown", "expired", "%00"):
            assert client.get(f"/?ref={code}").status_code == 200
        assert client.post("/act/BOUGHT").text == "alice"

    @on_sqlite
    def test_what_is_no_page_is_left_alone(self, host: Host) -> None:
        client = host.client()
        client.get("/referrals/static/referrals.js?ref=alice").close()
        client.get("/nowhere?ref=alice")
        client.post("/act/BOUGHT?ref=alice")
        assert actions(host) == []

    @pytest.mark.parametrize("query", ["ref=producthunt&r=alice", "ref=no.code&ref=alice", "x=%E9&amp;ref=alice"])
    def test_first_value_that_is_a_code_of_this_site_counts(self, host: Host, query: str) -> None:
        client = host.client()
        client.get(f"/?{query}")
        assert client.post("/act/BOUGHT").text == "alice"

    def test_prefetch_of_a_page_with_a_code_leaves_the_count_to_the_click(self, host: Host) -> None:
        client, headers = host.client(), {"Sec-Purpose": "prefetch"}
        answer = client.get("/?ref=alice", headers=headers)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (503, "no-store")
        assert client.get("/?ref=producthunt", headers=headers).status_code == 200
        assert actions(host) == []
        client.get("/?ref=alice")
        assert actions(host) == ["RESPONDED"]

    @on_sqlite
    @pytest.mark.parametrize("static_url_path", ["/static", ""])
    def test_page_of_a_single_page_app_that_a_404_handler_sends(self, host: Host, static_url_path: str) -> None:
        app, client = host.app, host.client()
        if not static_url_path:
            app.add_url_rule("/<path:filename>", "assets.static", app.send_static_file)
        app.register_error_handler(404, lambda error: "<!doctype html>the app")
        assert client.get("/pricing?ref=alice", headers={"Sec-Purpose": "prefetch"}).status_code == 503
        assert client.get("/pricing?ref=alice").status_code == 200
        assert client.post("/act/BOUGHT").text == "alice"

    def test_page_is_shown_when_the_click_cannot_be_written(self, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        with host.app.app_context():
            host.db.drop_all()
        assert host.client().get("/?ref=alice").status_code == 200
        assert len(caplog.records) == 1

    @on_sqlite
    @pytest.mark.parametrize("url", ["http://shop.example/?ref=alice", "https://www.shop.example/?x=%20&ref=alice"])
    def test_redirect_to_the_address_of_the_site_leaves_the_count_to_the_page(self, host: Host, url: str) -> None:
        @host.app.before_request
        def redirect_to_site() -> Any:
            url = re.sub(r"^https?://(www\.)?", "https://", request.url)
            return redirect(url, 301) if url != request.url else None

        client = host.client()
        site = client.get(url).headers["Location"]
        assert actions(host) == []
        assert client.get(site).status_code == 200
        assert reasons(host) == [None]

    @on_sqlite
    @needs_flask_31
    def test_redirect_from_a_host_that_is_not_trusted(self, new_host: MakeHost) -> None:
        host = new_host(REFERRALS_QUERY_PARAM="ref", TRUSTED_HOSTS=["shop.example"], with_login=False)
        host.app.register_error_handler(400, lambda error: redirect("https://shop.example/"))
        assert host.client().get("/?ref=alice", base_url="http://evil.example").status_code == 302

    @on_sqlite
    def test_redirect_to_another_page_counts(self, host: Host) -> None:
        host.app.before_request(lambda: redirect("/en/?ref=alice"))
        host.client().get("/?ref=alice")
        assert actions(host) == ["RESPONDED"]

    @on_sqlite
    def test_no_hook_without_the_setting(self, new_host: MakeHost) -> None:
        assert new_host(with_login=False).app.before_request_funcs == {}


@on_sqlite
class TestTyped:
    """Referral.attach and the validator."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host(REFERRALS_GUESS_LIMIT=3)

        class CodeForm(Form):
            code = StringField(validators=[ReferralCode()])

        @host.app.post("/typed")
        def typed() -> str:
            try:
                response = Referral.attach(request.form["code"])
                return "" if response is None else response.action
            except (InvalidValueError, TooManyGuessesError) as error:
                return type(error).__name__

        @host.app.post("/form")
        def form() -> str:
            code_form = CodeForm(request.form)
            return "valid" if code_form.validate() else str(code_form.code.errors[0])

        make_link(host)
        return host

    @pytest.mark.parametrize("typed", ["bob", "", "no code", "x" * 65])
    def test_unknown_code_is_said_to_be_unknown(self, client: FlaskClient, typed: str) -> None:
        assert client.post("/typed", data={"code": typed}).text == "InvalidValueError"

    def test_expired_code_looks_like_an_unknown_one(self, host: Host, client: FlaskClient) -> None:
        make_link(host, "late", expires_at=datetime.now(timezone.utc), label="late")
        assert client.post("/typed", data={"code": "late"}).text == "InvalidValueError"

    def test_guessing_ends_after_the_limit_and_for_this_address_only(self, host: Host, client: FlaskClient) -> None:
        wrong = [client.post("/typed", data={"code": f"guess{number}"}).text for number in range(5)]
        assert wrong == ["InvalidValueError"] * 3 + ["TooManyGuessesError"] * 2
        elsewhere = client.post("/typed", data={"code": "guess"}, environ_overrides={"REMOTE_ADDR": "192.0.2.1"})
        assert elsewhere.text == "InvalidValueError"

    def test_right_code_is_accepted_after_wrong_ones(self, client: FlaskClient) -> None:
        for number in range(5):
            client.post("/typed", data={"code": f"guess{number}"})
        assert client.post("/typed", data={"code": "alice"}).text == "ATTACHED"

    def test_addresses_that_cannot_be_read_share_one_limit(self, client: FlaskClient) -> None:
        answers = [
            client.post("/typed", data={"code": "x"}, environ_overrides={"REMOTE_ADDR": address}).text
            for address in ("unknown", "", "unix:", "unknown")
        ]
        assert answers == ["InvalidValueError"] * 3 + ["TooManyGuessesError"]

    def test_one_ipv6_network_is_one_guesser(self, client: FlaskClient) -> None:
        answers = [
            client.post("/typed", data={"code": "x"}, environ_overrides={"REMOTE_ADDR": f"2001:db8::{number}"}).text
            for number in range(4)
        ]
        assert answers[-1] == "TooManyGuessesError"

    def test_addresses_differ_without_their_ports(self, client: FlaskClient) -> None:
        for number in range(3):
            client.post("/typed", data={"code": "x"}, environ_overrides={"REMOTE_ADDR": f"192.0.2.1:{number}"})
        for address, answer in [("192.0.2.1", "TooManyGuessesError"), ("192.0.2.2:1", "InvalidValueError")]:
            assert client.post("/typed", data={"code": "x"}, environ_overrides={"REMOTE_ADDR": address}).text == answer

    def test_clients_without_a_readable_address_are_one_guesser(self, client: FlaskClient) -> None:
        answers = [
            client.post("/typed", data={"code": "x"}, environ_overrides={"REMOTE_ADDR": address}).text
            for address in ("unknown", "", "_hidden", "999.1.1.1")
        ]
        assert answers == ["InvalidValueError"] * 3 + ["TooManyGuessesError"]

    def test_validator_accepts_nothing_and_a_living_code(self, client: FlaskClient) -> None:
        assert client.post("/form", data={"code": ""}).text == "valid"
        assert client.post("/form", data={"code": "alice"}).text == "valid"
        answers = [client.post("/form", data={"code": "wrong"}).text for _ in range(4)]
        assert answers == ["This code is not valid. Check the spelling."] * 3 + [
            "Too many wrong codes. Try again in an hour."
        ]


class TestEveryWay:
    """The rules for codes are the same on a link, in a query and in a form."""

    WAYS = ("link", "query", "typed")

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        return self.make(new_host)

    def make(self, new_host: MakeHost, **config: Any) -> Host:
        host = new_host(REFERRALS_QUERY_PARAM="ref", with_login=False, **config)

        @host.app.post("/typed")
        def typed() -> str:
            Referral.attach(request.form["code"])
            return ""

        make_link(host)
        return host

    def enter(self, client: FlaskClient, way: str, text: str, headers: dict[str, str] | None = None) -> None:
        if way == "typed":
            client.post("/typed", data={"code": text}, headers=headers)
        else:
            client.get(f"/referrals/{quote(text)}" if way == "link" else f"/?ref={quote(text)}", headers=headers)

    @on_sqlite
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("text", ["alice.", "alice)", " alice ", "ALICE", "Alice,", "_alice_", "alice&utm=x"])
    def test_punctuation_and_case_do_not_matter(self, host: Host, way: str, text: str) -> None:
        client = host.client()
        self.enter(client, way, text)
        assert client.post("/act/BOUGHT").text == "alice"

    @pytest.mark.parametrize("way", ["query", "typed"])
    def test_whole_link_is_read(self, host: Host, way: str) -> None:
        client = host.client()
        self.enter(client, way, "https://shop.example/referrals/alice?utm_source=x")
        assert client.post("/act/BOUGHT").text == "alice"

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(("text", "code"), [("Alice", "Alice"), ("alice.", "alice"), ("ALICE", "alice")])
    def test_exact_match_goes_before_the_other_case(self, host: Host, way: str, text: str, code: str) -> None:
        with host.app.app_context():
            later = Referral.create("/", label="later", code="x")
            later.code, later.folded_code = "Alice", None  # as a migration leaves it
            host.db.session.commit()
        client = host.client()
        self.enter(client, way, text)
        assert client.post("/act/BOUGHT").text == code

    @pytest.mark.parametrize("way", WAYS)
    def test_visitor_counts_once_in_the_repeat_window(self, host: Host, way: str) -> None:
        make_link(host, "bob", label="bob")
        client = host.client()
        for code in ("alice", "bob", "alice", "alice"):
            self.enter(client, way, code)
        assert reasons(host) == [None, None, "repeat", "repeat"]
        assert client.post("/act/BOUGHT").text == "alice"

    @on_sqlite
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(
        ("headers", "reason"), [({"User-Agent": "Googlebot/2.1"}, "bot"), ({"X-Refuses": "1"}, "no-consent")]
    )
    def test_who_does_not_count_gets_no_key(self, host: Host, way: str, headers: dict[str, str], reason: str) -> None:
        host.referrals.consent(lambda request: "X-Refuses" not in request.headers)
        client = host.client()
        self.enter(client, way, "alice", headers)
        assert (reasons(host), client.get_cookie("session")) == ([reason], None)

    def test_prefetch_of_a_page_that_attaches_does_not_count(self, host: Host) -> None:
        self.enter(host.client(), "typed", "alice", {"Sec-Purpose": "prefetch"})
        assert reasons(host) == ["prefetch"]

    def test_script_of_the_site_may_send_a_typed_code(self, host: Host) -> None:
        headers = {"Sec-Fetch-Dest": "empty", "Sec-Fetch-Mode": "cors", "Accept": "application/json"}
        self.enter(host.client(), "typed", "alice", headers)
        assert reasons(host) == [None]

    def test_program_that_names_the_user_counts(self, host: Host) -> None:
        with host.app.test_request_context(headers={"User-Agent": "okhttp/4.12.0"}):
            Referral.attach("alice", user=host.user("mia"))
        assert reasons(host) == [None]

    @pytest.mark.parametrize("way", WAYS)
    def test_repeat_that_is_not_stored(self, new_host: MakeHost, way: str) -> None:
        host = self.make(new_host, REFERRALS_IGNORED="drop")
        client = host.client()
        for _ in range(3):
            self.enter(client, way, "alice")
        assert reasons(host) == [None]

    def test_click_in_the_hosts_transaction_finds_the_code_too(self, host: Host) -> None:
        @host.app.before_request
        def begin() -> None:
            host.db.session.execute(sa.text("SELECT 1"))

        client = host.client()
        assert client.get("/referrals/ALICE).").status_code == 302
        assert client.post("/act/BOUGHT").text == "alice"


@pytest.mark.usefixtures("ctx")
@pytest.mark.parametrize("code", ["admin", "Static", "API"])
def test_reserved_code_cannot_be_chosen(code: str) -> None:
    with pytest.raises(InvalidValueError, match=r"^code is reserved"):
        Referral.create("/", code=code)
