"""The views in Flask-Admin."""

import re
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import sqlalchemy as sa
from flask import Flask, abort
from flask.testing import FlaskClient
from flask_admin import Admin, AdminIndexView
from flask_admin.contrib.sqla import ModelView
from flask_login import current_user
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from sqlalchemy.orm import Mapped, mapped_column

from example_app import create_app
from example_app.demo_data import add_data
from example_app.extensions import db
from flask_referrals import ConfigurationError, Referral, ReferralMixin, Referrals
from flask_referrals.contrib.admin import InsightIndexView, ReferralAdmin, ReferralResponseAdmin, add_views
from flask_referrals.contrib.admin.base import load_targets
from flask_referrals.contrib.dashboard import create_blueprint
from flask_referrals.state import current_state
from tests.conftest import MakeHost, NewApp
from tests.databases import on_sqlite
from tests.host import Host, get_one, make_host, sent_by_requests, statements
from tests.site.helpers import call_by_name, engine_of, failing

LINKS, RESPONSES = "/admin/referral/", "/admin/referralresponse/"
SCRIPT = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    host = new_host()
    add_views(Admin(host.app))
    return host


@pytest.fixture
def client(host: Host) -> FlaskClient:
    return host.client()


@pytest.fixture
def links(host: Host) -> None:
    """Olga's link to a product, which expired, and a link without an owner, some months younger; a response to each."""
    with host.app.app_context():
        product = host.add(host.Product(name="Teapot"))
        olga = Referral.create("/teapot", host.user("olga"), "mail", product, code="olga-1")
        olga.created_at, olga.expired_at = utc(2026, 1, 31), utc(2026, 3, 1)
        none = Referral.create("/", label="poster", code="poster-1")
        none.created_at = utc(2026, 7, 1)
        mia = host.user("mia")
        respond(
            host, olga, "RESPONDED", user_id=mia.id, is_touch=True, created_at=utc(2026, 1, 31), ip_address="1.2.3.0"
        )
        respond(host, none, "BOUGHT", ignored="self", created_at=utc(2026, 7, 1), ip_address="4.5.6.0")
        host.db.session.commit()


def utc(*numbers: int) -> datetime:
    return datetime(*numbers, tzinfo=timezone.utc)  # type: ignore[arg-type, misc]


def respond(host: Host, referral: Any, action: str, **columns: Any) -> Any:
    return host.add(host.referrals.ReferralResponse(referral_id=referral.id, action=action, **columns))


def get(client: FlaskClient, url: str, **query: str) -> str:
    separator = "&" if "?" in url else "?"
    answer = client.get(f"{url}{separator}{urlencode(query)}")
    assert answer.status_code == 200
    return answer.text


def cells(page: str, column: str) -> list[str]:
    """The markup in a column of a list."""
    return re.findall(rf'<td class="col-{column}">\s*(.*?)\s*</td>', page, re.DOTALL)


def words(markup: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", markup))


def details(page: str) -> dict[str, str]:
    """The names and markup on the page of one row."""
    return dict(re.findall(r"<b>(.*?)</b>\s*</td>\s*<td>\s*(.*?)\s*</td>", page, re.DOTALL))


@pytest.mark.usefixtures("links")
def test_list_of_links(host: Host, client: FlaskClient) -> None:
    page = get(client, LINKS)
    assert cells(page, "code") == ["poster-1", "olga-1"]  # the newest first
    assert cells(page, "label") == ["poster", "mail"]
    assert [words(cell) for cell in cells(page, "redirect_to")] == ["/", "/teapot"]
    assert [words(cell) for cell in cells(page, "user")] == ["", "<User 1>"]
    assert [words(cell) for cell in cells(page, "target")] == ["", "<Product 1>"]
    assert cells(page, "created_at") == ["2026-07-01 00:00:00", "2026-01-31 00:00:00"]
    assert cells(page, "expired_at") == ["", "2026-03-01 00:00:00"]
    assert [words(cell) for cell in cells(page, "response_count")] == ["0", "1"]  # one is ignored, one is a click


@pytest.mark.usefixtures("links")
def test_number_of_clicks_leads_to_the_responses(client: FlaskClient) -> None:
    (link,) = re.findall(r'href="(.*?)"', cells(get(client, LINKS), "response_count")[0])
    page = get(client, unescape(link))
    assert [words(cell) for cell in cells(page, "referral")] == ["poster-1"]


@pytest.mark.usefixtures("links")
def test_list_of_responses(host: Host, client: FlaskClient) -> None:
    page = get(client, RESPONSES)
    assert cells(page, "created_at") == ["2026-07-01 00:00:00", "2026-01-31 00:00:00"]
    assert [words(cell) for cell in cells(page, "referral")] == ["poster-1", "<User 1> (olga-1)"]
    assert cells(page, "action") == [
        '<span title="BOUGHT">BOUGHT</span>',
        '<span title="RESPONDED">Clicked on the link</span>',
    ]
    assert [words(cell) for cell in cells(page, "user")] == ["", "<User 2>"]
    assert cells(page, "ignored") == ["self", ""]
    assert cells(page, "ip_address") == ["4.5.6.0", "1.2.3.0"]


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("term", ["olga", "OLGA-1", "mail", "^olga-", "olga mail"])
def test_link_is_found_by_code_label_and_user(client: FlaskClient, term: str) -> None:
    assert cells(get(client, LINKS, search=term), "code") == ["olga-1"]


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("term", ["olga-1", "olga", "mia", "1.2.3."])
def test_response_is_found_by_code_owner_user_and_address(client: FlaskClient, term: str) -> None:
    assert cells(get(client, RESPONSES, search=term), "ip_address") == ["1.2.3.0"]


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_type_equals", "product"),
        ("target_type_empty", "0"),
        ("label_contains", "mai"),
        ("expires_utc_smaller_than", "2026-03-01 00:00:01"),
        ("expires_utc_empty", "0"),
        ("created_utc_equals", "2026-01-31 00:00:00"),
        ("created_utc_between", "2026-01-30 00:00:00 to 2026-02-01 00:00:00"),
    ],
)
def test_links_are_filtered(client: FlaskClient, name: str, value: str) -> None:
    assert cells(get(client, LINKS, **{f"flt0_{name}": value}), "code") == ["olga-1"]


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("action_equals", "RESPONDED"),
        ("ignored_empty", "1"),
        ("ignored_not_in_list", "self,bot"),
        ("time_utc_smaller_than", "2026-02-01 00:00:00"),
        ("code_equals", "olga-1"),
        ("touch_equals", "1"),
    ],
)
def test_responses_are_filtered(client: FlaskClient, name: str, value: str) -> None:
    assert cells(get(client, RESPONSES, **{f"flt0_{name}": value}), "ip_address") == ["1.2.3.0"]


