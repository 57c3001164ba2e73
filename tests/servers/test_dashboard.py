"""The pages of the dashboard in a real browser: what is drawn, on any screen, without scripts, by keyboard."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flask import Response, render_template_string
from flask_login import login_user
from jinja2 import DictLoader
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import url_contains
from selenium.webdriver.support.wait import WebDriverWait

from flask_referrals.stats import Stats
from tests.conftest import MakeHost
from tests.databases import unavailable
from tests.host import Host
from tests.servers import served
from tests.servers.chromium import open_browser, set_screen
from tests.site.dashboard import FIRST, STEPS, add, add_links, fill, open_site
from tests.site.helpers import find_user

pytestmark = pytest.mark.slow

SCREENS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
PAGES = ["/mine", "/insight", "/insight?by=owner&per=week&compare=1&since=2026-01-01", "/insight?since=x&by=sub"]

#: Of each chart: the sizes of the plots, and of what is in them, as they are drawn.
DRAWN = """
    const box = element => element.getBoundingClientRect().toJSON();
    return [...document.querySelectorAll(".referral-chart > svg")].map(svg => ({
        plot: box(svg.querySelector(".referral-grid")),
        top: svg.querySelector(".referral-scale").textContent,
        bars: [...svg.querySelectorAll(".referral-bar")].map(bar => ({...box(bar), title: bar.textContent})),
        line: svg.querySelector(".referral-line")?.points.length,
        dates: [...svg.querySelectorAll(".referral-date")].map(box).filter(date => date.width),
        texts: [...svg.querySelectorAll("text")].map(text => parseFloat(getComputedStyle(text).fontSize)),
    }))
"""

#: The cells of the table of a chart.
ROWS = """
    return [...document.querySelectorAll(".referral-chart tbody tr")].map(
        row => [...row.cells].map(cell => cell.textContent.trim()))
