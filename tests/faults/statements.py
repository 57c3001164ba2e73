"""Every statement of the extension fails in every way a database fails, and no work is lost.

Each flow is run once to see its statements. Then it is run again for each of them and each kind of error, so that this
one fails; a visitor arrives all the same, a login logs in, and a host is told and can go on. Run it as a program for a
table of what came of it::

    python -m tests.faults.statements --database postgresql
"""

import argparse
import contextlib
import inspect
import itertools
import logging
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from flask import Response, jsonify, render_template_string, request
from flask.testing import FlaskClient
from flask.typing import ResponseReturnValue
from flask_login import login_user
from sqlalchemy import event
from werkzeug.test import TestResponse

import flask_referrals
from flask_referrals import Referral, ReferralResponse, referral_created, response_recorded, user_linked_to_response
from flask_referrals.db import totals
from flask_referrals.state import current_state
from tests.databases import NAMES, new_database
from tests.host import BROWSER, get_one, make_host

PACKAGE = f"{Path(flask_referrals.__file__).parent}{os.sep}"
SIGNALS = (referral_created, response_recorded, user_linked_to_response)

#: The ways in which a statement fails.
KINDS = (
    "OperationalError",
    "InternalError",
    "IntegrityError",
    "DataError",
    "Rollback",  # of the whole transaction, as after a deadlock on MariaDB, or when SQLite's disk is full
    "DisconnectionError",
    "MemoryError",
)
#: Those that are also tried for good: every later statement fails as well.
LASTING = ("OperationalError", "DisconnectionError")

# What makes a server itself answer with an error of a kind, so that its transaction is in the state that has.
_SQLSTATES = {
    "OperationalError": "57014",
    "InternalError": "XX000",
    "IntegrityError": "23514",
    "DataError": "22003",
    "Rollback": "40P01",
}
_ERRNOS = {
    "OperationalError": ("70100", 1969),
    "InternalError": ("HY000", 999),
    "IntegrityError": ("23000", 1062),
    "DataError": ("22003", 1264),
    "Rollback": ("40001", 1213),
}

#: The codes of the links there are.
LINKS = ("first", "second", "third")

# The statements that hold no work of their own. When one fails, there is no telling what the database still holds.
_BOUNDARIES = ("BEGIN", "SAVEPOINT", "RELEASE", "COMMIT")

# MariaDB's flag for a connection in a transaction.
_IN_TRANSACTION = 1

