"""Targets at the edges of what a link may lead to."""

from collections.abc import Callable

import pytest
from markupsafe import Markup

from flask_referrals import redirects
from flask_referrals.redirects import parse_host_pattern, safe_location


@pytest.mark.parametrize("port", [1, 65535])
def test_first_and_last_port_can_be_listed(port: int) -> None:
    url = f"https://shop.example:{port}/"
    assert safe_location(url, hosts=[f"shop.example:{port}"]) == url


def test_listed_brackets_without_an_address_are_no_error() -> None:
    url = "https://[1::2::3]/"
    assert safe_location(url, hosts=["[1::2::3]"]) in {None, url}  # urllib refuses it since Python 3.11


def test_text_that_a_template_marked_as_safe_is_text() -> None:
    assert safe_location(Markup("/tea"), hosts=[]) == "/tea"


@pytest.mark.parametrize("entry", ["\u212aetchup.example", "tea.\u017fhop.example"])
def test_letter_that_only_looks_like_one_of_a_host_name_is_none(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        parse_host_pattern(entry)


def test_entry_of_the_list_is_read_once() -> None:
    assert parse_host_pattern("*.tea.example:8443") is parse_host_pattern("*.tea.example:8443")


@pytest.mark.parametrize(
    "encode",
    [
        lambda url: f"{url}a",
        lambda url: url[:-1] or "/",
        lambda url: f"/{url}",
        lambda url: "//evil.example/",
        lambda url: "https://evil.example/",
    ],
    ids=["longer each time", "shorter each time", "another slash each time", "no path", "another host"],
)
def test_target_is_refused_that_a_later_werkzeug_would_send_otherwise(
    monkeypatch: pytest.MonkeyPatch, encode: Callable[[str], str]
) -> None:
    monkeypatch.setattr(redirects, "_location", redirects._location.__wrapped__)  # what is known is not asked again
    assert safe_location("/tea", hosts=[]) == "/tea"
    monkeypatch.setattr(redirects, "iri_to_uri", encode)
    assert safe_location("/tea", hosts=[]) is None
