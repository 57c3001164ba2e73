"""What a client writes into headers, addresses and forms, to be taken for somebody or somewhere else."""

import ipaddress

import pytest
from flask.testing import FlaskClient
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_referrals import Referral
from tests.conftest import MakeHost
from tests.host import Host

#: What proxies tell a client's address by, and what attackers write it into.
ADDRESS_HEADERS = [
    "X-Forwarded-For",
    "X-Real-IP",
    "Forwarded",
    "X-Forwarded",
    "Forwarded-For",
    "X-Client-IP",
    "Client-IP",
    "X-Cluster-Client-IP",
    "X-Originating-IP",
    "X-Remote-IP",
    "X-Remote-Addr",
    "X-ProxyUser-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "Fastly-Client-IP",
    "X-Azure-ClientIP",
]

#: Where a key could be read that nobody but the browser's session should bring.
ENTRY = "_referral"


@pytest.fixture
def database_url(shared_sqlite_url: str) -> str:
    """A header is read in the same way on every database; test_limits stores the longest."""
    return shared_sqlite_url


@pytest.fixture
def code(host: Host) -> str:
    """The code of a link to /welcome."""
    with host.app.app_context():
        return Referral.create("/welcome").code


def stored_addresses(host: Host) -> list[str | None]:
    with host.app.app_context():
        return [response.ip_address for response in host.responses()]


def test_no_header_alone_changes_the_address(host: Host, client: FlaskClient, code: str) -> None:
    for header in ADDRESS_HEADERS:
        for value in ("192.0.2.9", "for=192.0.2.9", "127.0.0.1, 192.0.2.9", "<b>192.0.2.9</b>"):
            assert client.get(f"/referrals/{code}", headers={header: value}).status_code == 302
    assert stored_addresses(host) == ["127.0.0.0"] * len(ADDRESS_HEADERS) * 4


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        ("192.0.2.9, 198.51.100.7", "198.51.100.0"),
        (", ".join(["192.0.2.9"] * 30 + ["198.51.100.7"]), "198.51.100.0"),
        ("192.0.2.9, 2001:db8:1:2::7", "2001:db8:1::"),
        ("198.51.100.7, <b>1.1.1.1</b>", None),
        ("198.51.100.7, unknown", None),
        ("198.51.100.7, 999.1.1.1", None),
        ("198.51.100.7, 192.0.2.9:8080", "192.0.2.0"),
        ("198.51.100.7, [2001:db8:1:2::7]:443", "2001:db8:1::"),
        ("198.51.100.7, [::ffff:192.0.2.9]:443", "192.0.2.0"),
        ("198.51.100.7,   fe80::7%eth0 ", "fe80::"),
        ("198.51.100.7, 192.0.2.9:http", None),
        ("198.51.100.7, [2001:db8::7", None),
        ("198.51.100.7, " + "1" * 5000, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_one_proxy_is_believed_its_own_hop_alone(
    host: Host, client: FlaskClient, code: str, chain: str, address: str | None
) -> None:
    host.app.wsgi_app = ProxyFix(host.app.wsgi_app)  # type: ignore[method-assign]
    answer = client.get(f"/referrals/{code}", headers={"X-Forwarded-For": chain, "X-Real-IP": "192.0.2.9"})
    assert answer.status_code == 302
    assert stored_addresses(host) == [address]
    if address is not None:
        ipaddress.ip_address(address)


def test_long_headers_are_cut_and_break_no_click(host: Host, client: FlaskClient, code: str) -> None:
    for length in (1023, 1024, 1025, 20_000):
        headers = {"Referer": f"https://{'a' * length}.example/", "User-Agent": "Mozilla/5.0 " + "x" * length}
        assert client.get(f"/referrals/{code}", headers=headers).status_code == 302
    with host.app.app_context():
        for response in host.responses():
            assert len(response.http_referrer or "") <= 1024
            assert len(response.user_agent or "") <= 255


def test_forwarded_host_does_not_change_the_address_of_a_link(new_host: MakeHost) -> None:
    host = new_host()
    headers = {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example", "X-Host": "evil.example"}
    with host.app.test_request_context(base_url="https://shop.example", headers=headers):
        assert Referral.create("/", code="alice").url == "https://shop.example/referrals/alice"


def test_key_planted_in_a_link_is_not_the_visitors(host: Host, client: FlaskClient, code: str) -> None:
    """Nobody is made to click, or to log in, under a key that somebody else knows."""
    client.get(f"/referrals/{code}")
    with client.session_transaction() as session:
        token = session[ENTRY]
    key = token.split(".")[0]
    with host.app.app_context():
        other = Referral.create("/other").code
        host.user("mia")

    victim = host.client()
    planted = {ENTRY: token, "session_key": key, "key": token, "session": token}
    headers = {ENTRY: token, "X-Session": token, "Authorization": f"Bearer {token}"}
    assert victim.get(f"/referrals/{other}", query_string=planted, headers=headers).status_code == 302
    with host.app.app_context():
        first, second = host.responses()
        assert first.session_key == key
        assert second.session_key not in (None, key)
    newcomer = host.client()
    for browser in (victim, newcomer):
        browser.post("/login", query_string=planted, data={"name": "mia", **planted}, headers=headers)
    with host.app.app_context():
        assert [response.user and response.user.name for response in host.responses()] == [None, "mia"]
    assert client.post("/act/BOUGHT").text == code