# Who the visitor is. None of it may be in a log, and none of it may break one into lines.
_ADDRESS = "198.51.100.77"
_HEADERS = {
    "User-Agent": f"{BROWSER} marker-agent \x1b[31m\x85",
    "Referer": "https://marker-referrer.example/page?\x1b[31m",
}
_PERSONAL = re.compile(r"marker-agent|marker-referrer|198\.51\.100|(?<![\w-])[\w-]{43}(?![\w-])", re.ASCII)
_SUBQUERY = re.compile(r"\([^()]*\)")
_TABLE = re.compile(r"(?:FROM|INTO|UPDATE)\s+[\"`]?(\w+)")


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    :param index: which of our statements fails.
    :param kind: one of :data:`KINDS`.
    :param lasts: whether all after it fail too.
    """

    index: int
    kind: str
    lasts: bool = False

    def hits(self, index: int) -> bool:
        """Whether a statement fails."""
        return index == self.index or (self.lasts and index > self.index)


def fail(kind: str, dialect: str, dbapi: Any, cursor: Any, parameters: object) -> None:
    """Let a statement fail as the database, its driver or Python would, or break its connection.

    :param cursor: what the statement is about to be sent with.
    :param parameters: its parameters: PostgreSQL tells them in its errors.
    """
    if kind == "MemoryError":
        raise MemoryError
    if kind == "Rollback" and dialect != "postgresql":
        cursor.connection.rollback()
    if kind == "DisconnectionError":
        cursor.connection.close()  # the statement finds out for itself
    elif dialect == "sqlite":
        raise getattr(dbapi, "OperationalError" if kind == "Rollback" else kind)("injected")
    elif dialect == "postgresql":
        row = repr(parameters).replace("'", "''")
        raising = f"RAISE EXCEPTION USING MESSAGE = 'injected', DETAIL = '{row}', ERRCODE = '{_SQLSTATES[kind]}'"
        cursor.execute(f"DO $fault$BEGIN {raising}; END$fault$")
    else:
        state, number = _ERRNOS[kind]
        cursor.execute(f"SIGNAL SQLSTATE '{state}' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'injected'")


class Watch:
    """Lists the statements that this package sends to a database, and lets some of them fail.

    What a flush sends for the host is the host's, also when we asked for it.
    """

    def __init__(self, engine: sa.Engine, fault: Fault | None) -> None:
        self.sent: list[str] = []
        self.failed = 0
        self._engine = engine
        self._fault = fault

    def on_execute(self, cursor: Any, statement: str, parameters: object, context: object) -> None:
        """Receive SQLAlchemy's event: it comes where errors are taken for the driver's own, and wrapped."""
        verb, table = statement.split()[0], _TABLE.search(_without_subqueries(statement))
        is_hosts = verb in ("INSERT", "UPDATE") and table is not None and "referral" not in table[1]
        if not is_hosts:
            self._step(f"{verb} {table[1]}" if table else verb, cursor, parameters)

    def do_commit(self, dbapi_connection: sa.PoolProxiedConnection) -> None:
        """Stand in for the dialect's: there is no event where errors of a COMMIT are taken for the driver's own."""
        if getattr(dbapi_connection, "autocommit", None) is True:
            return  # nothing is sent
        dialect = self._engine.dialect
        try:
            with contextlib.closing(dbapi_connection.cursor()) as cursor:
                self._step("COMMIT", cursor, ())
        except Exception as error:
            if dialect.name != "sqlite" and not isinstance(error, MemoryError):
                dbapi_connection.rollback()  # a server ends what it cannot commit, SQLite leaves it open
            raise
        type(dialect).do_commit(dialect, dbapi_connection)

    def _step(self, name: str, cursor: Any, parameters: object) -> None:
        if not _is_called_by_us():
            return
        self.sent.append(name)
        if self._fault is not None and self._fault.hits(len(self.sent) - 1):
            self.failed += 1
            dialect = self._engine.dialect
            fail(self._fault.kind, dialect.name, dialect.dbapi, cursor, parameters)


def _is_called_by_us() -> bool:
    frame = inspect.currentframe()
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return frame is not None


def _without_subqueries(statement: str) -> str:
    while (outer := _SUBQUERY.sub("", statement)) != statement:
        statement = outer
    return statement


@contextmanager
def watching(engine: sa.Engine, fault: Fault | None = None) -> Iterator[Watch]:
    """Watch a database for the time of a block.

    :param fault: what goes wrong meanwhile.
    """
    watch = Watch(engine, fault)
    events = ("do_execute", "do_executemany")
    for name in events:
        event.listen(engine, name, watch.on_execute)
    engine.dialect.do_commit = watch.do_commit  # type: ignore[method-assign]
    try:
        yield watch
    finally:
        del engine.dialect.do_commit
        for name in events:
            event.remove(engine, name, watch.on_execute)


class Records(logging.Handler):
    """Keeps the log records that this package writes."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record if it is ours."""
        if record.pathname.startswith(PACKAGE):
            self.records.append(record)


class Rows(NamedTuple):
    """How many rows there are: links, responses, and those among them that are a user's."""

    links: int
    responses: int
    claimed: int

    def since(self, before: "Rows") -> "Rows":
        """Return how many there are more than before."""
        return Rows(*(now - then for now, then in zip(self, before, strict=True)))


