"""A small site behind gunicorn, and the visitors who click on its link."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask, request
from sqlalchemy.orm import make_transient_to_detached

from flask_referrals import Referral, ReferralResponse
from tests.faults.workers import make_recorder
from tests.host import Host, make_host
from tests.web import Answer, Server, tell_workers

#: How many requests the site works on at the same time.
WORKERS = 2

DATABASE = "FAULTSDATABASE"
_OWNER_ID = 1
_OWNER_HEADER = "X-Owner"
_READ_HEADER = "X-Read"


def _make_site(url: str) -> Host:
    host = make_host(
        url, with_login=False, make_recorder=make_recorder, TESTING=False, REFERRALS_BASE_URL="http://localhost"
    )

    @host.referrals.user_loader
    def owner() -> Any:
        # Not read from the database: whatever fails there is then the extension's.
        if _OWNER_HEADER not in request.headers:
            return None
        user = host.User(id=_OWNER_ID)
        make_transient_to_detached(user)
        return user

    @host.app.before_request
    def read() -> None:
        if _READ_HEADER in request.headers:
            host.db.session.scalar(sa.select(host.User.name))

    tell_workers(host.app)
    return host


def create_app() -> Flask:
    """What gunicorn calls, before it forks its workers."""
    return _make_site(os.environ[DATABASE]).app


class Site(Server):
    """The site: its database with one link, and the server.

    :param url: an empty database.
    :param folder: for the server's log.
    :param environment: more that the server finds in the environment: where its broker is, if it has one.
    """

    def __init__(self, url: str, folder: Path, environment: dict[str, str] | None = None) -> None:
        #: What the site's processes are told.
        self.environment = {**(environment or {}), DATABASE: url}
        super().__init__("tests.faults.site:create_app()", self.environment, folder, workers=WORKERS)
        self._marks = itertools.count()
        self._host = _make_site(url)
        with self._app_context():
            self._host.db.create_all()
            self._host.add(self._host.User(id=_OWNER_ID, name="olga"))
            self._code = Referral.create("/welcome").code

    @contextmanager
    def _app_context(self) -> Iterator[None]:
        with self._host.app.app_context():
            try:
                yield
            finally:
                # No connection stays open to a database that may be stopped next.
                self._host.db.session.remove()
                self._host.db.engine.dispose()

    def click(self, host_reads: bool = False) -> Answer:
        """Follow the link, as a new visitor.

        :param host_reads: the host reads from the database before the extension does, and leaves its transaction open.
        """
        mark = str(next(self._marks))
        headers = {_READ_HEADER: "1"} if host_reads else {}
        return self.ask("GET", f"/referrals/{self._code}?sub={mark}", mark, headers=headers)

    def make_link(self) -> Answer:
        """Make a new link, as a program does for its owner."""
        mark = str(next(self._marks))
        body = json.dumps({"redirect_to": "/welcome", "label": mark})
        return self.ask("POST", "/referrals/", mark, body, {_OWNER_HEADER: "1", "Content-Type": "application/json"})

    def recorded(self) -> Counter[str]:
        """Return how often each click is in the table, by its mark."""
        with self._app_context():
            params = self._host.db.session.scalars(sa.select(ReferralResponse.params))
            return Counter(found["sub"] for found in params if found)

    def lost(self) -> int:
        """Return how many clicks the server's log says were not recorded."""
        return self.logged("could not be recorded|Could not read the link")
