"""Statistics: counts, values, conversion and funnel of a period, and the users whose links bring most."""

import typing as t
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import cached_property
from itertools import groupby

import sqlalchemy as sa

from .db.aggregates import (
    Key,
    Links,
    Parts,
    Span,
    count_people,
    sum_up,
    sum_up_ignored,
    sum_up_owners,
    sum_up_touches,
)
from .db.conditions import Condition, is_exactly
from .db.keys import primary_key
from .db.tables import ReferralColumns
from .db.totals import day_of, day_start, midnight, split_days, watermark
from .exceptions import InvalidValueError
from .settings import Settings
from .state import AppState
from .times import as_utc, load_zone, now, parse_time, require_aware
from .types import CLICK, plain_text

#: A day of ``REFERRALS_TIMEZONE``, or an aware time.
Time = date | datetime
#: Rows of :func:`.sum_up`.
_Sums = Iterable[t.Any]

#: Functions that return the first day of the day, week or month that a day belongs to.
FIRST_DAYS: dict[str, Callable[[date], date]] = {
    "day": lambda day: day,
    "week": lambda day: day - timedelta(days=day.weekday()),
    "month": lambda day: day.replace(day=1),
}
#: Of a longer period, only the days since its first response are named in the statement.
_LONG = timedelta(days=400)
_NAMES = (*FIRST_DAYS, "referral", "owner", "label", "referrer", "ignored")
#: How many keys every database takes as the parameters of a statement.
_MAX_PARAMETERS = 10_000


@dataclass(frozen=True)
class Total:
    """The counted responses of one action.

    :param count: how many there are.
    :param value: the sum of their values by currency; ``None`` stands for values without a currency.
    """

    count: int
    value: Mapping[str | None, Decimal]

    def __add__(self, other: "Total") -> "Total":
        return Total(self.count + other.count, _add_values(self.value, other.value))


class Totals(dict[str, Total]):
    """Totals by action. An action that nobody did has a total of zero."""

    def __missing__(self, action: str) -> Total:
        return Total(0, {})

    @property
    def value(self) -> dict[str | None, Decimal]:
        """The sum of the values of all actions, by currency."""
        return _add_values(*(total.value for total in self.values()))

    def __add__(self, other: "Totals") -> "Totals":
        return Totals({action: self[action] + other[action] for action in {**self, **other}})


def _add_values(*values: Mapping[str | None, Decimal]) -> dict[str | None, Decimal]:
    sums: dict[str | None, Decimal] = {}
    for value in values:
        for currency, amount in value.items():
            sums[currency] = sums.get(currency, Decimal(0)) + amount
    return sums


@dataclass(frozen=True)
class Stats:
    """The statistics of a period.

    :param since: when it begins; ``None`` without a limit.
    :param until: when it ends: the first moment after it.
    :param by: what the rows are by.
    :param totals: the counted responses by action.
    :param rows: the totals of each key of ``by``.
    :param previous: the statistics of the period before, with ``compare=True``.
    """

    since: datetime | None
    until: datetime | None
    by: str | None
    totals: Totals
    rows: Sequence[tuple[t.Any, Totals]]
    previous: "Stats | None"
    _count_people: Callable[[], dict[str, int]] = field(repr=False)
    _steps: Sequence[str] = field(repr=False)

    def conversion(self, action: str) -> float | None:
        """Return the number of an action divided by that of the clicks, or ``None`` without clicks."""
        clicks = self.totals[CLICK].count
        return self.totals[action].count / clicks if clicks else None

    @cached_property
    def funnel(self) -> list[tuple[str, int]]:
        """How many distinct people did each step of ``REFERRALS_FUNNEL``, in that order, in one statement.

        A person is a user, or a visitor who has not logged in. Responses of neither are left out, and those that
        ``purge`` has deleted.
        """
        people = self._count_people()
        return [(step, people.get(step, 0)) for step in self._steps]


