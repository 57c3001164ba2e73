from __future__ import annotations

from typing import Any

import click
from flask import render_template

from .extensions import db
from .models import OutboxMail


def send(to: str, subject: str, template: str, **context: Any) -> None:
    """Store a mail in the outbox and print it; a real shop would send it."""
    body = render_template(template, **context)
    db.session.add(OutboxMail(to=to, subject=subject, body=body))
    db.session.commit()
    click.echo(f"\nTo: {to}\nSubject: {subject}\n\n{body}\n")
