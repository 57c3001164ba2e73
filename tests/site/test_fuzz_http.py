"""The short form of ``python -m tests.fuzz.http``, and what it has found."""

from collections.abc import Iterator

import pytest

from tests.fuzz.http import Sent, Sites, new_sites
from tests.host import BROWSER


@pytest.fixture(scope="module")
def sites(database_url: str) -> Iterator[Sites]:
    """The two sites."""
    with new_sites(database_url) as sites:
        yield sites


def test_no_request_is_answered_with_a_server_error(sites: Sites) -> None:
    outcome = sites.run(300)[0]
    assert outcome.statuses.total() >= 300
    assert {200, 302, 400, 404, 503} <= set(outcome.statuses)
    assert dict(outcome.faults) == {}


@pytest.mark.parametrize("site", [0, 1])
@pytest.mark.parametrize("path", ["/referrals/good", "/referrals/", "/"])
def test_byte_of_a_query_that_is_no_utf8_does_no_harm(sites: Sites, site: int, path: str) -> None:
    """Browsers send none, but servers let it through."""
    environ = {
        "PATH_INFO": path,
        "QUERY_STRING": "utm_source=\xff&redirect_to=/tea&ref=good",
        "HTTP_USER_AGENT": BROWSER,
    }
    outcome = sites.send(Sent(site, environ, b""))
    assert dict(outcome.faults) == {}
    assert list(outcome.statuses) == [200 if path == "/" else 302]


@pytest.mark.parametrize("zone", ["eth0", "x" * 100, "\0", "<b>"])
def test_zone_of_an_address_does_no_harm(sites: Sites, zone: str) -> None:
    environ = {"PATH_INFO": "/referrals/good", "HTTP_USER_AGENT": BROWSER, "HTTP_X_EDGE_ADDRESS": f"fe80::1%{zone}"}
    assert dict(sites.send(Sent(1, environ, b"")).faults) == {}
    host = sites.hosts[1]
    with host.app.app_context():
        assert host.responses()[-1].ip_address == "fe80::1"
