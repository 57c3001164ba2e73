"""Which codes a text stands for."""

import pytest
from flask import Flask

from flask_referrals.settings import Settings
from flask_referrals.web.codes import find_codes, read_values

SETTINGS = Settings.from_config({**Flask("host").config, "SECRET_KEY": "s", "REFERRALS_QUERY_PARAM": ["ref", "via"]})

#: Signs of ASCII and of other scripts, escaped characters, arguments without "?", and words.
GLUED = """ . , ) ). > " ' ! ? : ; ] * \\ = ... \u2026 \u3002 \u201d \u5feb %20 %0A %E2%80%8B &gt; #top
    ?x=1 &x=1 .?x=1 &amp;x=1 """

NO_CODES = """ . .env tea.html not.a.code n/a tea@shop.example th\xe9 the\u0301 https://shop.example https://shop.example/
    https://shop.example/tea.html """

LINKS = """ https://shop.example/referrals/tea http://localhost:5000/referrals/tea/ shop.example/referrals/tea?ref=cup
    /referrals/tea shop.example/referrals/tea/) https://shop.example/referrals/tea#/app/x
    <https://shop.example/shop/referrals/tea#top>. https%3A%2F%2Fshop.example%2Freferrals%2Ftea
    https://shop.example/?ref=tea&x=1 shop.example?x=1&ref=tea https://shop.example/?x=1&amp;ref=tea
    https://go.example/tea?utm_source=x """


@pytest.mark.parametrize("before", ["", " ", '"', "<", "(", "[", "*", "\u201c", "\u200b"])
@pytest.mark.parametrize("after", ["", " ", "\n", "\xa0", " (new)", *GLUED.split()])
def test_what_is_glued_to_a_code_is_cut(before: str, after: str) -> None:
    assert find_codes(f"{before}Tea-1{after}", SETTINGS) == ["Tea-1"]


@pytest.mark.parametrize("text", ["_tea_", "-tea", "tea-."])
def test_dash_and_underscore_may_be_glued_or_part_of_the_code(text: str) -> None:
    assert find_codes(text, SETTINGS) == [text.rstrip("."), "tea"]


def test_fullwidth_letters_are_letters() -> None:
    assert find_codes("\uff34\uff25\uff21", SETTINGS) == ["TEA"]


@pytest.mark.parametrize("text", ["", " ", "x" * 65, "x" * 999, *NO_CODES.split()])
def test_other_text_has_no_code(text: str) -> None:
    assert find_codes(text, SETTINGS) == []


@pytest.mark.parametrize("link", ["Look: https://shop.example/referrals/tea !", *LINKS.split()])
def test_whole_link_stands_for_its_code(link: str) -> None:
    assert find_codes(link, SETTINGS) == ["tea"]


def test_query_of_a_page_goes_before_its_name() -> None:
    assert find_codes("https://shop.example/cups?via=tea", SETTINGS) == ["tea", "cups"]


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("via=b&ref=a&ref=c", ["a", "c", "b"]),
        ("x=1&amp;ref=a", ["a"]),
        ("utm_source=x?ref=a", ["a"]),
        ("ref=a%20b+c", ["a b c"]),
        ("x=%E9&ref=a", ["a"]),
        ("reference=a&x", []),
        ("&".join(["ref=a"] * 99), ["a"] * 5),
    ],
)
def test_values_of_a_query(query: str, values: list[str]) -> None:
    assert read_values(query, SETTINGS.query_param) == values
