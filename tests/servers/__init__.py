"""What servers need that the tests start themselves: a port, and a folder of an account that they run under."""

import itertools
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from flask import Flask
from werkzeug.serving import make_server

from tests.site.test_redirects import QuietHandler

#: How long a program may take, in seconds.
_PATIENCE = 90

#: Each process of pytest-xdist takes every 16th port, so that no two ask for the same one at the same time.
_STEP = 16
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
#: Below those that outgoing connections are given, so that a port is still free when its server starts again.
_ports = itertools.count(random.randrange(10_000, 28_000, _STEP) + _WORKER % _STEP, _STEP)


def free_port() -> int:
    """Return a port on loopback that nobody listens on; each call returns another."""
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("No port is free.")


@contextmanager
def new_folder(account: str) -> Iterator[tuple[Path, str | None]]:
    """Yield an empty folder, and the account that owns it: database servers refuse to run as root.

    :param account: who runs the server where we are root, if there is such an account; else ``nobody``.
    :return: the account is ``None`` where we are not root: the server runs as we do.
    """
    owner = None
    if os.geteuid() == 0:
        owner = account if account in [entry.pw_name for entry in pwd.getpwall()] else "nobody"
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "data")
        folder.mkdir(mode=0o700)
        if owner is not None:
            Path(parent).chmod(0o711)
            shutil.chown(folder, owner)
        yield folder, owner


def popen(command: list[str], output: IO[bytes], *, account: str | None) -> subprocess.Popen[bytes]:
    """Start a server, or a program of its own.

    :param output: the file that all it says goes to: a server that inherits a pipe would keep it open.
    :param account: who runs it, as :func:`new_folder` says.
    """
    return subprocess.Popen(
        command,
        cwd="/",
        user=account,
        extra_groups=None if account is None else [],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )


def finish(command: list[str], log: Path, *, account: str | None) -> str:
    """Run a program to its end, and return what it said.

    :param log: the file that it says that in.
    :raises RuntimeError: it failed; with what it said.
    """
    with log.open("wb") as output:
        code = popen(command, output, account=account).wait(timeout=_PATIENCE)
    said = log.read_text()
    if code != 0:
        raise RuntimeError(f"{command[0]} failed:\n{said}")
    return said


@contextmanager
def served(app: Flask, host: str, certificate: tuple[str, str] | None = None) -> Iterator[str]:
    """Serve an app on a port of loopback, and yield its origin.

    :param certificate: the files of a certificate and of its key, for https.
    """
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler, ssl_context=certificate)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://{host}:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
