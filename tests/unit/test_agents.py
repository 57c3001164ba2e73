"""Who is a person, by the user agent."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flask_referrals.web.agents import is_bot
from tests.host import BROWSER
from tests.pages import snippet


def published(group: str) -> list[str]:
    """Read a group of ``data/agents.txt``."""
    lines = (Path(__file__).parents[1] / "data" / "agents.txt").read_text(encoding="utf-8").splitlines()
    after = lines[lines.index(f"[{group}]") + 1 :]
    end = next((number for number, line in enumerate(after) if line.startswith("[") and line.endswith("]")), len(after))
    return [line for line in after[:end] if line and not line.startswith("#")]


PEOPLE = published("people")
PROGRAMS = published("programs")


def test_there_are_more_than_sixty_of_each() -> None:
    assert len(set(PEOPLE)) > 60
    assert len(set(PROGRAMS)) > 60
    assert not set(PEOPLE) & set(PROGRAMS)


@pytest.mark.parametrize("agent", PEOPLE)
def test_browser_is_a_person(agent: str) -> None:
    assert not is_bot(agent)


@pytest.mark.parametrize("agent", PROGRAMS)
def test_crawler_or_previewer_is_none(agent: str) -> None:
    assert is_bot(agent)


@pytest.mark.parametrize(
    "says",
    [
        "Newcomer/1.0 (+https://newcomer.example/)",
        "(www.newcomer.example)",
        "(hello@newcomer.example)",
        "(compatible; Newcomer/1.0)",
        "(KHTML, like Gecko; Newcomer) Safari/537.36",
        "Newbot/1.0",
        "Newbot",
        "Newcrawler",
        "Newspider",
        "Newscraper",
        "Newscanner",
        "Newchecker",
        "Newmonitor",
        "Newpreview",
        "Newfetcher",
        "Newdownloader",
        "NewHeadless",
        "Newproxy/1.0",
    ],
)
def test_newcomer_on_no_list_is_known_by_what_it_says(says: str) -> None:
    assert is_bot(f"{BROWSER} {says}")


@pytest.mark.parametrize(
    "says",
    [
        "FBLC/th_TH@calendar=gregorian",
        "en_US@currency=EUR;numbers=latn",
        "teashop-checkout/3.2",
        "CHECK24/2025.11",
        "Fetchly/2",
        "Scandinavia/1",
        "Previewed/1.0",
        "BOTIM/3.1",
    ],
)
def test_name_that_only_begins_like_a_word_of_programs_is_a_persons(says: str) -> None:
    assert not is_bot(f"{BROWSER} {says}")


def test_app_of_facebook_on_android_names_no_browser() -> None:
    assert not is_bot("[FBAN/FB4A;FBAV/492.0.0.66.70;FBPN/com.facebook.katana;FBLC/en_GB;FBDV/SM-A326B;FBSV/13;]")


@pytest.mark.parametrize("agent", ["", " ", "-", "Newcomer/1.0", "Mozilla/5.0 (compatible)"])
def test_agent_that_names_no_browser_is_no_person(agent: str) -> None:
    assert is_bot(agent)


def test_headless_browser_of_a_hosts_tests_is_a_person() -> None:
    """Started as docs/testing.rst says."""
    names: dict[str, Any] = {}
    exec(snippet("testing.rst", "python", "ChromeOptions"), names)
    (agent,) = [each[13:] for each in names["options"].arguments if each.startswith("--user-agent=")]
    assert not is_bot(agent)
    assert is_bot(agent.replace("Chrome/", "HeadlessChrome/"))


def run(code: str, **environment: str) -> str:
    """Run some code in a fresh interpreter, and return what it prints."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.mark.slow
def test_list_of_crawlers_is_loaded_at_the_first_click() -> None:
    code = f"""
import sys
import flask_referrals
from flask_referrals.web.agents import is_bot
print("crawleruseragents" in sys.modules)
is_bot({BROWSER!r})
print("crawleruseragents" in sys.modules)
"""
    assert run(code).split() == ["False", "True"]


@pytest.mark.slow
def test_locale_that_cannot_read_the_list_of_crawlers_breaks_no_click() -> None:
    code = (
        "from flask_referrals.web.agents import is_bot; "
        f"print(is_bot({BROWSER!r}), is_bot('Mozilla/5.0 Googlebot/2.1'))"
    )
    assert run(code, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") == "False True"
