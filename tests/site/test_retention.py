"""``flask referrals purge`` and ``anonymize``: old rows are deleted, or lose their personal data."""

import io
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy.orm import Mapped, mapped_column

from flask_referrals import Referral, ReferralMixin, ReferralResponseMixin, Referrals, privacy
from flask_referrals.cli.output import progress_bar
from flask_referrals.state import current_state
from tests.host import BROWSER, Host, follow, get_one, in_parallel, make_host, statements

MONTH = timedelta(days=30)
PERSONAL = ("user_id", "session_key", "ip_address", "http_referrer", "user_agent", "key")

Change = Callable[..., int]


def run(host: Host, *arguments: str, **options: Any) -> Result:
    return host.app.test_cli_runner().invoke(args=["referrals", *arguments], catch_exceptions=False, **options)


def purge(host: Host) -> str:
    return run(host, "purge", "--older-than", "30", "--yes").output


def anonymize(host: Host) -> str:
    return run(host, "anonymize", "--older-than", "30").output


def age(host: Host, *actions: str, days: float = 31) -> None:
    """Let the responses with these actions be some days old."""
    model = host.referrals.ReferralResponse
    created_at = datetime.now(timezone.utc) - timedelta(days=days)
    host.db.session.execute(sa.update(model).where(model.action.in_(actions)).values(created_at=created_at))
    host.db.session.commit()


def fill(host: Host, ages: Sequence[float]) -> None:
    """Store clicks of an age in days each, in this order."""
    referral = Referral.create("/")
    now = datetime.now(timezone.utc)
    table = host.db.metadata.tables["referral_response"]
    row = {"referral_id": referral.id, "action": "RESPONDED", "user_agent": BROWSER, "ip_address": "192.0.2.0"}
    host.db.session.execute(table.insert(), [{**row, "created_at": now - timedelta(days=days)} for days in ages])
    host.db.session.commit()


