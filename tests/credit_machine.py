"""A small model of who gets credit, and a machine that drives it side by side with the site.

Run it for longer, or on another database::

    python -m tests.credit_machine --runs 2000 --database postgresql
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import time_machine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import event

from flask_referrals import Referral, ReferralResponse
from tests.databases import NAMES, new_database
from tests.host import Host, make_host

START = 1_900_000_000
HOUR, DAY = 3600, 86400
REPEAT_WINDOW = HOUR / 2
#: The longest lifetime of the cookie with the visitor key.
LONGEST = 390 * DAY
BOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
KINDS: dict[str, dict[str, str]] = {
    "human": {},
    "bot": {"User-Agent": BOT},
    "embedded": {"Sec-Fetch-Dest": "image"},
    "prefetch": {"Sec-Purpose": "prefetch"},
}


@dataclass
class Link:
    """A link in the model."""

    owner: str | None
    is_expired: bool = False


@dataclass
class Response:
    """A row in the model. Rows are in the order of time."""

    link: str
    action: str
    time: float
    visitor: int | None = None
    user: str | None = None
    ignored: str | None = None


@dataclass
class Browser:
    """What a browser keeps."""

    user: str | None = None
    visitor: int | None = None
    visitor_since: float = 0


@dataclass
class Model:
    """The rules, in as few words as they can be said."""

    policy: str
    window: float | None
    time: float = START
    is_key_retired: bool = False
    links: dict[str, Link] = field(default_factory=dict)
    rows: list[Response] = field(default_factory=list)
    visitors: int = 0

    def visitor(self, browser: Browser) -> int | None:
        """The key a browser shows, if it is still good."""
        too_old = self.window is not None and self.time - browser.visitor_since > self.window
        return None if too_old else browser.visitor

    def theirs(self, browser: Browser) -> list[Response]:
        """The rows of the person who uses a browser."""
        if browser.user is not None:
            return [row for row in self.rows if row.user == browser.user]
        visitor = self.visitor(browser)
        return [row for row in self.rows if visitor is not None and row.visitor == visitor and row.user is None]

    def click(self, browser: Browser, name: str, kind: str) -> None:
        link = self.links.get(name)
        if link is None or link.is_expired or kind == "prefetch":
            return
        row = Response(name, "RESPONDED", self.time)
        self.rows.append(row)
        if kind != "human":
            row.ignored = kind
            return
        before = self.theirs(browser)
        if browser.user is not None and browser.user == link.owner:
            row.ignored = "self"
        elif any(
            old.link == name
            and old.action == "RESPONDED"
            and old.ignored is None
            and self.time - old.time < REPEAT_WINDOW
            for old in before
        ):
            row.ignored = "repeat"
        row.user = browser.user
        if browser.user is None:
            row.visitor = self.visitor(browser)
            if row.visitor is None:
                self.visitors += 1
                row.visitor = self.visitors
            if row.ignored is None:
                is_old = self.time - browser.visitor_since > (self.window or LONGEST) / 1000
                if row.visitor != browser.visitor or is_old or self.is_key_retired:
                    browser.visitor, browser.visitor_since = row.visitor, self.time

    def credited(self, browser: Browser) -> str | None:
        """The link that earns what is done now."""
        rows = self.theirs(browser)
        if browser.user is not None:
            for row in rows:
                if row.action not in ("RESPONDED", "VOIDED") and row.ignored is None:
                    return None if self.links[row.link].is_expired else row.link
        touches = [
            row
            for row in rows
            if row.action == "RESPONDED"
            and row.ignored in (None, "repeat")
            and not self.links[row.link].is_expired
            and (browser.user is None or self.links[row.link].owner != browser.user)
            and (self.window is None or self.time - row.time <= self.window)
        ]
        if not touches:
            return None
        return touches[-1 if self.policy == "last" else 0].link

    def act(self, browser: Browser, action: str) -> str | None:
        link = self.credited(browser)
        if link is not None:
            visitor = None if browser.user else self.visitor(browser)
            self.rows.append(Response(link, action, self.time, visitor, browser.user))
        return link

    def log_in(self, browser: Browser, user: str) -> None:
        visitor = self.visitor(browser)
        for row in self.rows:
            if visitor is not None and row.visitor == visitor and row.user is None:
                row.user = user
                if self.links[row.link].owner == user and row.ignored is None:
                    row.ignored = "self"
        browser.user, browser.visitor = user, None

    def delete(self, name: str) -> None:
        del self.links[name]
        self.rows = [row for row in self.rows if row.link != name]


class CreditMachine(RuleBasedStateMachine):
    """Two browsers, some links and users, and whatever people do with them."""

    hosts: dict[tuple[str, float | None], Host]

    @initialize(policy=st.sampled_from(["last", "first"]), window=st.sampled_from([None, 7 * DAY]))
    def open(self, policy: str, window: float | None) -> None:
        self.host = self.hosts[policy, window]
        self.model = Model(policy, window)
        self.clock = time_machine.travel(START, tick=False)
        self.traveller = self.clock.start()
        with self.host.app.app_context():
            for model in (ReferralResponse, Referral, self.host.User):
                self.host.db.session.execute(sa.delete(model))
            self.users = {name: self.host.user(name).id for name in ("olga", "mia")}
            for name, owner in (("a", None), ("b", None), ("own", "mia"), ("olgas", "olga")):
                user = self.host.db.session.get(self.host.User, self.users[owner]) if owner else None
                Referral.create(f"/{name}", user=user, code=f"code-{name}")
                self.model.links[name] = Link(owner)
        self.host.app.config.update(SECRET_KEY="first", SECRET_KEY_FALLBACKS=[])
        self.people = 0
        self.keys = 0
        self.browsers = [(self.host.client(), Browser()) for _ in range(2)]

    def teardown(self) -> None:
        if hasattr(self, "clock"):
            self.clock.stop()

    which = st.integers(0, 1)
    names = st.sampled_from(["a", "b", "own", "olgas"])

    def tick(self, seconds: float = 1) -> None:
        self.model.time += seconds
        self.traveller.move_to(self.model.time)

    def follow(self, which: int, name: str, kind: str) -> None:
        self.tick()
        client, browser = self.browsers[which]
        self.model.click(browser, name, kind)
        answer = client.get(f"/referrals/code-{name}", headers=KINDS[kind])
        assert answer.status_code == (503 if kind == "prefetch" else 302 if name in self.model.links else 404)

    @rule(which=which, name=names)
    def click(self, which: int, name: str) -> None:
        self.follow(which, name, "human")

    @rule(which=which, name=names, other=names)
    def click_here_and_there_and_here_again(self, which: int, name: str, other: str) -> None:
        for each in (name, other, name):
            self.follow(which, each, "human")

    @rule(which=which, name=names, user=st.sampled_from(["olga", "mia"]))
    def click_before_the_login(self, which: int, name: str, user: str) -> None:
        self.follow(which, name, "human")
        self.follow(which, name, "human")
        self.log_in(which, user)

    @rule(which=which, name=names, kind=st.sampled_from(["bot", "embedded", "prefetch"]))
    def be_a_program(self, which: int, name: str, kind: str) -> None:
        self.follow(which, name, kind)

    @rule(which=which)
    def buy(self, which: int) -> None:
        self.tick()
        client, browser = self.browsers[which]
        link = self.model.act(browser, "BOUGHT")
        assert client.post("/act/BOUGHT").text == (f"code-{link}" if link else "")

    @rule(which=which)
    def sign_up(self, which: int) -> None:
        self.tick()
        client, browser = self.browsers[which]
        self.people += 1
        name = f"user{self.people}"
        self.model.log_in(browser, name)
        self.model.act(browser, "SIGNED_UP")
        client.post("/signup", data={"name": name})

    @rule(which=which, name=st.sampled_from(["olga", "mia"]))
    def log_in(self, which: int, name: str) -> None:
        self.tick()
        client, browser = self.browsers[which]
        self.model.log_in(browser, name)
        client.post("/login", data={"name": name})

    @rule(which=which)
    def log_out(self, which: int) -> None:
        client, browser = self.browsers[which]
        browser.user = browser.visitor = None
        client.post("/logout")

    @rule(which=which)
    def close_and_start_again(self, which: int) -> None:
        client, browser = self.browsers[which]
        browser.user = None
        client.delete_cookie("session")

    @rule(which=which)
    def clear_the_cookies(self, which: int) -> None:
        client, browser = self.browsers[which]
        browser.user = browser.visitor = None
        for name in ("session", "referral"):
            client.delete_cookie(name)

    @rule()
    def refund(self) -> None:
        self.tick()
        bought = [row for row in self.model.rows if row.action == "BOUGHT" and row.ignored is None]
        with self.host.app.app_context():
            rows = [row for row in self.host.responses() if row.action == "BOUGHT" and row.ignored is None]
            assert len(rows) == len(bought)
            if bought:
                bought[0].ignored = "void"
                record = Response(bought[0].link, "VOIDED", self.model.time, None, bought[0].user, "void")
                self.model.rows.append(record)
                rows[0].void("refunded")

    @rule(seconds=st.sampled_from([10, REPEAT_WINDOW - 1, REPEAT_WINDOW, 3 * DAY, 7 * DAY, 8 * DAY]))
    def wait(self, seconds: float) -> None:
        self.tick(seconds)

    @rule(name=st.sampled_from(["a", "b"]))
    def expire(self, name: str) -> None:
        if name in self.model.links:
            self.model.links[name].is_expired = True
            with self.host.app.app_context():
                self.link(name).expired_at = datetime.now(timezone.utc)
                self.host.db.session.commit()

    @rule(name=st.sampled_from(["b"]))
    def delete(self, name: str) -> None:
        if name in self.model.links:
            self.model.delete(name)
            with self.host.app.app_context():
                self.host.db.session.delete(self.link(name))
                self.host.db.session.commit()

    @rule()
    def rotate_the_key(self) -> None:
        config = self.host.app.config
        self.keys += 1
        fallbacks = [*config["SECRET_KEY_FALLBACKS"], config["SECRET_KEY"]]
        config.update(SECRET_KEY=f"key {self.keys}", SECRET_KEY_FALLBACKS=fallbacks)
        self.model.is_key_retired = True

    @invariant()
    def same_rows(self) -> None:
        if not hasattr(self, "model"):
            return
        with self.host.app.app_context():
            users = self.host.db.session.scalars(sa.select(self.host.User))
            names = {user.id: user.name for user in users}
            stored = [
                (row.referral.redirect_to[1:], row.action, names.get(row.user_id), row.ignored)
                for row in self.host.responses()
            ]
        assert stored == [(row.link, row.action, row.user, row.ignored) for row in self.model.rows]

    @invariant()
    def explanation_names_the_winner(self) -> None:
        if not hasattr(self, "model"):
            return
        for client, browser in self.browsers:
            winner = self.model.credited(browser)
            assert client.get("/explain").text == (f"code-{winner}" if winner else "")

    def link(self, name: str) -> Any:
        return self.host.db.session.scalars(sa.select(Referral).where(Referral.code == f"code-{name}")).one()


@contextmanager
def hosts_on(url: str) -> Iterator[dict[tuple[str, float | None], Host]]:
    """Make a site for each policy, on one database."""
    hosts: dict[tuple[str, float | None], Host] = {}
    for policy in ("last", "first"):
        for window in (None, 7 * DAY):
            host = make_host(
                url,
                REFERRALS_ATTRIBUTION=policy,
                REFERRALS_ATTRIBUTION_WINDOW=window,
                REFERRALS_REPEAT_WINDOW=REPEAT_WINDOW,
            )
            _add_explanation(host)
            with host.app.app_context():
                if host.db.engine.dialect.name == "sqlite":
                    event.listen(host.db.engine, "connect", _set_up_sqlite)
            hosts[policy, window] = host
    with host.app.app_context():
        host.db.create_all()
    try:
        yield hosts
    finally:
        for host in hosts.values():
            with host.app.app_context():
                host.db.session.remove()
                host.db.drop_all()
                host.db.engine.dispose()


def _set_up_sqlite(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=OFF")  # nothing here must survive


def _add_explanation(host: Host) -> None:
    @host.app.get("/explain")
    def explain() -> str:
        won = [verdict.response.referral.code for verdict in Referral.explain() if verdict.rule == "won"]
        assert len(won) <= 1
        return "".join(won)


def run(url: str, runs: int) -> None:
    """Drive model and site through a number of runs.

    :param url: an empty database.
    :param runs: how many.
    """
    with hosts_on(url) as hosts:
        machine = type("Machine", (CreditMachine,), {"hosts": hosts})
        limits = settings(
            max_examples=runs,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(machine, settings=limits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--database", choices=NAMES, default="sqlite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, new_database(options.database, Path(folder)) as database_url:
        run(database_url, options.runs)
    print(f"{options.runs} runs on {options.database} without a difference")
