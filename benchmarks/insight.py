"""What statistics cost with ten million stored responses: milliseconds, and the plan of each statement::

    python -m benchmarks.insight --json benchmarks/results/insight.json --plans benchmarks/results/insight-plans.txt

The responses are those of two years of a growing site: see :class:`Site`. Questions are asked for an owner with ten
links, for one with a fiftieth of all links and for the whole site, before and after ``flask referrals rollup``. Ends
with 1 if a median of PostgreSQL with a roll-up is above its target. PostgreSQL has the index by time that
``docs/scaling.rst`` recommends.
"""

import argparse
import json
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event

from benchmarks import results
from benchmarks.contestants.ours import create_app
from benchmarks.contestants.settings import DATABASE
from benchmarks.growth import memory
from benchmarks.rows import Rows, code_of, refresh, store
from flask_referrals import current_referrals
from flask_referrals.db.keys import digest
from flask_referrals.db.totals import roll_up
from flask_referrals.state import current_state
from flask_referrals.stats import Stats
from tests.databases import NAMES, new_database

_DAYS = 730
_SINCE = date.today() - timedelta(days=89)
_KEYS = ("referral", "owner", "label", "referrer", "utm_source", "ignored")
_LABELS = ("", "", "mail", "blog", "podcast", "flyer", "profile")
_SOURCES = ("newsletter", "mastodon", "youtube", "partner", "qr")
_CAMPAIGNS = ("spring", "summer", "autumn", "winter", "launch", "sale")
_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
_CRAWLER = "Mozilla/5.0 (compatible; ExampleBot/2.1; +https://bot.example/)"
#: How many responses a server's statistics do not know yet.
_RECENT = 600
_INDEX = "CREATE INDEX ON referral_response USING brin (created_at) WITH (autosummarize = on)"
#: How often a question is asked at most without a roll-up, when some take a minute.
_FEW = 3
#: The longest line of a plan that is kept, in characters: the days of a period are in some of them.
_LINE = 160


