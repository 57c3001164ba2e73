"""The site with Flask-Referrals whose clicks are recorded by Celery; the environment tells which broker."""

from flask import Flask

from benchmarks.contestants import ours
from tests.faults.workers import make_recorder


def create_app() -> Flask:
    """Build the site."""
    return ours.create_app(make_recorder=make_recorder)
