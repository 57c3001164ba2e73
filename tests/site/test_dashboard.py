"""The numbers of the dashboard are those of ``stats()``, and owners do not see who followed their links."""

import re
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from flask.testing import FlaskClient

from flask_referrals import Referral
from flask_referrals.stats import Stats
from tests.conftest import MakeHost
from tests.host import Host
from tests.site.dashboard import (
    FIRST,
    STEPS,
    TODAY,
    Page,
    add,
    add_links,
    fill,
    in_text,
    log_in,
    numbers_in,
    numbers_of,
    open_site,
    read_csv,
    without_percentages,
)
from tests.site.helpers import find_user


@pytest.fixture
def host(new_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with open_site(new_host, monkeypatch) as host:
        yield host


class TestOwner:
    @pytest.fixture
    def page(self, host: Host) -> Page:
        with host.app.app_context():
            fill(host)
        return Page(log_in(host, "olga").get("/mine").text)

    def test_cards_are_of_30_days_and_of_all(self, host: Host, page: Page) -> None:
        with host.app.app_context():
            olga = find_user(host, "olga")
            stats, ever = host.referrals.stats(owner=olga, since=FIRST), host.referrals.stats(owner=olga)
        assert page.cards["Clicks"] == [
            f"{stats.totals['RESPONDED'].count}",
            f"{ever.totals['RESPONDED'].count} in all",
        ]
        assert page.cards["Purchased"] == ["2", "4 in all"]
        assert page.cards["Value"] == ["6.00 25.00 EUR", "6.00 25.00 EUR 2,469.00 GBP in all"]
        assert stats.totals["RESPONDED"].count == 7 != ever.totals["RESPONDED"].count

    def test_chart_is_of_30_days(self, host: Host, page: Page) -> None:
        with host.app.app_context():
            stats = host.referrals.stats(owner=find_user(host, "olga"), since=FIRST, by="day")
        rows = page.tables[0][1:]
        assert [row[0] for row in rows] == [f"{day.day} {day:%b %Y}" for day, _ in stats.rows]
        assert [row[1:4] for row in rows] == [in_text(totals)[:3] for _, totals in stats.rows]
        assert rows[-2][4] == "12.50 EUR"

    def test_links_are_the_own_ones_newest_first(self, host: Host, page: Page) -> None:
        with host.app.app_context():
            links = [*find_user(host, "olga").referral_codes]
            stats = [host.referrals.stats(referral=link) for link in links]
            expected = [[link.code, *in_text(each.totals)[:3]] for link, each in zip(links, stats, strict=True)][::-1]
        rows = page.tables[-1][1:]
        assert [[row[0].split()[0].rsplit("/", 1)[1], *row[1:4]] for row in rows] == expected
        assert expected[0][1:] == ["0", "0", "0"]

    def test_csv_has_all_links(self, host: Host) -> None:
        with host.app.app_context():
            fill(host)
            olga = find_user(host, "olga")
            add_links(host, olga, 25)
            expected = {
                link.code: numbers_in(host.referrals.stats(referral=link).totals) for link in olga.referral_codes
            }
        response = log_in(host, "olga").get("/mine.csv")
        assert response.content_type == "text/csv; charset=utf-8"
        assert response.headers["Content-Disposition"] == "attachment; filename=links-2026-03-31.csv"
        assert {row["code"]: numbers_of(row) for row in read_csv(response.text)} == expected

    def test_links_are_paginated(self, host: Host) -> None:
        with host.app.app_context():
            links = add_links(host, host.user("olga"), 25)
        client = log_in(host, "olga")
        first, second = (client.get(f"/mine?page={number}").text for number in (1, 2))
        shown = [[row[0].split()[-1] for row in Page(page).tables[-1][1:]] for page in (first, second)]
        assert shown == [links[:4:-1], links[4::-1]]
        assert 'href="/mine?page=2"' in first and 'href="/mine?page=1"' in second and "page=3" not in second

    @pytest.mark.parametrize("page", ["2", "0", "-1", "x", "", "1e3", "\uff19", "9" * 30, "01"])
    def test_page_that_there_is_not(self, host: Host, page: str) -> None:
        with host.app.app_context():
            host.user("olga")
        assert log_in(host, "olga").get("/mine", query_string={"page": page}).status_code == 404

    def test_actions_are_of_30_days_without_clicks(self, host: Host) -> None:
        with host.app.app_context():
            link = Referral.create("/", host.user("olga"), label="blog")
            add(host, link, days=1)
            add(host, link, "SIGNED_UP", days=29)
            add(host, link, "PURCHASED", days=2, value=Decimal("8.5"), currency="GBP")
            add(host, link, "PURCHASED", days=31)
            add(host, link, "PURCHASED", days=1, ignored="void")
        items = re.findall(r"<li>(.*?)</li>", log_in(host, "olga").get("/mine").text, re.DOTALL)
        texts = [" ".join(re.sub("<[^>]*>", " ", item).split()) for item in items]
        assert texts == [
            "29 Mar 2026 Purchased : somebody , through blog 8.50 GBP",
            "2 Mar 2026 Signed up : somebody , through blog",
        ]

    def test_amounts_below_a_cent_are_not_rounded(self, host: Host) -> None:
        with host.app.app_context():
            link = Referral.create("/", host.user("olga"))
            for value, currency in (("0.0025", "BTC"), ("12.345", "KWD"), ("1234.5", "EUR")):
                add(host, link, "PURCHASED", value=Decimal(value), currency=currency)
        cards = Page(log_in(host, "olga").get("/mine").text).cards
        assert cards["Value"][0] == "0.0025 BTC 1,234.50 EUR 12.3450 KWD"

    def test_lists_are_narrowed_as_the_host_says(self, host: Host) -> None:
        @host.referrals.responses_filter
        def narrow(responses: Any, *, user: Any, referral: Any) -> Any:
            return responses.where(host.referrals.ReferralResponse.action == "SIGNED_UP")

        with host.app.app_context():
            fill(host)
        page = log_in(host, "olga").get("/mine").text
        assert "<b>Signed up</b>" in page and "<b>Purchased</b>" not in page


class TestFriends:
    """Those who followed a link are not shown to its owner."""

    MARKS = ("Secret Friend", "203.0.113.77", "secret-agent", "secret-site", "secret-mark", "secretkey", "987654")

    @pytest.fixture
    def host(self, host: Host) -> Host:
        with host.app.app_context():
            friend = host.add(host.User(id=987654, name="Secret Friend"))
            link = Referral.create("/", host.user("olga"), label="blog")
            traces: dict[str, Any] = {
                "user_id": friend.id,
                "session_key": "secretkey",
                "ip_address": "203.0.113.77",
                "user_agent": "secret-agent",
                "http_referrer": "https://secret-site.example/",
                "params": {"utm_source": "secret-mark"},
            }
            for action in STEPS:
                add(host, link, action, **traces)
        return host

    def pages(self, host: Host) -> str:
        client = log_in(host, "olga")
        return client.get("/mine").text + client.get("/mine.csv").text

    def test_nothing_of_a_friend_is_shown(self, host: Host) -> None:
        pages = self.pages(host)
        assert "<b>Signed up</b>: <bdi>somebody</bdi>" in pages
        assert [mark for mark in self.MARKS if mark in pages] == []

    @pytest.mark.parametrize("name", ["S.", None, ""])
    def test_name_is_what_the_host_returns(self, host: Host, name: str | None) -> None:
        host.referrals.display_name(lambda user: name if user.name == "Secret Friend" else "?")
        pages = self.pages(host)
        assert f"<b>Signed up</b>: <bdi>{name or 'somebody'}</bdi>" in pages
        assert [mark for mark in self.MARKS if mark in pages] == []

    def test_visitor_has_no_name(self, host: Host) -> None:
        host.referrals.display_name(lambda user: user.name)
        with host.app.app_context():
            (link,) = find_user(host, "olga").referral_codes
            add(host, link, "CALLED")
        assert "<b>Called</b>: <bdi>somebody</bdi>" in self.pages(host)


class TestOperator:
    @pytest.fixture
    def client(self, host: Host) -> FlaskClient:
        with host.app.app_context():
            fill(host)
        return log_in(host, "staff")

    def stats(self, host: Host, **options: Any) -> Stats:
        with host.app.app_context():
            stats = host.referrals.stats(**{"since": FIRST, "until": TODAY, **options})
            assert stats.funnel
            return stats

    def test_cards_compare_two_periods(self, host: Host, client: FlaskClient) -> None:
        stats, cards = self.stats(host, compare=True), Page(client.get("/insight").text).cards
        clicks, before = (each.totals["RESPONDED"].count for each in (stats, stats.previous) if each is not None)
        assert (clicks, before) == (10, 8)
        assert cards["Clicks"] == ["10", "+25% from 8"]
        assert cards["Signed up"] == ["4", "40.0% of clicks", "before: 0"]
        assert cards["Value"] == ["12.00 50.00 EUR", "before: 4,938.00 GBP"]

    def test_chart_has_both_periods(self, host: Host, client: FlaskClient) -> None:
        stats = self.stats(host, by="day", compare=True)
        assert stats.previous is not None
        rows = Page(client.get("/insight").text).tables[0][1:]
        for (day, totals), (_, before), row in zip(stats.rows, stats.previous.rows, rows, strict=True):
            assert row[0] == f"{day.day} {day:%b %Y}"
            assert row[1:7:2] == in_text(totals)[:3]
            assert row[2:7:2] == in_text(before)[:3]

    @pytest.mark.parametrize(
        ("per", "first"), [("week", "23 Feb 2026 to 1 Mar 2026"), ("month", "20 Feb 2026 to 28 Feb 2026")]
    )
    def test_chart_by_longer_bars(self, host: Host, client: FlaskClient, per: str, first: str) -> None:
        query = {"since": "2026-02-20", "until": "2026-03-31", "per": per}
        rows = Page(client.get("/insight", query_string=query).text).tables[0][1:]
        expected = [totals for _, totals in self.stats(host, since=date(2026, 2, 20), by=per).rows]
        assert [row[1:4] for row in rows] == [in_text(totals)[:3] for totals in expected]
        assert first in [row[0] for row in rows]

    @pytest.mark.parametrize(("since", "date"), [("2025-04-01", "1 Apr"), ("2024-04-01", "Apr 2024")])
    def test_dates_of_more_than_a_year_have_the_year(self, client: FlaskClient, since: str, date: str) -> None:
        page = client.get(f"/insight?since={since}&until=2026-03-31&per=week").text
        assert re.findall('class="referral-date.*>(.*)</text>', page)[0] == date

    def test_funnel_is_of_people(self, host: Host, client: FlaskClient) -> None:
        items = re.findall(r"<li>\s*<span>(.*?)</span> <b>(.*?)</b>", client.get("/insight").text)
        names = ("Clicks", "Signed up", "Purchased")
        funnel = [(name, str(people)) for name, (_, people) in zip(names, self.stats(host).funnel, strict=True)]
        assert items == funnel and ("Signed up", "1") in funnel

    @pytest.mark.parametrize("by", ["referral", "owner", "label", "referrer", "utm_source", "sub", "ignored"])
    def test_table_and_its_csv_are_equal_to_stats(self, host: Host, client: FlaskClient, by: str) -> None:
        with host.app.app_context():
            rows = host.referrals.stats(since=date(2026, 2, 10), until=date(2026, 3, 30), by=by).rows
            names = [getattr(key, "code", None) or getattr(key, "name", None) or key for key, _ in rows]
        assert rows
        query = f"since=2026-02-10&until=2026-03-30&by={by}"
        table = [without_percentages(row) for row in Page(client.get(f"/insight?{query}").text).tables[-1][1:]]
        empty = {"owner": "No owner", "label": "No label", "referrer": "Unknown"}.get(by, "Not set")
        assert [row[0].split()[0] if by == "referral" else row[0] for row in table] == [name or empty for name in names]
        assert [row[1:4] for row in table] == [in_text(totals)[:3] for _, totals in rows]
        found = read_csv(client.get(f"/insight.csv?{query}").text)
        assert [row["code" if by == "referral" else by] or None for row in found] == [name or None for name in names]
        assert [numbers_of(row) for row in found] == [numbers_in(totals) for _, totals in rows]

    @pytest.mark.parametrize("by", ["day", "week", "month"])
    def test_csv_of_the_chart(self, host: Host, client: FlaskClient, by: str) -> None:
        response = client.get(f"/insight.csv?by={by}&since=2026-01-01&until=2026-03-31")
        name = f"referrals-{by}-2026-01-01-2026-03-31.csv"
        assert response.headers["Content-Disposition"] == f"attachment; filename={name}"
        rows = self.stats(host, since=date(2026, 1, 1), by=by).rows
        found = read_csv(response.text)
        assert [(row[by], numbers_of(row)) for row in found] == [(str(day), numbers_in(totals)) for day, totals in rows]

    def test_page_shows_the_largest_rows_and_csv_all(self, host: Host) -> None:
        with host.app.app_context():
            add_links(host, host.user("olga"), 25)
        client, note = log_in(host, "staff"), "These are the 20 with most clicks."
        page = client.get("/insight").text
        assert len(Page(page).tables[-1][1:]) == 20 and note in page
        assert note not in client.get("/insight?by=owner").text
        assert len(read_csv(client.get("/insight.csv?by=referral").text)) == 25

    def test_users_are_called_as_the_host_says(self, host: Host, client: FlaskClient) -> None:
        host.referrals.display_name(lambda user: f"Dr {user.name}" if user.name == "olga" else None)
        table = Page(client.get("/insight?by=owner").text).tables[-1]
        assert [row[0] for row in table[1:]] == ["Dr olga", "mia", "No owner"]
        assert "blog, Dr olga" in " ".join(row[0] for row in Page(client.get("/insight").text).tables[-1])
        owners = {row["owner"] for row in read_csv(client.get("/insight.csv?by=referral").text)}
        assert owners == {"Dr olga", "mia", ""}

    def test_quick_choices_compare_as_the_page_does(self, client: FlaskClient) -> None:
        for query in ("", "&compare=1"):
            page = client.get(f"/insight?since=2026-03-01&until=2026-03-31{query}").text
            links = re.findall(r'<a href="/insight\?(.*?)"', page)
            assert {"compare=1" in link for link in links} == {bool(query)}

    def test_quick_choices_are_periods_until_today(self, host: Host, client: FlaskClient) -> None:
        links = re.findall(
            r'href="/insight\?since=(.*?)&amp;until=(.*?)&amp;compare=1&amp;by=owner">',
            client.get("/insight?by=owner").text,
        )
        assert links[:6] == [
            ("2026-03-25", "2026-03-31"),
            ("2026-01-01", "2026-03-31"),
            ("2026-03-01", "2026-03-31"),
            ("2026-02-01", "2026-02-28"),
            ("2025-04-01", "2026-03-31"),
        ]
