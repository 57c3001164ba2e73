"""What every demo of the shop begins with: the products, and two accounts."""

from __future__ import annotations

from datetime import datetime

from werkzeug.security import generate_password_hash

from flask_referrals import Referral

from .extensions import db
from .models import Product, User, now

# slug, name, tagline, unit, pence, description
PRODUCTS = [
    (
        "gunpowder",
        "Gunpowder",
        "Green pearls that open in the cup",
        "100 g tin",
        850,
        "Young leaves from Zhejiang, rolled by hand into tight pearls. Brisk and a little "
        "smoky, with a long sweet end. Two minutes at 80°C, and the same leaves twice more.",
    ),
    (
        "first-flush",
        "First Flush",
        "Darjeeling of the first warm week",
        "100 g tin",
        1200,
        "Picked in March, when the gardens of Darjeeling wake up. Light as straw in the cup, "
        "with muscat grape and cut grass. Leave the milk in the fridge.",
    ),
    (
        "breakfast-assam",
        "Breakfast Assam",
        "Strong enough to stand up for you",
        "125 g tin",
        700,
        "Malty, copper-coloured and on time. Four minutes in boiling water, milk as you like "
        "it. What we drink ourselves before the shop opens.",
    ),
    (
        "lapsang",
        "Lapsang Souchong",
        "Dried over a pinewood fire",
        "100 g tin",
        900,
        "From the Wuyi mountains, where it is dried above slow pinewood fires. Campfire, "
        "leather and plum. Lovely with cheese, and by an open window in October.",
    ),
    (
        "chamomile",
        "Chamomile Meadow",
        "Whole flowers, for the evening",
        "60 g tin",
        650,
        "Nothing but whole chamomile flowers from a meadow farm in Dorset. Honey and apple, "
        "no caffeine. Cover the cup while it draws.",
    ),
    (
        "round-teapot",
        "Round Teapot",
        "Stoneware for three cups",
        "0.9 litres",
        3400,
        "Thrown in Stoke from dark stoneware and glazed inside. It pours without a drip, which "
        "is rarer than it should be. Comes with a steel basket.",
    ),
    (
        "two-cups",
        "Two Cups",
        "A pair without handles",
        "180 ml each",
        1800,
        "Thin at the lip, heavy at the foot: if the cup is too hot to hold, the tea is too hot "
        "to drink. Glazed in the colour of oat milk.",
    ),
    (
        "bamboo-whisk",
        "Bamboo Whisk",
        "Eighty tines from one stem",
        "11 cm",
        1450,
        "Cut from a single piece of bamboo. Soak it for a minute, whisk in the shape of a W, and "
        "matcha gets the fine foam that it should have.",
    ),
]


def add_data() -> None:
    """Add the products, and the accounts alice and bob with the password "tea"."""
    for slug, name, tagline, unit, price, description in PRODUCTS:
        product = Product(slug=slug, name=name, tagline=tagline, unit=unit, price=price, description=description)
        db.session.add(product)
    password_hash = generate_password_hash("tea")
    for name in ("alice", "bob"):
        add_user(name, password_hash, now())
    db.session.commit()


def add_user(name: str, password_hash: str, joined_at: datetime) -> User:
    """Add a user and their personal link, whose code is the name. The caller commits."""
    user = User(name=name, email=f"{name}@example.com", password_hash=password_hash)
    db.session.add(user)
    db.session.flush()
    user.referral = link = Referral.create("/", user=user, label="welcome mail", code=name, commit=False)
    link.created_at = joined_at
    return user