class _Question(t.NamedTuple):
    """How to count the responses of a period."""

    state: AppState
    span: Span
    by: str | None
    links: Links
    #: The most rows, except those of periods.
    limit: int | None = None


def step_label(settings: Settings, action: str) -> str:
    """Return the heading of a column or card that counts an action: the site's own words for it, if there are any."""
    if action == CLICK:
        return "Clicks"
    return settings.action_display.get(action, action.capitalize().replace("_", " "))


def get_stats(
    state: AppState,
    *,
    owner_key: t.Any = None,
    referral: ReferralColumns | None = None,
    label: str | None = None,
    since: Time | None = None,
    until: Time | None = None,
    by: str | None = None,
    compare: bool = False,
    limit: int | None = None,
) -> Stats:
    """Return the statistics of a period."""
    names = (*_NAMES, *state.settings.campaign_params)
    if by is not None and by not in names:
        raise InvalidValueError("by", f"must be one of {', '.join(map(repr, names))}")
    if limit is not None:
        _check_limit(limit)
    span, referrals = _parse_span(state, since, until), state.database.models.referrals
    conditions = []
    if owner_key is not None:
        conditions.append(is_exactly(referrals.user_id, owner_key))
    if referral is not None:
        conditions.append(referrals.id == primary_key(referral, "referral"))
    if label is not None:
        conditions.append(is_exactly(referrals.label, plain_text("label", label, referrals.label.type.length)))
    links = Links(conditions, is_key=by in ("referral", "owner", "label"))
    previous = None
    if compare:
        has_times = isinstance(since, datetime) or isinstance(until, datetime)
        previous = _answer(_Question(state, _span_before(state, span, has_times=has_times), by, links, limit))
    return _answer(_Question(state, span, by, links, limit), previous)


def totals_of(state: AppState, referrals: Sequence[ReferralColumns]) -> dict[int, Totals]:
    """Return the totals of some links by their keys, from the beginning until now."""
    keys = [each.id for each in referrals]
    links = Links([_is_in(state.database.models.referrals.id, keys)], is_key=True)
    question = _Question(state, Span(None, None), "referral", links)
    found = _group(_sum_up(question, lambda columns: columns.referral_id)) if keys else {}
    return {key: found.get(key, Totals()) for key in keys}


def rank_links(state: AppState, action: str | None) -> sa.Subquery:
    """Select ``referral_id`` and the ``number`` by which links are sorted, of the links that have any.

    :param action: the number is how many responses of this action are counted. ``None``: it is the sum of the values in
        the main currency, which is that of most responses with a value.
    """
    question = _Question(state, Span(None, None), None, Links([]))
    parts = _find_parts(state, question.span)
    links = Links([], is_key=True)
    sums = sum_up(state.database.models, parts, lambda columns: columns.referral_id, links).subquery().c
    number: sa.ColumnElement[t.Any]
    if action is not None:
        is_wanted, number = is_exactly(sums.action, action), sa.func.sum(sums.number)
    else:
        is_wanted = sums.currency.is_not_distinct_from(_main_currency(question, parts))
        number = sa.func.round(sa.func.sum(sums.value), 4)  # SQLite adds up floats: equal sums must stay equal
    ranked = sa.select(sums.key.label("referral_id"), number.label("number"))
    return ranked.where(is_wanted).group_by(sums.key).subquery()


def _main_currency(question: _Question, parts: Parts) -> str | None:
    counts: Counter[str | None] = Counter()
    for row in _read(question, parts, lambda columns: sa.null()):
        if row.value:
            counts[row.currency] += int(row.number)
    return min(counts, key=lambda currency: (-counts[currency], currency or ""), default=None)