"""


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """The pages are the same on every database."""
    return shared_sqlite_url


@pytest.fixture
def host(new_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with open_site(new_host, monkeypatch) as host:
        add_pages(host)
        with host.app.app_context():
            fill(host)
            staff = find_user(host, "staff")
            add_links(host, staff, 25)
            add(host, staff.referral_codes[0], "PURCHASED", value=Decimal(1_234_567_890), currency="IDR")
        yield host


def add_pages(host: Host) -> None:
    @host.app.get("/as/<name>")
    def become(name: str) -> str:
        login_user(find_user(host, name))
        return ""

    @host.app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status=204)

    @host.app.after_request
    def forbid_inline_code(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        return response


@pytest.fixture
def site(host: Host) -> Iterator[str]:
    with served(host.app, "127.0.0.1") as origin:
        yield origin


@pytest.fixture
def browser(site: str, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """The browser of the operator, who has links of their own."""
    with open_browser(tmp_path) as browser:
        browser.get(f"{site}/as/staff")
        yield browser


def stats_of(host: Host, **options: Any) -> Stats:
    with host.app.app_context():
        return host.referrals.stats(since=FIRST, by="day", **options)


def check_chart(browser: webdriver.Chrome, stats: Stats) -> None:
    """Check that the bars are as high as the counts of the database, and stand in their order."""
    panels = browser.execute_script(DRAWN)
    assert len(panels) == len(STEPS)
    for step, panel in zip(STEPS, panels, strict=True):
        plot, top, days = panel["plot"], int(panel["top"]), [None] * len(stats.rows)
        for bar in panel["bars"]:
            place = int((bar["x"] + bar["width"] / 2 - plot["x"]) / plot["width"] * len(days))
            day = stats.rows[place][0]
            count = round(bar["height"] / plot["height"] * top)
            assert bar["title"] == f"{day.day} {day:%b %Y}: {count}"
            assert bar["bottom"] == pytest.approx(plot["bottom"], abs=1.5)
            days[place] = count
        assert [count or 0 for count in days] == [totals[step].count for _, totals in stats.rows]
        assert min(panel["texts"]) >= 11
        dates = panel["dates"]
        assert all(later["left"] > date["right"] + 4 for date, later in pairwise(dates))
        assert all(plot["left"] - 1 <= date["left"] and date["right"] <= plot["right"] for date in dates)
    assert len(panels[-1]["dates"]) >= 3


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_chart_draws_the_numbers_of_its_table_and_of_the_database(
    host: Host, site: str, browser: webdriver.Chrome, width: int, scheme: str
) -> None:
    with host.app.app_context():
        owner = find_user(host, "staff")
    set_screen(browser, width, scheme)
    for page, stats in (("/mine", stats_of(host, owner=owner)), ("/insight", stats_of(host, compare=True))):
        browser.get(site + page)
        check_chart(browser, stats)
        rows = browser.execute_script(ROWS)
        every = 1 if stats.previous is None else 2
        assert [row[1 : 1 + 3 * every : every] for row in rows] == [
            [f"{totals[step].count}" for step in STEPS] for _, totals in stats.rows
        ]


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_page_fits_the_screen_and_its_colours(site: str, browser: webdriver.Chrome, width: int, scheme: str) -> None:
    set_screen(browser, width, scheme)
    for page in PAGES:
        browser.get(site + page)
        browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        displays = browser.execute_script(
            "return [...document.querySelectorAll('td')].map(each => getComputedStyle(each).display)"
        )
        assert {*displays} <= {"table-cell"}
        colours = browser.execute_script(
            "return [document.body, document.querySelector('h1')].map((each, number) =>"
            "getComputedStyle(each)[number ? 'color' : 'backgroundColor'].match(/\\d+/g).reduce((a, b) => +a + +b))"
        )
        paper, ink = colours
        assert (paper > 600 > 300 > ink) if scheme == "light" else (paper < 150 < 500 < ink)
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [each["message"] for each in log if "400 (BAD REQUEST)" not in each["message"]] == []


def test_pages_work_without_scripts(site: str, browser: webdriver.Chrome) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(f"{site}/insight")
    browser.find_element(By.LINK_TEXT, "7 days").click()
    WebDriverWait(browser, 10).until(url_contains("since=2026-03-25"))
    browser.find_element(By.LINK_TEXT, "Owner").click()
    WebDriverWait(browser, 10).until(url_contains("by=owner"))
    assert "since=2026-03-25" in browser.current_url
    browser.find_element(By.NAME, "compare").click()
    browser.find_element(By.CSS_SELECTOR, "form [type=submit]").click()
    WebDriverWait(browser, 10).until(lambda _: "compare" not in browser.current_url)
    assert "by=owner" in browser.current_url and "since=2026-03-25" in browser.current_url
    summary = browser.find_element(By.TAG_NAME, "summary")
    summary.click()
    assert "25 Mar 2026" in browser.find_element(By.CSS_SELECTOR, ".referral-chart table").text


def test_pages_work_by_keyboard(site: str, browser: webdriver.Chrome) -> None:
    browser.get(f"{site}/insight")
    focus_by_tab(browser, "since")
    browser.switch_to.active_element.send_keys("03202026")
    focus_by_tab(browser, "per")
    browser.switch_to.active_element.send_keys("week")
    focus_by_tab(browser, "submit")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    WebDriverWait(browser, 10).until(url_contains("since=2026-03-20"))
    assert "per=week" in browser.current_url
    focus_by_tab(browser, "summary")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    table = browser.find_element(By.CSS_SELECTOR, ".referral-chart table")
    WebDriverWait(browser, 10).until(lambda _: table.is_displayed())
    assert "20 Mar 2026 to 22 Mar 2026" in table.text


def focus_by_tab(browser: webdriver.Chrome, wanted: str) -> None:
    """Press the tab key until an element has the focus, by its name, type or tag."""
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        element = browser.switch_to.active_element
        if wanted in (element.get_attribute("name"), element.get_attribute("type"), element.tag_name):
            return
    pytest.fail(f"The tab key does not lead to {wanted}.")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, which finds what keeps people from using a page."""
    npm = shutil.which("npm") or ""
    if not npm:
        unavailable("There is no npm: install Debian's npm.")
    folder = tmp_path_factory.mktemp("axe")
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        unavailable(f"npm cannot install axe-core: {done.stderr.strip() or done.stdout.strip()}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_nothing_keeps_people_from_using_the_pages(
    site: str, browser: webdriver.Chrome, axe: str, width: int, scheme: str
) -> None:
    set_screen(browser, width, scheme)
    for page in PAGES:
        browser.get(site + page)
        browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
        browser.execute_script(axe)
        found = browser.execute_async_script("axe.run().then(arguments[0])")
        assert found["passes"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []


def show_chart(host: Host, html: str) -> None:
    """Show a chart on the index, which begins with some HTML."""

    def page() -> str:
        return render_template_string(
            f"<!doctype html>{html}<link rel=stylesheet href=\"{{{{ url_for('referrals_dashboard.static', filename="
            "'dashboard.css') }}\"><body>{{ referral_chart(referral_stats(current_user)) }}"
        )

    host.app.view_functions["index"] = page


def test_chart_in_the_page_of_a_host_follows_its_colours(host: Host, site: str, browser: webdriver.Chrome) -> None:
    """A page that does not declare dark colours stays light, whatever the browser prefers."""
    show_chart(host, "<html>")
    set_screen(browser, 1280, "dark")
    browser.get(site)
    colour = browser.execute_script("return getComputedStyle(document.querySelector('.referral-chart')).color")
    assert sum(map(int, re.findall(r"\d+", colour))) < 300


def show_pages(host: Host, style: str) -> None:
    """Show the pages in a layout with a style sheet of the host."""
    layout = "<!doctype html><link rel=stylesheet href=/>{% block content %}{% endblock %}"
    host.app.jinja_loader = DictLoader({"referrals/stats.html": layout})
    host.app.view_functions["index"] = lambda: Response(style, mimetype="text/css")


def test_charts_keep_their_size_in_the_layout_of_a_host(host: Host, site: str, browser: webdriver.Chrome) -> None:
    """Bulma and Tailwind set the size of all pictures."""
    show_pages(host, "svg { display: block; width: auto; height: auto; }")
    browser.get(f"{site}/insight")
    page, chart, step, display = browser.execute_script("""
        const [page, ...others] = [".referral-page", ".referral-chart > svg", ".referral-funnel svg"].map(
            each => document.querySelector(each).getBoundingClientRect().width);
        return [page, ...others, getComputedStyle(document.querySelector(".referral-key")).display];
    """)
    assert (chart, step, display) == (page, page, "inline")


@pytest.mark.parametrize("size", [100, 200])
def test_large_texts_of_a_chart_are_beside_its_bars(
    host: Host, site: str, browser: webdriver.Chrome, size: int
) -> None:
    show_pages(host, f"html {{ font-size: {size}%; }}")
    browser.get(f"{site}/insight")
    names, plots, dates = browser.execute_script("""
        return [".referral-panel b", ".referral-grid", ".referral-date"].map(
            each => [...document.querySelectorAll(each)].map(each => each.getBoundingClientRect().toJSON()));
    """)
    assert all(name["bottom"] <= plot["top"] for name, plot in zip(names, plots, strict=True))
    assert all(date["top"] >= plots[-1]["bottom"] for date in dates)


def test_chart_has_the_colours_that_its_reader_enforces(host: Host, site: str, browser: webdriver.Chrome) -> None:
    show_chart(host, "<html>")
    features = [{"name": "forced-colors", "value": "active"}, {"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(site)
    fill, colour = browser.execute_script(
        "return [['.referral-date', 'fill'], ['body', 'color']].map(([element, name]) =>"
        "getComputedStyle(document.querySelector(element))[name])"
    )
    assert fill == colour


def test_chart_in_a_page_from_right_to_left_has_its_texts_in_place(
    host: Host, site: str, browser: webdriver.Chrome
) -> None:
    show_chart(host, "<html dir=rtl>")
    with host.app.app_context():
        owner = find_user(host, "staff")
    browser.get(site)
    check_chart(browser, stats_of(host, owner=owner))
    assert browser.execute_script("""
        const box = element => element.getBoundingClientRect();
        return [...document.querySelectorAll(".referral-panel")].every(name => {
            const scale = box(name.nextElementSibling.querySelector("text"));
            return box(name.lastElementChild).right < scale.left && scale.right <= box(name).right + 1;
        })
    """)
