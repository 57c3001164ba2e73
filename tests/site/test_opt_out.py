"""Visitors who ask not to be tracked: ``REFERRALS_RESPECT_GPC``; and what is left of an address that is hashed."""

from datetime import datetime, timezone

import pytest
import time_machine
from flask.testing import FlaskClient

from flask_referrals import Referral, ReferralResponse
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import Host, follow

SIGNALS = [{"Sec-GPC": "1"}, {"DNT": "1"}]


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    return new_host(REFERRALS_RESPECT_GPC=True)


@pytest.fixture
def code(host: Host) -> str:
    with host.app.app_context():
        return Referral.create("/").code


def rows(host: Host) -> list[ReferralResponse]:
    with host.app.app_context():
        return host.responses()


@pytest.mark.parametrize("headers", SIGNALS)
def test_click_counts_without_saying_whose_it_is(
    host: Host, client: FlaskClient, code: str, headers: dict[str, str]
) -> None:
    answer = client.get(f"/referrals/{code}", headers={"Referer": "https://blog.example/", **headers})
    assert answer.status_code == 302
    assert "Set-Cookie" not in answer.headers
    (row,) = rows(host)
    assert row.ignored is None
    assert {row.session_key, row.user_id, row.ip_address, row.http_referrer, row.user_agent} == {None}


@pytest.mark.parametrize("headers", SIGNALS)
def test_member_is_not_named_either(host: Host, client: FlaskClient, code: str, headers: dict[str, str]) -> None:
    client.post("/signup", data={"name": "mia"})
    client.get(f"/referrals/{code}", headers=headers)
    (row,) = rows(host)
    assert row.user_id is None


def test_owners_own_click_does_not_count_all_the_same(host: Host, client: FlaskClient) -> None:
    client.post("/signup", data={"name": "mia"})
    with host.app.app_context():
        code = Referral.create("/", user=host.db.session.scalar(host.db.select(host.User))).code
    client.get(f"/referrals/{code}", headers={"Sec-GPC": "1"})
    assert [row.ignored for row in rows(host)] == ["self"]


def test_key_of_an_earlier_click_is_dropped(host: Host, client: FlaskClient) -> None:
    follow(host, client)
    assert client.post("/act/BOUGHT", headers={"Sec-GPC": "1"}).text == ""
    assert client.post("/act/BOUGHT").text == ""


def test_member_who_opts_out_later_is_credited_but_not_described(host: Host, client: FlaskClient) -> None:
    follow(host, client)
    client.post("/signup", data={"name": "mia"})
    assert client.post("/act/BOUGHT", headers={"Sec-GPC": "1"}).text != ""
    assert [row.ip_address for row in rows(host)] == ["127.0.0.0", "127.0.0.0", None]


@on_sqlite
@pytest.mark.parametrize("headers", [{}, {"Sec-GPC": "0"}, {"DNT": "0"}, {"Sec-GPC": "yes"}])
def test_others_are_recognised(client: FlaskClient, code: str, headers: dict[str, str]) -> None:
    assert "Set-Cookie" in client.get(f"/referrals/{code}", headers=headers).headers


@pytest.mark.parametrize("headers", SIGNALS)
def test_it_is_off_by_default(new_host: MakeHost, headers: dict[str, str]) -> None:
    host = new_host()
    with host.app.app_context():
        code = Referral.create("/").code
    assert "Set-Cookie" in host.client().get(f"/referrals/{code}", headers=headers).headers


class TestHashedAddress:
    """``REFERRALS_IP_STORAGE = "hashed"``: the same address has the same hash on one day only."""

    @pytest.fixture
    def host(self, new_host: MakeHost) -> Host:
        return new_host(REFERRALS_IP_STORAGE="hashed")

    def stored(self, host: Host, address: str, day: int, secret: str = "one secret") -> str:
        host.app.config["SECRET_KEY"] = secret
        with time_machine.travel(datetime(2026, 5, day, 12, tzinfo=timezone.utc), tick=False):
            with host.app.app_context():
                code = Referral.create("/").code
            host.client().get(f"/referrals/{code}", environ_base={"REMOTE_ADDR": address})
            stored = rows(host)[-1].ip_address
        assert stored is not None
        return stored

    def test_same_day_gives_the_same_hash(self, host: Host) -> None:
        first = self.stored(host, "192.0.2.1", day=1)
        assert "192.0" not in first
        assert len(first) <= 45
        assert self.stored(host, "192.0.2.1", day=1) == first

    def test_another_address_day_or_secret_gives_another(self, host: Host) -> None:
        hashes = {
            self.stored(host, "192.0.2.1", day=1),
            self.stored(host, "192.0.2.2", day=1),
            self.stored(host, "2001:db8::1", day=1),
            self.stored(host, "192.0.2.1", day=2),
            self.stored(host, "192.0.2.1", day=2, secret="another"),
        }
        assert len(hashes) == 5
