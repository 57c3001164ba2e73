"""Statistics are equal to a count over the rows, in whichever way they are asked for."""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
import time_machine

from flask_referrals import InvalidValueError, Referral
from flask_referrals.db.totals import roll_up
from flask_referrals.state import current_state
from flask_referrals.stats import rank_links, totals_of
from tests.conftest import MakeHost
from tests.databases import on_sqlite
from tests.host import Host, get_one, statements

ZONES = ("UTC", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo")
#: The clocks change in March in New York, in April on Lord Howe Island and in Egypt.
FIRST, LAST = datetime(2026, 3, 1, tzinfo=timezone.utc), datetime(2026, 5, 5, tzinfo=timezone.utc)
MARKS, SITES = (None, "spring", "Été"), (None, "https://a.example/", "https://b.example/")


@dataclass
class Row:
    """A response of the model."""

    link: int
    action: str
    time: datetime
    value: Decimal | None
    currency: str | None
    ignored: str | None
    person: str
    referrer: str | None
    mark: str | None
    id: int = 0
    is_purged: bool = False
    is_rolled_up: bool = False


@dataclass
class Model:
    """The rows, and the sums over them."""

    zone: ZoneInfo
    links: list[tuple[str | None, str]]  # owners and labels
    rows: list[Row] = field(default_factory=list)

    def day(self, row: Row) -> date:
        return row.time.astimezone(self.zone).date()

    def totals(self, is_wanted: Callable[[Row], bool]) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for row in self.rows:
            if is_wanted(row):
                count, values = sums.setdefault(row.action, [0, defaultdict(Decimal)])
                sums[row.action][0] = count + 1
                if row.currency is not None:
                    values[row.currency] += row.value or 0
        return {action: (count, dict(values)) for action, (count, values) in sums.items()}

    def source(self, row: Row) -> Row | None:
        """The touch that says where an action came from."""
        if row.action == "RESPONDED":
            return row
        touches = [
            each
            for each in self.rows
            if (each.action, each.link, each.person, each.ignored) == ("RESPONDED", row.link, row.person, None)
            and each.time <= row.time
            and not each.is_purged
        ]
        return max(touches, key=lambda each: (each.time, each.id), default=None)


def plain(totals: Any) -> dict[str, Any]:
    return {action: (total.count, dict(total.value)) for action, total in totals.items()}


def sizes(stats: Any) -> list[tuple[int, int]]:
    """The numbers by which rows are sorted."""
    return [(totals["RESPONDED"].count, sum(each.count for each in totals.values())) for _, totals in stats.rows]


class TestAgainstTheRows:
    """Random responses of two months, some voided, some purged, some deleted, before and after a roll-up."""

    @pytest.mark.parametrize("seed", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 12))])
    def test_sums_are_equal(self, new_host: MakeHost, seed: int) -> None:
        chance = random.Random(seed)
        zone = chance.choice(ZONES)
        host = new_host(with_login=False, REFERRALS_TIMEZONE=zone)
        with host.app.app_context(), time_machine.travel(LAST, tick=False):
            users = {name: host.user(name) for name in ("olga", "mia")}
            links = [(None, ""), ("olga", ""), ("olga", "mail"), ("mia", "mail")]
            stored = [
                Referral.create(f"/{number}", users.get(owner or ""), label)
                for number, (owner, label) in enumerate(links)
            ]
            model = Model(ZoneInfo(zone), links)
            self.fill(host, model, [each.id for each in stored], users, chance)
            self.compare(host, model, stored, users, chance)
            for _ in range(2):
                chance.choice([self.roll_up, self.void, self.purge, self.delete_link])(host, model, chance)
                self.roll_up(host, model, chance)
                self.compare(host, model, stored, users, chance)

    def fill(self, host: Host, model: Model, links: list[int], users: Any, chance: random.Random) -> None:
        responses: Any = host.referrals.ReferralResponse
        for _ in range(chance.randint(0, 60)):
            action = chance.choice(["RESPONDED", "RESPONDED", "SIGNED_UP", "PURCHASED"])
            currency = chance.choice(["EUR", "GBP"]) if action == "PURCHASED" else None
            row = Row(
                link=chance.randrange(len(links)),
                action=action,
                time=FIRST + (LAST - FIRST) * chance.random(),
                value=Decimal(chance.randint(-500, 99999)) / 100 if currency else None,
                currency=currency,
                ignored=chance.choice([None] * 5 + ["bot", "repeat"]),
                person=chance.choice(["olga", "mia", "x", "y"]),
                referrer=chance.choice(SITES) if action == "RESPONDED" else "https://own.example/",
                mark=chance.choice(MARKS) if action == "RESPONDED" else None,
            )
            user = users.get(row.person)
            stored = responses(
                referral_id=links[row.link],
                action=action,
                is_touch=action == "RESPONDED",
                created_at=row.time,
                value=row.value,
                currency=currency,
                ignored=row.ignored,
                user_id=user.id if user else None,
                session_key=chance.choice([None, "x"]) if user else row.person,
                http_referrer=row.referrer,
                params={"utm_campaign": row.mark} if row.mark else None,
            )
            host.add(stored)
            row.id = stored.id
            model.rows.append(row)

    def roll_up(self, host: Host, model: Model, chance: random.Random) -> None:
        roll_up(current_state().database)
        for row in model.rows:
            row.is_rolled_up = not row.is_purged or row.is_rolled_up

    def void(self, host: Host, model: Model, chance: random.Random) -> None:
        rows = [row for row in model.rows if not row.is_purged and row.ignored is None and row.action != "RESPONDED"]
        for row in chance.sample(rows, min(3, len(rows))):
            get_one(host.db, host.referrals.ReferralResponse, row.id).void("a test")
            row.ignored = "void"
            # The record of the voiding is an ignored response, too.
            model.rows.append(
                Row(row.link, "VOIDED", LAST, None, None, "void", row.person, None, None, id=10**6 + row.id)
            )

    def purge(self, host: Host, model: Model, chance: random.Random) -> None:
        self.roll_up(host, model, chance)
        days = chance.randint(5, 60)
        result = host.app.test_cli_runner().invoke(args=["referrals", "purge", "--older-than", str(days), "--yes"])
        assert result.exit_code == 0, result.output
        left = set(host.db.session.scalars(sa.select(host.referrals.ReferralResponse.id)))
        for row in model.rows:
            row.is_purged |= row.action != "VOIDED" and row.id not in left

    def delete_link(self, host: Host, model: Model, chance: random.Random) -> None:
        link = host.db.session.scalar(sa.select(Referral).where(Referral.redirect_to == "/3"))
        if link is not None:
            host.db.session.delete(link)
            host.db.session.commit()
        model.rows = [row for row in model.rows if row.link != 3]

    def compare(self, host: Host, model: Model, stored: Any, users: Any, chance: random.Random) -> None:
        purged_until = max((model.day(row) for row in model.rows if row.is_purged), default=date.min)
        for _ in range(12):
            options, is_in = self.narrow(model, stored, users, chance)
            since, until, is_wanted = self.period(model, chance, purged_until)

            def is_counted(row: Row, is_in: Any = is_in, is_wanted: Any = is_wanted) -> bool:
                return row.ignored is None and bool(is_in(row)) and bool(is_wanted(row))

            keys: dict[str, Callable[[Row], Any]] = {
                "day": model.day,
                "week": lambda row: model.day(row) - timedelta(days=model.day(row).weekday()),
                "month": lambda row: model.day(row).replace(day=1),
                "referral": lambda row: stored[row.link],
                "owner": lambda row: users.get(model.links[row.link][0] or ""),
                "label": lambda row: model.links[row.link][1],
                "referrer": lambda row: (model.source(row) or Row(0, "", LAST, *[None] * 6)).referrer,  # type: ignore[arg-type]
                "utm_campaign": lambda row: (model.source(row) or Row(0, "", LAST, *[None] * 6)).mark,  # type: ignore[arg-type]
                "ignored": lambda row: row.ignored,
            }
            for by, key in chance.sample(list(keys.items()), 2):
                stats = host.referrals.stats(since=since, until=until, by=by, **options)
                assert plain(stats.totals) == model.totals(is_counted), (by, since, until, options)
                rows = {each: plain(totals) for each, totals in stats.rows}
                assert len(rows) == len(stats.rows)
                if by == "ignored":
                    in_rows = [row for row in model.rows if row.ignored and is_in(row) and is_wanted(row)]
                    in_rows = [row for row in in_rows if not row.is_purged]
                else:
                    in_rows = [row for row in model.rows if is_counted(row)]
                    if by in ("referrer", "utm_campaign"):
                        in_rows = [row for row in in_rows if not row.is_purged]
                expected = {
                    each: model.totals(lambda row, each=each, key=key, of=in_rows: row in of and key(row) == each)  # type: ignore[misc]
                    for each in {key(row) for row in in_rows}
                }
                assert {each: totals for each, totals in rows.items() if totals} == expected, (by, since, until)
                if by in ("day", "week", "month"):
                    assert list(rows) == sorted(rows)
                if by in ("referral", "owner", "label"):
                    top = host.referrals.stats(since=since, until=until, by=by, limit=2, **options)
                    assert plain(top.totals) == plain(stats.totals)
                    assert sizes(top) == sizes(stats)[:2]
                    assert all(plain(totals) == rows[each] for each, totals in top.rows)
            self.compare_links(model, stored)
            people = {(row.action, row.person) for row in model.rows if is_counted(row) and not row.is_purged}
            assert stats.funnel == [
                (step, sum(action == step for action, _ in people)) for step in ("RESPONDED", "SIGNED_UP", "PURCHASED")
            ]

    def compare_links(self, model: Model, stored: Any) -> None:
        """Compare the totals of links, and the numbers by which they are sorted, over all time."""
        of_link = [
            model.totals(lambda row, number=number: row.link == number and row.ignored is None)  # type: ignore[misc]
            for number in range(len(stored))
        ]
        found = totals_of(current_state(), stored[:3])
        assert [plain(found[each.id]) for each in stored[:3]] == of_link[:3]
        sold = [row.currency for row in model.rows if row.ignored is None and row.value]
        main = min(set(sold), key=lambda each: (-sold.count(each), each or ""), default=None)
        for action in ("RESPONDED", "SIGNED_UP", None):
            ranked = rank_links(current_state(), action)
            numbers = {row.referral_id: row.number for row in current_state().reports.rows(sa.select(ranked))}
            for link, totals in zip(stored, of_link, strict=True):
                if action is not None:
                    expected = totals.get(action, (0, {}))[0]
                else:
                    expected = totals.get("PURCHASED", (0, {}))[1].get(main, 0)
                assert Decimal(str(numbers.get(link.id, 0))) == expected

    def narrow(self, model: Model, stored: Any, users: Any, chance: random.Random) -> tuple[Any, Callable[[Row], bool]]:
        choices: list[tuple[Any, Callable[[Row], bool]]] = [
            ({}, lambda row: True),
            ({"owner": users["olga"]}, lambda row: model.links[row.link][0] == "olga"),
            ({"label": "mail"}, lambda row: model.links[row.link][1] == "mail"),
            ({"referral": stored[1]}, lambda row: row.link == 1),
        ]
        return chance.choice(choices)

    def period(self, model: Model, chance: random.Random, purged_until: date) -> Any:
        """Return a period in days, or one in times that begins after what was purged."""
        first, last = sorted(FIRST + (LAST - FIRST) * chance.random() for _ in range(2))
        kind = chance.choice(["all", "days", "since", "until", "times", "times"])
        days = first.astimezone(model.zone).date(), last.astimezone(model.zone).date()
        if kind == "all":
            return None, None, lambda row: True
        if kind == "days":
            return *days, lambda row: days[0] <= model.day(row) <= days[1]
        if kind == "since":
            return days[0], None, lambda row: days[0] <= model.day(row)
        if kind == "until":
            return None, days[1], lambda row: model.day(row) <= days[1]
        later = datetime.combine(
            max(purged_until, date(2000, 1, 1)) + timedelta(days=2), datetime.min.time(), timezone.utc
        )
        first, last = max(first, later), max(last, later + timedelta(hours=30))
        return first, last, lambda row: first <= row.time < last


