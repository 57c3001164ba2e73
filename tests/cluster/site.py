"""The site before the cluster, and its visitors: they click, do something, log in, and pass on links of their own."""

import itertools
import json
import os
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

from flask import Flask

from flask_referrals import Referral
from tests.host import Host, make_host
from tests.pages import snippet
from tests.web import Answer, Server, tell_workers

#: How many links of the site's own there are.
LINKS = 20

_DATABASE = "CLUSTER_DATABASE"
_WORKERS, _THREADS = 2, 4
#: One of so many visitors does more than click.
_ACTIVE = 16
#: So many visitors make the same link, most of them at the same time.
_SHARERS = 8
#: How often a visitor tries what was not answered, and the pause between, in seconds.
_TRIES, _PAUSE = 20, 0.25


def engine_options() -> dict[str, Any]:
    """Return what the documentation tells a site to set."""
    app = SimpleNamespace(config={})
    exec(snippet("cluster.rst", "python", "wsrep_sync_wait"), {"app": app})
    options: dict[str, Any] = app.config["SQLALCHEMY_ENGINE_OPTIONS"]
    return options


def new_host(url: str) -> Host:
    """Build the site of the tests, for the cluster.

    :param url: HAProxy's, or a node's.
    """
    # So that a node which comes back is used again within a short run, too.
    options = {**engine_options(), "pool_recycle": 3}
    host = make_host(url, TESTING=False, REFERRALS_BASE_URL="http://localhost", SQLALCHEMY_ENGINE_OPTIONS=options)

    @host.app.post("/share/<label>")
    def share(label: str) -> str:
        return Referral.create("/", label=label).code

    return host


def create_app() -> Flask:
    """What gunicorn calls, and ``flask``."""
    return tell_workers(new_host(os.environ[_DATABASE]).app)


@dataclass
class Visit:
    """What somebody did, as far as it was answered.

    :param clicks: the marks of the clicks that were answered.
    :param actions: the keys of the actions.
    :param user: whom they logged in as.
    :param codes: the links they made, by label.
    :param uncredited: actions that earned nobody credit, or somebody else.
    :param repeated: how many requests were sent again, by path and status.
    :param given_up: requests that were never answered.
    :param slowest: the longest wait for an answer, in seconds.
    """

    clicks: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    user: str | None = None
    codes: dict[str, str] = field(default_factory=dict)
    uncredited: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Site(Server):
    """The site behind gunicorn.

    :param url: leads through HAProxy to an empty database.
    :param folder: for the server's log.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.environment = {_DATABASE: url}
        super().__init__(
            "tests.cluster.site:create_app()", self.environment, folder, workers=_WORKERS, threads=_THREADS
        )
        self._numbers = itertools.count()
        host = new_host(url)
        with host.app.app_context():
            host.db.create_all()
            self.codes = [Referral.create("/welcome", label=f"link {number}").code for number in range(LINKS)]
            host.db.session.remove()
            host.db.engine.dispose()

    def visit(self) -> Visit:
        """Be a new visitor."""
        number = next(self._numbers)
        return _Visitor(self, number).visit()

    def errors(self) -> list[str]:
        """Return the server's errors, each with its traceback."""
        return re.split(r"^(?=\[.*\] ERROR in )", self._log.read_text(), flags=re.MULTILINE)[1:]


class _Visitor:
    """A browser, and who sits before it."""

    def __init__(self, site: Site, number: int) -> None:
        self._site = site
        self._number = number
        self._cookies: dict[str, str] = {}
        self._done = Visit()

    def visit(self) -> Visit:
        """Click; one in some does more, under the link that brought them: the first action binds them to it."""
        code = self._click("first")
        if code is None or self._number % _ACTIVE:
            return self._done
        self._act("VIEWED", code)
        self._click("second")
        self._share(f"shared {self._number // (_ACTIVE * _SHARERS)}")
        self._log_in()
        self._act("PAID", code)
        self._click("third")
        self._make_own()
        self._act("PAID_AGAIN", code)
        return self._done

    def _ask(self, method: str, path: str, body: str | None = None, kind: str = "") -> Answer:
        headers = {"Content-Type": kind} if kind else {}
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        answer = self._site.ask(method, path, body=body, headers=headers)
        self._cookies |= answer.cookies
        self._done.slowest = max(self._done.slowest, answer.ended - answer.sent)
        return answer

    def _insist(self, status: int, path: str, **fields: str) -> Answer | None:
        """Send a form until it is answered as it should be."""
        for _ in range(_TRIES):
            answer = self._ask("POST", path, urlencode(fields), "application/x-www-form-urlencoded")
            if answer.status == status:
                return answer
            self._done.repeated.append(f"{path.split('/')[1]} {answer.status}")
            time.sleep(_PAUSE)
        self._done.given_up.append(path)
        return None

    def _click(self, which: str) -> str | None:
        code, mark = random.choice(self._site.codes), f"{self._number} {which}"
        answer = self._ask("GET", f"/referrals/{code}?{urlencode({'sub': mark})}")
        if answer.status != 302:
            self._done.repeated.append(f"click {answer.status}")
            return None
        self._done.clicks.append(mark)
        return code

    def _act(self, action: str, code: str) -> None:
        key = f"{self._number}"
        answer = self._insist(200, f"/act/{action}", key=key)
        if answer is not None and answer.body == code:
            self._done.actions.append(f"{action} {key}")
        elif answer is not None:
            self._done.uncredited.append(f"{action} {key}: {answer.body or None}")

    def _log_in(self) -> None:
        name = f"user {self._number}"
        # The site's own INSERT of the user may fail, or be there though it was not answered.
        for _ in range(_TRIES):
            for path in ("/signup", "/login"):
                answer = self._ask("POST", path, urlencode({"name": name}), "application/x-www-form-urlencoded")
                if answer.status == 302:
                    self._done.user = name
                    return
                self._done.repeated.append(f"{path[1:]} {answer.status}")
                time.sleep(_PAUSE)
        self._done.given_up.append(name)

    def _share(self, label: str) -> None:
        answer = self._insist(200, f"/share/{label.replace(' ', '-')}")
        if answer is not None:
            self._done.codes[label.replace(" ", "-")] = answer.body

    def _make_own(self) -> None:
        label = f"own {self._number}"
        body = json.dumps({"redirect_to": "/", "label": label})
        for _ in range(_TRIES):
            answer = self._ask("POST", "/referrals/", body, "application/json")
            if answer.status == 200:
                self._done.codes[label] = json.loads(answer.body)["code"]
                return
            self._done.repeated.append(f"referrals {answer.status}")
            time.sleep(_PAUSE)
        self._done.given_up.append(label)
