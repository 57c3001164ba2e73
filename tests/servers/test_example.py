"""The example shop, as people use it: a server process, and a browser with a cookie jar for each person."""

import http.cookiejar
import os
import re
import struct
import subprocess
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from html import unescape
from pathlib import Path

import pytest
import sqlalchemy as sa
import time_machine
from flask import Flask
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import presence_of_element_located, url_contains
from selenium.webdriver.support.wait import WebDriverWait

from example_app import create_app
from example_app.demo_data import PRODUCTS, add_data
from example_app.demo_history import add_history
from example_app.extensions import db
from example_app.models import Order, Product, User
from flask_referrals import Referral, ReferralResponse, current_referrals
from tests.databases import NAMES, new_database
from tests.host import BROWSER, statements
from tests.servers import served
from tests.servers.chromium import open_browser, set_screen
from tests.shop import ROOT, environment, flask, open_shop
from tests.site.helpers import needs_flask_31


class Person:
    """A browser without JavaScript, with cookies of its own."""

    def __init__(self, shop: str) -> None:
        self.shop = shop
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies)
        self.opener.addheaders = [("User-Agent", BROWSER), ("Accept", "text/html,*/*;q=0.8")]
        self.at = shop

    def get(self, url: str) -> str:
        """Follow a link, and return the text of the page it leads to."""
        return self._read(urllib.parse.urljoin(self.shop, url), None)

    def post(self, url: str, **fields: str) -> str:
        """Send a form, and return the text of the page it leads to."""
        return self._read(urllib.parse.urljoin(self.shop, url), urllib.parse.urlencode(fields).encode())

    def _read(self, url: str, data: bytes | None) -> str:
        with self.opener.open(url, data, timeout=30) as answer:
            self.at = answer.url.removeprefix(self.shop)
            page: str = answer.read().decode()
        return page


def hidden_fields(form: str) -> dict[str, str]:
    """The hidden fields of a page's link form."""
    found = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {name: unescape(value) for name, value in found}


