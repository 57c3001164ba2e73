"""A page of another origin creates a link with a bearer token, in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from selenium import webdriver

from flask_referrals import Referral
from tests import login_hosts
from tests.login_hosts import Site, opened
from tests.pages import snippet
from tests.servers import served
from tests.servers.chromium import open_browser

pytestmark = pytest.mark.slow

SERVER = snippet("logins.rst", "python", "CORS(")
SCRIPT = snippet("logins.rst", "javascript", "fetch(")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with open_browser(tmp_path) as browser:
        yield browser


@pytest.fixture(params=["127.0.0.1", "localhost"], ids=["same site", "cross-site"])
def page(request: pytest.FixtureRequest) -> Iterator[str]:
    """A page whose site is the API's, or another."""
    app = Flask("page")
    app.add_url_rule("/", view_func=lambda: "a page")
    with served(app, request.param) as origin:
        yield origin


def create_link(browser: webdriver.Chrome, site: Site, page: str) -> dict[str, Any]:
    """Run the script of the documentation in the page, as a user who has signed up."""
    token = site.app.test_client().post("/signup", data={"name": "mia"}).json["access_token"]  # type: ignore[index]
    with served(site.app, "127.0.0.1") as api:
        browser.get(page)
        script = SCRIPT.replace("https://api.example", api)
        answer: dict[str, Any] = browser.execute_async_script(
            f"const [token, done] = arguments; (async () => {{ {script} return {{url, code, error}} }})()"
            ".then(done, failure => done({failure: String(failure)}))",
            token,
        )
        return answer


@pytest.mark.parametrize("is_listed", [True, False], ids=["listed", "not listed"])
def test_page_of_another_origin_creates_a_link_if_it_is_listed(
    browser: webdriver.Chrome, page: str, sqlite_url: str, is_listed: bool
) -> None:
    def give_users(app: Flask, db: SQLAlchemy) -> None:
        exec(SERVER.replace("https://app.example", page), {"app": app})
        if not is_listed:  # but the browser may read the answer
            app.config["REFERRALS_TRUSTED_ORIGINS"] = ["https://app.example"]
        login_hosts.flask_jwt_extended(app, db)

    with opened(give_users, sqlite_url) as site:
        answer = create_link(browser, site, page)
        with site.app.app_context():
            links = [(link.code, link.user.name) for link in site.db.session.scalars(sa.select(Referral))]
    if is_listed:
        assert links == [(answer["code"], "mia")]
        assert answer["url"].endswith(f"/referrals/{answer['code']}")
    else:
        assert answer == {"url": None, "code": None, "error": "This can only be done from the site itself."}
        assert links == []
