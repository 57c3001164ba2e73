"""A site with the pages of the dashboard, the responses to its links, and the parts of a page."""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from html.parser import HTMLParser
from typing import Any

import pytest
import time_machine
from flask.testing import FlaskClient

from flask_referrals import Referral
from flask_referrals.contrib.dashboard import create_blueprint
from flask_referrals.stats import Totals
from tests.conftest import MakeHost
from tests.host import Host
from tests.site.helpers import call_by_name

NOW = datetime(2026, 3, 31, 12, tzinfo=timezone.utc)
TODAY, FIRST = date(2026, 3, 31), date(2026, 3, 2)  # the last 30 days
STEPS = ("RESPONDED", "SIGNED_UP", "PURCHASED")


class Page(HTMLParser):
    """The tables of a page as rows of cells, and its cards by their headings."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.cards: dict[str, list[str]] = {}
        self._cell: list[str] | None = None
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td", "dt", "dd"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td", "dt", "dd"):
            text = " ".join("".join(self._cell or []).split())
            if tag in ("th", "td"):
                self.tables[-1][-1].append(text)
            elif tag == "dt":
                self.cards[text] = []
            else:
                [*self.cards.values()][-1].append(text)
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


def in_text(totals: Totals) -> list[str]:
    """Return what stands in the columns of a table after the first one."""
    value = [f"{amount:,.2f} {currency}" for currency, amount in sorted(totals.value.items(), key=str)]
    return [*(f"{totals[step].count:,}" for step in STEPS), " ".join(value)]


def without_percentages(row: list[str]) -> list[str]:
    return [row[0], *(re.sub(r" [\d.]+%$", "", cell) for cell in row[1:])]


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def numbers_of(row: dict[str, str]) -> dict[str, Decimal]:
    """Return the columns of a row of CSV that are numbers and not zero."""
    numbers = {name: Decimal(cell) for name, cell in row.items() if name.isupper() or " " in name if cell}
    return {name: number for name, number in numbers.items() if number}


def numbers_in(totals: Totals) -> dict[str, Decimal]:
    """Return the same of totals."""
    counts = {action: Decimal(total.count) for action, total in totals.items()}
    values = {
        f"{action} {currency or 'value'}": amount
        for action, total in totals.items()
        for currency, amount in total.value.items()
    }
    return {name: number for name, number in {**counts, **values}.items() if number}


def add(
    host: Host, link: Any, action: str = "RESPONDED", *, days: int = 1, commit: bool = True, **columns: Any
) -> None:
    """Store a response to a link some days before now."""
    is_touch = action == "RESPONDED"
    columns = {"session_key": f"visitor {days}", "created_at": NOW - timedelta(days=days), **columns}
    host.db.session.add(
        host.referrals.ReferralResponse(referral_id=link.id, action=action, is_touch=is_touch, **columns)
    )
    if commit:
        host.db.session.commit()


def add_links(host: Host, owner: Any, number: int) -> list[str]:
    """Store links with a click and a sale each. Return their codes."""
    codes = [f"{place:03}-of-{number}" for place in range(number)]
    referral, response = host.referrals.Referral, host.referrals.ReferralResponse
    links = [referral(code=code, identity=code, redirect_to="/", label=code, user_id=owner.id) for code in codes]
    host.db.session.add_all(links)
    host.db.session.flush()
    for link in links:
        who = {"session_key": link.code, "created_at": NOW - timedelta(days=1), "referral_id": link.id}
        host.db.session.add(response(action="RESPONDED", is_touch=True, **who))
        host.db.session.add(response(action="PURCHASED", value=Decimal(5), currency="EUR", **who))
    host.db.session.commit()
    return codes


def fill(host: Host) -> None:
    """Store the links of two users and of the site, with responses before, in and after two months."""
    olga, mia, friend = (host.user(name) for name in ("olga", "mia", "friend"))
    links = [Referral.create("/", user, label=label) for user, label in ((olga, "blog"), (olga, ""), (mia, ""))]
    links.append(Referral.create("/site"))
    Referral.create("/never-followed", olga)
    store = partial(add, host, commit=False)
    for place, link in enumerate(links):
        for days in (0, 1, 1, 29, 30, 45, 70)[place:]:
            mark = {"utm_source": "mail"} if days == 1 else None
            site = "https://a.example/" if days > 1 else None
            store(link, days=days, params=mark, http_referrer=site)
        store(link, "SIGNED_UP", days=1 + place, user_id=friend.id)
        store(link, "PURCHASED", days=place, value=Decimal("12.50"), currency="EUR")
        store(link, "PURCHASED", days=40, value=Decimal("1234.5"), currency="GBP")
        store(link, "RATED", days=2, value=Decimal(3))
        store(link, days=3, ignored="bot")
    host.db.session.commit()


def log_in(host: Host, name: str) -> FlaskClient:
    client = host.client()
    client.post("/login", data={"name": name})
    return client


def register(host: Host) -> Host:
    """Add the pages to a site whose operator is called staff."""
    host.app.register_blueprint(create_blueprint(allow=lambda user: user.name == "staff"))
    return host


@contextmanager
def open_site(new_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Yield a site with the pages and an operator called staff, at one moment."""
    with time_machine.travel(NOW, tick=False):
        host = register(new_host())
        call_by_name(monkeypatch, host.User)
        with host.app.app_context():
            host.user("staff")
        yield host
