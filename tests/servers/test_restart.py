"""Chromium is closed between the click and the sign-up, and started again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import url_to_be
from selenium.webdriver.support.wait import WebDriverWait

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host
from tests.servers import served
from tests.servers.chromium import open_browser
from tests.servers.test_navigation import new_certificate

pytestmark = pytest.mark.slow

_FORMS = """
    <!doctype html><link rel=icon href='data:,'>
    <form method=post action=/signup><input name=name><button id=sign-up>Sign up</button></form>
    <form method=post action=/logout><button id=log-out>Log out</button></form>
"""


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What a browser keeps is the same with every database."""
    return sqlite_url


@contextmanager
def served_site(host: Host, scheme: str, folder: Path) -> Iterator[str]:
    """Serve a site that has forms to sign up and to log out, and yield its URL."""

    @host.app.get("/forms")
    def forms() -> str:
        return _FORMS

    context = new_certificate(folder) if scheme == "https" else None
    with served(host.app, "site.test", context) as url:
        yield url


@contextmanager
def started(folder: Path) -> Iterator[webdriver.Chrome]:
    """Start a browser with the profile in a folder."""
    resolve = "--host-resolver-rules=MAP *.test 127.0.0.1"
    with open_browser(folder, resolve, "--ignore-certificate-errors", "--disable-features=HttpsUpgrades") as browser:
        yield browser


def sign_up(browser: webdriver.Chrome, url: str, name: str) -> None:
    browser.get(f"{url}/forms")
    browser.find_element(By.NAME, "name").send_keys(name)
    browser.find_element(By.ID, "sign-up").click()
    WebDriverWait(browser, 20).until(url_to_be(f"{url}/"))


def log_out(browser: webdriver.Chrome, url: str) -> None:
    browser.get(f"{url}/forms")
    browser.find_element(By.ID, "log-out").click()
    WebDriverWait(browser, 20).until(url_to_be(f"{url}/"))


def cookies(browser: webdriver.Chrome) -> dict[str, Any]:
    return {cookie["name"]: cookie for cookie in browser.get_cookies()}


def credited(host: Host) -> list[tuple[str, str | None]]:
    """Return the actions and who did them, oldest first."""
    with host.app.app_context():
        return [(each.action, each.user.name if each.user else None) for each in host.responses()]


@pytest.mark.parametrize(("scheme", "name"), [("http", "referral"), ("https", "__Host-referral")])
def test_sign_up_is_credited(new_host: MakeHost, tmp_path: Path, scheme: str, name: str) -> None:
    host = new_host()
    with host.app.app_context():
        code = Referral.create("/").code
    with served_site(host, scheme, tmp_path) as url:
        with started(tmp_path) as browser:
            browser.get(f"{url}/referrals/{code}")
            assert {*cookies(browser)} == {"session", name}
            kept = cookies(browser)[name]
            assert (kept["httpOnly"], kept["sameSite"], kept["secure"]) == (True, "Lax", scheme == "https")
        with started(tmp_path) as browser:
            browser.get(url)
            assert {*cookies(browser)} == {name}
            sign_up(browser, url, "mia")
            assert credited(host) == [("RESPONDED", "mia"), ("SIGNED_UP", "mia")]
            assert name not in cookies(browser)
            log_out(browser, url)
        with started(tmp_path) as browser:  # a second person
            sign_up(browser, url, "tom")
            assert credited(host) == [("RESPONDED", "mia"), ("SIGNED_UP", "mia")]


def test_without_the_cookie_it_is_not(new_host: MakeHost, tmp_path: Path) -> None:
    host = new_host(REFERRALS_COOKIE=None)
    with host.app.app_context():
        code = Referral.create("/").code
    with served_site(host, "http", tmp_path) as url:
        with started(tmp_path) as browser:
            browser.get(f"{url}/referrals/{code}")
            assert {*cookies(browser)} == {"session"}
        with started(tmp_path) as browser:
            sign_up(browser, url, "mia")
    assert credited(host) == [("RESPONDED", None)]
