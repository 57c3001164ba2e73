"""PgBouncer in transaction mode, before the PostgreSQL server of the tests."""

import configparser
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.databases import unavailable
from tests.servers import free_port, new_folder, popen

_PATIENCE = 30


@contextmanager
def new_bouncer(url: str, config: str, **settings: object) -> Iterator[str]:
    """Start a separate PgBouncer on a free port, and yield the URL that leads through it.

    :param url: a database.
    :param config: the text of a ``pgbouncer.ini`` with one database, for which the given one is taken.
    :param settings: what is to be otherwise in its section ``pgbouncer``.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        unavailable("No pgbouncer: install Debian's package of that name.")
        return
    server = sa.make_url(url)
    port = free_port()
    ini = configparser.ConfigParser(interpolation=None)
    ini.read_string(config)
    (name,) = ini["databases"]
    where = {
        "dbname": server.database,
        "port": server.port or 5432,
        "user": server.username,
        "password": server.password,
    }
    options = " ".join(f"{key}={value}" for key, value in where.items() if value)
    on_page = ini["databases"][name].replace("127.0.0.1", server.host or "127.0.0.1")
    ini["databases"][name] = f"{options} {on_page}"
    own = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any"}
    ini["pgbouncer"].update({key: str(value) for key, value in {**own, **settings}.items()})
    with new_folder("postgres") as (folder, account):  # it refuses to run as root
        file, log = folder / "pgbouncer.ini", folder / "log"
        with file.open("w") as stream:
            ini.write(stream)
        with log.open("wb") as output:
            process = popen([program, str(file)], output, account=account)
        try:
            _wait(process, port, log)
            through = server.set(host="127.0.0.1", port=port, database=name)
            yield through.render_as_string(hide_password=False)
        finally:
            process.terminate()
            process.wait(timeout=_PATIENCE)


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    give_up = time.monotonic() + _PATIENCE
    while time.monotonic() < give_up and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"PgBouncer did not start:\n{log.read_text()}")