@dataclass(frozen=True)
class Site:
    """The same made-up site each time.

    The busiest link has some 5 % of the clicks, a tenth of the links about half. Clicks have grown threefold in two
    years; on weekends there are fewer. Of a hundred clicks, six are those of crawlers and two are repeats. Of a hundred
    visitors three share something, two sign up, and most of these buy, some of them months later.

    :param responses: how many are stored.
    """

    responses: int

    @property
    def links(self) -> int:
        """How many links there are."""
        return self.responses // 200

    @property
    def owners(self) -> int:
        """How many users have links, the first ones. Each has ten or so, the first one a fiftieth of all."""
        return max(self.responses // 2000, 1)

    def owner_of(self, link: int) -> int:
        """Return a link's owner."""
        return 1 if link % 50 == 7 else link % self.owners + 1

    @property
    def users(self) -> int:
        """How many users there may be."""
        return self.owners + self.responses // 30

    def tables(self) -> Iterator[Rows]:
        """Return the rows of all tables; the recent responses are the last item."""
        start = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(days=_DAYS)
        yield Rows("user", ("id",), ((number,) for number in range(1, self.users + 1)))
        columns = ("id", "code", "folded_code", "label", "redirect_to", "identity", "user_id", "created_at")
        links = range(1, self.links + 1)

        def rest(link: int) -> tuple[int, str]:
            return self.owner_of(link), start.isoformat(" ")

        yield Rows(
            "referral",
            columns,
            (
                (
                    link,
                    code_of(link),
                    code_of(link),
                    _LABELS[link % len(_LABELS)],
                    "/page",
                    f"stored {link}",
                    *rest(link),
                )
                for link in links
            ),
        )
        responses = self._responses(start)
        names = (
            *("referral_id", "session_key", "user_id", "action", "is_touch", "ignored", "ip_address", "http_referrer"),
            *("user_agent", "key", "identity", "value", "currency", "params", "created_at"),
        )
        yield Rows("referral_response", names, islice(responses, self.responses - _RECENT))
        yield Rows("referral_response", names, islice(responses, _RECENT))

    def _responses(self, start: datetime) -> Iterator[tuple[Any, ...]]:
        """Return the responses in the order of time, as clicks and actions store them."""
        chance = random.Random(1)  # noqa: S311
        days = [start + timedelta(days=number) for number in range(_DAYS)]
        weights = [(1 + 2 * number / _DAYS) * (0.6 if day.weekday() > 4 else 1) for number, day in enumerate(days)]
        sum_of_weights = sum(weights)
        later: list[list[tuple[Any, ...]]] = [[] for _ in days]
        new_user = self.owners
        for number, (day, weight) in enumerate(zip(days, weights, strict=True)):
            rows = later[number]
            while len(rows) <= self.responses * weight / sum_of_weights:
                link = int(self.links * chance.random() ** 4) + 1
                moment = day + timedelta(microseconds=chance.randrange(86_400_000_000))
                if (lot := chance.random()) < 0.06:
                    rows.append(_click(link, None, None, "bot", _CRAWLER, None, None, moment))
                    continue
                visitor, user = secrets.token_urlsafe(32), None
                referrer = f"https://site-{int(150 * chance.random() ** 3)}.example/" if chance.random() < 0.5 else None
                params = None
                if chance.random() < 0.3:
                    marks = {"utm_source": chance.choice(_SOURCES), "utm_campaign": chance.choice(_CAMPAIGNS)}
                    params = json.dumps(marks)
                if lot < 0.08 and new_user < self.users:
                    user = new_user = new_user + 1
                rows.append(_click(link, visitor, user, None, _AGENT, referrer, params, moment))
                if lot > 0.98:
                    again = moment + timedelta(seconds=chance.randrange(1, 1000))
                    rows.append(_click(link, visitor, user, "repeat", _AGENT, referrer, params, again))
                if lot > 0.96:
                    future = number + chance.randrange(60)
                    again = moment + timedelta(days=future - number, seconds=3600)
                    if future < _DAYS:
                        later[future].append(_click(link, visitor, user, None, _AGENT, None, None, again))
                if 0.08 < lot < 0.11:
                    rows.append(_action(link, visitor, None, "SHARED", moment + timedelta(minutes=1)))
                if user is not None:
                    rows.append(_action(link, visitor, user, "SIGNED_UP", moment + timedelta(minutes=2)))
                    for _ in range(chance.choice((0, 0, 1, 1, 2))):
                        future = number + int(120 * chance.random() ** 3)
                        if future < _DAYS:
                            bought = moment + timedelta(days=future - number, minutes=chance.randrange(3, 60))
                            amount = f"{chance.randrange(500, 20_000) / 100:.2f}"
                            currency = "EUR" if chance.random() < 0.7 else "GBP"
                            key = secrets.token_hex(8)
                            paid = _action(link, visitor, user, "PURCHASED", bought, key, amount, currency)
                            later[future].append(paid)
            later[number] = []
            yield from sorted(rows, key=lambda row: row[-1])


def _click(
    link: int,
    visitor: str | None,
    user: int | None,
    ignored: str | None,
    agent: str,
    referrer: str | None,
    params: str | None,
    moment: datetime,
) -> tuple[Any, ...]:
    facts = ("RESPONDED", 1, ignored, "192.0.2.0", referrer, agent, None, None, None, None, params)
    return (link, visitor, user, *facts, moment.isoformat(" ", "microseconds"))


def _action(
    link: int,
    visitor: str,
    user: int | None,
    action: str,
    moment: datetime,
    key: str | None = None,
    value: str | None = None,
    currency: str | None = None,
) -> tuple[Any, ...]:
    identity = digest(action, key) if key is not None else None
    facts = (action, 0, None, "192.0.2.0", "https://shop.example/", _AGENT, key, identity, value, currency, None)
    return (link, visitor, user, *facts, moment.isoformat(" ", "microseconds"))


@dataclass(frozen=True)
class Question:
    """Something that is asked.

    :param target: the most milliseconds that it may take with a roll-up, on PostgreSQL; ``None`` without one.
    """

    title: str
    ask: Callable[[], object]
    target: int | None = None


def _questions() -> Sequence[Question]:
    return (
        Question("owner, 90 days by day", lambda: _stats_of_owner("day", 2), 50),
        Question("owner of many, 90 days by day", lambda: _stats_of_owner("day")),
        Question("site, 90 days by day", lambda: _stats("day"), 150),
        Question("leaderboard of sign-ups, 90 days", lambda: _leaderboard("SIGNED_UP"), 300),
        Question("leaderboard of sign-ups, two years", lambda: _leaderboard("SIGNED_UP", since=None), 300),
        Question("leaderboard of clicks, 90 days", lambda: _leaderboard("RESPONDED")),
        Question("leaderboard of clicks, two years", lambda: _leaderboard("RESPONDED", since=None)),
        Question("leaderboard of euros, 90 days", lambda: _leaderboard("value:EUR")),
        Question("site, 90 days by day, compared", lambda: _stats("day", compare=True)),
        Question("site, two years by month", lambda: _stats("month", since=None)),
        Question("site, 90 days by referral, 50 rows", lambda: _stats("referral", limit=50)),
        *(Question(f"owner of many, 90 days by {by}", partial(_stats_of_owner, by)) for by in _KEYS),
        *(Question(f"site, 90 days by {by}", partial(_stats, by)) for by in _KEYS),
        Question("owner of many, funnel of 90 days", lambda: _stats_of_owner().funnel),
        Question("site, funnel of 90 days", lambda: _stats().funnel),
    )


def _stats(
    by: str | None = None, since: date | None = _SINCE, compare: bool = False, limit: int | None = None
) -> Stats:
    return current_referrals.stats(since=since, by=by, compare=compare, limit=limit)


def _stats_of_owner(by: str | None = None, key: int = 1) -> Stats:
    """Ask for one of the owners; the first one has a fiftieth of all links."""
    database = current_state().database
    owner = database.session.get(database.models.user or object, key)
    return current_referrals.stats(owner=owner, since=_SINCE, by=by)


def _leaderboard(action: str, since: date | None = _SINCE) -> object:
    return current_referrals.leaderboard(action, since=since)


@contextmanager
def stored(database: str, url: str | None, responses: int) -> Iterator[Flask]:
    """Yield a site with as many responses.

    :param url: a database that is filled if it has no tables, and kept; ``None`` for one that is dropped at the end.
    """
    with ExitStack() as stack:
        stack.enter_context(memory(database))
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url = stack.enter_context(new_database(database, Path(folder)))
        os.environ[DATABASE] = url
        app = create_app()
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        if not sa.inspect(engine).get_table_names():
            began = time.monotonic()
            store(engine, Site(responses).tables(), app.extensions["sqlalchemy"].metadata)
            if database == "postgresql":
                with engine.begin() as connection:  # as docs/scaling.rst recommends
                    connection.exec_driver_sql(_INDEX)
            _tell(f"{responses:,} responses stored in {time.monotonic() - began:.0f} s")
        yield app
        with app.app_context():
            app.extensions["sqlalchemy"].engine.dispose()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(app: Flask, question: Question, repeats: int) -> list[float]:
    """Return how long the answers took, in milliseconds, after two that are not measured. Each is a request's."""
    took = []
    for _ in range(repeats + 2):
        with app.app_context():
            began = time.perf_counter()
            question.ask()
            took.append((time.perf_counter() - began) * 1000)
    return took[2:]


def explain(app: Flask, question: Question) -> str:
    """Return the plans of the statements of a question, as PostgreSQL explains them."""
    sent: list[tuple[str, Any]] = []
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine

        def note(connection: Any, cursor: Any, statement: str, parameters: Any, *args: Any) -> None:
            sent.append((statement, parameters))

        event.listen(engine, "before_cursor_execute", note)
        question.ask()
        event.remove(engine, "before_cursor_execute", note)
        plans = []
        with engine.connect() as connection:
            for statement, parameters in sent:
                explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", parameters)
                lines = [line if len(line) <= _LINE else f"{line[:_LINE]}…" for line in explained.scalars()]
                plans.append("\n".join(lines))
    return "\n\n".join(plans)


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--url", help="fill and keep this database, or measure what is in it")
    parser.add_argument("--stored", type=int, default=10_000_000, help="the number of responses")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", default="", help="only questions whose title has these words")
    parser.add_argument("--json", type=Path, help="keep the figures there too")
    parser.add_argument("--plans", type=Path, help="write the plans there, with a roll-up; PostgreSQL only")
    options = parser.parse_args()
    missed, plans = [], []
    with stored(options.database, options.url, options.stored) as app:
        for is_rolled_up in (False, True):
            with app.app_context():
                database = current_state().database
                if is_rolled_up:
                    began = time.monotonic()
                    days = roll_up(database)
                    _tell(f"{days} days rolled up in {time.monotonic() - began:.0f} s")
                    refresh(app.extensions["sqlalchemy"].engine)
                total = database.models.total
                has_totals = database.session.scalar(sa.select(sa.exists().where(total.c.id > 0)))
            if has_totals and not is_rolled_up:
                continue  # a database that was kept
            title = "with a roll-up" if is_rolled_up else "without a roll-up"
            print(f"\n{options.database}, {options.stored:,} stored, {title}: median and worst ms of {options.repeats}")
            for question in _questions():
                if options.only not in question.title:
                    continue
                took = measure(app, question, options.repeats if is_rolled_up else min(options.repeats, _FEW))
                verdict = ""
                if question.target is not None and is_rolled_up and options.database == "postgresql":
                    verdict = f"target {question.target}"
                    if median(took) > question.target:
                        missed.append(question.title)
                        verdict += ": MISSED"
                print(f"{question.title:40}{median(took):>10.1f}{max(took):>10.1f}  {verdict}", flush=True)
                of = {"database": options.database, "operation": question.title, "stored": options.stored}
                figures = {"median": round(median(took), 1), "worst": round(max(took), 1)}
                results.keep(options.json, {**of, "is_rolled_up": is_rolled_up}, figures)
                if options.plans is not None and is_rolled_up:
                    plans.append(f"{question.title}\n{'=' * len(question.title)}\n{explain(app, question)}\n")
    if options.plans is not None:
        options.plans.write_text("\n\n".join(plans))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
