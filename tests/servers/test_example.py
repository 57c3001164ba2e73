"""The example shop, as people use it: a server process, and a browser with a cookie jar for each person."""

import http.cookiejar
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.databases import NAMES, new_database
from tests.host import BROWSER
from tests.shop import ROOT, environment, flask, open_shop


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


@pytest.fixture
def shop(database: str, tmp_path: Path) -> Iterator[str]:
    """The shop's address."""
    with open_shop(database, tmp_path) as address:
        yield address


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
    assert re.search(
        r"Purchased by Mia Order no. \d+: Lapsang Souchong, £9.00 .* Signed up by Mia .* Clicked by Mia",
        behind_the_link,
    )

    stranger = Person(shop)
    stranger.post("/signup", name="Sue", email="sue@example.com", password="secret")
    stranger.post("/tea/lapsang/buy")
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM referral_response").scalar() == 3
    engine.dispose()


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


@pytest.mark.slow
def test_second_start_adds_nothing(shop: str, database: str, tmp_path: Path) -> None:
    with open_shop(database, tmp_path) as again:
        assert Person(again).get("/").count("/tea/") >= 8
    subprocess.run(flask(tmp_path, "referrals", "check"), cwd=ROOT, env=environment(database), check=True)
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM product").scalar() == 8
    engine.dispose()