def test_filter_takes_times_as_utc_whatever_the_connections_zone(new_host: MakeHost, database_url: str) -> None:
    options = {"connect_args": {"options": "-c timezone=Asia/Tokyo"}} if "postgresql" in database_url else {}
    host = new_host(SQLALCHEMY_ENGINE_OPTIONS=options)
    add_views(Admin(host.app))
    with host.app.app_context():
        Referral.create("/", code="one").created_at = utc(2026, 1, 31, 12)
        host.db.session.commit()
    page = get(host.client(), LINKS, flt0_created_utc_between="2026-01-31 11:59:59 to 2026-01-31 12:00:01")
    assert cells(page, "created_at") == ["2026-01-31 12:00:00"]


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("url", [LINKS, RESPONSES])
def test_every_column_that_can_be_sorted_is(client: FlaskClient, url: str) -> None:
    columns = re.findall(r'href="([^"]*sort=\d+[^"]*)"', get(client, url))
    assert len(columns) >= 6
    for column in columns:
        up, down = get(client, unescape(column)), get(client, unescape(column), desc="1")
        assert len(cells(up, "created_at")) == len(cells(down, "created_at")) == 2


@pytest.mark.usefixtures("links")
def test_links_are_sorted_by_code(client: FlaskClient) -> None:
    assert cells(get(client, LINKS, sort="1"), "code") == ["olga-1", "poster-1"]
    assert cells(get(client, LINKS, sort="1", desc="1"), "code") == ["poster-1", "olga-1"]