def get_leaderboard(
    state: AppState, action: str, *, since: Time | None, until: Time | None, limit: int
) -> list[tuple[t.Any, int | Decimal]]:
    """Return the users whose links brought most of an action, or most of ``value:`` and a currency."""
    action = plain_text("action", action, state.database.models.responses.action.type.length)
    currency = action.removeprefix("value:") if action.startswith("value:") else None
    _check_limit(limit)
    parts = _find_parts(state, _parse_span(state, since, until))
    select = sum_up_owners(state.database.models, parts, action if currency is None else None, currency)
    rows = state.reports.rows(select)
    sums = {row.key: int(row.number) if currency is None else row.number or Decimal(0) for row in rows}
    best = sorted((each for each in sums.items() if each[1] > 0), key=lambda each: (-each[1], str(each[0])))[:limit]
    owners = load_users(state, [key for key, _ in best])
    return [(owners.get(key, key), number) for key, number in best]


def _check_limit(limit: int) -> None:
    if type(limit) is not int or limit < 1:
        raise InvalidValueError("limit", "must be a number above zero")


def _answer(question: _Question, previous: Stats | None = None) -> Stats:
    state, span, by, _, limit = question
    models, referrals = state.database.models, state.database.models.referrals
    keys: dict[str, Key] = {
        "referral": lambda columns: referrals.id,
        "owner": lambda columns: referrals.user_id,
        "label": lambda columns: referrals.label,
    }
    rows: Sequence[tuple[t.Any, Totals]] = ()
    if by in FIRST_DAYS:
        by_day = _sum_up_days(question)
        totals = _group(by_day, lambda key: None).get(None, Totals())
        rows = _by_period(question, by_day)
    elif by in keys:
        parts, key, links = _find_parts(state, span), keys[by], question.links
        if limit is None:
            sums = _read(question, parts, key)
            totals = _group(sums, lambda key: None).get(None, Totals())
        else:
            of_all = _read(question._replace(links=links._replace(is_key=False)), parts, lambda columns: sa.null())
            totals = _group(of_all).get(None, Totals())
            conditions = [*links.conditions, _is_largest(question, parts, key)]
            sums = _read(question._replace(links=links._replace(conditions=conditions)), parts, key)
        rows = _with_objects(question, _largest_first(_group(sums)))
    else:
        totals = _group(_sum_up(question, lambda columns: sa.null())).get(None, Totals())
        if by is not None:
            rows = _largest_first(_group(_sum_up_rows(question, by)))[:limit]
    steps = state.settings.funnel

    def count() -> dict[str, int]:
        found = state.reports.rows(count_people(models, span, steps, question.links))
        return {row.action: int(row.number) for row in found}

    return Stats(span.since, span.until, by, totals, rows, previous, count, steps)


def _parse_span(state: AppState, since: Time | None, until: Time | None) -> Span:
    zone = state.database.zone

    def parse(name: str, time: Time | None, later: int) -> datetime | None:
        if time is None or isinstance(time, datetime):
            return require_aware(name, time)
        if not isinstance(time, date):
            raise InvalidValueError(name, f"must be a date or an aware time, not {type(time).__name__}")
        require_aware(name, datetime(time.year, 1, 1, tzinfo=zone))  # the year must be one that it accepts
        return midnight(time + timedelta(days=later), zone)

    span = Span(parse("since", since, 0), parse("until", until, 1))
    if span.since is not None and span.until is not None and span.until <= span.since:
        raise InvalidValueError("until", "is not after since")
    return span


def _span_before(state: AppState, span: Span, *, has_times: bool) -> Span:
    """Return the period of the same length before one: of as many days if it consists of days."""
    if span.since is None:
        raise InvalidValueError("compare", "needs since: without it the period has no length")
    zone = state.database.zone
    end = span.until if span.until is not None else midnight(today(state) + timedelta(days=1), zone)
    if has_times:
        return Span(span.since - (end - span.since), span.since)
    first = _day(span.since, zone)
    return Span(midnight(first - (_day(end, zone) - first), zone), span.since)


def today(state: AppState) -> date:
    """Return the day that it is in ``REFERRALS_TIMEZONE``."""
    return _day(now(), state.database.zone)


def _day(time: datetime, zone: tzinfo) -> date:
    return as_utc(time).astimezone(zone).date()


