"""Celery for the site, on one of the brokers, and its workers as processes of their own."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from flask import Flask
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from flask_referrals.contrib.celery import CeleryRecorder
from tests.databases import unavailable
from tests.pages import snippet
from tests.web import ROOT

RABBITMQ_URL = os.environ.get("TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")

#: The variables that tell a process where the broker is, and which queue is its own.
BROKER, QUEUE = "FAULTS_BROKER", "FAULTS_QUEUE"
#: The page's snippets, the first of which is run as it stands there.
MAKE_CELERY = snippet("queue.rst", "python", about="def make_celery")
USE_CELERY = snippet("queue.rst", "python", about="CeleryRecorder(celery_app)")
#: Nothing here takes longer, in seconds, unless it hangs.
_PATIENCE = 60


def make_recorder(app: Flask) -> CeleryRecorder | None:
    """Give an app Celery, as docs/queue.rst says, if the environment names a broker."""
    broker = os.environ.get(BROKER)
    if broker is None:
        return None
    names: dict[str, Any] = {}
    exec(MAKE_CELERY, names)
    app.config["CELERY"] = {
        "broker_url": broker,
        "broker_transport_options": {"global_keyprefix": f"{os.environ[QUEUE]}."} if "redis" in broker else {},
        "task_default_queue": os.environ[QUEUE],
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_enable_remote_control": False,
        "worker_cancel_long_running_tasks_on_connection_loss": True,
    }
    return CeleryRecorder(names["make_celery"](app))


@contextmanager
def new_queue(broker: str) -> Iterator[dict[str, str]]:
    """Yield the environment of a new queue, which is gone in the end.

    :param broker: its URL.
    """
    queue = f"flask_referrals_test_{secrets.token_hex(4)}"
    with Connection(broker, connect_timeout=2) as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=2)
        except (OperationalError, *connection.connection_errors) as error:
            unavailable(f"No broker ({error}): set TEST_RABBITMQ_URL or TEST_REDIS_URL.")
    yield {BROKER: broker, QUEUE: queue}
    if broker.startswith("redis"):
        with redis.Redis.from_url(broker) as server:
            for key in server.scan_iter(f"{queue}.*"):
                server.delete(key)
        return
    with Connection(broker) as connection:
        connection.default_channel.queue_delete(queue)
        connection.default_channel.queue_delete(f"{queue}.dead")
        connection.default_channel.exchange_delete(queue)


class Worker:
    """A worker with two processes; as a context manager it starts and ends it.

    :param environment: the site's.
    :param folder: where ``worker.log`` is written.
    :param app: the module with its ``celery_app``.
    """

    def __init__(self, environment: dict[str, str], folder: Path, app: str = "tests.faults.worker_app") -> None:
        self._environment = environment
        self._app = app
        self._log = folder / "worker.log"

    @property
    def log(self) -> str:
        """What all workers have printed."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._process.pid

    def __enter__(self) -> "Worker":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and do not wait for it."""
        command = [sys.executable, "-m", "celery", "-A", self._app, "worker", "--concurrency=2"]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--without-gossip", "--without-mingle", "--loglevel=INFO"],
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Let it finish what it is at, and end it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill all of its processes at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=_PATIENCE)

    def kill_child(self) -> bool:
        """Kill one of the processes that store clicks; return whether there was one."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for child in children[:1]:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        return bool(children)

    def wait_until_ready(self, times: int = 1) -> None:
        """Wait until it takes messages.

        :param times: how many workers have said so by then.
        """
        give_up = time.monotonic() + _PATIENCE
        while self.log.count(" ready.") < times:
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"The worker did not start:\n{self.log}")
            time.sleep(0.1)
