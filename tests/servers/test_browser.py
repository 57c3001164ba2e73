"""The example shop in a real browser: what only scripts do."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask, redirect, request
from flask.typing import ResponseReturnValue
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import staleness_of, visibility_of_element_located
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.serving import make_server

import flask_referrals
from tests.servers.chromium import open_browser, set_screen
from tests.shop import open_shop
from tests.site.test_redirects import QuietHandler

pytestmark = pytest.mark.slow


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with open_browser(tmp_path) as browser:
        yield browser


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[str]:
    with open_shop(f"sqlite:///{tmp_path / 'shop.db'}", tmp_path) as address:
        yield address


def log_in(browser: webdriver.Chrome, shop: str) -> None:
    browser.get(f"{shop}/login?next=/tea/gunpowder")
    browser.find_element(By.NAME, "name").send_keys("alice")
    browser.find_element(By.NAME, "password").send_keys("tea\n")
    WebDriverWait(browser, 10).until(visibility_of_element_located((By.CSS_SELECTOR, "[data-referral-form]")))


def make_link(browser: webdriver.Chrome) -> str:
    browser.find_element(By.CSS_SELECTOR, "[data-referral-form] [type=submit]").click()
    shown = visibility_of_element_located((By.CSS_SELECTOR, ".referral-result input"))
    return WebDriverWait(browser, 10).until(shown).get_attribute("value") or ""


def test_form_shows_the_link_without_leaving_the_page(browser: webdriver.Chrome, shop: str) -> None:
    log_in(browser, shop)
    link = make_link(browser)
    assert link.startswith(f"{shop}/referrals/")
    assert browser.current_url == f"{shop}/tea/gunpowder"
    browser.delete_all_cookies()
    browser.get(link)
    assert browser.current_url == f"{shop}/tea/gunpowder"
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]  # the page's Content-Security-Policy was not violated


def test_form_says_so_when_the_login_has_expired(browser: webdriver.Chrome, shop: str) -> None:
    log_in(browser, shop)
    browser.delete_all_cookies()
    browser.find_element(By.CSS_SELECTOR, "[data-referral-form] [type=submit]").click()
    result = browser.find_element(By.CSS_SELECTOR, ".referral-result")
    WebDriverWait(browser, 10).until(lambda _: "logged in" in result.text)


@pytest.fixture
def two_origins() -> Iterator[tuple[str, str]]:
    """A site with forms whose answer is another site's, and that other site."""
    app = Flask("site", static_folder=str(Path(flask_referrals.__file__).parent / "static"))

    @app.get("/<action>")
    def page(action: str) -> str:
        actions = {"link": f"{evil}/link", "hop": "/hop"}
        return (
            f'<form method=post action="{actions.get(action)}" data-referral-form>'
            "<button type=submit>Get a link</button>"
            '<div class=referral-result></div></form><script type=module src="/static/referrals.js"></script>'
        )

    @app.post("/hop")
    def hop() -> ResponseReturnValue:
        return redirect(f"{evil}/link", 307)

    @app.post("/link")
    def link() -> ResponseReturnValue:
        html = "<img src=x onerror='localStorage.ran = location.origin'>"
        return {"html": html}, {"Access-Control-Allow-Origin": request.headers["Origin"]}

    servers = [make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    site, evil = (f"http://127.0.0.1:{server.port}" for server in servers)
    for thread in threads:
        thread.start()
    try:
        yield site, evil
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.mark.parametrize("action", ["link", "hop"])
def test_answer_of_another_origin_is_never_shown_on_the_page(
    browser: webdriver.Chrome, two_origins: tuple[str, str], action: str
) -> None:
    site, evil = two_origins
    browser.get(f"{site}/{action}")
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    WebDriverWait(browser, 10).until(lambda _: browser.current_url == f"{evil}/link")
    browser.get(f"{site}/{action}")
    assert browser.execute_script("return localStorage.ran") is None


def test_prefetch_does_not_replace_the_click(browser: webdriver.Chrome, shop: str, tmp_path: Path) -> None:
    log_in(browser, shop)
    link = make_link(browser)
    browser.delete_all_cookies()
    browser.get(f"{shop}/")
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    browser.get(f"{shop}/")
    browser.execute_script(
        """
        const rules = document.createElement("script");
        rules.type = "speculationrules";
        rules.textContent = JSON.stringify({prefetch: [{source: "list", urls: [arguments[0]]}]});
        document.head.append(rules);
        const anchor = document.createElement("a");
        anchor.href = arguments[0]; anchor.id = "shared"; anchor.textContent = "shared";
        document.body.prepend(anchor);
        """,
        link,
    )
    log = tmp_path / "shop.log"
    WebDriverWait(browser, 10).until(lambda _: '" 503 ' in log.read_text())
    browser.find_element(By.ID, "shared").click()
    WebDriverWait(browser, 10).until(lambda _: browser.current_url == f"{shop}/tea/gunpowder")
    browser.delete_all_cookies()
    log_in(browser, shop)
    browser.get(f"{shop}/account")
    assert "Clicked by a visitor" in browser.find_element(By.XPATH, "//article[h3='Gunpowder']").text


def test_admin_lists_searches_filters_and_opens(browser: webdriver.Chrome, shop: str) -> None:
    log_in(browser, shop)
    link = make_link(browser)
    browser.delete_all_cookies()
    browser.get(link)
    browser.delete_all_cookies()
    log_in(browser, shop)

    browser.get(f"{shop}/admin/referral/")
    assert len(rows(browser)) > 3
    search = browser.find_element(By.NAME, "search")
    search.send_keys(f"{link.rsplit('/', 1)[1]}\n")
    WebDriverWait(browser, 10).until(staleness_of(search))
    (row,) = rows(browser)
    assert "/tea/gunpowder" in row.text
    row.find_element(By.CSS_SELECTOR, ".col-response_count a").click()

    WebDriverWait(browser, 10).until(lambda _: "/referralresponse/" in browser.current_url)
    (row,) = rows(browser)
    assert row.find_element(By.CSS_SELECTOR, ".col-action").text == "Clicked"
    browser.find_element(By.LINK_TEXT, "Reset Filters").click()
    WebDriverWait(browser, 10).until(staleness_of(row))
    browser.find_element(By.LINK_TEXT, "Add Filter").click()
    browser.find_element(By.LINK_TEXT, "Action").click()
    browser.find_element(By.CSS_SELECTOR, "input.filter-val").send_keys("PURCHASED\n")
    WebDriverWait(browser, 10).until(lambda _: "action_contains=PURCHASED" in browser.current_url)
    actions = [row.find_element(By.CSS_SELECTOR, ".col-action").text for row in rows(browser)]
    assert {*actions} == {"Purchased"}
    browser.back()

    browser.find_element(By.CSS_SELECTOR, "a[title='View Record']").click()
    WebDriverWait(browser, 10).until(lambda _: "/details/" in browser.current_url)
    browser.find_element(By.PARTIAL_LINK_TEXT, "alice").click()
    WebDriverWait(browser, 10).until(lambda _: "/admin/referral/details/" in browser.current_url)
    assert link in browser.find_element(By.TAG_NAME, "table").text


#: What Flask-Admin's own pages do under the shop's Content-Security-Policy, and what every page lacks.
FLASK_ADMINS_OWN = ("inline event handler", "/favicon.ico")


@pytest.mark.parametrize("width", [1280, 390])
def test_admin_shows_the_numbers_and_voids_a_click(browser: webdriver.Chrome, shop: str, width: int) -> None:
    log_in(browser, shop)
    link = make_link(browser)
    browser.delete_all_cookies()
    browser.get(link)
    browser.delete_all_cookies()
    log_in(browser, shop)
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    set_screen(browser, width, "light")

    def check_page() -> None:
        fits = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert browser.execute_script(fits)
        for message in browser.get_log("browser"):  # type: ignore[no-untyped-call]
            assert any(words in message["message"] for words in FLASK_ADMINS_OWN), message

    browser.get(f"{shop}/admin/")
    check_page()
    card = browser.find_element(By.CLASS_NAME, "card-body").text
    number = re.match(r"Clicks\n(\d+)\nbefore: \d+", card)
    assert number is not None
    code = browser.find_element(By.LINK_TEXT, "newsletter")
    assert browser.execute_script("return arguments[0].getClientRects().length", code) == 1  # it is not broken

    browser.get(f"{shop}/admin/referralresponse/")
    browser.find_element(By.CSS_SELECTOR, "a[title=Void]").click()
    WebDriverWait(browser, 10).until(lambda _: "/void/" in browser.current_url)
    check_page()
    browser.find_element(By.NAME, "reason").send_keys("a fraud\n")
    WebDriverWait(browser, 10).until(lambda _: "/void/" not in browser.current_url)
    assert "is void." in browser.find_element(By.CLASS_NAME, "alert-success").text
    assert [row.find_element(By.CSS_SELECTOR, ".col-ignored").text for row in rows(browser)[:2]] == ["void", "void"]
    browser.get(f"{shop}/admin/")
    assert browser.find_element(By.CLASS_NAME, "card-body").text.startswith(f"Clicks\n{int(number[1]) - 1}\n")


def rows(browser: webdriver.Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, "table.model-list tbody tr")
