"""Random journeys through two sites: one stores clicks at once, the other has a recorder. Both end up with the same.

Run it for longer, or on another database::

    python -m tests.recorder_journeys --runs 200 --database postgresql
"""

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import time_machine
from flask.testing import FlaskClient
from sqlalchemy import event

from flask_referrals import Referral, ReferralResponse
from flask_referrals.db.keys import digest
from flask_referrals.db.totals import roll_up
from flask_referrals.queue import Event, store
from flask_referrals.state import current_state
from flask_referrals.stats import totals_of
from flask_referrals.times import as_utc
from tests.databases import NAMES, new_database
from tests.host import Host, get_one, make_host

START = datetime(2026, 5, 20, tzinfo=timezone.utc)
MINUTE = 60
WAITS = (1, MINUTE, 10 * MINUTE, 30 * MINUTE - 1, 30 * MINUTE, 40 * MINUTE, 5 * 60 * MINUTE)
#: A click stays with its visitor for a day. No event is on its way for longer.
LONGEST_DELAY = timedelta(hours=18)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"REFERRALS_ATTRIBUTION": "last"},
    {"REFERRALS_ATTRIBUTION": "first"},
    {"REFERRALS_ATTRIBUTION": "last", "REFERRALS_ATTRIBUTION_WINDOW": None},
    {"REFERRALS_ATTRIBUTION": lambda touches: min(touches, key=lambda touch: touch.referral.code, default=None)},
)
#: The links of a journey, and their owners. Each of the two users has a browser.
LINKS = {"a": None, "b": None, "of-mia": "mia", "of-olga": "olga"}
USERS = ("mia", "olga")