@contextmanager
def failing(host: Host, word: str, number: int) -> Iterator[None]:
    """Let the database fail at the n-th statement that begins with a word."""
    seen = 0

    def fail(conn: Any, cursor: Any, statement: str, parameters: Any, *args: Any) -> None:
        nonlocal seen
        seen += statement.startswith(word)
        if seen == number:
            raise sa.exc.OperationalError(statement, parameters, Exception("the server went away"))

    event.listen(host.db.engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(host.db.engine, "before_cursor_execute", fail)


def test_purge_deletes_what_is_older(host: Host) -> None:
    client = host.client()
    code = follow(host, client)
    client.post("/act/OLD")
    client.post("/act/YOUNG")
    with host.app.app_context():
        age(host, "RESPONDED", "OLD", days=30.01)
        age(host, "YOUNG", days=29.99)
        assert purge(host) == "Deleted: 2 responses.\n"
        assert [response.action for response in host.responses()] == ["YOUNG"]
        assert purge(host) == "Deleted: 0 responses.\n"
    assert client.get(f"/referrals/{code}").status_code == 302


def test_purge_asks_first(host: Host) -> None:
    with host.app.app_context():
        fill(host, [31])
        for answer in ("n\n", ""):
            assert run(host, "purge", "--older-than", "30", input=answer).exit_code == 1
            assert len(host.responses()) == 1
        assert run(host, "purge", "--older-than", "30", input="y\n").exit_code == 0
        assert host.responses() == []


@pytest.mark.parametrize(
    ("command", "options"),
    [("anonymize", "--older-than 30"), ("purge", "--older-than 30 --yes"), ("forget-user", "1 --yes")],
)
def test_what_stays_and_what_goes(host: Host, command: str, options: str) -> None:
    """The table in docs/privacy.rst and the help say so."""
    client = host.client()
    code = follow(host, client)
    client.post("/signup", data={"name": "mia"})
    client.post("/act/BOUGHT", data={"key": "order 1"})
    with host.app.app_context():
        mia = get_one(host.db, host.User, 1)
        assert Referral.referrer_of(mia).code == code  # type: ignore[union-attr]
        age(host, "RESPONDED", "SIGNED_UP", "BOUGHT")
        assert run(host, command, *options.split()).exit_code == 0
        referral = host.db.session.scalars(sa.select(host.referrals.Referral)).one()
        is_purged = command == "purge"
        assert (len(host.responses()), referral.response_count) == ((0, 0) if is_purged else (3, 1))
        assert Referral.referrer_of(get_one(host.db, host.User, 1)) is None
        again = referral.respond("BOUGHT", key="order 1")
        assert len(host.responses()) == (1 if is_purged else 4) and again.key == "order 1"


@pytest.mark.parametrize("command", ["purge", "anonymize"])
@pytest.mark.parametrize("days", ["0", "-1", "1.5", "x", "99999999999"])
def test_days_are_a_number_above_zero(sqlite_url: str, command: str, days: str) -> None:
    result = run(make_host(sqlite_url), command, "--older-than", days)
    assert result.exit_code == 2
    assert "--older-than" in result.output


def record_everything(host: Host) -> None:
    """Record a click, and what a user does then, with everything that a response may have."""

    @host.app.post("/buy")
    def buy() -> str:
        Referral.record_response("BOUGHT", key="order 7", value=Decimal("8.50"), currency="GBP")
        Referral.record_response("JOINED", once=True)
        refunded = Referral.record_response("REFUNDED")
        assert refunded is not None
        refunded.void("refund 7")
        return ""

    with host.app.app_context():
        host.user("mia")
        code = Referral.create("/", user=host.user("olga")).code
    client = host.client()
    client.get(f"/referrals/{code}?utm_source=mail", headers={"Referer": "https://blog.example/"})
    client.post("/login", data={"name": "mia"})
    client.post("/buy")


def everything(host: Host, *, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    columns = host.db.metadata.tables["referral_response"].columns.keys()
    return [{name: getattr(each, name) for name in columns if name not in without} for each in host.responses()]


def test_anonymized_responses_name_no_user(host: Host) -> None:
    record_everything(host)
    derived = (*PERSONAL, "identity")  # a digest of the key
    with host.app.app_context():
        before = everything(host, without=derived)
        age(host, "RESPONDED", "BOUGHT", "JOINED", "REFUNDED", "VOIDED")
        aged = everything(host, without=("created_at", *derived))
        totals = host.referrals.stats().totals
        mia = host.db.session.scalars(sa.select(host.User).filter_by(name="mia")).one()
        assert Referral.referrer_of(mia) is not None
        assert anonymize(host) == "Anonymized: 5 responses.\n"

        refunded, voided = host.responses()[-2:]
        told = [{name: row[name] for name in derived if row[name]} for row in everything(host)]
        assert told == [{}, {}, {}, {}, {"key": f"response:{refunded.id}", "identity": voided.identity}]
        assert refunded.void("again") is voided
        assert everything(host, without=("created_at", *derived)) == aged
        assert before[0]["params"] == {"utm_source": "mail"}
        assert host.referrals.stats().totals == totals
        assert {action: total.count for action, total in totals.items()} == {"RESPONDED": 1, "BOUGHT": 1, "JOINED": 1}
        assert Referral.referrer_of(mia) is None
        assert anonymize(host) == "Anonymized: 0 responses.\n"


@pytest.mark.parametrize("name", PERSONAL)
def test_each_of_it_alone_is_enough(host: Host, name: str) -> None:
    """The user may be gone already, and an action recorded by a worker has no address."""
    with host.app.app_context():
        value = host.user("mia").id if name == "user_id" else "192.0.2.0"
        old = datetime.now(timezone.utc) - 2 * MONTH
        host.add(
            host.referrals.ReferralResponse(referral=Referral.create("/"), action="A", created_at=old, **{name: value})
        )
        assert anonymize(host) == "Anonymized: 1 responses.\n"
        (response,) = host.responses()
        assert getattr(response, name) is None


def test_young_responses_are_left_as_they_are(host: Host) -> None:
    record_everything(host)
    with host.app.app_context():
        age(host, "BOUGHT", "REFUNDED", days=29.99)
        before = everything(host)
        assert anonymize(host) == "Anonymized: 0 responses.\n"
        assert everything(host) == before


@pytest.mark.parametrize("change", [privacy.purge, privacy.anonymize])
def test_age_need_not_follow_the_ids(host: Host, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Imported rows, and those of a cluster, come in any order."""
    monkeypatch.setattr(privacy, "_BATCH", 3)
    with host.app.app_context():
        fill(host, [31, 1, 31, 1, 1, 1, 1, 31, 1, 31])
        assert change(current_state(), MONTH) == 4
        kept = [response for response in host.responses() if response.user_agent]
        assert len(kept) == 6
        assert all(response.created_at > datetime.now(timezone.utc) - MONTH for response in kept)
        assert change(current_state(), MONTH) == 0


@pytest.mark.parametrize(("change", "word"), [(privacy.purge, "DELETE"), (privacy.anonymize, "UPDATE")])
def test_interrupted_run_is_run_again(host: Host, monkeypatch: pytest.MonkeyPatch, change: Change, word: str) -> None:
    monkeypatch.setattr(privacy, "_BATCH", 3)

    def left() -> int:
        return sum(response.user_agent is not None for response in host.responses())

    with host.app.app_context():
        fill(host, [31] * 11)
        with failing(host, word, 3), pytest.raises(sa.exc.OperationalError):
            change(current_state(), MONTH)
        assert left() == 5
        assert change(current_state(), MONTH) == 5
        assert left() == 0
        assert change(current_state(), MONTH) == 0


@pytest.mark.usefixtures("usual_collector")
@pytest.mark.parametrize("change", [privacy.purge, privacy.anonymize])
def test_page_costs_two_statements_and_memory_stays_the_same(host: Host, change: Change) -> None:
    peaks = []
    with host.app.app_context():
        for pages in (2, 8):
            number = pages * 1000 + 500
            fill(host, [31] * number)
            with statements(host.db) as sent:
                tracemalloc.start()
                assert change(current_state(), MONTH) == number
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
            words = [statement.split()[0] for statement in sent]
            assert words.count("SELECT") - 1 == words.count("DELETE") + words.count("UPDATE") <= 2 * (pages + 1)
            assert words.count("COMMIT") <= 2 * (pages + 1) + 1
    assert peaks[1] - peaks[0] < 100_000  # for 6,000 rows more


def test_site_runs_on_meanwhile(host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(privacy, "_BATCH", 20)
    with host.app.app_context():
        fill(host, [31] * 1000)
        code = Referral.create("/new").code

    def click() -> None:
        for _ in range(10):
            assert host.client().get(f"/referrals/{code}").status_code == 302

    def change() -> None:
        with host.app.app_context():
            assert (privacy.anonymize(current_state(), MONTH), privacy.purge(current_state(), MONTH)) == (1000, 1000)

    in_parallel([click, click, change])
    assert caplog.records == []
    with host.app.app_context():
        assert len(host.responses()) == 20
        assert all(response.session_key for response in host.responses())


@pytest.mark.parametrize("change", [privacy.purge, privacy.anonymize])
def test_empty_table(host: Host, ctx: None, change: Change) -> None:
    assert (change(current_state(), MONTH), privacy.id_span(current_state())) == (0, 0)


@pytest.mark.parametrize("change", [privacy.purge, privacy.anonymize])
def test_bar_on_a_terminal_comes_to_its_end(
    host: Host, ctx: None, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(privacy, "_BATCH", 3)
    monkeypatch.setattr(sys, "stderr", terminal)
    fill(host, [31, 1] * 5)
    with progress_bar(lambda: privacy.id_span(current_state())) as bar:
        change(current_state(), MONTH, progress=bar)
    assert "100%" in terminal.getvalue()


def test_rows_that_refer_to_responses_are_named(database_url: str) -> None:
    """A host's own table, whose foreign key does not say what is to become of its rows."""
    host = make_host(database_url, declare=lambda db, User: None)
    db = host.db
    notes = db.Table(
        "note", db.Column("id", sa.Integer, primary_key=True), db.Column("on", sa.ForeignKey("referral_response.id"))
    )
    with host.app.app_context():
        if db.engine.dialect.name == "sqlite":
            event.listen(db.engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
        db.create_all()
        try:
            fill(host, [31])
            db.session.execute(notes.insert().values({"on": 1}))
            db.session.commit()
            result = run(host, "purge", "--older-than", "30", "--yes")
            assert result.exit_code == 1
            assert result.output.startswith("Error: Rows of another table refer to some of these responses")
            assert len(host.responses()) == 1
            assert anonymize(host) == "Anonymized: 1 responses.\n"
        finally:
            db.session.remove()
            db.drop_all()
            db.engine.dispose()


def test_models_of_the_hosts_own(database_url: str) -> None:
    """In tables, and where no index is on them columns, with other names."""
    app = Flask(__name__)
    app.config.from_mapping(SECRET_KEY="a test's secret", SQLALCHEMY_DATABASE_URI=database_url)
    db = SQLAlchemy(app)

    class Invite(ReferralMixin, db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "invite"

    class Answer(ReferralResponseMixin, db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "answer"
        __referral_model__ = Invite
        ip_address: Mapped[str | None] = mapped_column("address", sa.String(45))
        score: Mapped[int | None]

    Referrals(app)
    with app.app_context():
        db.create_all()
        try:
            long_ago = datetime.now(timezone.utc) - 2 * MONTH
            values = {"action": "CALLED", "ip_address": "192.0.2.0", "created_at": long_ago, "score": 3}
            db.session.add(Answer(referral=Invite.create("/"), **values))
            db.session.commit()
            assert (privacy.anonymize(current_state(), MONTH), privacy.anonymize(current_state(), MONTH)) == (1, 0)
            (answer,) = db.session.scalars(sa.select(Answer))
            assert (answer.ip_address, answer.score) == (None, 3)
            assert (privacy.purge(current_state(), MONTH), privacy.purge(current_state(), MONTH)) == (1, 0)
        finally:
            db.session.remove()
            db.drop_all()
            db.engine.dispose()
