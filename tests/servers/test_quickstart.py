"""The README's quickstart as a newcomer does it: paste the file and the commands, and click."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import visibility_of_element_located
from selenium.webdriver.support.wait import WebDriverWait

from tests.pages import snippet
from tests.servers import free_port
from tests.servers.chromium import open_browser
from tests.shop import ROOT, wait_for_address

pytestmark = pytest.mark.slow

README = "../README.rst"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of the quickstart. Instead of pip's line, it uses the packages that the tests use."""
    tools = Path(sys.executable).parent
    as_pasted = snippet(README, "text", "flask run")
    commands, count = re.subn("^pip install Flask-Referrals .*$", f"PATH={tools}:$PATH", as_pasted, flags=re.MULTILINE)
    assert count == 1
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "app.py").write_text(snippet(README, "python", "app = Flask"))
    own = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "FLASK_RUN_PORT": str(free_port())}
    log = tmp_path / "site.log"
    with log.open("w") as output:
        shell = subprocess.Popen(
            ["bash", "-euxc", commands],
            cwd=folder,
            env={**os.environ, **own},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield wait_for_address(shell, log)
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(timeout=10)


def sign_up(browser: webdriver.Chrome, name: str) -> str:
    """Send the form, and return the user's own link from the page that follows."""
    browser.find_element(By.NAME, "name").send_keys(f"{name}\n")
    link = WebDriverWait(browser, 10).until(visibility_of_element_located((By.TAG_NAME, "a")))
    return link.text


def test_friend_who_restarts_the_browser_is_credited(site: str, tmp_path: Path) -> None:
    with open_browser(tmp_path / "olga") as olga:
        olga.get(site)
        link = sign_up(olga, "Olga")
        with open_browser(tmp_path / "mia") as mia:
            mia.get(link)
            assert mia.current_url == f"{site}/"
        with open_browser(tmp_path / "mia") as mia:
            mia.get(site)
            sign_up(mia, "Mia")
        olga.refresh()
        items = [item.text for item in olga.find_elements(By.TAG_NAME, "li")]
        assert items == ["Mia: SIGNED_UP", "Mia: Clicked on the link"]
