"""What goes wrong is one line of the log, whatever the client wrote."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from flask import request
from flask.testing import FlaskClient
from sqlalchemy import event

from flask_referrals import Referral, ReferralResponse, user_linked_to_response
from tests.conftest import MakeHost
from tests.host import BROWSER, Host

#: What ends a line, or steers a terminal: ESC, CR, VT, FF, FS, NEL, the separators of lines and paragraphs, and LF.
BREAKS = "\x1b[2J\r\x0b\x0c\x1c\x85\u2028\u2029\n"
FORGED = f"{BREAKS}CRITICAL forged"
#: The same as a server hands a header on: one character for each byte.
HEADER = FORGED.encode().decode("latin-1")


@pytest.fixture
def host(new_host: MakeHost) -> Host:
    """The site, which keeps referrers whole."""
    return new_host(REFERRALS_REFERRER_STORAGE="full", REFERRALS_CAMPAIGN_PARAMS=("sub",))


@pytest.fixture
def code(host: Host) -> str:
    """The code of a link with a label of several lines."""
    with host.app.app_context():
        return Referral.create("/", host.user("olga"), FORGED).code


@contextmanager
def refused_writes(host: Host) -> Iterator[None]:
    """Let the database refuse every row of the extension with an error that quotes it."""

    def refuse(conn: Any, cursor: Any, statement: str, parameters: Any, *args: Any) -> None:
        if statement.startswith(("INSERT INTO referral", "UPDATE referral")):
            cause = Exception(f"refused: {FORGED} {parameters}")
            raise sa.exc.OperationalError(statement, parameters, cause)

    with host.app.app_context():
        engine = host.db.engine
    event.listen(engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", refuse)


def click(client: FlaskClient, path: str) -> int:
    """Ask for a page as no browser does."""
    headers = {
        "HTTP_USER_AGENT": f"{BROWSER} {HEADER}",
        "HTTP_REFERER": f"https://blog.example/{HEADER}",
        "HTTP_X_FORWARDED_FOR": HEADER,
        "HTTP_X_TOKEN": HEADER,
    }
    answer = client.get(path, query_string={"sub": FORGED, "redirect_to": f"/{FORGED}"}, environ_overrides=headers)
    return answer.status_code


def lines(record: logging.LogRecord) -> list[str]:
    """Return the lines of a record as a handler writes it."""
    return logging.Formatter("%(levelname)s %(message)s").format(record).splitlines()


def assert_one_line_each(records: list[logging.LogRecord], number: int) -> None:
    assert len(records) == number
    for record in records:
        (line,) = lines(record)
        assert line.isprintable()


def test_codes_that_break_lines_are_not_logged(
    host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    for character in {*BREAKS, "\0", "\x7f", "\u202e"}:
        assert client.get("/referrals/", query_string={"ref": character}).status_code == 302
        assert client.get(f"/referrals/a{character}b").status_code == 404
    assert caplog.records == []


def test_click_that_is_refused(host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture) -> None:
    with refused_writes(host):
        assert click(client, f"/referrals/{code}") == 302
    assert_one_line_each(caplog.records, 1)


def test_link_that_cannot_be_read(host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture) -> None:
    with host.app.app_context():
        host.db.drop_all()
    assert click(client, f"/referrals/{code}") == 302
    assert_one_line_each(caplog.records, 1)


@pytest.mark.usefixtures("code")
def test_link_that_cannot_be_made(host: Host, client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    client.post("/login", data={"name": "olga"})
    with refused_writes(host):
        answer = client.post("/referrals/", json={"redirect_to": "/other", "label": FORGED})
    assert answer.status_code == 503
    assert_one_line_each(caplog.records, 1)


def test_history_that_cannot_be_joined(
    host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with host.app.app_context():
        host.user("mia")
    assert click(client, f"/referrals/{code}") == 302
    with refused_writes(host):
        assert client.post("/login", data={"name": "mia"}).status_code == 302
    assert_one_line_each(caplog.records, 1)


def test_values_that_the_database_itself_repeats(
    host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of a server's own quotes the values that it refuses, on PostgreSQL on lines of its own."""
    with host.app.app_context():
        engine = host.db.engine
        if engine.dialect.name == "sqlite":
            pytest.skip("it repeats no values")
        quoted = engine.dialect.identifier_preparer.quote("user_agent")
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f"ALTER TABLE referral_response ADD CONSTRAINT short CHECK (length({quoted}) < 9)"
            )
    assert click(client, f"/referrals/{code}") == 302
    assert_one_line_each(caplog.records, 1)


def fail(*args: object, **options: object) -> None:
    """Be a callable of the host's that quotes what the client sent."""
    raise RuntimeError(f"bad token {request.headers['X-Token'] if request else ''!r}")


@pytest.mark.parametrize("hook", ["user_loader", "classifier", "consent", "client_ip"])
def test_message_about_a_callable_of_the_hosts_is_one_line(
    host: Host, client: FlaskClient, code: str, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes with the traceback, in which the host's code says what it says."""
    getattr(host.referrals, hook)(fail)
    assert click(client, f"/referrals/{code}") == 302
    assert len(caplog.records) == 1
    assert len(caplog.records[0].getMessage().splitlines()) == 1
    for line in lines(caplog.records[0]):
        assert line.isprintable() and not line.startswith("CRITICAL")


def test_message_about_a_receiver_is_one_line(
    host: Host, client: FlaskClient, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    def receive(app: object, response: ReferralResponse) -> None:
        raise RuntimeError(f"no mail for {response.referral.label!r}")

    with host.app.app_context():
        host.user("mia")
    click(client, f"/referrals/{code}")
    with user_linked_to_response.connected_to(receive, host.app):
        client.post("/login", data={"name": "mia"})
    assert len(caplog.records) == 1
    assert len(caplog.records[0].getMessage().splitlines()) == 1
    for line in lines(caplog.records[0]):
        assert line.isprintable() and not line.startswith("CRITICAL")
