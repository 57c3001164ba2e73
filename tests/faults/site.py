"""A small site behind gunicorn, and the strangers who click on its link."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.client import HTTPException
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask import Response
from flask import request
from sqlalchemy.orm import make_transient_to_detached

from flask_referrals import Referral
from flask_referrals import ReferralResponse
from tests.host import BROWSER
from tests.host import Host
from tests.host import make_host

ROOT = Path(__file__).parents[2]

#: How many requests the site works on at the same time.
WORKERS = 2

_DATABASE = "FAULTS_DATABASE"
_OWNER_ID = 1
_OWNER_HEADER = "X-Owner"
_READ_HEADER = "X-Read"
_WORKER_HEADER = "X-Worker"
#: Nothing here takes longer, in seconds, unless it hangs.
_PATIENCE = 60


@dataclass(frozen=True)
class Answer:
    """A request of a client, and what came back.

    :param mark: what the client put into the request; no other has the same.
    :param sent: when, in seconds of the monotonic clock.
    :param ended: when all of the answer had arrived, or the connection broke.
    :param status: ``None``: the connection broke.
    :param has_cookie: whether the visitor is given a key: what the site does after a click is stored.
    :param retry_after: the header.
    :param worker: the process that answered.
    """

    mark: str
    sent: float
    ended: float
    status: int | None = None
    has_cookie: bool = False
    retry_after: str | None = None
    worker: int | None = None
    body: str = ""


def _make_site(url: str) -> Host:
    host = make_host(url, with_login=False, TESTING=False, REFERRALS_BASE_URL="http://localhost")

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

    @host.app.after_request
    def tell_worker(response: Response) -> Response:
        response.headers[_WORKER_HEADER] = str(os.getpid())
        return response

    return host


def create_app() -> Flask:
    """What gunicorn calls, before it forks its workers."""
    return _make_site(os.environ[_DATABASE]).app


class Site:
    """The site: its database with one link, and gunicorn with synchronous workers, in a process group of its own.

    The socket is this process's, so that a restart keeps the port, and who comes in between waits. As a context manager
    it starts the server, and ends it.

    :param url: an empty database.
    :param folder: where ``site.log`` is written: all that the server's processes print.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._log = folder / "site.log"
        self._marks = itertools.count()
        self._host = _make_site(url)
        with self._app_context():
            self._host.db.create_all()
            self._host.add(self._host.User(id=_OWNER_ID, name="olga"))
            self._code = Referral.create("/welcome").code
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    @contextmanager
    def _app_context(self) -> Iterator[None]:
        with self._host.app.app_context():
            try:
                yield
            finally:
                # No connection stays open to a database that may be stopped next.
                self._host.db.session.remove()
                self._host.db.engine.dispose()

    def __enter__(self) -> "Site":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._listener.close()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        descriptor = self._listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "tests.faults.site:create_app()", f"--bind=fd://{descriptor}"]
        with self._log.open("ab") as output:
            self._server = subprocess.Popen(
                [*command, f"--workers={WORKERS}", "--preload", "--log-level=warning", "--no-control-socket"],
                cwd=ROOT,
                env={**os.environ, _DATABASE: self._url},
                stdout=output,
                stderr=output,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        give_up = time.monotonic() + _PATIENCE
        while self._ask("GET", "/", timeout=1).status != 200:
            if self._server.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"The site did not start:\n{self._log.read_text()}")

    def stop(self) -> None:
        """Let the server finish what it is at, and end it."""
        self._server.terminate()
        try:
            self._server.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill all of the server's processes at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait(timeout=_PATIENCE)

    def kill_worker(self, worker: int) -> bool:
        """Kill one process, which gunicorn replaces.

        :param worker: the process that an answer came from.
        :return: whether it was still there.
        """
        try:
            if os.getpgid(worker) != self._server.pid:
                return False
            os.kill(worker, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def click(self, host_reads: bool = False) -> Answer:
        """Follow the link, as somebody who has never been here.

        :param host_reads: the host reads from the database before the extension does, and leaves its transaction open.
        """
        mark = str(next(self._marks))
        headers = {_READ_HEADER: "1"} if host_reads else {}
        return self._ask("GET", f"/referrals/{self._code}?sub={mark}", mark, headers=headers)

    def make_link(self) -> Answer:
        """Make a new link, as a program does for its owner."""
        mark = str(next(self._marks))
        body = json.dumps({"redirect_to": "/welcome", "label": mark})
        return self._ask("POST", "/referrals/", mark, body, {_OWNER_HEADER: "1", "Content-Type": "application/json"})

    def _ask(
        self,
        method: str,
        path: str,
        mark: str = "",
        body: str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = _PATIENCE,
    ) -> Answer:
        connection = HTTPConnection("127.0.0.1", self._listener.getsockname()[1], timeout=timeout)
        sent = time.monotonic()
        try:
            connection.request(method, path, body, {"User-Agent": BROWSER, **(headers or {})})
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, HTTPException):
            return Answer(mark, sent, time.monotonic())
        finally:
            connection.close()
        worker = answer.headers[_WORKER_HEADER]
        return Answer(
            mark=mark,
            sent=sent,
            ended=time.monotonic(),
            status=answer.status,
            has_cookie="Set-Cookie" in answer.headers,
            retry_after=answer.headers["Retry-After"],
            worker=int(worker) if worker else None,
            body=text,
        )

    def recorded(self) -> Counter[str]:
        """Return how often each click is in the table, by its mark."""
        with self._app_context():
            params = self._host.db.session.scalars(sa.select(ReferralResponse.params))
            return Counter(found["sub"] for found in params if found)

    def logged(self) -> int:
        """Return how many clicks the server's log says were not recorded."""
        lost = r"^\[.*\] ERROR in .*: .*could not be (?:recorded|looked up)"
        return len(re.findall(lost, self._log.read_text(), re.MULTILINE))


class Clients:
    """Clients that send one request after the other, all at the same time, until the context ends.

    :param send: sends a request.
    :param count: how many clients.
    :param pause: how long each rests after an answer, in seconds.
    """

    def __init__(self, send: Callable[[], Answer], count: int, pause: float = 0) -> None:
        self.answers: list[Answer] = []
        self._send = send
        self._pause = pause
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._running = [self._pool.submit(self._run) for _ in range(count)]

    def __enter__(self) -> "Clients":
        return self

    def _run(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._send())
            self._stop.wait(self._pause)

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for run in self._running:
            run.result()
