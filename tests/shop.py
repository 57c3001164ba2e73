"""The example shop as a server process."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def environment(database_url: str) -> dict[str, str]:
    """The environment that puts the shop on a database."""
    return {**os.environ, "FLASK_SQLALCHEMY_DATABASE_URI": database_url, "PYTHONUNBUFFERED": "1"}


def flask(instance: Path, *arguments: str) -> list[str]:
    """The command line of ``flask`` for the shop, with an instance folder of its own."""
    factory = f"example_app:create_app(instance_path={str(instance)!r})"
    return [sys.executable, "-m", "flask", "--app", factory, *arguments]


@contextmanager
def open_shop(database_url: str, instance: Path) -> Iterator[str]:
    """Start the shop on a free port, and yield its address; ``shop.log`` in the instance folder is what it prints."""
    log = instance / "shop.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            flask(instance, "demo", "--port", "0"),
            cwd=ROOT,
            env=environment(database_url),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield wait_for_address(server, log)
    finally:
        server.terminate()
        server.wait(timeout=10)


def wait_for_address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address that a server prints in its log when it is open."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and server.poll() is None:
        if found := re.search(r"http://[^\s/]+", log.read_text()):
            return found[0]
        time.sleep(0.05)
    pytest.fail(f"The server did not start:\n{log.read_text()}")