class Site:
    """One of the two sites during a journey."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.clients: list[FlaskClient] = [host.client() for _ in USERS]
        with host.app.app_context():
            users = {user: host.User(name=f"{user} {name}") for user in USERS}
            host.db.session.add_all(users.values())
            host.db.session.flush()
            for link, owner in LINKS.items():
                columns = {"label": name, "redirect_to": f"/{link}", "identity": digest(link, name)}
                user_id = users[owner].id if owner is not None else None
                host.db.session.add(host.referrals.Referral(code=self.code(link), user_id=user_id, **columns))
            host.db.session.commit()

    def code(self, link: str) -> str:
        return f"{link}-{self.name}"

    def keys(self) -> dict[datetime, int]:
        """Return the keys of the responses that are not voided, by their times."""
        with self.host.app.app_context():
            select = sa.select(ReferralResponse.created_at, ReferralResponse.id).join(ReferralResponse.referral)
            select = select.where(Referral.label == self.name, ReferralResponse.ignored.is_distinct_from("void"))
            return {as_utc(time): key for time, key in self.host.db.session.execute(select)}

    def stored(self) -> list[Any]:
        """Return what is stored of the journey. Visitors are numbered in the order in which they came."""
        visitors: dict[str | None, int] = {None: 0}
        with self.host.app.app_context():
            names = ("created_at", "action", "ignored", "user_agent")
            columns = (Referral.code, self.host.User.name, *(getattr(ReferralResponse, name) for name in names))
            select = sa.select(ReferralResponse.session_key, *columns).join(ReferralResponse.referral)
            select = select.join(self.host.User, ReferralResponse.user_id == self.host.User.id, isouter=True)
            select = select.where(Referral.label == self.name).order_by(ReferralResponse.created_at)
            rows = self.host.db.session.execute(select).all()
        return [(visitors.setdefault(key, len(visitors)), *rest) for key, *rest in rows]

    def counts(self) -> dict[str, Any]:
        """Return the totals of each link."""
        with self.host.app.app_context():
            links = self.host.db.session.scalars(sa.select(Referral).where(Referral.label == self.name)).all()
            totals = totals_of(current_state(), links)
            return {link.code: totals[link.id] for link in links}


class Journey:
    """What two people do, on both sites, while the events of one are on their way."""

    def __init__(self, sites: tuple[Site, Site], queue: list[Event], chance: random.Random, clock: Any) -> None:
        self.sites = sites
        self.queue = queue
        self.chance = chance
        self.clock = clock

    def run(self, steps: int) -> None:
        acts: list[Callable[[], None]] = [self.click] * 6 + [self.act, self.log_in, self.log_out, self.deliver] * 2
        acts += [self.close_browser, self.expire, self.void, self.roll_up, self.click_here_and_there]
        for _ in range(steps):
            self.wait()
            self.chance.choice(acts)()
        while self.queue:
            self.deliver()
        self.act()
        assert self.sites[0].stored() == self.sites[1].stored()
        assert self.sites[0].counts() == self.sites[1].counts()

    def both(self, do: Callable[[Site], object]) -> None:
        """Do the same on both sites, with the same result."""
        first, second = map(do, self.sites)
        assert first == second

    def wait(self) -> None:
        self.clock.shift(self.chance.choice(WAITS))
        oldest = datetime.now(timezone.utc) - LONGEST_DELAY
        late = [each for each in self.queue if datetime.fromisoformat(each["time"]) < oldest]
        self.store(late)

    def click(self, who: int | None = None, link: str | None = None) -> None:
        who = self.chance.randrange(len(USERS)) if who is None else who
        link = self.chance.choice(list(LINKS)) if link is None else link
        headers = {"User-Agent": "curl/8"} if self.chance.random() < 0.1 else {}
        self.both(lambda site: site.clients[who].get(f"/referrals/{site.code(link)}", headers=headers).status_code)

    def click_here_and_there(self) -> None:
        who, links = self.chance.randrange(len(USERS)), self.chance.sample(list(LINKS), 2)
        for number in range(self.chance.randint(3, 10)):
            self.clock.shift(self.chance.choice((1, 4 * MINUTE)))
            self.click(who, links[number % 2])

    def act(self) -> None:
        self.clock.shift(1)
        who = self.chance.randrange(len(USERS))
        self.both(lambda site: site.clients[who].post("/act/BOUGHT").text)

    def log_in(self) -> None:
        who = self.chance.randrange(len(USERS))
        self.both(lambda site: site.clients[who].post("/login", data={"name": f"{USERS[who]} {site.name}"}).status_code)

    def log_out(self) -> None:
        who = self.chance.randrange(len(USERS))
        self.both(lambda site: site.clients[who].post("/logout").status_code)

    def close_browser(self) -> None:
        who = self.chance.randrange(len(USERS))
        self.both(lambda site: site.clients[who].delete_cookie("session"))

    def expire(self) -> None:
        link, time = self.chance.choice(["a", "b"]), datetime.now(timezone.utc)

        def expire(site: Site) -> None:
            with site.host.app.app_context():
                update = sa.update(Referral).where(Referral.code == site.code(link), Referral.expired_at.is_(None))
                site.host.db.session.execute(update.values(expired_at=time))
                site.host.db.session.commit()

        self.both(expire)

    def void(self) -> None:
        """Void what both have stored."""
        keys = [site.keys() for site in self.sites]
        common = sorted(keys[0].keys() & keys[1].keys())
        if common:
            time = self.chance.choice(common)
            for site, found in zip(self.sites, keys, strict=True):
                with site.host.app.app_context():
                    get_one(site.host.db, ReferralResponse, found[time]).void("a test")

    def roll_up(self) -> None:
        def count(site: Site) -> None:
            with site.host.app.app_context():
                roll_up(current_state().database)

        self.both(count)

    def deliver(self) -> None:
        """Store some of the events, in any order, and some of them twice."""
        batch = self.chance.sample(self.queue, min(len(self.queue), self.chance.choice((1, 2, 5, 50))))
        self.store(batch)
        if self.chance.random() < 0.2:
            self.store(batch[:1], is_again=True)

    def store(self, batch: list[Event], *, is_again: bool = False) -> None:
        if batch:
            with self.sites[1].host.app.app_context():
                store(batch)
        if not is_again:
            self.queue[:] = [each for each in self.queue if each not in batch]


@contextmanager
def sites_on(first: str, second: str) -> Iterator[list[tuple[Host, Host, list[Event]]]]:
    """Make a pair of sites for each of the settings, on two databases."""
    pairs = []
    for config in SETTINGS:
        queue: list[Event] = []
        direct = make_host(first, **config)
        queued = make_host(second, make_recorder=partial(_get_append, queue), **config)
        for host in (direct, queued):
            with host.app.app_context():
                if host.db.engine.dialect.name == "sqlite":
                    event.listen(host.db.engine, "connect", _set_up_sqlite)
        pairs.append((direct, queued, queue))
    for host in pairs[0][:2]:
        with host.app.app_context():
            host.db.create_all()
    try:
        yield pairs
    finally:
        for *hosts, _ in pairs:
            for host in hosts:
                with host.app.app_context():
                    host.db.session.remove()
                    host.db.engine.dispose()


def _get_append(queue: list[Event], app: Any) -> Callable[[Event], None]:
    return queue.append


def _set_up_sqlite(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")  # nothing here must survive


def run(first: str, second: str, runs: int, *, seed: int = 0, steps: tuple[int, int] = (5, 25)) -> Counter[str]:
    """Go on a number of journeys.

    :param first: an empty database, for the site that stores at once.
    :param second: an empty database, for the site with the recorder.
    :param steps: the fewest and the most steps of a journey.
    :return: how many rows of each kind there were.
    """
    kinds: Counter[str] = Counter()
    with sites_on(first, second) as pairs, time_machine.travel(START, tick=False) as clock:
        for number in range(seed, seed + runs):
            direct, queued, queue = pairs[number % len(pairs)]
            chance = random.Random(number)
            clock.shift(timedelta(days=2))
            sites = (Site(direct, str(number)), Site(queued, str(number)))
            try:
                Journey(sites, queue, chance, clock).run(chance.randint(*steps))
            except BaseException as error:
                raise AssertionError(f"Journey {number} makes a difference.") from error
            kinds.update(str(row[5]) for row in sites[1].stored())
    return kinds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=NAMES, default="sqlite")
    options = parser.parse_args()
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        urls = [stack.enter_context(new_database(options.database, folder)) for folder in folders]
        found = run(urls[0], urls[1], options.runs, seed=options.seed)
    print(f"{options.runs} journeys on {options.database} without a difference: {dict(found)}")
