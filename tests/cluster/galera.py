"""Three nodes of MariaDB Galera Cluster on loopback, in folders of their own, with the programs of this machine."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pymysql

from tests.servers import finish, free_port, new_folder, popen

PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")
_PROGRAMS = ("mariadbd", "mariadb-install-db", "wsrep_sst_rsync", "rsync", "lsof")

DATABASE = "site"

#: No start takes longer, in seconds, unless it hangs.
_PATIENCE = 90.0


def missing() -> str | None:
    """Say what a cluster needs and this machine has not."""
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not PROVIDER.exists():
        absent.append(str(PROVIDER))
    return f"No Galera cluster: {', '.join(absent)} not found." if absent else None


class Node:
    """One server of the cluster.

    :param name: names its folder and its log, too.
    :param folder: where its folder is made.
    :param account: who runs it; ``None`` for the one that runs us.
    """

    def __init__(self, name: str, folder: Path, account: str | None) -> None:
        self.name = name
        self.port = free_port()
        self.group_address = f"127.0.0.1:{free_port()}"
        self._ist_address = f"127.0.0.1:{free_port()}"
        self._sst_address = f"127.0.0.1:{free_port()}"
        self._folder = folder / name
        self._log = folder / f"{name}.log"
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None
        self.empty()

    @property
    def url(self) -> str:
        """Leads to this node alone, past HAProxy."""
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{DATABASE}"

    def empty(self) -> None:
        """Make the folder anew: the node will have all data sent by another."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700)
        if self._account is not None:
            shutil.chown(self._folder, self._account)

    def install(self) -> None:
        """Make the system's tables, which the other nodes get from this one."""
        command = ["mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]
        finish([*command, f"--datadir={self._folder}"], self._log.with_suffix(".commands"), account=self._account)

    def start(self, group: str) -> None:
        """Start it, and wait until it has caught up with the others.

        :param group: the addresses of all nodes, or nothing for the first of a new cluster.
        """
        command = self._command(group)
        if (self._folder / "grastate.dat").exists():
            command.append(f"--wsrep-start-position={self._position(group)}")
        with self._log.open("ab") as output:
            self._process = popen(command, output, account=self._account)
        give_up = time.monotonic() + _PATIENCE
        while self.state() != "Synced":
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"{self.name} did not start:\n{self._log.read_text(errors='replace')[-5000:]}")
            time.sleep(0.1)

    def _position(self, group: str) -> str:
        """Return how far it had come when it was killed, as Debian's unit does: what it missed is all it is sent."""
        command = [*self._command(group), "--wsrep-recover", f"--log-error={self._folder / 'recover.log'}"]
        said = finish(command, self._log.with_suffix(".commands"), account=self._account)
        (position,) = re.findall(r"WSREP: Recovered position:? (\S+)", said + self._recovery_log())
        return str(position)

    def _recovery_log(self) -> str:
        log = self._folder / "recover.log"
        text = log.read_text(errors="replace")
        log.unlink()
        return text

    def _command(self, group: str) -> list[str]:
        return [
            "mariadbd",
            "--no-defaults",
            f"--datadir={self._folder}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self._folder / 'socket'}",
            f"--pid-file={self._folder / 'pid'}",
            "--skip-name-resolve",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            "--innodb-buffer-pool-size=64M",
            "--wsrep-on=ON",
            f"--wsrep-provider={PROVIDER}",
            f"--wsrep-cluster-address=gcomm://{group}",
            f"--wsrep-node-name={self.name}",
            f"--wsrep-node-address={self.group_address}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address={self._sst_address}",
            f"--wsrep-provider-options=gmcast.listen_addr=tcp://{self.group_address};ist.recv_addr={self._ist_address}",
        ]

    def state(self) -> str | None:
        """Return what the node says of itself; ``None``: it does not answer."""
        try:
            return self._status("wsrep_local_state_comment")
        except pymysql.OperationalError:
            return None

    def commits(self) -> int:
        """Return how many transactions of its own clients the node has sent to the others since it was started."""
        return int(self._status("wsrep_replicated"))

    def _status(self, name: str) -> str:
        # Without SQLAlchemy, which would send a ROLLBACK: a node that is not ready refuses it.
        connection = pymysql.connect(host="127.0.0.1", port=self.port, user="root", read_timeout=5)
        with connection, connection.cursor() as cursor:
            cursor.execute(f"SHOW STATUS LIKE '{name}'")
            (row,) = cursor.fetchall()
            return str(row[1])

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=_PATIENCE)


class Cluster:
    """The nodes."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self._group = ",".join(node.group_address for node in nodes)

    def start(self) -> None:
        """Start all of them; the second and third get their data from the first."""
        first, *others = self.nodes
        first.install()
        first.start("")
        with pymysql.connect(host="127.0.0.1", port=first.port, user="root").cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {DATABASE}")
            cursor.execute("CREATE USER haproxy@'127.0.0.1'")
        for node in others:
            node.start(self._group)

    def bring_back(self, node: Node) -> None:
        """Start a node again that was killed, and wait until it has what it missed."""
        node.start(self._group)


@contextmanager
def new_cluster(count: int = 3) -> Iterator[Cluster]:
    """Yield a running cluster; it is gone at the end."""
    with new_folder("mysql") as (folder, account):
        cluster = Cluster([Node(f"node{number}", folder, account) for number in range(1, count + 1)])
        try:
            cluster.start()
            yield cluster
        finally:
            for node in cluster.nodes:
                node.kill()
