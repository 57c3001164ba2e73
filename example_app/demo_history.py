"""A history of 90 days for the demo: clicks, sign-ups, orders and a refund.

It is written with the public functions of Flask-Referrals. Chance is seeded: two demos that are made on the same
weekday differ only in their dates.
"""

from __future__ import annotations

import random
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from flask_referrals import Referral, ReferralResponseMixin
from flask_referrals.queue import Event, store

from .demo_data import add_user
from .extensions import db
from .models import Order, Product, User, now

T = TypeVar("T")

DAYS = 90

# Those who have links from the first day on: how much the links bring, and the products they are about.
OWNERS = {
    "alice": (7, ["first-flush", "round-teapot", "two-cups"]),
    "bob": (6, ["breakfast-assam", "lapsang"]),
    "clara": (3, ["chamomile"]),
    "daniel": (2, ["gunpowder"]),
    "esther": (1, ["bamboo-whisk"]),
    "farid": (1, []),
}
# Those who sign up through a link. Their own links are new, and bring little.
FRIENDS = (
    "gemma harry ines jonas kira leon maya nadia oscar petra quentin rosa simon tilda umar vera wanda xaver yara zoe "
    "anton bianca cedric doris emil flora"
).split()
FRIENDS_WEIGHT = 0.15

# Clicks on a usual day, at first and in the end; and how much of that each weekday has, from Monday on.
FIRST_CLICKS, LAST_CLICKS = 6, 16
WEEKDAYS = (0.85, 0.85, 0.9, 0.95, 1.05, 1.3, 1.25)


@dataclass(frozen=True)
class Campaign:
    """A link that is sent to many people at once; ``clicks`` begin on a day."""

    code: str
    label: str
    owner: str | None
    slug: str
    day: int
    clicks: tuple[int, ...]
    site: str | None
    params: dict[str, str]

    def clicks_on(self, day: int) -> int:
        return self.clicks[day - self.day] if 0 <= day - self.day < len(self.clicks) else 0


CAMPAIGNS = [
    Campaign(
        code="newsletter",
        label="newsletter",
        owner=None,
        slug="first-flush",
        day=64,
        clicks=(52, 27, 12, 6, 3),
        site=None,
        params={"utm_source": "newsletter", "utm_medium": "email", "utm_campaign": "new-harvest"},
    ),
    Campaign(
        code="teapot-week",
        label="teapot week",
        owner="alice",
        slug="round-teapot",
        day=77,
        clicks=(12, 21, 17, 11, 9, 6, 4),
        site="https://social.example/",
        params={"utm_source": "social", "utm_medium": "post", "utm_campaign": "teapot-week"},
    ),
]

# Where links are found, and how often. Messengers and mail programs do not say it.
SITES = {None: 8, "https://blog.example/": 5, "https://forum.example/": 4, "https://news.example/": 2}
BROWSERS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0",
]
BOTS = [
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
]
# Who clicks, out of a hundred.
KINDS = {"visitor": 78, "visitor twice": 8, "friend": 4, "owner": 3, "bot": 7}

# How many friends order when they sign up, and after how many days they do it later, and again.
ORDER_AT_ONCE, ORDER_LATER, ORDER_AGAIN = 0.6, (3, 25), (30, 80)
REFUND_DAY = 70


@dataclass(frozen=True)
class Link:
    """What the history needs of a link.

    :param weight: how many of the usual clicks it gets, compared with the others.
    """

    code: str
    owner_id: int | None
    weight: float = 0
    campaign: Campaign | None = None


def add_history() -> None:
    """Add the history to the data of :func:`.add_data`."""
    _History().write()


