"""The short form of ``python -m tests.fuzz.targets``."""

from pathlib import Path

import pytest

from tests.fuzz.targets import listening, run, wrong_with


@pytest.mark.slow
def test_no_made_up_target_leads_away_and_none_is_an_error(tmp_path: Path) -> None:
    with listening(tmp_path) as site:
        tally = run(site, 2000, seed=1)
    assert tally.examples == []
    assert tally.faults() == 0
    assert tally.accepted > 400 and tally.refused > 400


@pytest.mark.parametrize(
    ("location", "secure", "wrong"),
    [
        ("/welcome", True, []),
        ("https://green.tea.example/", True, []),
        ("http://green.tea.example/", False, []),
        ("http://green.tea.example/", True, ["downgrades"]),
        ("//evil.example", False, ["escapes"]),
        ("/\t/evil.example", False, ["escapes"]),
        ("\\\\evil.example", False, ["escapes"]),
        ("https:evil.example", False, ["escapes"]),
        ("https://evil.example\\.tea.example/", True, ["escapes"]),
        ("https://user@shop.example/", True, ["escapes"]),
        ("https://shop.example:8443/", True, ["escapes"]),
        ("https://[", True, ["escapes"]),
        ("http://evil.example/", True, ["escapes", "downgrades"]),
        ("javascript:alert(1)", True, ["escapes", "downgrades"]),
    ],
)
def test_browser_is_seen_to_leave(location: str, secure: bool, wrong: list[str]) -> None:
    assert list(wrong_with(location, secure=secure)) == wrong