class TestAnswer:
    @pytest.fixture
    def host(self, new_host: MakeHost) -> Any:
        host = new_host(REFERRALS_TIMEZONE="Europe/Paris")
        with host.app.app_context(), time_machine.travel(LAST, tick=False):
            yield host

    def add(self, host: Host, link: Any, day: date, action: str = "RESPONDED", **columns: Any) -> None:
        time = datetime(day.year, day.month, day.day, 12, tzinfo=timezone.utc)
        is_touch = action == "RESPONDED"
        row = host.referrals.ReferralResponse(action=action, is_touch=is_touch, created_at=time, **columns)
        row.referral_id = link.id
        host.add(row)

    def test_days_without_a_response_are_in_the_rows(self, host: Host) -> None:
        link = Referral.create("/")
        self.add(host, link, date(2026, 3, 28))
        self.add(host, link, date(2026, 3, 30))
        rows = host.referrals.stats(since=date(2026, 3, 27), until=date(2026, 3, 31), by="day").rows
        assert [(key.day, totals["RESPONDED"].count) for key, totals in rows] == [
            (27, 0),
            (28, 1),
            (29, 0),  # has 23 hours
            (30, 1),
            (31, 0),
        ]

    def test_days_begin_with_the_first_response_if_none_is_rolled_up(self, host: Host) -> None:
        link = Referral.create("/")
        self.add(host, link, date(2026, 5, 2))
        link.respond("TRIED").void("by mistake")  # places the watermark
        with statements(host.db) as sent:
            rows = host.referrals.stats(by="day").rows
        assert [(key.day, totals["RESPONDED"].count) for key, totals in rows] == [(2, 1), (3, 0), (4, 0), (5, 0)]
        assert max(map(len, sent)) < 10_000  # not a CASE for each day since 1970

    def test_period_before_has_as_many_days(self, host: Host) -> None:
        link = Referral.create("/")
        for day in (date(2026, 3, 29), date(2026, 3, 29), date(2026, 4, 1)):
            self.add(host, link, day)
        stats = host.referrals.stats(since=date(2026, 3, 30), until=date(2026, 4, 1), compare=True)
        assert stats.totals["RESPONDED"].count == 1
        assert stats.previous is not None
        assert stats.previous.totals["RESPONDED"].count == 2
        assert stats.previous.since == datetime(2026, 3, 26, 23, tzinfo=timezone.utc)
        assert stats.previous.until == stats.since

    def test_conversion_is_of_clicks(self, host: Host) -> None:
        link = Referral.create("/")
        assert host.referrals.stats().conversion("SIGNED_UP") is None
        for action in ("RESPONDED", "RESPONDED", "RESPONDED", "RESPONDED", "SIGNED_UP"):
            self.add(host, link, date(2026, 4, 1), action)
        assert host.referrals.stats().conversion("SIGNED_UP") == 0.25
        assert host.referrals.stats().totals["BOUGHT"].count == 0

    def test_currencies_are_not_added_up(self, host: Host) -> None:
        link = Referral.create("/")
        for value, currency in ((1, "EUR"), (2, "GBP"), (3, "EUR"), (4, None)):
            self.add(host, link, date(2026, 4, 1), "PAID", value=Decimal(value), currency=currency)
        assert host.referrals.stats().totals["PAID"].value == {"EUR": 4, "GBP": 2, None: 4}

    def test_leaderboard_is_in_order(self, host: Host) -> None:
        olga, mia, tom = (host.user(name) for name in ("olga", "mia", "tom"))
        links = {user: Referral.create("/", user) for user in (olga, mia, tom, None)}
        for user, number in ((olga, 1), (mia, 3), (None, 5)):
            for _ in range(number):
                self.add(host, links[user], date(2026, 4, 1))
        self.add(host, links[olga], date(2026, 4, 2), "PAID", value=Decimal(9), currency="EUR")
        self.add(host, links[mia], date(2026, 4, 2), "PAID", value=Decimal(8), currency="GBP")
        assert host.referrals.leaderboard("RESPONDED") == [(mia, 3), (olga, 1)]
        assert host.referrals.leaderboard("RESPONDED", limit=1) == [(mia, 3)]
        assert host.referrals.leaderboard("value:EUR") == [(olga, Decimal(9))]
        assert host.referrals.leaderboard("RESPONDED", since=date(2026, 4, 2)) == []

    @pytest.mark.parametrize("is_rolled_up", [False, True])
    def test_labels_and_referrers_that_differ_by_case_stay_apart(self, host: Host, is_rolled_up: bool) -> None:
        labels = ("Tea", "tea", "téa")
        for number, label in enumerate(labels, 1):
            for _ in range(number):
                self.add(
                    host, Referral.create("/", None, label), FIRST.date(), http_referrer=f"https://a.example/{label}"
                )
        if is_rolled_up:
            roll_up(current_state().database)
        stats = host.referrals.stats
        assert [stats(label=label).totals["RESPONDED"].count for label in labels] == [1, 2, 3]
        for by, names in (("label", labels), ("referrer", [f"https://a.example/{label}" for label in labels])):
            rows = [(key, totals["RESPONDED"].count) for key, totals in stats(by=by).rows]
            assert rows == [(name, number) for number, name in reversed([*enumerate(names, 1)])]

    @pytest.mark.parametrize("by", ["day", "month"])
    def test_long_periods_take_no_longer_than_their_responses(self, host: Host, by: str) -> None:
        link = Referral.create("/")
        for day in (date(2025, 11, 30), date(2026, 3, 28), LAST.date() - timedelta(days=1)):
            self.add(host, link, day)
        for until in (None, date(2060, 12, 31)):
            with statements(host.db) as sent:
                rows = host.referrals.stats(since=date(1990, 1, 1), until=until, by=by).rows
            assert max(map(len, sent)) < 50_000
            counted = {key.isoformat(): totals["RESPONDED"].count for key, totals in rows if totals}
            if by == "day":
                assert counted == {"2025-11-30": 1, "2026-03-28": 1, "2026-05-04": 1}
            else:
                assert counted == {"2025-11-01": 1, "2026-03-01": 1, "2026-05-01": 1}

    @pytest.mark.parametrize("by", [None, "day", "referral", "owner", "label", "referrer", "utm_source", "ignored"])
    @pytest.mark.parametrize("is_rolled_up", [False, True])
    def test_number_of_statements_does_not_depend_on_the_number_of_links(
        self, host: Host, by: str | None, is_rolled_up: bool
    ) -> None:
        sent = []
        for number in range(2):
            for each in range(1 + 30 * number):
                user = host.user(f"user {number} {each}")
                self.add(host, Referral.create("/", user, label=f"{each}"), date(2026, 4, 1))
            if is_rolled_up:
                roll_up(current_state().database)
            with statements(host.db) as found:
                host.referrals.stats(by=by)
            sent.append(len(found))
        assert sent[0] == sent[1] <= 4

    @on_sqlite
    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"by": "colour"}, "by"),
            ({"since": datetime(2026, 3, 1)}, "since"),
            ({"until": "2026-03-01"}, "until"),
            ({"since": date(2026, 3, 2), "until": date(2026, 3, 1)}, "until"),
            ({"since": date.min}, "since"),
            ({"until": date.max}, "until"),
            ({"referral": "a code"}, "referral"),
            ({"label": 5}, "label"),
            ({"label": "a\0"}, "label"),
            ({"compare": True}, "compare"),
            ({"owner": "olga"}, "user"),
        ],
    )
    def test_bad_arguments_are_named(self, host: Host, options: Any, field: str) -> None:
        with pytest.raises(InvalidValueError) as raised:
            host.referrals.stats(**options)
        assert raised.value.field == field

    @on_sqlite
    @pytest.mark.parametrize("action", [5, "a\0"])
    def test_bad_actions_are_named(self, host: Host, action: Any) -> None:
        with pytest.raises(InvalidValueError) as raised:
            host.referrals.leaderboard(action)
        assert raised.value.field == "action"
