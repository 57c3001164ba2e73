"""The admin's home: the numbers of the last 30 days."""

import typing as t
from datetime import timedelta
from decimal import Decimal

from flask_admin import expose

from ...extension import current_referrals
from ...state import current_state
from ...stats import Stats, Totals, step_label, today
from ...types import CLICK, Amount, amounts_of
from .base import Page

if t.TYPE_CHECKING:  # Flask-Admin has no types, so this declares what is used

    class AdminIndexView:
        """Flask-Admin's home."""

        def __init__(self, *args: t.Any, **options: t.Any) -> None: ...

        def render(self, template: str, **context: t.Any) -> str: ...

else:
    from flask_admin import AdminIndexView

_DAYS = 30
_ROWS = 10


class _Line(t.NamedTuple):
    """A number of a card, and what it was in the period before."""

    text: str
    before: str
    #: How much it has changed, such as ``+12 %``; empty if it was zero.
    change: str = ""
    name: str = ""


class InsightIndexView(Page, AdminIndexView):
    """The admin's home with the numbers of the last 30 days, compared with the 30 days before.

    Give it to ``Admin(app, index_view=...)`` after ``referrals.init_app(app)``, and override ``is_accessible``:
    Flask-Admin lets everybody in. The template ``referrals/admin/insight.html`` has a block for each part. It draws the
    chart of :mod:`.dashboard` if the app has those pages.
    """

    def is_open(self) -> bool:
        """Return whether everybody may open the page: its class has no access check of its own."""
        return not self.has_own_check(InsightIndexView)

    @expose()  # type: ignore[untyped-decorator]
    def index(self) -> str:
        """Show the numbers, the links with most clicks and the users whose links have most clicks."""
        state = current_state()
        labels = {step: step_label(state.settings, step) for step in state.settings.funnel}
        until = today(state)
        since = until - timedelta(days=_DAYS - 1)
        stats = current_referrals.stats(since=since, until=until, by="day", compare=True)
        links = current_referrals.stats(since=since, until=until, by="referral", limit=_ROWS).rows
        # Links without an owner are one row, which is left out.
        owners = current_referrals.stats(since=since, until=until, by="owner", limit=_ROWS + 1).rows
        return self.render(
            "referrals/admin/insight.html",
            since=since,
            until=until,
            stats=stats,
            cards=_cards(stats, labels),
            links=[(self.link_to(link, link.code), totals) for link, totals in links],
            owners=[(self.link_to(owner), totals) for owner, totals in owners if owner is not None][:_ROWS],
            amounts_of=amounts_of,
            steps=[*labels.items()],
        )


def _cards(stats: Stats, labels: t.Mapping[str, str]) -> list[tuple[str, list[_Line]]]:
    """Return the heading and the lines of each card: the steps, the values, and the conversion of each further step."""
    before = t.cast(Stats, stats.previous)
    steps = [(label, [_count(stats.totals, before.totals, step)]) for step, label in labels.items()]
    values, earlier = (period.totals.value for period in (stats, before))
    amounts = []
    for currency in sorted({*values, *earlier}, key=lambda currency: currency or ""):
        sums = [each.get(currency, Decimal(0)) for each in (values, earlier)]
        text, text_before = (str(Amount(each, currency)) for each in sums)
        amounts.append(_Line(text, text_before, _change(*sums)))
    conversion = [
        _Line(_percent(stats.conversion(step)), _percent(before.conversion(step)), name=label)
        for step, label in labels.items()
        if step != CLICK
    ]
    return [*steps, ("Value", amounts), ("Conversion", conversion)]


def _count(totals: Totals, before: Totals, step: str) -> _Line:
    numbers = totals[step].count, before[step].count
    return _Line(f"{numbers[0]:,}", f"{numbers[1]:,}", _change(*numbers))


def _change(number: Decimal | int, before: Decimal | int) -> str:
    return f"{(Decimal(number) - before) / abs(Decimal(before)):+.0%}" if before else ""


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1%}"