def _read_watermark(state: AppState) -> tuple[datetime | None, str]:
    """Return the time before which everything is rolled up, and the time zone of its days."""
    models = state.database.models
    for row in state.reports.rows(watermark(models).add_columns(models.total.c.action)):
        return as_utc(row.day), row.action or "UTC"
    return None, "UTC"


def _split(span: Span, until: datetime | None, zone: tzinfo) -> Parts:
    """Split a period into whole days before the watermark, whose totals are stored, and the rest."""
    if until is None:
        return Parts(None, [span])
    first = span.since
    if first is not None and (start := day_start(first, zone)) != first:
        first = day_start(start + timedelta(hours=26), zone)
    last = until if span.until is None else min(until, day_start(span.until, zone))
    if first is not None and first >= last:
        return Parts(None, [span])
    rows = [Span(span.since, first)] if first != span.since else []
    if span.until is None or last < span.until:
        rows.append(Span(last, span.until))
    return Parts(Span(first, last), rows)


def _sum_up(question: _Question, key: Key) -> _Sums:
    return _read(question, _find_parts(question.state, question.span), key)


def _find_parts(state: AppState, span: Span) -> Parts:
    until, zone_name = _read_watermark(state)
    return _split(span, until, load_zone(zone_name))


def _is_largest(question: _Question, parts: Parts, key: Key) -> Condition:
    """Return the condition that a key is one of those with most clicks. The database finds them, in one statement."""
    sums = sum_up(question.state.database.models, parts, key, question.links).subquery().c
    clicks = sa.func.sum(sa.case((sums.action == CLICK, sums.number), else_=0))
    largest = sa.select(sums.key).group_by(sums.key)
    largest = largest.order_by(clicks.desc(), sa.func.sum(sums.number).desc(), sums.key).limit(question.limit)
    keys = [row.key for row in question.state.reports.rows(largest)]
    column = key(question.state.database.models.referrals)
    is_none = column.is_(None) if None in keys else sa.false()
    return sa.or_(_is_in(column, [each for each in keys if each is not None]), is_none)


def _sum_up_days(question: _Question) -> _Sums:
    """Return the sums by day, or of rows by the first day of a week or month. A day is the time at which it begins."""
    state, span = question.state, question.span
    zone, models, first_day = state.database.zone, state.database.models, FIRST_DAYS[question.by or ""]
    until, zone_name = _read_watermark(state)
    # Until the next roll-up, the totals may have the days of another time zone.
    parts = _split(span, until if zone_name == str(zone) else None, zone)
    starts: list[datetime] = []
    tomorrow = now() + timedelta(days=1)
    for each in parts.rows:
        since, end = each.since, min(each.until or tomorrow, tomorrow)
        if since is None or end - since > _LONG:
            since = _find_oldest(question, each)
        if since is not None:
            starts += split_days(since, end, zone)[:-1]
    starts = [next(days) for _, days in groupby(starts, lambda start: first_day(_day(start, zone)))]

    def key(columns: t.Any) -> sa.ColumnElement[t.Any]:
        day: sa.ColumnElement[t.Any] = models.total.c.day
        return day if columns is models.total.c else day_of(columns.created_at, starts, day.type)

    return _read(question, parts if starts else parts._replace(rows=[]), key)


def _find_oldest(question: _Question, span: Span) -> datetime | None:
    models, time = question.state.database.models, question.state.database.models.responses.created_at
    select = sa.select(sa.func.min(time)).where(*span.contains(time))
    select = question.links.join(models, select, models.responses.referral_id)
    ((oldest,),) = question.state.reports.rows(select)
    return as_utc(oldest) if oldest is not None else None


def _sum_up_rows(question: _Question, by: str) -> _Sums:
    """Return the sums by what only the rows say."""
    models, span, links = question.state.database.models, question.span, question.links
    if by == "ignored":
        return question.state.reports.rows(sum_up_ignored(models, span, links))
    pick: Key = lambda columns: columns.http_referrer if by == "referrer" else columns.params[by].as_string()  # noqa: E731
    return question.state.reports.rows(sum_up_touches(models, span, pick, links))