def test_response_opens_with_all_but_the_visitors_key(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        key = "k" * 43
        shown = {
            "user_agent": "Firefox",
            "key": "order-7",
            "params": {"utm_source": "paper"},
            "value": 9,
            "currency": "GBP",
        }
        respond(host, Referral.create("/"), "BOUGHT", session_key=key, http_referrer="https://blog.example/", **shown)
    page = get(client, f"{RESPONSES}details/", id="1")
    found = details(page)
    assert [words(found[name]) for name in ("User Agent", "Key", "Value")] == ["Firefox", "order-7", "9.00 GBP"]
    assert "text-break" in found["User Agent"]  # a long word of a bot does not widen the page
    assert "paper" in found["Params"]
    assert 'href="https://blog.example/"' in found["Referrer"]
    assert "session" not in page.lower()
    assert key not in page + get(client, RESPONSES)


@pytest.mark.usefixtures("links")
def test_link_opens(client: FlaskClient) -> None:
    found = details(get(client, f"{LINKS}details/", id="1"))
    assert (found["Code"], words(found["Clicks"]), found["Expires (UTC)"]) == ("olga-1", "1", "2026-03-01 00:00:00")
    assert words(found["URL"]) == "http://localhost/referrals/olga-1"


@pytest.mark.parametrize("key", ["5", "abc", "9" * 30, "", "1,2"])
def test_row_that_is_not_there_leads_back(host: Host, client: FlaskClient, key: str) -> None:
    for url in (LINKS, RESPONSES):
        assert client.get(f"{url}details/", query_string={"id": key}).status_code == 302


@pytest.mark.parametrize("url", [LINKS, RESPONSES])
def test_query_that_cannot_be_read_is_refused(host: Host, client: FlaskClient, url: str) -> None:
    host.app.register_error_handler(400, lambda error: (str(host.db.session.scalar(sa.text("SELECT 1"))), 400))
    for name in ("page", "page_size", "sort", "desc"):
        for value in ("-1", "\u0663", "x", "9" * 19):
            assert client.get(url, query_string={name: value}).status_code == 400
    for name in ("search", "flt0_label_equals", "flt0_code_in_list", "flt0_created_utc_equals", "url", "other"):
        assert client.get(url, query_string={name: "a\0b"}).status_code == 400
    for name, value in (("search", "=\\"), ("flt0_code_contains", "=\\"), ("flt0_touch_equals", "x"), ("sort", "99")):
        assert client.get(url, query_string={name: value}).status_code in (200, 400)
    for key in ("\u0663", "1\0", "\uff11"):
        assert client.get(f"{url}details/", query_string={"id": key}).status_code in (400, 404)
    assert client.get(f"{url}details/", query_string={"id": "1", "url": "http://["}).status_code == 400
    assert client.post(f"{url}action/", data={"rowid": "\0"}).status_code == 400


def token(page: str) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    assert found is not None
    return found[1]


@pytest.mark.usefixtures("links")
def test_only_the_time_at_which_a_link_expires_is_edited(host: Host, client: FlaskClient) -> None:
    page = get(client, f"{LINKS}edit/", id="1")
    assert 'value="2026-03-01 00:00:00"' in page
    form = {"expired_at": "2026-12-24 18:00:00", "label": "other", "redirect_to": "/x", "code": "other", "user": "2"}
    answer = client.post(f"{LINKS}edit/?id=1", data={**form, "csrf_token": token(page)})
    assert answer.status_code == 302
    with host.app.app_context():
        link = get_one(host.db, host.referrals.Referral, 1)
        assert link.expired_at == utc(2026, 12, 24, 18)
        assert (link.label, link.redirect_to, link.code, link.user_id) == ("mail", "/teapot", "olga-1", 1)
    for time in ("9999-12-31 23:59:59", "0001-01-01 00:00:00", "a\u0663"):
        client.post(f"{LINKS}edit/?id=1", data={"expired_at": time, "csrf_token": token(page)})
    with host.app.app_context():
        assert get_one(host.db, host.referrals.Referral, 1).expired_at == utc(2026, 12, 24, 18)
    client.post(f"{LINKS}edit/?id=1", data={"expired_at": "", "csrf_token": token(page)})
    with host.app.app_context():
        assert get_one(host.db, host.referrals.Referral, 1).expired_at is None


@pytest.mark.usefixtures("links")
def test_another_site_cannot_make_a_link_expire(host: Host, client: FlaskClient) -> None:
    client.post(f"{LINKS}edit/?id=2", data={"expired_at": "2026-01-01 00:00:00"})
    with host.app.app_context():
        assert get_one(host.db, host.referrals.Referral, 2).expired_at is None


@pytest.mark.parametrize("setting", ["WTF_CSRF_ENABLED", "WTF_CSRF_CHECK_DEFAULT", "exempt"])
def test_form_needs_its_token_where_flask_wtf_checks_none(sqlite_url: str, setting: str) -> None:
    settings: dict[str, Any] = {setting: False}
    host = make_host(sqlite_url, **settings)
    protection = CSRFProtect(host.app)
    add_views(Admin(host.app))
    if setting == "exempt":
        protection.exempt(host.app.blueprints["referral"])
    with host.app.app_context():
        host.db.create_all()
        referral = Referral.create("/")
        client, form = host.client(), {"expired_at": "2026-01-01 00:00:00"}
        page = get(client, f"{LINKS}edit/", id="1")
        client.post(f"{LINKS}edit/?id=1", data=form)
        host.db.session.refresh(referral)
        assert referral.expired_at is None
        client.post(f"{LINKS}edit/?id=1", data={**form, "csrf_token": token(page)})
        host.db.session.refresh(referral)
        assert referral.expired_at == utc(2026, 1, 1)
        host.db.session.remove()
        host.db.engine.dispose()


@pytest.mark.usefixtures("links")
def test_nothing_is_created_deleted_or_exported_and_no_response_edited(host: Host, client: FlaskClient) -> None:
    page = get(client, f"{LINKS}edit/", id="1")
    for url in (LINKS, RESPONSES):
        assert client.get(f"{url}new/").status_code == 302
        data = {"csrf_token": token(page), "id": "1", "action": "x"}
        for path in ("new/", "delete/"):
            assert client.post(f"{url}{path}", data=data).status_code == 302
        client.post(f"{url}action/", data={**data, "action": "delete", "rowid": "1"})
        assert client.get(f"{url}export/csv/").status_code == 302
    assert client.get(f"{RESPONSES}edit/?id=1").status_code == 302
    client.post(f"{RESPONSES}edit/?id=1", data={"csrf_token": token(page), "action": "HACKED"})
    with host.app.app_context():
        assert [response.action for response in host.responses()] == ["RESPONDED", "BOUGHT"]
        assert host.db.session.scalar(sa.select(sa.func.count(host.referrals.Referral.id))) == 2


def test_everything_is_escaped(new_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host = new_host()
    call_by_name(monkeypatch, host.User, host.Product)
    add_views(Admin(host.app))
    with host.app.app_context():
        product = host.add(host.Product(name=SCRIPT))
        user = host.user(SCRIPT)
        link = Referral.create(f"/{SCRIPT}", user, SCRIPT, product)
        hostile = dict.fromkeys(["ip_address", "http_referrer", "user_agent", "key"], SCRIPT)
        respond(
            host,
            link,
            SCRIPT,
            user_id=user.id,
            target_type=SCRIPT,
            target_id=SCRIPT,
            ignored=SCRIPT[:20],
            params={SCRIPT: SCRIPT},
            currency="<b>",
            value=1,
            **hostile,
        )
    client = host.client()
    for url, least in ((LINKS, 4), (RESPONSES, 7)):
        for page in (get(client, url, search=SCRIPT[:8]), get(client, f"{url}details/", id="1")):
            assert "<script>alert" not in page and "<b>&nbsp;" not in page
            assert page.count(ESCAPED) >= least


@on_sqlite
@pytest.mark.parametrize(
    "referrer", ["javascript:alert(1)", "JaVaScript://%0aalert(1)", "data:text/html,x", "http", "/x"]
)
def test_referrer_that_is_no_web_address_is_no_link(host: Host, client: FlaskClient, referrer: str) -> None:
    with host.app.app_context():
        respond(host, Referral.create("/"), "RESPONDED", http_referrer=referrer)
    assert cells(get(client, RESPONSES), "http_referrer") == [referrer]


@on_sqlite
@pytest.mark.parametrize(
    ("value", "text"), [("9", "9.00 GBP"), ("8.5", "8.50 GBP"), ("0.0001", "0.0001 GBP"), ("-1200", "-1,200.00 GBP")]
)
def test_value_is_shown_as_money(host: Host, client: FlaskClient, value: str, text: str) -> None:
    with host.app.app_context():
        respond(host, Referral.create("/"), "BOUGHT", value=sa.Numeric().python_type(value), currency="GBP")
    assert cells(get(client, RESPONSES), "value") == [text]


def fill(host: Host, count: int) -> None:
    """Add links and responses with users and with targets: of two kinds, gone, and unknown."""
    model = host.referrals.Referral
    for _ in range(count):
        user, product = host.User(name=uuid.uuid4().hex), host.Product(name="Teapot")
        host.db.session.add_all([user, product])
        host.db.session.flush()
        code = uuid.uuid4().hex
        link = model(code=code, redirect_to="/", identity=code, user_id=user.id, target=product)
        host.db.session.add(link)
        host.db.session.flush()
        for type_name, key in (("product", product.id), ("user", user.id), ("product", 10**6 + user.id), ("gone", 1)):
            response = host.referrals.ReferralResponse(referral_id=link.id, action="RESPONDED", user_id=user.id)
            response.target_type, response.target_id = type_name, str(key)
            host.db.session.add(response)
    host.db.session.commit()


@pytest.mark.parametrize(("url", "per_link"), [(LINKS, 1), (RESPONSES, 4)])
def test_page_costs_the_same_statements_whatever_its_length(
    new_host: MakeHost, monkeypatch: pytest.MonkeyPatch, url: str, per_link: int
) -> None:
    host = new_host()
    call_by_name(monkeypatch, host.User, host.Product)
    add_views(Admin(host.app))
    client = host.client()
    counts: list[int] = []
    for more in (5, 45):
        with host.app.app_context():
            fill(host, more)
            host.db.session.remove()
            with statements(host.db) as sent:
                page = get(client, url, page_size="100")
        assert len(cells(page, "created_at")) == min(100, per_link * (50 if counts else 5))
        counts.append(len(sent))
    assert counts[0] == counts[1] <= 5


class TestNumbersOfLinks:
    """The columns of the funnel's steps and of the value, and the lists sorted by them."""

    #: By code: clicks, sign-ups, euros, and pounds. Two links are equal by each number, and three without any.
    LINKS = {
        "a": (3, 0, [], []),
        "b": (1, 2, ["2.5"], ["100"]),
        "c": (3, 2, ["0.1", "0.2"], []),
        "d": (0, 1, ["0.3"], ["5"]),
        "e": (0, 0, ["-1"], []),
        "f": (0, 0, [], []),
    }

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host(REFERRALS_FUNNEL=("RESPONDED", "SIGNED_UP"))
        add_views(Admin(host.app))
        today, old = datetime.now(timezone.utc), datetime.now(timezone.utc) - timedelta(days=3)
        with host.app.app_context():
            for code, (clicks, signups, euros, pounds) in self.LINKS.items():
                link = Referral.create(f"/{code}", code=code)
                for number in range(clicks):
                    respond(host, link, "RESPONDED", created_at=(old, today)[number % 2])
                for number in range(signups):
                    respond(host, link, "SIGNED_UP", created_at=(today, old)[number % 2])
                for currency, values in (("EUR", euros), ("GBP", pounds)):
                    for value in values:
                        respond(host, link, "BOUGHT", value=Decimal(value), currency=currency, created_at=old)
                respond(host, link, "RESPONDED", ignored="bot", created_at=old)
        return host

    ORDERS = (("response_count", "defbac"), ("count:SIGNED_UP", "aefdbc"), ("total_value", "eafcdb"))

    @pytest.mark.parametrize("is_rolled_up", [False, True])
    def test_columns_show_each_step_and_the_value(self, host: Host, client: FlaskClient, is_rolled_up: bool) -> None:
        if is_rolled_up:
            roll_up_days(host)
        for page in (get(client, LINKS, sort="1"), get(client, LINKS, sort="1", page_size="2", page="0")):
            shown = len(cells(page, "code"))
            assert [words(cell) for cell in cells(page, "response_count")] == ["3", "1", "3", "0", "0", "0"][:shown]
            assert cells(page, "count:SIGNED_UP") == ["0", "2", "2", "1", "0", "0"][:shown]
        values = ["", "2.50 EUR100.00 GBP", "0.30 EUR", "0.30 EUR5.00 GBP", "-1.00 EUR", ""]
        assert [words(cell) for cell in cells(get(client, LINKS, sort="1"), "total_value")] == values
        found = details(get(client, f"{LINKS}details/", id="2"))
        assert [words(found[name]) for name in ("Clicks", "Signed up", "Value")] == ["1", "2", values[1]]

    @pytest.mark.parametrize("is_rolled_up", [False, True])
    @pytest.mark.parametrize(("column", "expected"), ORDERS)
    def test_list_is_sorted_by_each(
        self, host: Host, client: FlaskClient, column: str, expected: str, is_rolled_up: bool
    ) -> None:
        if is_rolled_up:
            roll_up_days(host)
        in_order = list(expected)
        sort = sort_number(get(client, LINKS), column)
        assert cells(get(client, LINKS, sort=sort), "code") == in_order
        assert cells(get(client, LINKS, sort=sort, desc="1"), "code") == in_order[::-1]
        pages = [cells(get(client, LINKS, sort=sort, page_size="2", page=page), "code") for page in "012"]
        assert [code for page in pages for code in page] == in_order
        assert cells(get(client, LINKS, sort=sort, search="=c"), "code") == ["c"]
        assert cells(get(client, LINKS, sort=sort, flt0_target_type_empty="0"), "code") == []

    def test_number_of_statements_is_fixed(self, host: Host, client: FlaskClient) -> None:
        page = get(client, LINKS)
        for column, _ in self.ORDERS:
            numbers = []
            for size in ("1", "6"):
                with sent_by_requests(host) as sent:
                    get(client, LINKS, sort=sort_number(page, column), page_size=size)
                numbers.append(len(sent))
            assert numbers[0] == numbers[1] <= 6

    def test_host_names_its_own_columns(self, new_host: MakeHost) -> None:
        class Own(ReferralAdmin):
            column_list = ("code", "funnel")
            column_labels = {"count:SIGNED_UP": "Friends"}
            column_sortable_list = ("code",)

        host = new_host()
        Admin(host.app).add_view(Own(host.app, endpoint="own"))
        page = get(host.client(), "/admin/own/")
        assert re.findall(r'class="column-header col-(\S+)"', page) == ["code", "count:SIGNED_UP", "count:PURCHASED"]
        assert "Friends" in page
        assert re.findall(r"[?&;]sort=(\d)", page) == ["0"]


def roll_up_days(host: Host) -> None:
    assert host.app.test_cli_runner().invoke(args=["referrals", "rollup"]).exit_code == 0


def sort_number(page: str, column: str) -> str:
    """The number of a column in the query that sorts by it."""
    columns = re.findall(r'class="column-header col-(\S+)"', page)
    return str(columns.index(column))


class TestVoid:
    """The form that voids a response."""

    VOID = f"{RESPONSES}void/"

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        host = new_host()
        add_views(Admin(host.app))
        with host.app.app_context():
            respond(host, Referral.create("/", code="one"), "BOUGHT", value=9, currency="GBP")
        return host

    def ignored(self, host: Host) -> list[str | None]:
        with host.app.app_context():
            return [response.ignored for response in host.responses()]

    def test_keeps_the_reason_and_leads_back_to_the_list(self, host: Host, client: FlaskClient) -> None:
        (link,) = re.findall(r'href="([^"]*/void/[^"]*)" title="Void"', get(client, RESPONSES, sort="0", desc="1"))
        page = get(client, unescape(link))
        assert 'href="/admin/referral/details/?id=1"' in page and "9.00 GBP" in page
        data = {"csrf_token": token(page), "reason": f"refund {SCRIPT}"}
        answer = client.post(unescape(link), data=data)
        assert (answer.status_code, answer.location) == (302, f"{RESPONSES}?sort=0&desc=1&page_size=50")
        page = get(client, answer.location)
        assert "The response 1 is void." in page
        assert "/void/?id=" not in page  # neither can be voided again
        with host.app.app_context():
            voided, record = host.responses()
            assert (voided.ignored, record.action) == ("void", "VOIDED")
            assert record.params == {"response": 1, "reason": f"refund {SCRIPT}", "ignored": None}
        page = get(client, f"{RESPONSES}details/", id="2")
        assert SCRIPT not in page and ESCAPED in page

    def test_reading_the_form_changes_nothing(self, host: Host, client: FlaskClient) -> None:
        get(client, self.VOID, id="1", reason="fraud")
        assert self.ignored(host) == [None]

    @pytest.mark.parametrize(
        ("reason", "words"),
        [
            ("", "This field is required."),
            (" ", "The reason must be printable text, and not empty."),
            ("\u2003", "The reason must be printable text, and not empty."),
            ("a\x1b[2J", "The reason must be printable text, and not empty."),
            ("x" * 201, "Field cannot be longer than 200 characters."),
        ],
    )
    def test_reason_that_is_refused_is_shown_with_the_error(
        self, host: Host, client: FlaskClient, reason: str, words: str
    ) -> None:
        page = get(client, self.VOID, id="1")
        answer = client.post(f"{self.VOID}?id=1", data={"csrf_token": token(page), "reason": reason})
        assert (answer.status_code, words in answer.text) == (200, True)
        assert self.ignored(host) == [None]

    def test_hostile_reason_is_escaped(self, host: Host, client: FlaskClient) -> None:
        page = get(client, self.VOID, id="1")
        data = {"csrf_token": token(page), "reason": f'">{SCRIPT}\n'}
        assert "<script>alert" not in client.post(f"{self.VOID}?id=1", data=data).text
        assert client.post(f"{self.VOID}?id=1", data={**data, "reason": "a\0"}).status_code == 400

    def test_another_site_cannot_void(self, host: Host, client: FlaskClient) -> None:
        get(client, self.VOID, id="1")
        for data in ({"reason": "fraud"}, {"reason": "fraud", "csrf_token": "wrong"}):
            client.post(f"{self.VOID}?id=1", data=data)
        assert self.ignored(host) == [None]

    def test_what_is_void_or_missing_leads_back_with_a_message(self, host: Host, client: FlaskClient) -> None:
        csrf = token(get(client, self.VOID, id="1"))
        for reason in ("first", "second"):
            client.post(f"{self.VOID}?id=1", data={"csrf_token": csrf, "reason": reason})
        assert "This response is void already." in get(client, RESPONSES)
        assert self.ignored(host) == ["void", "void"]
        for key in ("9", "x", ""):
            assert client.get(self.VOID, query_string={"id": key}).location == RESPONSES
            assert "There is no such response." in get(client, RESPONSES)
        assert client.get(self.VOID, query_string={"id": "1", "url": "https://evil.example/"}).location == RESPONSES

    def test_failure_of_the_database_leaves_the_form_and_the_reason(
        self, host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = {"csrf_token": token(get(client, self.VOID, id="1")), "reason": "refund of order 17"}
        with failing(host, lambda statement: statement.startswith("INSERT")):
            answer = client.post(f"{self.VOID}?id=1", data=data)
        assert answer.status_code == 200
        assert "The database raised an error. Try again." in answer.text and 'value="refund of order 17"' in answer.text
        assert re.search(r"A response could not be voided\. \w+: .*injected", caplog.text)
        assert self.ignored(host) == [None]
        assert client.post(f"{self.VOID}?id=1", data=data).status_code == 302
        assert self.ignored(host) == ["void", "void"]

    def test_is_for_those_whom_the_admin_lets_in(self, new_host: MakeHost) -> None:
        host = new_host()
        add_views(Admin(host.app, index_view=OnlyForOlga()))
        with host.app.app_context():
            respond(host, Referral.create("/"), "BOUGHT")
        client = host.client()
        for name, status in (("mia", 404), ("olga", 200)):
            client.post("/signup", data={"name": name})
            assert client.get(self.VOID, query_string={"id": "1"}).status_code == status
            assert client.post(f"{self.VOID}?id=1", data={"reason": "fraud"}).status_code == status
        assert self.ignored(host)[0] is None


class TestInsight:
    """The admin's home with the numbers of 30 days."""

    def new_admin(self, host: Host, index: Any = InsightIndexView) -> FlaskClient:
        add_views(Admin(host.app, index_view=index()))
        return host.client()

    @on_sqlite
    def test_shows_the_sites_words_for_steps(self, new_host: MakeHost) -> None:
        client = self.new_admin(new_host(REFERRALS_ACTION_DISPLAY={"SIGNED_UP": "Joined us"}))
        for page in (get(client, "/admin/"), get(client, LINKS)):
            assert "Joined us" in page and "Signed up" not in page and "Purchased" in page

    @pytest.mark.parametrize("is_rolled_up", [False, True])
    def test_compares_30_days_with_the_30_before(self, new_host: MakeHost, is_rolled_up: bool) -> None:
        host = new_host()
        client = self.new_admin(host)
        today = datetime.now(timezone.utc)
        with host.app.app_context():
            olga = host.user("olga")
            link, other = Referral.create("/", olga, code="olga-1"), Referral.create("/", code="poster")
            for days in (0, 29, 29, 29):
                respond(host, link, "RESPONDED", created_at=today - timedelta(days=days))
            for days in (2, 30, 59, 60):
                respond(host, other, "RESPONDED", created_at=today - timedelta(days=days))
            respond(host, link, "SIGNED_UP", created_at=today - timedelta(days=1))
            respond(
                host, link, "PURCHASED", value=Decimal("1234.5"), currency="EUR", created_at=today - timedelta(days=1)
            )
            respond(host, link, "PURCHASED", value=5, currency="GBP", created_at=today - timedelta(days=40))
        if is_rolled_up:
            roll_up_days(host)
        page = get(client, "/admin/")
        cards = re.findall(r'<div class="card-body">(.*?)</div>', page, re.DOTALL)
        assert [" ".join(words(card).split()) for card in cards] == [
            "Clicks 5 before: 2 (+150%)",
            "Signed up 1 before: 0",
            "Purchased 1 before: 1 (+0%)",
            "Value 1,234.50 EUR before: 0.00 EUR 0.00 GBP before: 5.00 GBP (-100%)",
            "Conversion 20.0% Signed up before: 0.0% 20.0% Purchased before: 50.0%",
        ]
        tables = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
        assert [words(table).split() for table in tables] == [
            ["olga-1", "4", "1", "1", "1,234.50", "EUR", "poster", "1", "0", "0"],
            ["<User", "1>", "4", "1", "1", "1,234.50", "EUR"],
        ]
        assert 'href="/admin/referral/details/?id=1"' in page

    @pytest.mark.parametrize("has_dashboard", [False, True])
    def test_has_the_chart_of_the_dashboard(self, new_host: MakeHost, has_dashboard: bool) -> None:
        host = new_host()
        if has_dashboard:
            host.app.register_blueprint(create_blueprint())
        client = self.new_admin(host)
        with host.app.app_context():
            respond(host, Referral.create("/", code="poster"), "RESPONDED")
        page = get(client, "/admin/")
        assert ("dashboard.css" in page) == ('class="referral-chart"' in page) == has_dashboard

    def test_says_that_nothing_was_counted(self, new_host: MakeHost) -> None:
        page = get(self.new_admin(new_host()), "/admin/")
        assert page.count("Nothing was counted in this period.") == 2
        assert "before: -" in page  # no conversion without clicks

    def test_escapes_what_others_wrote(self, new_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
        host = new_host(REFERRALS_FUNNEL=("RESPONDED", SCRIPT))
        call_by_name(monkeypatch, host.User)
        client = self.new_admin(host)
        with host.app.app_context():
            respond(host, Referral.create("/", host.user(SCRIPT)), "RESPONDED", value=1, currency="<b>")
        page = get(client, "/admin/")
        assert "<script>alert" not in page.lower() and "<b>" not in page
        assert ESCAPED in page

    def test_number_of_statements_is_fixed(self, new_host: MakeHost) -> None:
        host = new_host()
        client = self.new_admin(host)
        numbers = []
        for more in (2, 20):
            with host.app.app_context():
                fill(host, more)
            with sent_by_requests(host) as sent:
                get(client, "/admin/")
            numbers.append(len(sent))
        assert numbers[0] == numbers[1] <= 14

    def test_is_for_those_whom_the_host_lets_in(self, new_host: MakeHost) -> None:
        class Home(OnlyForOlga, InsightIndexView):
            pass

        host = new_host()
        client = self.new_admin(host, Home)
        for name, status in (("mia", 404), ("olga", 200)):
            client.post("/signup", data={"name": name})
            assert client.get("/admin/").status_code == status

    def test_open_page_is_reported(self, sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
        host = make_host(sqlite_url, TESTING=False)
        self.new_admin(host)
        assert "admin page 'Home' is open to everybody" in caplog.text
        report = host.app.test_cli_runner().invoke(args=["referrals", "doctor"]).stdout
        assert "Everybody can open the pages Home, Links, Responses:" in report
        engine_of(host).dispose()

    def test_needs_the_referrals(self) -> None:
        with pytest.raises(ConfigurationError, match="init_app"):
            Admin(Flask("bare"), index_view=InsightIndexView())


def test_targets_are_links_to_their_own_views(new_host: MakeHost) -> None:
    host = new_host()
    admin = Admin(host.app)
    view = ModelView(host.Product, host.db)
    admin.add_view(view)
    admin.add_view(ModelView(host.User, host.db))
    add_views(admin)
    with host.app.app_context():
        product, user = host.add(host.Product(name="Teapot")), host.user("olga")
        Referral.create("/", user, target=product).respond("BOUGHT", target=product, user=user)
    client = host.client()
    for url in (LINKS, RESPONSES):
        page = get(client, url)
        assert re.findall('href="(.*?)"', cells(page, "user")[0]) == ["/admin/user/edit/?id=1"]
        assert re.findall('href="(.*?)"', cells(page, "target")[0]) == ["/admin/product/edit/?id=1"]
    assert re.findall('href="(.*?)"', cells(page, "referral")[0]) == ["/admin/referral/details/?id=1"]
    view.can_view_details = True
    assert "/admin/product/details/?id=1" in get(client, RESPONSES)
    view.is_accessible = lambda: False
    assert cells(get(client, RESPONSES), "target") == ["&lt;Product 1&gt;"]


def test_target_that_is_gone_or_unknown_is_named(host: Host, client: FlaskClient) -> None:
    with host.app.app_context():
        link = Referral.create("/")
        for type_name, key in (("product", "7"), ("product", "abc"), ("product", "9" * 30), ("nothing", "1")):
            respond(host, link, "BOUGHT", target_type=type_name, target_id=key)
        respond(host, link, "BOUGHT", target_type="product")
        respond(host, link, "BOUGHT", target_type="product", target_id=str(host.add(host.Product(name="Cup")).id))
    expected = ["&lt;Product 1&gt;", "product", "nothing 1", f"product {'9' * 30}", "product abc", "product 7"]
    assert [cell.strip() for cell in cells(get(client, RESPONSES), "target")] == expected
    for number in range(1, 7):
        get(client, f"{RESPONSES}details/", id=str(number))


def test_without_a_user_model_the_users_key_is_shown_and_found(sqlite_url: str) -> None:
    host = without_users(sqlite_url)
    add_views(Admin(host.app))
    with host.app.app_context():
        host.db.create_all()
        link = host.referrals.Referral(code="one", redirect_to="/", identity="1", user_id="u-1")
        respond(host, host.add(link), "RESPONDED", user_id="u-2")
    client = host.client()
    assert cells(get(client, LINKS, search="u-1", sort="0"), "user") == ["u-1"]
    for term in ("u-1", "u-2", "one"):
        assert cells(get(client, RESPONSES, search=term), "user") == ["u-2"]
    assert cells(get(client, RESPONSES, search="u-3"), "user") == []
    with host.app.app_context():
        host.db.engine.dispose()


def without_users(url: str) -> Host:
    app = Flask(__name__)
    app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=url, TESTING=True)
    return Host(app, SQLAlchemy(app), Referrals(app), None, None)


def test_user_who_is_gone_is_named_by_key(sqlite_url: str) -> None:
    host = make_host(sqlite_url)  # where no foreign key is enforced
    add_views(Admin(host.app))
    with host.app.app_context():
        host.db.create_all()
        link = host.add(host.referrals.Referral(code="one", redirect_to="/", identity="1", user_id=7))
        respond(host, link, "RESPONDED", user_id=8)
        host.db.session.execute(sa.delete(host.referrals.Referral))
        host.db.session.commit()
    assert cells(get(host.client(), RESPONSES), "user") == ["8"]
    assert cells(get(host.client(), RESPONSES), "referral") == ["1"]
    with host.app.app_context():
        host.db.engine.dispose()


class OnlyForOlga(AdminIndexView):  # type: ignore[misc]  # Flask-Admin has no types
    def is_accessible(self) -> bool:
        return bool(current_user.is_authenticated and current_user.name == "olga")

    def inaccessible_callback(self, name: str, **kwargs: Any) -> Any:
        abort(404)


def test_views_let_in_whom_the_admin_lets_in(new_host: MakeHost) -> None:
    host = new_host()
    add_views(Admin(host.app, index_view=OnlyForOlga()))
    client = host.client()
    for name, status in (("mia", 404), ("olga", 200)):
        client.post("/signup", data={"name": name})
        for url in (LINKS, RESPONSES):
            assert client.get(url).status_code == status
    assert client.get("/admin/").text.count("Responses") == 1


class Checked(ReferralAdmin):
    def is_accessible(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("index", "view", "config", "is_told", "level"),
    [
        (AdminIndexView, ReferralAdmin, {"TESTING": False}, True, "error"),
        (AdminIndexView, ReferralAdmin, {}, False, "error"),
        (OnlyForOlga, ReferralAdmin, {"TESTING": False}, False, "ok"),
        (AdminIndexView, Checked, {"TESTING": False}, False, "ok"),
    ],
)
def test_pages_that_are_open_to_everybody_are_reported(
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
    index: Any,
    view: Any,
    config: dict[str, Any],
    is_told: bool,
    level: str,
) -> None:
    host = make_host(sqlite_url, **config)
    Admin(host.app, index_view=index()).add_view(view(host.app))
    assert ("admin page 'Links' is open to everybody" in caplog.text) == is_told
    report = host.app.test_cli_runner().invoke(args=["referrals", "doctor"]).stdout
    assert re.search(rf"^{level} +admin: ", report, re.MULTILINE)
    engine_of(host).dispose()


def test_examples_admin_is_for_alice(sqlite_url: str, tmp_path: Path) -> None:
    app = create_app({"SQLALCHEMY_DATABASE_URI": sqlite_url}, instance_path=str(tmp_path))
    with app.app_context():
        db.create_all()
        add_data()
    for name, status in ((None, 302), ("bob", 404), ("alice", 200)):
        client = app.test_client()
        if name is not None:
            client.post("/login", data={"name": name, "password": "tea"})
        for url in ("/admin/", "/admin/user/", LINKS, RESPONSES):
            assert client.get(url).status_code == status
    with app.app_context():
        db.engine.dispose()


def test_host_changes_a_view(new_host: MakeHost) -> None:
    class Staff(ReferralAdmin):
        user_columns = ("name",)
        column_list = ("code",)

        def is_accessible(self) -> bool:
            return False

    host = new_host()
    admin = Admin(host.app)
    admin.add_view(Staff(host.app, name="Codes", endpoint="codes", url="/staff/codes"))
    admin.add_view(ReferralResponseAdmin(host.app))
    client = host.client()
    with host.app.app_context():
        Referral.create("/", code="one").respond("RESPONDED")
    assert client.get("/staff/codes/").status_code == 403
    assert cells(get(client, RESPONSES), "referral") == ["one"]  # no link to what must not be seen


def test_columns_that_the_host_has_renamed_are_searched_and_filtered(new_app: NewApp) -> None:
    app, db = new_app(TESTING=True)

    class User(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        username: Mapped[str] = mapped_column("login", sa.String(40))

    class Invite(ReferralMixin, db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "invite"
        __user_model__ = User
        code: Mapped[str] = mapped_column("invite_code", sa.String(64), unique=True)
        label: Mapped[str] = mapped_column("tag", sa.String(100))

    Referrals(app, user_model=User)
    add_views(Admin(app))
    with app.app_context():
        db.create_all()
        olga = User(username="olga")
        db.session.add(olga)
        Referral.create("/", olga, "mail", code="olga-1").respond("BOUGHT")
        Referral.create("/", code="poster-1").respond("BOUGHT")
    client = app.test_client()
    for term in ("=olga-1", "=mail", "=olga"):
        assert cells(get(client, "/admin/invite/", search=term), "code") == ["olga-1"]
    for query in ({"search": "=olga-1"}, {"search": "=olga"}, {"flt0_code_equals": "olga-1"}):
        assert len(cells(get(client, RESPONSES, **query), "action")) == 1
    assert cells(get(client, "/admin/invite/", flt0_label_equals="mail"), "code") == ["olga-1"]


def test_views_need_the_referrals_and_an_app(sqlite_url: str) -> None:
    with pytest.raises(ConfigurationError, match="init_app"):
        ReferralAdmin(Flask("bare"))
    with pytest.raises(ConfigurationError, match=r"admin\.init_app"):
        add_views(Admin())


@pytest.mark.parametrize(
    ("key_type", "new_key"), [(sa.Integer, None), (sa.String(36), lambda: str(uuid.uuid4())), (sa.Uuid, uuid.uuid4)]
)
def test_targets_of_many_records_are_loaded_by_one_statement(
    new_host: MakeHost, key_type: Any, new_key: Callable[[], Any] | None
) -> None:
    host = new_host(key_type=key_type, new_key=new_key)
    with host.app.app_context():
        products = [host.add(host.Product(name=name)) for name in ("Pot", "Cup")]
        for product in products:
            Referral.create("/", target=product)
        host.db.session.delete(products.pop())
        host.db.session.commit()
        host.db.session.remove()
        records = host.db.session.scalars(sa.select(host.referrals.Referral).order_by(host.referrals.Referral.id)).all()
        with statements(host.db) as sent:
            load_targets(current_state(), records)
            first, second = (record.target for record in records)
        assert (first.name, second) == ("Pot", None)
        assert len(sent) == 1


def test_loaded_target_is_gone_once_it_is_deleted(host: Host) -> None:
    with host.app.app_context():
        product = host.add(host.Product(name="Pot"))
        link = Referral.create("/", target=product)
        load_targets(current_state(), [link])
        assert link.target is product
        host.db.session.delete(product)
        host.db.session.commit()
        assert link.target is None
        link.target = other = host.add(host.Product(name="Cup"))
        assert link.target is other


def test_types_with_a_loader_of_their_own_are_left_to_it(host: Host) -> None:
    host.referrals.register_target(host.User, load=lambda key: f"user {key}")
    with host.app.app_context():
        link = Referral.create("/", target=host.user("olga"))
        assert link.id  # read anew after the commit
        with statements(host.db) as sent:
            load_targets(current_state(), [link])
        assert (sent, link.target) == ([], "user 1")
