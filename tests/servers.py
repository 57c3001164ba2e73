"""What servers need that the tests start themselves: a port, and a folder of an account that they run under."""

import os
import pwd
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """Return a port on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


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