class Site:
    """A host that does everything that can be done with us, and goes on with its session afterwards."""

    def __init__(self, url: str) -> None:
        self.host = make_host(url, REFERRALS_QUERY_PARAM="ref", PROPAGATE_EXCEPTIONS=False)
        self.log = Records()
        self._numbers = itertools.count()
        self._users: list[tuple[int, str]] = []
        self._add_pages()
        self._add_pages_with_work_pending()
        with self.host.app.app_context():
            self.engine = self.host.db.engine
            forget_durability(self.engine)
            self.host.db.create_all()
            for code in LINKS:
                Referral.create("/target", code=code, label=code)
            self.product = self.host.add(self.host.Product(name="kettle")).id
        self._models = self.host.app.extensions["referrals"].database.models
        # What is durable shows on a connection of its own.
        self._outside = sa.create_engine(url, isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Drop the tables, and close all connections."""
        self._outside.dispose()
        with self.host.app.app_context():
            self.host.db.session.remove()
            self.host.db.drop_all()
            self.engine.dispose()

    def name(self) -> str:
        """Return a name that nothing has yet."""
        return f"name-{next(self._numbers)}"

    def _add_pages(self) -> None:
        app, db = self.host.app, self.host.db

        @app.get("/page")
        def page() -> str:
            db.session.add(self.host.Product(name=request.args["name"]))
            db.session.commit()
            return "page"

        @app.post("/enter")
        def enter() -> ResponseReturnValue:
            login_user(
                db.session.scalars(sa.select(self.host.User).where(self.host.User.name == request.form["user"])).one()
            )
            db.session.add(self.host.Product(name=request.form["name"]))
            db.session.commit()
            return "entered"

        @app.post("/call/<name>")
        def call(name: str) -> ResponseReturnValue:
            """Call a function of the extension as a host does that expects errors."""
            arguments = request.form
            if "pending" in arguments:
                db.session.add(self.host.Product(name=arguments["pending"]))
                db.session.flush()
            error = None
            try:
                getattr(self, f"_{name}")(arguments)
            except Exception as raised:
                error = type(raised).__name__
            is_told = False
            try:
                db.session.commit()
            except Exception:
                db.session.rollback()
                is_told = True
            db.session.add(self.host.Product(name=arguments["name"]))
            db.session.commit()
            return jsonify(error=error, is_told=is_told)

    def _add_pages_with_work_pending(self) -> None:
        app, db = self.host.app, self.host.db

        def write() -> None:
            if "X-Pending" in request.headers:
                db.session.add(self.host.Product(name=request.headers["X-Pending"]))
                db.session.flush()

        # Before ours, which follows the codes of queries.
        app.before_request_funcs.setdefault(None, []).insert(0, write)

        @app.after_request
        def commit(response: Response) -> Response:
            if "X-Pending" in request.headers:
                db.session.commit()
            return response

    # What /call/<name> calls.

    def _record(self, arguments: Any) -> None:
        Referral.record_response("BOUGHT")

    def _record_key(self, arguments: Any) -> None:
        Referral.record_response("BOUGHT", key=arguments["name"])

    def _record_once(self, arguments: Any) -> None:
        Referral.record_response("BOUGHT", once=True)

    def _record_uncommitted(self, arguments: Any) -> None:
        Referral.record_response("BOUGHT", commit=False)

    def _record_for_user(self, arguments: Any) -> None:
        user = self.host.db.session.get(self.host.User, int(arguments["user"]))
        Referral.record_response("BOUGHT", user=user)

    def _link_user(self, arguments: Any) -> None:
        user = self.host.db.session.get(self.host.User, int(arguments["user"]))
        self.host.referrals.link_user(user)

    def _create(self, arguments: Any) -> None:
        Referral.create("/target", label=arguments["name"])

    def _create_uncommitted(self, arguments: Any) -> None:
        Referral.create("/target", label=arguments["name"], commit=False)

    def _attach(self, arguments: Any) -> None:
        Referral.attach(arguments["code"])

    def _list(self, arguments: Any) -> None:
        user = self.host.db.session.get(self.host.User, int(arguments["user"]))
        render_template_string("{{ referral_responses(user, limit=9)|list }}", user=user)

    def _void(self, arguments: Any) -> None:
        response = get_one(self.host.db, ReferralResponse, int(arguments["response"]))
        response.void("refunded")

    # What the flows are made of.

    def client(self) -> FlaskClient:
        """Return the browser of the visitor of whom nothing may be in a log."""
        client = self.host.client()
        client.environ_base.update(REMOTE_ADDR=_ADDRESS, HTTP_USER_AGENT=_HEADERS["User-Agent"])
        client.environ_base["HTTP_REFERER"] = _HEADERS["Referer"]
        return client

    def user(self) -> tuple[int, str]:
        """Return key and name of a user whom nobody knows yet."""
        if not self._users:
            with self.host.app.app_context():
                users = [self.host.User(name=self.name()) for _ in range(200)]
                self.host.db.session.add_all(users)
                self.host.db.session.commit()
                self._users = [
                    (user.id, user.name)
                    for user in self.host.db.session.scalars(
                        sa.select(self.host.User).where(self.host.User.name.in_([user.name for user in users]))
                    )
                ]
        return self._users.pop()

    def visitor(self) -> FlaskClient:
        """Return the browser of somebody who followed a link."""
        client = self.client()
        client.get("/referrals/first")
        return client

    def member(self) -> FlaskClient:
        """Return the browser of a user."""
        client = self.client()
        client.post("/login", data={"name": self.user()[1]})
        return client

    def customer(self) -> FlaskClient:
        """Return the browser of a user who followed a link."""
        client = self.member()
        client.get("/referrals/first")
        return client

    def token(self) -> str:
        """Return the value by which a form names the product."""
        with self.host.app.test_request_context():
            target = get_one(self.host.db, self.host.Product, self.product)
            form = render_template_string("{{ create_referral_form('/', target=target) }}", target=target)
        return form.split('name="target" value="')[1].split('"')[0]

    def rows(self) -> Rows:
        """Count what is stored."""
        links, responses = self._models.referral, self._models.response
        counted = (sa.select(links), sa.select(responses), sa.select(responses).where(responses.user_id.is_not(None)))
        counts = [sa.select(sa.func.count()).select_from(each.subquery()).scalar_subquery() for each in counted]
        with self._outside.connect() as connection:
            return Rows(*connection.execute(sa.select(*counts)).one())

    def has(self, product: str) -> bool:
        """Whether the host has stored something."""
        with self._outside.connect() as connection:
            return connection.scalar(sa.select(sa.exists().where(self.host.Product.name == product))) is True

    def is_writing(self) -> bool:
        """Whether a connection that went back to the pool is still in a transaction, and holds its locks."""
        with contextlib.closing(self.engine.raw_connection()) as pooled:
            connection: Any = pooled.dbapi_connection
            if self.engine.dialect.name == "sqlite":
                return bool(connection.in_transaction)
            if self.engine.dialect.name == "postgresql":
                return bool(connection.info.transaction_status)
            return bool(connection.server_status & _IN_TRANSACTION)


def forget_durability(engine: sa.Engine) -> None:
    """Let a database answer before it has written, where a connection can ask for that: nothing here must survive."""
    statement = {"sqlite": "PRAGMA synchronous = OFF", "postgresql": "SET synchronous_commit = off"}.get(
        engine.dialect.name
    )

    def send(connection: Any, record: Any) -> None:
        connection.cursor().execute(statement)
        connection.commit()

    if statement is not None:
        event.listen(engine, "connect", send)


@contextmanager
def new_site(url: str) -> Iterator[Site]:
    """Make the site on a database; its tables are dropped at the end."""
    site = Site(url)
    root = logging.getLogger()
    root.addHandler(site.log)
    try:
        yield site
    finally:
        root.removeHandler(site.log)
        site.close()


@dataclass
class Attempt:
    """A flow that lacks its last request.

    :param send: makes that request.
    :param pending: what the host has written before us, and not committed yet.
    :param after: what the host stores after us.
    :param credit: the code of the link that a later action of the same visitor belongs to.
    """

    client: FlaskClient
    send: Callable[[], TestResponse]
    pending: str | None = None
    after: str | None = None
    credit: str | None = None


@dataclass
class Run:
    """What came of an attempt.

    :param statements: what is sent when nothing fails.
    :param added: the rows that were not there before.
    :param wanted: those that there are when nothing fails.
    """

    attempt: Attempt
    answer: TestResponse
    fault: Fault
    statements: list[str]
    added: Rows
    wanted: Rows
    is_logged: bool
    faults: list[str] = field(default_factory=list)

    def expect(self, is_so: bool, otherwise: str) -> None:
        """Note what is wrong unless something is so."""
        if not is_so:
            self.faults.append(otherwise)

    @property
    def failing(self) -> str:
        """The statement that failed."""
        return self.statements[self.fault.index]

    @property
    def is_link_readable(self) -> bool:
        """Whether where a link leads can be found out: with the click, or afterwards."""
        return self.is_done or not self.fault.lasts

    @property
    def is_done(self) -> bool:
        """Whether everything was stored."""
        return self.added == self.wanted

    @property
    def is_undone(self) -> bool:
        """Whether nothing was added; that a visitor was joined to a user first is no fault."""
        return self.added.links == self.added.responses == 0

    @property
    def is_transaction_lost(self) -> bool:
        """Whether the database forgot what the host had written, whatever we do."""
        is_ended = self.fault.kind in ("DisconnectionError", "Rollback")
        return is_ended or self.fault.lasts or self.failing in _BOUNDARIES


Judge = Callable[[Site, Run], str]


def _arrives(site: Site, run: Run, status: int) -> str:
    run.expect(run.answer.status_code == status, f"answered {run.answer.status_code}")
    run.expect(run.is_undone or run.added.responses == run.wanted.responses, f"stored {run.added}")
    run.expect(run.is_done or run.is_logged, "neither recorded nor logged")
    pending = run.attempt.pending
    run.expect(pending is None or run.is_transaction_lost or site.has(pending), "the host's own row is lost")
    return "recorded" if run.is_done else "logged" if run.is_undone else "recorded for nobody, and logged"


def judge_click(site: Site, run: Run) -> str:
    """A click redirects to the target of its link, unless that cannot be read."""
    run.expect(not run.is_link_readable or run.answer.location in ("/target", None), "led elsewhere")
    return _arrives(site, run, 302)


def judge_page(site: Site, run: Run) -> str:
    """A page that was asked for with a code is the page."""
    return _arrives(site, run, 200)


def judge_form(site: Site, run: Run) -> str:
    """The form gives no error but 503 with ``Retry-After``, and the next request gets the link."""
    status = run.answer.status_code
    run.expect(status < 500 or status == 503, f"answered {status}")
    run.expect(status != 503 or "Retry-After" in run.answer.headers, "says not when to come again")
    run.expect(run.is_done if status == 200 else run.is_logged, f"answered {status}, and stored {run.added}")
    again = run.attempt.send()
    run.expect(again.status_code == 200, f"answered the next with {again.status_code}")
    return "made" if status == 200 else str(status)


def judge_login(site: Site, run: Run) -> str:
    """Who logs in is in, and what they did before stays theirs."""
    run.expect(run.answer.text == "entered", f"answered {run.answer.status_code}")
    with run.attempt.client.session_transaction() as session:
        run.expect("_user_id" in session, "not logged in")
        is_linked = "_referral" not in session
    run.expect(is_linked or run.is_logged, "neither linked nor logged")
    run.expect(run.attempt.client.post("/act/LATER").text == run.attempt.credit, "the history is lost")
    return "linked" if is_linked else "linked later"


def judge_call(site: Site, run: Run) -> str:
    """A host is told, unless all is well; what it wrote before is kept, and it goes on."""
    run.expect(run.answer.status_code == 200, f"the host's session is unusable: {run.answer.status_code}")
    if run.answer.status_code != 200:
        return "unusable"
    error, is_told = run.answer.json["error"], run.answer.json["is_told"]  # type: ignore[index]
    # SQLAlchemy lets a savepoint be that it could neither release nor roll back to; the host has to roll back.
    is_open = (run.failing == "RELEASE" or run.fault.lasts) and error is not None and not is_told
    is_right = run.is_done if error is None else run.is_undone or is_open
    run.expect(is_right, f"stored {run.added}, and raised {error}")
    pending = run.attempt.pending
    if pending is None:
        return "done" if error is None else "raised"
    is_kept = site.has(pending)
    # The host's own row is behind no savepoint of the extension when a SELECT fails, or the savepoint itself.
    is_ours_undone = run.failing.split()[0] in ("INSERT", "UPDATE") and not run.is_transaction_lost
    run.expect(is_kept or not is_ours_undone, "the host's own row is lost")
    run.expect(is_kept or error is not None or is_told, "the host's own row is lost, and it was not told")
    return "done" if error is None else "raised, host's row kept" if is_kept else "raised, host rolls back"


def judge_live_call(site: Site, run: Run) -> str:
    """In production, a page goes on without what could not be recorded, unless its own work is lost with it."""
    run.expect(run.answer.status_code == 200, f"the host's session is unusable: {run.answer.status_code}")
    if run.answer.status_code != 200:
        return "unusable"
    error, is_told, pending = run.answer.json["error"], run.answer.json["is_told"], run.attempt.pending  # type: ignore[index]
    is_hosts = run.failing == "SELECT user" or run.fault.kind == "MemoryError"
    may_raise = is_hosts or (pending is not None and run.is_transaction_lost)
    is_raised = error is not None or is_told
    run.expect(may_raise or not is_raised, f"raised {error}")
    run.expect(is_raised or run.is_logged or run.is_done, "neither recorded nor logged")
    run.expect(is_raised or run.is_done or run.is_undone, f"stored {run.added}")
    run.expect(pending is None or is_raised or site.has(pending), "the host's own row is lost, and it was not told")
    return "raised" if is_raised else "logged" if run.is_logged else "done"


@dataclass(frozen=True)
class Flow:
    """Something that is done with us.

    :param prepare: gets everything ready for the last request.
    :param judge: says what came of it.
    :param has_receivers: whether the signals have receivers.
    :param is_live: whether the site is in production.
    """

    prepare: Callable[[Site], Attempt]
    judge: Judge
    has_receivers: bool = False
    is_live: bool = False


def _click(visitor: Callable[[Site], FlaskClient], *, pending: bool = False) -> Callable[[Site], Attempt]:
    def prepare(site: Site) -> Attempt:
        client, path, name = visitor(site), "/referrals/second", site.name() if pending else None
        headers = {"X-Pending": name} if name else {}
        return Attempt(client, lambda: client.get(path, headers=headers), pending=name)

    return prepare


def _repeat(site: Site) -> Attempt:
    client, path = site.client(), "/referrals/second"
    client.get(path)
    return Attempt(client, lambda: client.get(path))


def _page(visitor: Callable[[Site], FlaskClient], *, pending: bool = False) -> Callable[[Site], Attempt]:
    def prepare(site: Site) -> Attempt:
        client, after, name = visitor(site), site.name(), site.name() if pending else None
        path = f"/page?ref=second&name={after}"
        headers = {"X-Pending": name} if name else {}
        return Attempt(client, lambda: client.get(path, headers=headers), pending=name, after=after)

    return prepare


def _form(kind: str, *, is_new: bool = True, target: bool = False, accept: str = "") -> Callable[[Site], Attempt]:
    def prepare(site: Site) -> Attempt:
        client = site.member()
        body = {"redirect_to": "/target", "label": site.name(), "target": site.token() if target else ""}

        def send() -> TestResponse:
            return client.post("/referrals/", headers={"Accept": accept} if accept else {}, **{kind: body})

        if not is_new:
            send()
        return Attempt(client, send)

    return prepare


def _login(site: Site) -> Attempt:
    client, after = site.visitor(), site.name()
    data = {"user": site.user()[1], "name": after}
    return Attempt(client, lambda: client.post("/enter", data=data), after=after, credit="first")


def _call(
    name: str, visitor: Callable[[Site], FlaskClient] = Site.visitor, *, pending: bool = False, is_first: bool = False
) -> Callable[[Site], Attempt]:
    def prepare(site: Site) -> Attempt:
        client, after = visitor(site), site.name()
        data = {"name": after, "user": str(site.user()[0]), "code": "second"}
        if pending:
            data["pending"] = site.name()
        if name == "void":
            with site.host.app.app_context():
                newest = site.host.db.session.scalar(sa.select(sa.func.max(ReferralResponse.id)))
                if is_first:
                    site.host.db.session.execute(sa.delete(site.host.db.metadata.tables["referral_total"]))
                    site.host.db.session.commit()
                else:
                    totals.roll_up(current_state().database)
            data["response"] = str(newest)
        return Attempt(
            client, lambda: client.post(f"/call/{name}", data=data), pending=data.get("pending"), after=after
        )

    return prepare


FLOWS = {
    "click of a new visitor": Flow(_click(Site.client), judge_click),
    "click of a returning visitor": Flow(_click(Site.visitor), judge_click),
    "click on the same link again": Flow(_repeat, judge_click),
    "click of a member": Flow(_click(Site.member), judge_click),
    "click that somebody listens for": Flow(_click(Site.client), judge_click, has_receivers=True),
    "click in the host's transaction": Flow(_click(Site.client, pending=True), judge_click),
    "member's click in the host's transaction": Flow(_click(Site.member, pending=True), judge_click),
    "page with a code": Flow(_page(Site.client), judge_page),
    "member's page with a code": Flow(_page(Site.member), judge_page),
    "page with a code in the host's transaction": Flow(_page(Site.client, pending=True), judge_page),
    "form, JSON": Flow(_form("json"), judge_form),
    "form, JSON, with a target": Flow(_form("json", target=True), judge_form),
    "form, JSON, for a link that is there": Flow(_form("json", is_new=False), judge_form),
    "form of a page": Flow(_form("data", accept="text/html"), judge_form),
    "form of a page, for a link that is there": Flow(_form("data", is_new=False, accept="text/html"), judge_form),
    "form that somebody listens for": Flow(_form("json"), judge_form, has_receivers=True),
    "login": Flow(_login, judge_login),
    "login that somebody listens for": Flow(_login, judge_login, has_receivers=True),
    "action of a visitor": Flow(_call("record"), judge_call),
    "action of a member": Flow(_call("record", Site.customer), judge_call),
    "action that somebody listens for": Flow(_call("record"), judge_call, has_receivers=True),
    "action with a key": Flow(_call("record_key"), judge_call),
    "action once": Flow(_call("record_once", Site.customer), judge_call),
    "action that joins visitor and user": Flow(_call("record_for_user"), judge_call),
    "link_user": Flow(_call("link_user"), judge_call),
    "Referral.create": Flow(_call("create"), judge_call),
    "attach": Flow(_call("attach"), judge_call),
    "void": Flow(_call("void"), judge_call),
    "void, the first": Flow(_call("void", is_first=True), judge_call),
    "action in the host's transaction": Flow(_call("record", pending=True), judge_call),
    "member's action in the host's transaction": Flow(_call("record", Site.customer, pending=True), judge_call),
    "action with a key in the host's transaction": Flow(_call("record_key", pending=True), judge_call),
    "action once in the host's transaction": Flow(_call("record_once", pending=True), judge_call),
    "action with commit=False": Flow(_call("record_uncommitted", pending=True), judge_call),
    "action that joins in the host's transaction": Flow(_call("record_for_user", pending=True), judge_call),
    "link_user in the host's transaction": Flow(_call("link_user", pending=True), judge_call),
    "Referral.create in the host's transaction": Flow(_call("create", pending=True), judge_call),
    "Referral.create with commit=False": Flow(_call("create_uncommitted", pending=True), judge_call),
    "attach in the host's transaction": Flow(_call("attach", pending=True), judge_call),
    "void in the host's transaction": Flow(_call("void", pending=True), judge_call),
    "list in the host's transaction": Flow(_call("list", pending=True), judge_call),
    **{
        f"live: {name}{where}": Flow(_call(method, visitor, pending=bool(where)), judge_live_call, is_live=True)
        for name, method, visitor in (
            ("action", "record", Site.visitor),
            ("member's action", "record", Site.customer),
            ("action once", "record_once", Site.customer),
            ("action with commit=False", "record_uncommitted", Site.visitor),
        )
        for where in ("", " in the host's transaction")
    },
    # These begin a transaction of the host's in any case: they read the user.
    "live: action that joins": Flow(_call("record_for_user", pending=True), judge_live_call, is_live=True),
    "live: link_user": Flow(_call("link_user", pending=True), judge_live_call, is_live=True),
    "live: list": Flow(_call("list", pending=True), judge_live_call, is_live=True),
}


@dataclass
class Report:
    """What came of a flow, over all statements and errors."""

    statements: list[str]
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def _listen(app: Any, **payload: Any) -> None:
    """Receive a signal."""


def run_flow(site: Site, name: str, lasting: Sequence[str] = LASTING) -> Report:
    """Let each statement of a flow fail in each way.

    :param name: one of :data:`FLOWS`.
    :param lasting: the kinds of errors that are tried for good as well.
    """
    flow = FLOWS[name]
    with contextlib.ExitStack() as stack:
        if flow.has_receivers:
            for signal in SIGNALS:
                stack.enter_context(signal.connected_to(_listen, site.host.app))
        site.host.app.testing = not flow.is_live
        attempt, before = flow.prepare(site), site.rows()
        with watching(site.engine) as watch:
            attempt.send()
        wanted = site.rows().since(before)
        report = Report(watch.sent)
        for index, failing in enumerate(watch.sent):
            for kind, lasts in [*((kind, False) for kind in KINDS), *((kind, True) for kind in lasting)]:
                fault = Fault(index, kind, lasts)
                outcome, faults = _run_once(site, flow, fault, watch.sent, wanted)
                report.outcomes[outcome] += 1
                where = f"{index + 1}. {failing}, {kind}{' for good' if lasts else ''}"
                report.faults += [f"{where}: {wrong}" for wrong in faults]
    return report


def _run_once(site: Site, flow: Flow, fault: Fault, statements: list[str], wanted: Rows) -> tuple[str, list[str]]:
    attempt, before = flow.prepare(site), site.rows()
    site.log.records.clear()
    with watching(site.engine, fault) as watch:
        answer = attempt.send()
    records = [*site.log.records]
    run = Run(attempt, answer, fault, statements, site.rows().since(before), wanted, bool(records))
    run.expect(watch.failed > 0, "did not fail")
    run.expect(len(records) <= watch.failed, f"{len(records)} log records for {watch.failed} failures")
    for record in records:
        _check_record(run, record)
    run.expect(not site.is_writing(), "a connection in the pool is still in its transaction")
    outcome = flow.judge(site, run)
    if attempt.after is not None:
        run.expect(site.has(attempt.after), "the host could not go on")
    _check_next_request(site, run)
    return outcome, run.faults


def _check_record(run: Run, record: logging.LogRecord) -> None:
    """A record is one line, but for the traceback of what is no database's error, and says nothing of the visitor."""
    text = logging.Formatter().format(record)
    line = record.getMessage() if run.fault.kind == "MemoryError" else text
    run.expect(len(line.splitlines()) == 1 and line.isprintable(), f"logged in {len(line.splitlines())} lines")
    told = _PERSONAL.search(text)
    run.expect(told is None, f"logged {told[0] if told else ''!r}")


def _check_next_request(site: Site, run: Run) -> None:
    before = site.rows()
    answer = run.attempt.client.get("/?ref=third")
    run.expect(answer.status_code == 200 and site.rows().since(before).responses == 1, "the next request fails")


def main() -> int:
    """Run all flows on one database, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=NAMES, default="sqlite")
    parser.add_argument("--flow", choices=FLOWS, action="append", help="only this one")
    options = parser.parse_args()
    runs = faults = 0
    for quiet in ("sqlalchemy.pool", "tests.host"):
        logging.getLogger(quiet).addHandler(logging.NullHandler())
    with (
        tempfile.TemporaryDirectory() as folder,
        new_database(options.database, Path(folder)) as url,
        new_site(url) as site,
    ):
        print(f"{'flow':<46}{'statements':>10}{'runs':>6}{'faults':>8}  outcomes")
        for name in options.flow or FLOWS:
            report = run_flow(site, name)
            outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.items())
            total = report.outcomes.total()
            print(f"{name:<46}{len(report.statements):>10}{total:>6}{len(report.faults):>8}  {outcomes}")
            for fault in report.faults:
                print(f"    {fault}")
            runs += total
            faults += len(report.faults)
    print(f"{options.database}: {runs} runs, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