@pytest.fixture(params=NAMES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with new_database(request.param, tmp_path) as url:
        yield url


@contextmanager
def opened(database: str, instance: Path, **config: str) -> Iterator[Flask]:
    """The shop in this process, with its products and two accounts, but without a history."""
    app = create_app({"SQLALCHEMY_DATABASE_URI": database, **config}, instance_path=str(instance))
    with app.app_context():
        db.create_all()
        add_data()
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def shop(database: str, tmp_path: Path) -> Iterator[str]:
    """The address of such a shop on each database."""
    with opened(database, tmp_path) as app, served(app, "127.0.0.1") as address:
        yield address


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """Such a shop on SQLite."""
    with opened(f"sqlite:///{tmp_path / 'shop.db'}", tmp_path) as app:
        yield app


def test_link_brings_a_friend_who_buys_and_the_owner_sees_it(shop: str, database: str) -> None:
    alice, friend = Person(shop), Person(shop)

    alice.post("/login", name="alice", password="tea")
    product = alice.get("/tea/gunpowder")
    made = alice.post("/referrals/", **hidden_fields(product))
    link = re.search(r"http://[^\s\"<]+/referrals/[^\s\"<]+", made)
    assert link is not None

    friend.get(link[0])
    assert friend.at == "/tea/gunpowder"
    friend.post("/signup", name="Mia", email="mia@example.com", password="secret")
    friend.post("/tea/lapsang/buy")
    assert "Lapsang Souchong" in friend.get("/account")

    behind_the_link = text_of(alice.get("/account")).split("Gunpowder", 1)[1]
    assert behind_the_link.startswith(" Goes to /tea/gunpowder") and "Mia" not in behind_the_link
    assert re.search(r"Clicks 1 Sign-ups 1 Orders 1 ", behind_the_link)
    assert re.search(
        r"Purchased by a customer £9.00 .* Signed up by a visitor .* Clicked by a visitor", behind_the_link
    )

    responses = count(database, "referral_response")
    sue = Person(shop)
    sue.post("/signup", name="Sue", email="sue@example.com", password="secret")
    sue.post("/tea/lapsang/buy")
    assert count(database, "referral_response") == responses


def count(database: str, table: str) -> int:
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        number: int = connection.exec_driver_sql(f"SELECT COUNT(*) FROM {table}").scalar_one()
    engine.dispose()
    return number


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_welcome_mail_has_a_link_of_the_users_own(shop: str) -> None:
    mia, friend = Person(shop), Person(shop)
    mia.post("/signup", name="Mia", email="mia@example.com", password="secret")
    link = re.search(rf"{shop}/referrals/\w+", mia.get("/outbox"))
    assert link is not None
    friend.get(link[0])
    assert friend.at == "/"
    assert "Clicked by a visitor" in text_of(mia.get("/account"))


@needs_flask_31
def test_mail_never_has_the_host_that_a_request_names(app: Flask) -> None:
    form = {"name": "Mia", "email": "mia@example.com", "password": "secret"}
    assert app.test_client().post("/signup", data=form, headers={"Host": "evil.example"}).status_code == 400
    app.test_client().post("/signup", data=form, headers={"Host": "localhost:5000"})
    outbox = app.test_client().get("/outbox").text
    assert "evil.example" not in outbox and "http://localhost:5000/referrals/" in outbox


def test_account_is_shown_page_by_page(app: Flask) -> None:
    with app.app_context():
        user = db.session.scalars(db.select(User).filter_by(name="alice")).one()
        teapot = db.session.scalars(db.select(Product)).first()
        for number in range(25):
            Referral.create(f"/tea/{number}", user=user, label=f"link {number}", commit=False)
            user.referral.respond(f"ACTION {number}", commit=False)
        db.session.add_all(Order(user=user, product=teapot, price=1) for _ in range(25))
        db.session.commit()
    client = app.test_client()
    client.post("/login", data={"name": "alice", "password": "tea"})
    for query, own, links, orders in (("", 1, 10, 20), ("?links=2", 0, 10, 20), ("?links=3&orders=2", 0, 5, 5)):
        page = client.get(f"/account{query}").text
        assert (page.count(' own"'), page.count("<h3>link "), page.count("Order no.")) == (own, links, orders)
        assert page.count("<b>ACTION") == 5 * own
    assert "Page 1 of 3" in client.get("/account").text
    for page, status in (("4", 404), ("-1", 200), ("\u0663", 200), ("9" * 30, 200), ("x", 200)):
        assert client.get("/account", query_string={"links": page}).status_code == status


def test_account_sends_as_many_statements_for_nine_links_as_for_one(app: Flask) -> None:
    client = app.test_client()
    client.post("/login", data={"name": "alice", "password": "tea"})
    numbers = []
    for slugs in (["gunpowder"], [slug for slug, *_ in PRODUCTS]):
        with app.app_context():
            alice, bob = db.session.scalars(db.select(User).order_by(User.id))
            for slug in slugs:
                product = db.session.scalars(db.select(Product).filter_by(slug=slug)).one()
                link = Referral.create(f"/?{len(slugs)}", user=alice, target=product)
                link.respond("PURCHASED", user=bob, target=product, value=1, currency="GBP")
        with app.app_context(), statements(db) as sent:
            page = client.get("/account").text
        numbers.append(len(sent))
    assert page.count("Purchased</b> by a customer") == 9 and page.count("<h3>Gunpowder</h3>") == 2
    assert numbers[0] == numbers[1] <= 12


def test_insight_is_for_the_operator_and_results_for_everybody_with_an_account(app: Flask) -> None:
    for name, insight, mine in ((None, 302, 302), ("bob", 403, 200), ("alice", 200, 200)):
        client = app.test_client()
        if name is not None:
            client.post("/login", data={"name": name, "password": "tea"})
        assert (client.get("/insight").status_code, client.get("/mine").status_code) == (insight, mine)
        assert ('href="/insight"' in client.get("/").text) == (insight == 200)


@pytest.mark.slow
def test_demo_has_a_history_and_a_second_start_adds_nothing(database: str, tmp_path: Path) -> None:
    numbers = []
    for _ in range(2):
        with open_shop(database, tmp_path) as shop:
            assert Person(shop).get("/").count("/tea/") >= 8
        numbers.append([count(database, table) for table in ("product", "referral", "referral_response")])
    assert numbers[0] == numbers[1]
    subprocess.run(flask(tmp_path, "referrals", "check"), cwd=ROOT, env=environment(database), check=True)

    app = create_app({"SQLALCHEMY_DATABASE_URI": database}, instance_path=str(tmp_path))
    with app.app_context():
        stats = current_referrals.stats
        days = [day for day, _ in stats(by="day").rows]
        assert len(days) in (90, 91)  # a first day without a click is missing; midnight may have passed
        assert {reason for reason, _ in stats(by="ignored").rows} == {"bot", "repeat", "self", "void"}
        assert {campaign for campaign, _ in stats(by="utm_campaign").rows} == {None, "new-harvest", "teapot-week"}
        for name in ("alice", "bob"):
            totals = stats(owner=db.session.scalars(db.select(User).filter_by(name=name)).one(), since=days[-30]).totals
            assert totals["RESPONDED"].count > 50 and totals["SIGNED_UP"].count > 0
            assert totals["PURCHASED"].value["GBP"] > 0

        responses = db.session.scalars(db.select(ReferralResponse)).all()
        assert max(response.created_at for response in responses) < datetime.now(timezone.utc)
        counted = [response for response in responses if response.ignored is None]
        assert Counter(each.action for each in counted) == {key: each.count for key, each in stats().totals.items()}
        sold = [(each.target, each) for each in counted if each.action == "PURCHASED"]
        assert all((order.user, order.pounds) == (sale.user, sale.value) for order, sale in sold)
        db.session.remove()
        db.engine.dispose()


TODAY = datetime(2026, 6, 19, 15, tzinfo=timezone.utc)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[tuple[Flask, str]]:
    """The shop with its history on a certain day, and its address."""
    config = {"REFERRALS_BASE_URL": "https://kettle-and-leaf.example"}
    with time_machine.travel(TODAY), opened(f"sqlite:///{tmp_path / 'demo.db'}", tmp_path, **config) as app:
        with app.app_context():
            add_history()
        with served(app, "127.0.0.1") as address:
            yield app, address


def log_in(browser: webdriver.Chrome, shop: str, name: str) -> None:
    browser.delete_all_cookies()
    browser.get(f"{shop}/login")
    browser.find_element(By.NAME, "name").send_keys(name)
    browser.find_element(By.NAME, "password").send_keys("tea\n")
    WebDriverWait(browser, 10).until(url_contains("/account"))


#: The day and the counted numbers in each row of the chart's table, without those of the period before.
ROWS = """
    return [...document.querySelectorAll(".referral-chart tbody tr")].map(row =>
        [...row.querySelectorAll(":is(th, td):not(.referral-note)")].map(cell => cell.textContent.trim()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_owner_and_operator_find_their_numbers(
    demo: tuple[Flask, str], tmp_path: Path, width: int, scheme: str
) -> None:
    app, shop = demo
    with app.app_context():
        bob = db.session.scalars(db.select(User).filter_by(name="bob")).one()
        stats = partial(current_referrals.stats, since=TODAY.date() - timedelta(days=29), by="day")
        pages = (("bob", "Your results", stats(owner=bob)), ("alice", "Insight", stats()))
        db.session.remove()
    with open_browser(tmp_path) as browser:
        set_screen(browser, width, scheme)
        for name, link, found in pages:
            log_in(browser, shop, name)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            browser.find_element(By.LINK_TEXT, link).click()
            WebDriverWait(browser, 10).until(presence_of_element_located((By.CLASS_NAME, "referral-chart")))
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script(ROWS) == [
                [
                    f"{day.day} {day:%b %Y}",
                    *(f"{totals[action].count}" for action in ("RESPONDED", "SIGNED_UP", "PURCHASED")),
                    " ".join(f"{value:.2f} {currency}" for currency, value in totals["PURCHASED"].value.items()),
                ]
                for day, totals in found.rows
            ]
        assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


#: The pictures of docs/insight.rst: who looks at which page, in which colours, and the size of the screen.
PICTURES = {
    "insight-mine.png": ("bob", "/mine", "light", 1280, 1410),
    "insight-operator.png": ("alice", "/insight?by=utm_campaign", "light", 1280, 1500),
    "insight-phone.png": ("bob", "/mine", "dark", 390, 844),
}


@pytest.mark.slow
def test_pictures_show_the_demo(demo: tuple[Flask, str], tmp_path: Path) -> None:
    """With WRITE_SCREENSHOTS=1 it replaces those of the documentation."""
    _, shop = demo
    folder = ROOT / "docs" if os.environ.get("WRITE_SCREENSHOTS") else tmp_path
    with open_browser(tmp_path) as browser:
        browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        for file, (name, page, scheme, width, height) in PICTURES.items():
            set_screen(browser, width, scheme, height=height)
            log_in(browser, shop, name)
            browser.get(shop + page)
            assert browser.save_screenshot(str(folder / file))
    for file, (*_, width, height) in PICTURES.items():
        for picture in ((folder / file).read_bytes(), (ROOT / "docs" / file).read_bytes()):
            assert struct.unpack(">II", picture[16:24]) == (width, height)
            assert 20_000 < len(picture) < 150_000  # a blank page is smaller
