"""Claiming a visitor's responses: all or nothing, at a fixed cost, whatever a receiver does."""

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from flask_login import login_user

from flask_referrals import Referral, ReferralResponse, user_linked_to_response
from tests.host import Host, sent_by_requests, statements


def click(host: Host, client: FlaskClient, number: int) -> None:
    """Follow a number of links."""
    with host.app.app_context():
        host.user("mia")
        codes = [Referral.create("/", label=str(each)).code for each in range(number)]
    for code in codes:
        client.get(f"/referrals/{code}")


def owners(host: Host) -> list[str | None]:
    with host.app.app_context():
        return [response.user and response.user.name for response in host.responses()]


def test_receiver_that_fails_on_the_fourth_of_ten_neither_undoes_nor_halves_it(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    announced: list[int] = []

    def fail_on_the_fourth(app: object, response: ReferralResponse) -> None:
        announced.append(response.id)
        if len(announced) == 4:
            raise RuntimeError("the host's fault")

    click(host, client, 10)
    with user_linked_to_response.connected_to(fail_on_the_fourth, host.app):
        assert client.post("/login", data={"name": "mia"}).status_code == 302
    assert owners(host) == ["mia"] * 10
    with host.app.app_context():
        assert announced == [response.id for response in host.responses()]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("number", [1, 30])
def test_cost_does_not_grow_with_the_rows(host: Host, client: FlaskClient, number: int) -> None:
    click(host, client, number)
    with host.app.app_context(), statements(host.db) as sent:
        client.post("/login", data={"name": "mia"})
    assert [each.split()[0] for each in sent if "referral_response" in each] == ["SELECT", "UPDATE"]
    assert owners(host) == ["mia"] * number


@pytest.mark.parametrize("number", [1, 30])
def test_rows_to_announce_are_found_and_loaded_by_one_statement_each(
    host: Host, client: FlaskClient, number: int
) -> None:
    announced: list[int] = []

    def note(app: object, response: ReferralResponse) -> None:
        announced.append(response.id)

    click(host, client, number)
    with user_linked_to_response.connected_to(note, host.app), sent_by_requests(host) as sent:
        client.post("/login", data={"name": "mia"})
    loaded = ["SELECT"] if number > 1 else []  # a single row is read when more than its key is asked for
    assert [each.split()[0] for each in sent if "referral_response" in each] == ["SELECT"] * 2 + ["UPDATE", *loaded]
    assert len(announced) == number


def test_claim_that_cannot_be_written_leaves_every_row_and_the_key(host: Host, client: FlaskClient) -> None:
    """What was not claimed at the login is claimed by the first action."""

    def refuse(conn: object, cursor: object, statement: str, *args: object) -> None:
        if statement.startswith("UPDATE referral_response"):
            raise sa.exc.OperationalError(statement, None, Exception("the disk is full"))

    @host.app.post("/in")
    def log_in_and_keep_the_session() -> str:
        login_user(host.db.session.scalars(sa.select(host.User)).one())
        return ""

    click(host, client, 10)
    with host.app.app_context():
        sa.event.listen(host.db.engine, "before_cursor_execute", refuse)
        assert client.post("/in").status_code == 200
        sa.event.remove(host.db.engine, "before_cursor_execute", refuse)
    assert owners(host) == [None] * 10
    assert client.post("/act/BOUGHT").text != ""
    assert owners(host) == ["mia"] * 11
