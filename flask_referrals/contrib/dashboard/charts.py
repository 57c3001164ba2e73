"""Where the bars and lines of a chart are.

A chart has a panel for each step of the funnel, one below the other, each with a scale of its own: a site has many more
clicks than sales. Widths are percentages, so that the text stays as large on a phone, where the bars get narrower.
Heights are pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from ...exceptions import InvalidValueError
from ...stats import FIRST_DAYS, Stats, Totals

#: Heights of the first panel's bars, and of the others', in pixels.
_TALL, _LOW = 144, 64
#: The part of its slot that a bar leaves empty.
_GAP = 0.25
#: A chart of fewer slots leaves the rest of its width empty.
_FEWEST = 7
#: How many bars have a date below them on a wide screen, at most. On a narrow one every other has.
_LABELS = 6
#: What a date needs of a narrow screen, in percent. It begins at the left edge of its bar.
_LABEL_WIDTH = 16
#: What the top of a scale begins with. Half of each is on the scale as well.
_NICE = (1, 2, 4, 6, 8, 10)


@dataclass(frozen=True)
class Slot:
    """The responses of a day, week or month.

    :param first: its first day within the period.
    :param last: its last day within the period.
    :param totals: by action.
    :param earlier: those of as many days in the period before, or ``None`` without a comparison.
    """

    first: date
    last: date
    totals: Totals
    earlier: Totals | None


@dataclass(frozen=True)
class Bar:
    """A number as a rectangle: ``x`` and ``width`` in percent, ``y`` and ``height`` in pixels."""

    slot: Slot
    count: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Panel:
    """The bars of one action.

    :param action: the action.
    :param top: the number at the upper end of the scale.
    :param height: the height of the plot in pixels.
    :param bars: one for each slot.
    :param line: the points of the period before, ``x`` in percent and ``y`` in pixels; empty without a comparison.
    """

    action: str
    top: int
    height: int
    bars: Sequence[Bar]
    line: Sequence[tuple[float, float]]

    @property
    def total(self) -> int:
        """The sum of the bars."""
        return sum(bar.count for bar in self.bars)

    @property
    def earlier(self) -> int:
        """The sum of the period before."""
        return sum(bar.slot.earlier[self.action].count for bar in self.bars if bar.slot.earlier is not None)


@dataclass(frozen=True)
class Label:
    """The date of a slot below its bar: ``x`` in percent; ``is_minor`` if it is left out on a narrow screen."""

    slot: Slot
    x: float
    is_minor: bool


@dataclass(frozen=True)
class Chart:
    """The panels of a chart, and the dates below each."""

    unit: str
    slots: Sequence[Slot]
    panels: Sequence[Panel]
    labels: Sequence[Label]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return all(panel.total == 0 and panel.earlier == 0 for panel in self.panels)

    @property
    def has_earlier(self) -> bool:
        """Whether it compares two periods."""
        return any(panel.line for panel in self.panels)


def draw_chart(stats: Stats, steps: Sequence[str], unit: str | None = None) -> Chart:
    """Return the chart of a period.

    :param stats: the statistics by day, week or month.
    :param steps: the actions to draw, a panel each.
    :param unit: the length of a bar, for statistics by day; by default that of their rows.
    :raises InvalidValueError: the statistics are not by time.
    """
    if stats.by not in FIRST_DAYS:
        raise InvalidValueError("stats", "must be by day, week or month")
    unit = unit or stats.by
    slots = _group(stats, unit)
    panels = [_draw_panel(slots, step, _LOW if number else _TALL) for number, step in enumerate(steps)]
    return Chart(unit, slots, panels, _place_labels(slots))


def _group(stats: Stats, unit: str) -> list[Slot]:
    """Put the days of each unit together, and the days of the period before that were at the same place in it."""
    first_day, days = FIRST_DAYS[unit], [day for day, _ in stats.rows]
    starts = [place for place, day in enumerate(days) if place == 0 or first_day(day) != first_day(days[place - 1])]
    # The period before may be in one more week or month: it is added to the last one.
    parts = [slice(*each) for each in pairwise([*starts, None])]
    return [
        Slot(days[part][0], days[part][-1], _add(stats, part), _add(stats.previous, part) if stats.previous else None)
        for part in parts
    ]


def _add(stats: Stats, part: slice) -> Totals:
    return sum((totals for _, totals in stats.rows[part]), Totals())


def _draw_panel(slots: Sequence[Slot], action: str, height: int) -> Panel:
    counts = [slot.totals[action].count for slot in slots]
    earlier = [slot.earlier[action].count for slot in slots if slot.earlier is not None]
    top, width = nice_top(max([*counts, *earlier], default=0)), _slot_width(slots)

    def measure(count: int) -> float:
        # A single click is seen beside a thousand. If the time zone has changed, a day may be corrected below zero.
        return round(max(count / top * height, 1 if count > 0 else 0), 2)

    bars = [
        Bar(
            slot,
            count,
            round((place + _GAP / 2) * width, 3),
            round(height - measure(count), 2),
            round((1 - _GAP) * width, 3),
            measure(count),
        )
        for place, (slot, count) in enumerate(zip(slots, counts, strict=True))
    ]
    line = [(round((place + 0.5) * width, 3), round(height - measure(each), 2)) for place, each in enumerate(earlier)]
    if len(line) == 1:
        line = [(x, y) for x in (0, width) for _, y in line]
    return Panel(action, top, height, bars, line)


def _slot_width(slots: Sequence[Slot]) -> float:
    """Return the width of a slot in percent."""
    return 100 / max(_FEWEST, len(slots))


def _place_labels(slots: Sequence[Slot]) -> list[Label]:
    every, width = math.ceil(max(_FEWEST, len(slots)) / _LABELS), _slot_width(slots)
    places = [place for place in range(0, len(slots), every) if place * width <= 100 - _LABEL_WIDTH]
    return [Label(slots[place], round(place * width, 3), bool(each % 2)) for each, place in enumerate(places)]


def nice_top(largest: int) -> int:
    """Return the smallest round number that is not below the largest one: the upper end of a scale."""
    power = 1
    while largest > power * _NICE[-1]:
        power *= 10
    return next(each * power for each in _NICE if largest <= each * power)
