"""The files in the instance folder, apart from the database."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder for one process at a time; SQLite releases the lock when the process ends, on every platform."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "start.lock"
    with closing(sqlite3.connect(file, timeout=120, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def secret_key(folder: Path) -> str:
    """Return the secret key of this installation, which is created on first use: a key in the source is not secret."""
    file = folder / "secret_key"
    with lock(folder):
        if not file.exists():
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "w") as f:
                f.write(secrets.token_hex(32))
        return file.read_text()