def _read(question: _Question, parts: Parts, key: Key) -> _Sums:
    if not parts.rows and parts.rolled_up is None:
        return []
    return question.state.reports.rows(sum_up(question.state.database.models, parts, key, question.links))


def _group(sums: _Sums, fold: Callable[[t.Any], t.Any] = lambda key: key) -> dict[t.Any, Totals]:
    """Return the totals by key, without those that are zero.

    :param fold: puts several keys together as one.
    """
    found: dict[tuple[t.Any, str, str | None], list[t.Any]] = {}
    for row in sums:
        both = found.setdefault((fold(row.key), row.action, row.currency), [0, Decimal(0)])
        both[0] += int(row.number)
        both[1] += row.value or 0
    grouped: dict[t.Any, Totals] = {}
    for (key, action, currency), (count, value) in found.items():
        if count == 0 and value == 0:
            continue
        totals = grouped.setdefault(key, Totals())
        known = totals[action]
        values = known.value if currency is None and value == 0 else {**known.value, currency: value}
        totals[action] = Total(known.count + count, values)
    return grouped


def _by_period(question: _Question, sums: _Sums) -> list[tuple[date, Totals]]:
    """Return the totals of all periods in their order, those without a response as well."""
    zone, first_day = question.state.database.zone, FIRST_DAYS[question.by or ""]
    # MariaDB returns a time that was a parameter as text.
    found = _group(sums, lambda key: first_day(_day(parse_time(key) if isinstance(key, str) else key, zone)))
    since, until = question.span
    first = _day(since, zone) if since is not None else min(found, default=None)
    last = _day(until - timedelta(microseconds=1), zone) if until is not None else today(question.state)
    if first is None:
        return []
    days = (date.fromordinal(number) for number in range(first.toordinal(), last.toordinal() + 1))
    return [(day, found.get(day, Totals())) for day in dict.fromkeys(map(first_day, days))]


def _largest_first(grouped: Mapping[t.Any, Totals]) -> list[tuple[t.Any, Totals]]:
    def size(row: tuple[t.Any, Totals]) -> tuple[int, int, str]:
        key, totals = row
        return -totals[CLICK].count, -sum(each.count for each in totals.values()), str(key)

    return sorted(grouped.items(), key=size)


def _with_objects(question: _Question, rows: list[tuple[t.Any, Totals]]) -> list[tuple[t.Any, Totals]]:
    """Replace the keys of referrals and owners by the objects, in one statement."""
    state = question.state
    if question.by == "referral" and rows:
        model = state.database.models.referral
        is_wanted = _is_in(model.id, [key for key, _ in rows])
        found = {each.id: each for each in state.reports.objects(sa.select(model).where(is_wanted))}
        return [(found[key], totals) for key, totals in rows if key in found]
    if question.by == "owner":
        owners = load_users(state, [key for key, _ in rows])
        return [(owners.get(key, key), totals) for key, totals in rows]
    return rows


def load_users(state: AppState, keys: Sequence[t.Any]) -> dict[t.Any, t.Any]:
    """Return users by their keys, in one statement; none in an app without a user model."""
    model, keys = state.database.models.user, [key for key in keys if key is not None]
    if model is None or not keys:
        return {}
    users = state.reports.objects(sa.select(model).where(_is_in(sa.inspect(model).primary_key[0], keys)))
    return {sa.inspect(user).identity[0]: user for user in users}


def _is_in(column: t.Any, keys: Sequence[t.Any]) -> Condition:
    # Databases limit the number of parameters. SQLAlchemy cannot write each type of a host's own as a literal.
    as_literals = isinstance(column.type, sa.Integer) or len(keys) > _MAX_PARAMETERS
    values = sa.bindparam("keys", keys, column.type, expanding=True, literal_execute=as_literals)
    return t.cast(Condition, column.in_(values))
