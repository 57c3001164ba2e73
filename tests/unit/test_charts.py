"""The bars and lines of a chart are in proportion to the numbers."""

import math
from collections.abc import Sequence
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_referrals import InvalidValueError
from flask_referrals.contrib.dashboard.charts import Chart, draw_chart, nice_top
from flask_referrals.stats import Stats, Total, Totals

STEPS = ("RESPONDED", "SIGNED_UP")
FIRST = date(2026, 1, 30)

Day = tuple[int, int]
days = st.tuples(st.integers(0, 10**12), st.integers(0, 10**4))


def make_stats(numbers: Sequence[Day], earlier: Sequence[Day] | None = None) -> Stats:
    rows = [
        (
            FIRST + timedelta(days=place),
            Totals({step: Total(count, {}) for step, count in zip(STEPS, day, strict=True)}),
        )
        for place, day in enumerate(numbers)
    ]
    previous = make_stats(earlier) if earlier is not None else None
    return Stats(None, None, "day", sum((totals for _, totals in rows), Totals()), rows, previous, dict, STEPS)


def each_number(chart: Chart) -> list[float]:
    bars = [bar for panel in chart.panels for bar in panel.bars]
    points = [number for panel in chart.panels for point in panel.line for number in point]
    labels = [label.x for label in chart.labels]
    return [*points, *labels, *(number for bar in bars for number in (bar.x, bar.y, bar.width, bar.height))]


@given(st.lists(days, max_size=120), st.sampled_from(["day", "week", "month"]))
def test_heights_are_in_proportion(numbers: list[Day], unit: str) -> None:
    chart = draw_chart(make_stats(numbers), STEPS, unit)
    for panel in chart.panels:
        for bar in panel.bars:
            exact = bar.count / panel.top * panel.height
            assert bar.height == pytest.approx(max(exact, int(bar.count > 0)), abs=0.01)
            assert bar.y + bar.height == pytest.approx(panel.height)


@given(st.lists(days, max_size=120), st.booleans(), st.sampled_from(["day", "week", "month"]))
def test_everything_is_inside(numbers: list[Day], compare: bool, unit: str) -> None:
    chart = draw_chart(make_stats(numbers, numbers[::-1] if compare else None), STEPS, unit)
    assert all(math.isfinite(number) and number >= 0 for number in each_number(chart))
    for panel in chart.panels:
        assert all(later.x >= bar.x + bar.width for bar, later in zip(panel.bars, panel.bars[1:], strict=False))
        assert all(bar.x + bar.width <= 100 and bar.height <= panel.height for bar in panel.bars)
        assert all(x <= 100 and y <= panel.height for x, y in panel.line)
    assert len(chart.labels) <= 6 and all(label.x <= 84 for label in chart.labels)


@given(st.lists(days, max_size=120), st.sampled_from(["day", "week", "month"]))
def test_no_number_is_lost_in_longer_bars(numbers: list[Day], unit: str) -> None:
    chart = draw_chart(make_stats(numbers, numbers), STEPS, unit)
    for place, panel in enumerate(chart.panels):
        assert panel.total == panel.earlier == sum(day[place] for day in numbers)
        assert all(bar.slot.totals == bar.slot.earlier for bar in panel.bars)


def test_days_of_a_week_and_of_a_month_are_one_bar() -> None:
    stats = make_stats([(1, 0)] * 10)  # from a Friday to a Sunday
    weeks = draw_chart(stats, STEPS, "week").panels[0].bars
    assert [(bar.slot.first.day, bar.slot.last.day, bar.count) for bar in weeks] == [(30, 1, 3), (2, 8, 7)]
    months = draw_chart(stats, STEPS, "month").panels[0].bars
    assert [(bar.slot.first.day, bar.slot.last.day, bar.count) for bar in months] == [(30, 31, 2), (1, 8, 8)]


def test_period_before_in_more_weeks_is_added_to_the_last_one() -> None:
    panel, _ = draw_chart(make_stats([(1, 0), (1, 0)], [(2, 0), (3, 0), (4, 0)]), STEPS).panels
    assert [bar.slot.earlier and bar.slot.earlier["RESPONDED"].count for bar in panel.bars] == [2, 7]
    assert panel.earlier == 9


def test_single_day_has_a_line_of_the_day_before() -> None:
    panel, _ = draw_chart(make_stats([(4, 0)], [(8, 0)]), STEPS).panels
    assert [bar.height for bar in panel.bars] == [72]
    (left, y), (right, same) = panel.line
    assert left < right and y == same == 0


@pytest.mark.parametrize("numbers", [[], [(0, 0)], [(0, 0)] * 40])
def test_nothing_is_empty(numbers: list[Day]) -> None:
    assert draw_chart(make_stats(numbers), STEPS).is_empty
    assert not draw_chart(make_stats(numbers, [(0, 1)] * len(numbers)), STEPS).is_empty or not numbers


def test_negative_count_is_drawn_as_nothing() -> None:
    panel, _ = draw_chart(make_stats([(-1, 0), (2, 0)]), STEPS).panels
    assert [bar.height for bar in panel.bars] == [0, 144]
    assert panel.total == 1


@given(st.integers(0, 10**15))
def test_top_of_a_scale_is_round_and_near(largest: int) -> None:
    top = nice_top(largest)
    assert largest <= top <= max(1, 2 * largest)
    assert str(top).rstrip("0") in ("1", "2", "4", "6", "8")


@pytest.mark.parametrize("by", ["label", None])
def test_only_periods_are_drawn(by: str | None) -> None:
    with pytest.raises(InvalidValueError, match=r"^stats "):
        draw_chart(Stats(None, None, by, Totals(), [], None, dict, STEPS), STEPS)
