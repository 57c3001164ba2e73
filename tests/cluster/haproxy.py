"""HAProxy before the nodes, as the documentation lays it out."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql

from tests.cluster.galera import Node
from tests.pages import snippet
from tests.servers import free_port

_PATIENCE = 30.0


def missing() -> str | None:
    """Say what this needs and the machine has not."""
    return None if shutil.which("haproxy") else "No HAProxy: haproxy was not found."


@contextmanager
def new_proxy(nodes: list[Node], folder: Path) -> Iterator[int]:
    """Yield the port on which HAProxy leads to the nodes.

    :param nodes: as many as the documentation has.
    :param folder: for its configuration and its log.
    """
    configuration = snippet("cluster.rst", "text", "listen galera")
    script = folder / "is-synced"
    script.write_text(snippet("cluster.rst", "sh", "wsrep_local_state"))
    script.chmod(0o755)
    port = free_port()
    places = {"127.0.0.1:3307": f"127.0.0.1:{port}", "/usr/local/bin/is-synced": str(script)}
    places |= {f"192.0.2.{number}:3306": f"127.0.0.1:{node.port}" for number, node in enumerate(nodes, start=1)}
    for printed, ours in places.items():
        assert printed in configuration
        configuration = configuration.replace(printed, ours)
    file = folder / "haproxy.cfg"
    file.write_text(configuration)
    with (folder / "haproxy.log").open("wb") as output:
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", file], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        _wait_for(port, process, folder / "haproxy.log")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=_PATIENCE)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            pymysql.connect(host="127.0.0.1", port=port, user="haproxy").close()
            return
        except pymysql.OperationalError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"HAProxy did not start:\n{log.read_text()}") from None
        time.sleep(0.1)
