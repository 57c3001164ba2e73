"""The ``demo`` command: prepare the database with demo data, and serve the shop."""

from __future__ import annotations

from pathlib import Path

import click
from flask import Flask
from flask.cli import ScriptInfo, pass_script_info
from flask_migrate import upgrade
from werkzeug.serving import make_server

from flask_referrals import Referral

from .extensions import db
from .instance import lock
from .models import Product, User

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


@click.command("demo")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True, help="0 chooses a free port.")
@pass_script_info
def command(info: ScriptInfo, host: str, port: int) -> None:
    """Prepare the database, add demo data, and serve the shop."""
    app = info.load_app()
    app.config["TRUSTED_HOSTS"] = [*(app.config["TRUSTED_HOSTS"] or ()), host]
    prepare(app)
    # Not app.run, which does nothing under the flask command.
    server = make_server(host, port, app, threaded=True)
    click.echo(f"\nKettle & Leaf is open: http://{host}:{server.server_port}/")
    click.echo("(Press Ctrl+C to stop. This server is for trying out, not for the internet.)\n")
    server.serve_forever()


def prepare(app: Flask) -> None:
    """Migrate the database and add the demo data once, even if several processes start together."""
    with lock(Path(app.instance_path)), app.app_context():
        upgrade()
        if db.session.scalar(db.select(Product.id).limit(1)) is None:
            add_data()


def add_data() -> None:
    for slug, name, tagline, unit, price, description in PRODUCTS:
        product = Product(slug=slug, name=name, tagline=tagline, unit=unit, price=price, description=description)
        db.session.add(product)
    for name in ("alice", "bob"):
        user = User(name=name, email=f"{name}@example.com")
        user.set_password("tea")
        db.session.add(user)
        db.session.flush()
        user.referral = Referral.create("/", user=user, label="welcome mail", commit=False)
    db.session.commit()
