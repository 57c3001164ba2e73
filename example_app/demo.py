"""The ``demo`` command: prepare the database with demo data, and serve the shop."""

from __future__ import annotations

from pathlib import Path

import click
from flask import Flask
from flask.cli import ScriptInfo, pass_script_info
from flask_migrate import upgrade
from werkzeug.serving import make_server

from .demo_data import add_data
from .demo_history import add_history
from .extensions import db
from .instance import lock
from .models import Product


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
            click.echo("Adding 90 days of demo data. This takes a few seconds.")
            add_data()
            add_history()
            app.test_cli_runner().invoke(args=["referrals", "rollup"], catch_exceptions=False)
