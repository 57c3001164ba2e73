"""The signals."""

from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from flask_referrals import Referral, ReferralResponse, referral_created, response_recorded, user_linked_to_response
from tests.host import Host


def test_signals_come_once_the_data_is_durable(host: Host, client: FlaskClient) -> None:
    seen: list[str] = []

    def stored(model: Any, key: int) -> bool:
        with host.db.engine.connect() as connection:  # what another connection sees is durable
            table = sa.inspect(model).local_table
            return connection.scalar(sa.select(table.c.id).where(table.c.id == key)) is not None

    def on_created(app: Flask, referral: Referral) -> None:
        assert app is host.app and stored(Referral, referral.id)
        seen.append("created")

    def on_recorded(app: Flask, response: ReferralResponse) -> None:
        assert app is host.app and stored(ReferralResponse, response.id)
        seen.append(response.action)

    def on_linked(app: Flask, response: ReferralResponse) -> None:
        assert app is host.app and response.user.name == "mia"
        seen.append(f"linked {response.action}")

    with (
        referral_created.connected_to(on_created, host.app),
        response_recorded.connected_to(on_recorded, host.app),
        user_linked_to_response.connected_to(on_linked, host.app),
    ):
        with host.app.app_context():
            code = Referral.create("/").code
            Referral.create("/")
        client.get(f"/referrals/{code}")
        client.post("/signup", data={"name": "mia"})
    assert seen == ["created", "RESPONDED", "linked RESPONDED", "SIGNED_UP"]


@pytest.mark.usefixtures("ctx")
class TestHostTransaction:
    """With commit=False the host's transaction decides."""

    @pytest.fixture
    def seen(self, host: Host) -> Any:
        seen: list[str] = []

        def on_created(app: Flask, referral: Referral) -> None:
            seen.append(referral.redirect_to)

        with referral_created.connected_to(on_created, host.app):
            yield seen

    def test_signal_waits_for_the_commit(self, host: Host, seen: list[str]) -> None:
        Referral.create("/", commit=False)
        assert seen == []
        host.db.session.commit()
        assert seen == ["/"]

    def test_rolled_back_row_is_never_announced(self, host: Host, seen: list[str]) -> None:
        Referral.create("/", commit=False)
        host.db.session.rollback()
        Referral.create("/b")
        assert seen == ["/b"]

    def test_row_rolled_back_with_the_hosts_savepoint_is_not_announced(self, host: Host, seen: list[str]) -> None:
        Referral.create("/a", commit=False)
        savepoint = host.db.session.begin_nested()
        Referral.create("/b", commit=False)
        savepoint.rollback()
        host.db.session.commit()
        assert seen == ["/a"]

    def test_row_of_a_released_savepoint_is_announced_with_the_commit(self, host: Host, seen: list[str]) -> None:
        with host.db.session.begin_nested():
            Referral.create("/", commit=False)
        assert seen == []
        host.db.session.commit()
        assert seen == ["/"]


def test_failing_receiver_is_logged_and_stops_no_other(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def fail(app: Flask, response: ReferralResponse) -> None:
        raise RuntimeError("the host's fault")

    def note(app: Flask, response: ReferralResponse) -> None:
        seen.append(response.action)

    with host.app.app_context():
        code = Referral.create("/").code
    with response_recorded.connected_to(fail, host.app), response_recorded.connected_to(note, host.app):
        assert client.get(f"/referrals/{code}").status_code == 302
    assert seen == ["RESPONDED"]
    assert len(caplog.records) == 1
    assert "response-recorded" in caplog.text


def test_receiver_may_use_the_database(host: Host, client: FlaskClient) -> None:
    def thank(app: Flask, response: ReferralResponse) -> None:
        host.db.session.add(host.Product(name=f"thanks for {response.action}"))
        host.db.session.commit()

    with host.app.app_context():
        code = Referral.create("/").code
    with response_recorded.connected_to(thank, host.app):
        client.get(f"/referrals/{code}")
        client.post("/act/BOUGHT")
    with host.app.app_context():
        names = host.db.session.scalars(sa.select(host.Product.name)).all()
    assert sorted(names) == ["thanks for BOUGHT", "thanks for RESPONDED"]
