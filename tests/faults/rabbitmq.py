"""A separate RabbitMQ node, in a temporary folder and on free ports: it may be killed, stopped and started."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kombu.connection import Connection

from tests.servers import free_port

#: Nothing here takes longer, in seconds, unless it hangs.
_PATIENCE = 60


class RabbitMQ:
    """A node, which is not running yet.

    :param program: ``rabbitmq-server``.
    :param folder: an empty folder.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._port, distribution, names = free_port(), free_port(), free_port()
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self._port}\n")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),  # where the cookie is made
            "ERL_EPMD_PORT": str(names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "1",  # it may be ended before it has noticed that the node is gone
            "RABBITMQ_NODENAME": f"flask-referrals-{self._port}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
        }

    @property
    def url(self) -> str:
        """Where it is, once it runs."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with (self._folder / "output.log").open("ab") as output:
            self._node = subprocess.Popen(
                [self._program],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        give_up = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._node.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"RabbitMQ did not start:\n{(self._folder / 'output.log').read_text()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        with Connection(self.url, connect_timeout=1) as connection, suppress(connection.connection_errors):
            connection.connect()
            return True
        return False

    def kill(self) -> None:
        """Kill it, as the machine's memory keeper does."""
        self._signal(signal.SIGKILL)
        self._node.wait(timeout=_PATIENCE)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have it take connections, and answer nothing."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._node.pid, number)

    def close(self) -> None:
        """End it, and the daemon by which nodes find each other, which it has started."""
        self.kill()
        subprocess.run(["epmd", "-kill"], env=self._environment, capture_output=True)


def find_program() -> Path | None:
    """Return RabbitMQ's server program, not the one of Debian's that changes the account; ``None``: there is none."""
    plain = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    on_path = shutil.which("rabbitmq-server")
    return plain if plain.exists() else Path(on_path) if on_path is not None else None


@contextmanager
def new_node(program: Path) -> Iterator[RabbitMQ]:
    """Yield a running node; it is gone at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        node = RabbitMQ(program, Path(folder))
        try:
            node.start()
            yield node
        finally:
            node.close()
