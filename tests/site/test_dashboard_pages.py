"""The pages of the dashboard: who may see them, how they are sent, and what a host can change."""

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import render_template_string
from flask_login import AnonymousUserMixin, current_user
from jinja2 import DictLoader

from flask_referrals import InvalidValueError, Referral, Referrals
from flask_referrals.contrib.dashboard import create_blueprint
from tests.conftest import MakeHost, NewApp
from tests.host import BrowserClient, Host, sent_by_requests
from tests.site.dashboard import FIRST, Page, add, add_links, fill, log_in, open_site, read_csv, register
from tests.site.helpers import REFUSAL, add_own_login, failing, find_user

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}"


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """The pages are the same on every database."""
    return shared_sqlite_url


@pytest.fixture
def host(new_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with open_site(new_host, monkeypatch) as host:
        yield host


class TestManners:
    """Who sees a page, and how it is sent."""

    PATHS = ("/mine", "/mine.csv", "/insight", "/insight.csv")

    @pytest.mark.parametrize("path", PATHS)
    def test_visitor_is_asked_to_log_in(self, host: Host, path: str) -> None:
        assert host.client().get(path).status_code == 401
        host.app.login_manager.login_view = "index"  # type: ignore[attr-defined]
        response = host.client().get(path)
        assert response.status_code == 302 and response.location.startswith("/?next=")

    @pytest.mark.parametrize("path", PATHS[2:])
    def test_operators_page_is_for_whom_the_host_allows(self, host: Host, path: str) -> None:
        with host.app.app_context():
            host.user("olga")
        assert log_in(host, "olga").get(path).status_code == 403
        assert log_in(host, "staff").get(path).status_code == 200

    def test_without_allow_there_is_no_operators_page(self, new_host: MakeHost) -> None:
        host = new_host()
        host.app.register_blueprint(create_blueprint(), url_prefix="/referrals")
        with host.app.app_context():
            host.user("olga")
        client = log_in(host, "olga")
        assert client.get("/referrals/mine").status_code == 200
        assert client.get("/referrals/insight").status_code == client.get("/referrals/insight.csv").status_code == 404

    @pytest.mark.parametrize("path", PATHS)
    def test_own_login(self, new_host: MakeHost, path: str) -> None:
        host = register(new_host(with_login=False))
        add_own_login(host)
        with host.app.app_context():
            host.user("staff")
        assert host.client().get(path).status_code == 401
        assert log_in(host, "staff").get(path).status_code == 200

    def test_user_of_another_model_has_no_links_but_may_be_an_operator(self, host: Host) -> None:
        class Staff:
            name = "staff"

        host.referrals.user_loader(Staff)
        assert host.client().get("/mine").status_code == 403
        assert host.client().get("/insight").status_code == 200

    def test_deleted_users_are_keys(self, host: Host) -> None:
        host.referrals.display_name(lambda user: user.name)
        with host.app.app_context():
            friend, owner = host.user("friend"), host.user("owner")
            link, key = Referral.create("/", owner), str(owner.id)
            for each in (link, Referral.create("/", find_user(host, "staff"))):
                add(host, each, "CALLED", user_id=friend.id)
            host.db.session.execute(sa.delete(host.User).where(host.User.name != "staff"))
            host.db.session.commit()
        client = log_in(host, "staff")
        assert "<b>Called</b>: <bdi>somebody</bdi>" in client.get("/mine").text
        assert {row[0] for row in Page(client.get("/insight?by=owner").text).tables[-1][1:]} == {"staff", key}
        rows = read_csv(client.get("/insight.csv?by=owner").text)
        assert (key, key) in [(row["owner"], row["key"]) for row in rows]

    def test_app_without_a_user_model(self, new_app: NewApp) -> None:
        app, db = new_app(TESTING=True)
        app.test_client_class = BrowserClient
        referrals = Referrals(app)
        app.register_blueprint(create_blueprint(allow=lambda user: user == "olga"))
        referrals.user_loader(lambda: "olga")
        referrals.display_name(lambda key: f"user {key}")
        with app.app_context():
            db.create_all()
            link = Referral.create("/", "olga")
            db.session.add(referrals.ReferralResponse(referral_id=link.id, action="CALLED", user_id="mia"))
            db.session.commit()
        assert "<b>Called</b>: <bdi>user mia</bdi>" in app.test_client().get("/mine").text
        assert Page(app.test_client().get("/insight?by=owner").text).tables[-1][1][0] == "user olga"
        (row,) = read_csv(app.test_client().get("/insight.csv?by=owner").text)
        assert (row["owner"], row["key"]) == ("user olga", "olga")

    @pytest.mark.parametrize("path", PATHS)
    def test_pages_stay_out_of_caches_and_write_nothing(self, host: Host, path: str) -> None:
        with host.app.app_context():
            fill(host)
        client = log_in(host, "staff")
        with sent_by_requests(host) as sent:
            response = client.get(path)
        assert response.headers["Cache-Control"] == "private, no-store"
        assert "Cookie" in response.vary
        assert [each for each in sent if not each.startswith("SELECT")] == []
        assert client.post(path).status_code == 405

    def test_stylesheet_may_be_cached(self, host: Host) -> None:
        (path,) = re.findall(r'<link rel="stylesheet" href="(.*?)">', log_in(host, "staff").get("/mine").text)
        with host.client().get(path) as response:
            assert response.status_code == 200 and "no-store" not in response.headers["Cache-Control"]

    def test_number_of_statements_is_fixed(self, host: Host) -> None:
        host.referrals.display_name(lambda user: user.name)
        tables = ("referral", "owner", "label", "referrer", "utm_source", "ignored")
        pages = [*(f"/insight?by={by}" for by in tables), "/mine"]
        sent = []
        for number in (3, 300):
            with host.app.app_context():
                add_links(host, find_user(host, "staff"), number)
            sent.append([self.count_statements(host, page) for page in pages])
        assert sent[0] == sent[1] and max(sent[0]) <= 12
        # The last actions are not by the links of the second page.
        assert self.count_statements(host, "/mine?page=2") == sent[0][-1]

    def count_statements(self, host: Host, page: str) -> int:
        client = log_in(host, "staff")
        with sent_by_requests(host) as sent:
            assert client.get(page).status_code == 200
        return len(sent)

    @pytest.mark.parametrize(
        "query",
        [
            "since=yesterday",
            "since=2026-02-30",
            "since=1066-10-14",
            "since=0001-01-01&until=0001-01-02",
            "until=9999-12-31",
            "since=2026-03-02&until=2026-03-01",
            "since=1990-01-01&until=2026-01-01",
            "per=hour&since=2026-03-01",
            "by=user_agent",
            "by=%00",
            "since=%00",
        ],
    )
    def test_bad_query_is_named_and_the_last_30_days_are_shown(self, host: Host, query: str) -> None:
        with host.app.app_context():
            fill(host)
        client = log_in(host, "staff")
        response = client.get(f"/insight?{query}")
        assert response.status_code == client.get(f"/insight.csv?{query}").status_code == 400
        assert re.search('role="alert">.+ These are the last 30 days.', response.text)
        assert "2 Mar 2026 to 31 Mar 2026" in response.text

    @pytest.mark.parametrize(
        "query", ["since=1971-01-01&until=1971-01-01", "until=2030-01-01", "since=&until=&per=&by=label"]
    )
    def test_unusual_query_is_answered(self, host: Host, query: str) -> None:
        assert log_in(host, "staff").get(f"/insight?{query}").status_code == 200

    def test_hostile_texts_stay_texts(self, host: Host) -> None:
        with host.app.app_context():
            host.app.config["REFERRALS_ACTION_DISPLAY"] = {}
            link = Referral.create("/", host.user(HOSTILE[:50]), label=HOSTILE)
            add(host, link, http_referrer=f"https://a.example/{HOSTILE}", params={"sub": HOSTILE}, ignored=None)
            add(host, link, ignored="<img src=x>")
            add(host, link, HOSTILE)
        host.referrals.display_name(lambda user: user.name)
        pages = "".join(
            log_in(host, "staff").get(f"/insight?by={by}").text
            for by in ("referral", "owner", "label", "referrer", "sub", "ignored")
        )
        pages += log_in(host, HOSTILE[:50]).get("/mine").text
        assert pages.count("&lt;script&gt;") >= 6 and "{{ 7*7 }}" in pages
        assert "<img" not in pages and "<script>" not in pages

    def test_texts_from_right_to_left_turn_nothing_else(self, host: Host) -> None:
        with host.app.app_context():
            add(host, Referral.create("/", host.user("\u202emia"), label="\u202eblog"))
        host.referrals.display_name(lambda user: user.name)
        page = log_in(host, "staff").get("/insight").text
        assert "<bdi>\u202eblog</bdi>, <bdi>\u202emia</bdi>" in page

    @pytest.mark.parametrize("path", ["/mine.csv", "/insight.csv?by=referral"])
    def test_spreadsheets_know_the_encoding(self, host: Host, path: str) -> None:
        with host.app.app_context():
            add(host, Referral.create("/", find_user(host, "staff"), label="café"))
        data = log_in(host, "staff").get(path).data
        assert data.startswith(codecs.BOM_UTF8) and "café".encode() in data

    @pytest.mark.parametrize("label", ["=1+1", "@SUM(A1)", "-1", "\t=1"])
    def test_formulas_are_texts_in_a_spreadsheet(self, host: Host, label: str) -> None:
        with host.app.app_context():
            add(host, Referral.create("/", host.user("olga"), label=label))
        assert read_csv(log_in(host, "staff").get("/insight.csv?by=label").text)[0]["label"] == f"'{label}"
        assert read_csv(log_in(host, "olga").get("/mine.csv").text)[0]["label"] == f"'{label}"

    def test_owner_without_links_sees_the_form(self, host: Host) -> None:
        client = log_in(host, "staff")
        page = client.get("/mine").text
        assert "You have no links yet." in page and 'action="/referrals/"' in page
        client.post("/referrals/", data={"redirect_to": "/"})
        page = client.get("/mine").text
        assert "Nobody has followed your links in these days." in page and "<svg" not in page

    def test_operator_sees_that_nothing_happened(self, host: Host) -> None:
        page = log_in(host, "staff").get("/insight").text
        assert "No link was followed in this period." in page and "<svg" not in page

    def test_there_is_no_script_and_no_style_of_a_page(self, host: Host) -> None:
        with host.app.app_context():
            fill(host)
        pages = log_in(host, "staff").get("/insight").text + log_in(host, "olga").get("/mine").text
        assert re.findall(r"<script|<style|style=|\son\w+=|javascript:", pages) == []

    def test_pages_are_in_the_layout_of_the_host(self, host: Host) -> None:
        host.app.jinja_loader = DictLoader(
            {
                "layout.html": "<nav>menu</nav>{% block main %}{% endblock %}",
                "referrals/stats.html": (
                    '{% extends "layout.html" %}{% block main %}{% block content %}{% endblock %}{% endblock %}'
                ),
                "referrals/_chart.html": "the chart of {{ chart.panels|length }} steps",
            }
        )
        with host.app.app_context():
            fill(host)
        for page in (log_in(host, "staff").get("/insight").text, log_in(host, "olga").get("/mine").text):
            assert page.startswith("<nav>menu</nav>") and "the chart of 3 steps" in page and "<html" not in page

    def test_two_blueprints_with_names_of_the_host(self, host: Host) -> None:
        host.app.register_blueprint(create_blueprint(allow=bool), name="second", url_prefix="/second")
        page = log_in(host, "staff").get("/second/insight").text
        assert 'action="/second/insight"' in page and 'href="/second/dashboard-static/dashboard.css"' in page


class TestParts:
    """What any template can show."""

    @pytest.fixture
    def show(self, host: Host) -> Callable[..., str]:
        def show(template: str, **names: Any) -> str:
            with host.app.app_context():
                names = {"olga": find_user(host, "olga"), **names}
                return render_template_string(template, **names)

        with host.app.app_context():
            fill(host)
        return show

    def test_chart_of_a_user(self, show: Callable[..., str]) -> None:
        page = show("{{ referral_chart(referral_stats(olga, days=7)) }}")
        assert len(Page(page).tables[0][1:]) == 7
        assert "Clicks per day, 25 Mar 2026 to 31 Mar 2026" in page

    def test_chart_of_any_statistics_by_time(self, host: Host, show: Callable[..., str]) -> None:
        with host.app.app_context():
            by_week = host.referrals.stats(since=FIRST, by="week", compare=True)
            by_label = host.referrals.stats(since=FIRST, by="label")
        page = show("{{ referral_chart(stats) }}", stats=by_week)
        assert len(Page(page).tables[0][1:]) == 5 and Page(page).tables[0][0][0] == "Week"
        assert "Clicks per week, 2 Mar 2026 to 30 Mar 2026" in page
        with pytest.raises(InvalidValueError, match=r"^stats "):
            show("{{ referral_chart(stats) }}", stats=by_label)

    @pytest.mark.parametrize("user", [None, AnonymousUserMixin()])
    def test_anonymous_user_has_no_chart(self, show: Callable[..., str], user: Any) -> None:
        assert show("{{ referral_stats(user) }}|{{ referral_chart(referral_stats(user)) }}|", user=user) == "None||"

    @pytest.mark.parametrize("days", [0, -1, 10**6])
    def test_number_of_days_is_checked(self, show: Callable[..., str], days: int) -> None:
        with pytest.raises(InvalidValueError, match=r"^days "):
            show("{{ referral_stats(olga, days=days) }}", days=days)

    def test_page_goes_on_without_the_database(self, host: Host, show: Callable[..., str]) -> None:
        @host.app.get("/account")
        def account() -> str:
            return render_template_string("before {{ referral_chart(referral_stats(user)) }} after", user=current_user)

        host.app.testing = False
        client = log_in(host, "olga")
        with failing(host, lambda statement: "referral_total" in statement, REFUSAL) as failed:
            assert client.get("/account").text == "before  after"
        assert failed
        assert "<figure" in client.get("/account").text
