"""A site behind gunicorn, and clients that send it requests."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Generic, TypeVar

from flask import Flask, Response

from tests.host import BROWSER

T = TypeVar("T")
S = TypeVar("S", bound="Server")
C = TypeVar("C", bound="Clients[Any]")

ROOT = Path(__file__).parents[1]

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
    :param cookies: names and values of the cookies that are set.
    :param retry_after: the header.
    :param worker: the process that answered.
    """

    mark: str
    sent: float
    ended: float
    status: int | None = None
    cookies: dict[str, str] = field(default_factory=dict)
    retry_after: str | None = None
    worker: int | None = None
    body: str = ""

    @property
    def has_cookie(self) -> bool:
        """Whether the visitor is given a key: what the site does after a click is stored."""
        return bool(self.cookies)


def tell_workers(app: Flask) -> Flask:
    """Let each answer say which process it comes from."""

    @app.after_request
    def tell_worker(response: Response) -> Response:
        response.headers[_WORKER_HEADER] = str(os.getpid())
        return response

    return app


class Server:
    """Gunicorn, in a process group of its own.

    The socket is this process's, so that a restart keeps the port, and who comes in between waits. As a context manager
    it starts the server, and ends it.

    :param app: what gunicorn calls before it forks its workers, as in ``"tests.faults.site:create_app()"``.
    :param environment: what that finds in the environment, besides what we have there.
    :param folder: where ``site.log`` is written: all that the server's processes print.
    :param workers: how many processes answer.
    :param threads: how many requests each works on at the same time.
    """

    def __init__(self, app: str, environment: dict[str, str], folder: Path, *, workers: int, threads: int = 1) -> None:
        self._command = [sys.executable, "-m", "gunicorn", app, f"--workers={workers}", f"--threads={threads}"]
        self._environment = environment
        self._log = folder / "site.log"
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def __enter__(self: S) -> S:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._listener.close()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        descriptor = self._listener.fileno()
        options = [f"--bind=fd://{descriptor}", "--preload", "--log-level=warning", "--no-control-socket"]
        with self._log.open("ab") as output:
            self._server = subprocess.Popen(
                [*self._command, *options],
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdout=output,
                stderr=output,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        give_up = time.monotonic() + _PATIENCE
        while self.ask("GET", "/", timeout=1).status != 200:
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

    def ask(
        self,
        method: str,
        path: str,
        mark: str = "",
        body: str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = _PATIENCE,
    ) -> Answer:
        """Send a request, on a connection of its own."""
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
            cookies=dict(pair.partition(";")[0].split("=", 1) for pair in answer.headers.get_all("Set-Cookie", [])),
            retry_after=answer.headers["Retry-After"],
            worker=int(worker) if worker else None,
            body=text,
        )

    def logged(self, message: str) -> int:
        """Return how many records of the server's log have something in them; a regular expression says what."""
        return len(re.findall(rf"^\[.*\] ERROR in .*: .*{message}", self._log.read_text(), re.MULTILINE))


class Clients(Generic[T]):
    """Clients that do one thing after the other, all at the same time, until the context ends.

    :param act: sends a request, or several, and returns what came of it.
    :param count: how many clients.
    :param pause: how long each rests after an answer, in seconds.
    """

    def __init__(self, act: Callable[[], T], count: int, pause: float = 0) -> None:
        self.answers: list[T] = []
        self._act = act
        self._pause = pause
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._running = [self._pool.submit(self._run) for _ in range(count)]

    def __enter__(self: C) -> C:
        return self

    def _run(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._act())
            self._stop.wait(self._pause)

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for run in self._running:
            run.result()