class _History:
    """The history while it is written, one day after the other."""

    def __init__(self) -> None:
        self.random = random.Random(3)  # noqa: S311 (nothing of it is a secret)
        self.until = now()
        self.first_day = self.until.date() - timedelta(days=DAYS - 1)
        self.products = {product.slug: product for product in db.session.scalars(db.select(Product))}
        self.password_hash = db.session.scalars(db.select(User.password_hash).filter_by(name="alice")).one()
        self.links: list[Link] = []
        self.clicks: list[Event] = []  # not stored yet
        self.friends: list[int] = []
        self.order_days: dict[int, int] = {}  # when each user orders next
        self.sales: list[ReferralResponseMixin] = []

    def write(self) -> None:
        self.add_links()
        days = range(DAYS - 1)  # nobody signs up or buys today, which is not over
        joining = self.random.choices(days, [self.expected_clicks(day) for day in days], k=len(FRIENDS))
        friends = iter(FRIENDS)
        for day in days:
            visits = self.add_clicks(day)
            for click in self.random.sample(visits, min(joining.count(day), len(visits))):
                self.sign_up(next(friends), click, day)
            for user_id in [each for each, order_day in self.order_days.items() if order_day == day]:
                self.buy(user_id, self.moment(day))
                self.order_days[user_id] = day + self.random.randint(*ORDER_AGAIN)
            if day == REFUND_DAY:
                self.sales[-1].void("refund: it arrived broken", commit=False).created_at = self.moment(day)
        self.add_clicks(DAYS - 1)
        self.store_clicks()
        db.session.commit()

    def add_links(self) -> None:
        users: dict[str | None, User | None] = {None: None}
        for name, (weight, slugs) in OWNERS.items():
            user = db.session.scalar(db.select(User).filter_by(name=name)) or add_user(
                name, self.password_hash, self.until
            )
            for slug in slugs:
                self.create_link(f"{name}-{slug}", slug, user)
            links = db.session.scalars(db.select(Referral).filter_by(user_id=user.id).order_by(Referral.id)).all()
            for link in links:
                link.created_at = self.moment(-self.random.randint(2, 40))
                self.links.append(Link(link.code, user.id, weight / len(links)))
            self.order_days[user.id] = self.random.randint(*ORDER_LATER)
            users[name] = user
        for campaign in CAMPAIGNS:
            user = users[campaign.owner]
            link = self.create_link(campaign.code, campaign.slug, user, campaign.label)
            link.created_at = self.moment(campaign.day - 1)
            self.links.append(Link(link.code, link.user_id, campaign=campaign))

    def create_link(self, code: str, slug: str, user: User | None, label: str = "") -> Referral:
        target = self.products[slug]
        return Referral.create(f"/tea/{slug}", user=user, label=label, target=target, code=code, commit=False)

    def usual_clicks(self, day: int) -> float:
        weekday = (self.first_day + timedelta(days=day)).weekday()
        return (FIRST_CLICKS + (LAST_CLICKS - FIRST_CLICKS) * day / DAYS) * WEEKDAYS[weekday]

    def expected_clicks(self, day: int) -> float:
        return self.usual_clicks(day) + sum(each.clicks_on(day) for each in CAMPAIGNS)

    def add_clicks(self, day: int) -> list[Event]:
        """Add the clicks of a day, up to now. Return those of visitors who may sign up."""
        usual = self.usual_clicks(day)
        number = max(1, round(self.random.gauss(usual, usual**0.5)))
        clicked = self.random.choices(self.links, [link.weight for link in self.links], k=number)
        for link in self.links:
            if link.campaign is not None:
                clicked += [link] * link.campaign.clicks_on(day)
        visits: list[Event] = []
        for link in clicked:
            event = self.new_event(link, self.moment(day))
            kind = self.pick(KINDS)
            if kind == "bot":
                event |= {"ignored": "bot", "visitor": None, "user_agent": self.random.choice(BOTS)}
            elif kind == "owner" and link.owner_id is not None:
                event |= {"user": str(link.owner_id), "visitor": None}
            elif kind == "friend" and self.friends:
                event |= {"user": str(self.random.choice(self.friends)), "visitor": None}
            elif kind == "visitor twice":
                later = datetime.fromisoformat(event["time"]) + timedelta(minutes=self.random.uniform(1, 25))
                self.clicks.append(event | {"id": self.token(16), "time": later.isoformat()})
            else:
                visits.append(event)
            self.clicks.append(event)
        return visits

    def store_clicks(self) -> None:
        if self.clicks:
            store([event for event in self.clicks if datetime.fromisoformat(event["time"]) <= self.until])
            self.clicks.clear()

    def new_event(self, link: Link, time: datetime) -> Event:
        """Return the event of a click, as a recorder would be given it."""
        campaign = link.campaign
        return {
            "id": self.token(16),
            "code": link.code,
            "time": time.isoformat(),
            "user": None,
            "visitor": self.token(32),
            "ignored": None,
            "params": campaign.params if campaign is not None else None,
            "ip_address": f"2001:db8:{self.random.randrange(1, 0xFFFF):x}::",
            "http_referrer": campaign.site if campaign is not None else self.pick(SITES),
            "user_agent": self.random.choice(BROWSERS),
        }

    def sign_up(self, name: str, click: Event, day: int) -> None:
        """Add a user who signs up some minutes after a click."""
        self.store_clicks()
        joined = datetime.fromisoformat(click["time"]) + timedelta(minutes=self.random.uniform(2, 15))
        user = add_user(name, self.password_hash, joined)
        link = db.session.scalars(db.select(Referral).filter_by(code=click["code"])).one()
        link.link_responses_to_user(user, click["visitor"], commit=False)
        self.record("SIGNED_UP", user, joined)
        self.friends.append(user.id)
        self.links.append(Link(name, user.id, FRIENDS_WEIGHT))
        if self.random.random() < ORDER_AT_ONCE:
            self.buy(user.id, joined + timedelta(minutes=self.random.uniform(3, 30)))
            self.order_days[user.id] = day + self.random.randint(*ORDER_AGAIN)
        else:
            self.order_days[user.id] = day + self.random.randint(*ORDER_LATER)

    def buy(self, user_id: int, time: datetime) -> None:
        self.store_clicks()
        product = self.random.choice([*self.products.values()])
        order = Order(user_id=user_id, product=product, price=product.price, created_at=time)
        db.session.add(order)
        db.session.flush()
        sale = self.record("PURCHASED", order.user, time, target=order, value=order.pounds, currency="GBP")
        if sale is not None:
            self.sales.append(sale)

    def record(self, action: str, user: User, time: datetime, **more: Any) -> ReferralResponseMixin | None:
        response = Referral.record_response(action, user=user, commit=False, **more)
        if response is not None:
            response.created_at = time
        return response

    def moment(self, day: int) -> datetime:
        """Return a time on a day, most likely in the evening."""
        hours = self.random.triangular(7, 23, 19)
        return datetime.combine(self.first_day, datetime.min.time(), timezone.utc) + timedelta(days=day, hours=hours)

    def pick(self, weights: dict[T, int]) -> T:
        return self.random.choices([*weights], [*weights.values()])[0]

    def token(self, size: int) -> str:
        return urlsafe_b64encode(self.random.randbytes(size)).rstrip(b"=").decode()
