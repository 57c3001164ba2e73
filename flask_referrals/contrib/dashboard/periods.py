"""The period that the query of a request asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from ...exceptions import InvalidValueError
from ...stats import FIRST_DAYS

#: How many days each bar of a chart has: a day, a week from Monday, or a month.
UNITS = tuple(FIRST_DAYS)
#: The longest periods whose charts have a bar for each day, and for each week.
_MAX_DAYS, _MAX_WEEKS = 92, 26 * 7
#: The longest period: a bar for each day is possible then.
_LONGEST = timedelta(days=3660)
_FIRST = date(1971, 1, 1)
#: Days of the default period.
DEFAULT = 30


@dataclass(frozen=True)
class Period:
    """A period of whole days.

    :param since: the first day.
    :param until: the last day.
    :param per: the unit of the chart that was chosen; ``None`` for one that fits the length.
    :param compare: whether to compare it with the period of the same length before it.
    """

    since: date
    until: date
    per: str | None = None
    compare: bool = True

    @property
    def unit(self) -> str:
        """The unit of the chart."""
        days = (self.until - self.since).days + 1
        return self.per or ("day" if days <= _MAX_DAYS else "week" if days <= _MAX_WEEKS else "month")

    def query(self, **others: str) -> dict[str, str]:
        """Return the query of this period.

        :param others: more arguments, or other values.
        """
        compare = {"compare": "1"} if self.compare else {}
        per = {"per": self.per} if self.per else {}
        return {"since": self.since.isoformat(), "until": self.until.isoformat(), **per, **compare, **others}


def last_days(today: date, days: int) -> Period:
    """Return the period of some days that ends today.

    :raises InvalidValueError: there is no day, or more than the longest period has.
    """
    if not 0 < days <= _LONGEST.days:
        raise InvalidValueError("days", f"must be a number from 1 to {_LONGEST.days}")
    return Period(today - timedelta(days=days - 1), today)


def quick_choices(today: date) -> dict[str, Period]:
    """Return the usual periods by their names."""
    first = today.replace(day=1)
    last = first - timedelta(days=1)
    year = date(today.year - (today.month < 12), today.month % 12 + 1, 1)
    days = {f"{number}_days": last_days(today, number) for number in (7, 30, 90)}
    months = {"this_month": Period(first, today), "last_month": Period(last.replace(day=1), last)}
    return {**days, **months, "12_months": Period(year, today)}


def read_period(query: Mapping[str, str], today: date) -> Period:
    """Return the period of a query. Without a query it is that of the last 30 days, compared with the 30 before.

    :param query: ``since`` and ``until``, days such as ``2026-01-31``; ``per``, one of :data:`UNITS`; ``compare``.
    :raises InvalidValueError: an argument is invalid.
    """
    until = _read_day("until", query) or today
    since = _read_day("since", query) or until - timedelta(days=DEFAULT - 1)
    if until < since:
        raise InvalidValueError("until", "is before since")
    if until - since >= _LONGEST:
        raise InvalidValueError("since", "is more than 10 years before until")
    per = query.get("per") or None
    if per is not None and per not in UNITS:
        raise InvalidValueError("per", f"must be one of {', '.join(UNITS)}")
    return Period(since, until, per, "compare" in query or "since" not in query)


def _read_day(name: str, query: Mapping[str, str]) -> date | None:
    text = query.get(name, "").strip()
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise InvalidValueError(name, "is not a day such as 2026-01-31") from None
    if not _FIRST <= day <= date(9000, 1, 1):
        raise InvalidValueError(name, "must be in the years 1971 to 8999")
    return day
