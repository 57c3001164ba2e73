"""What this installation keeps in its instance folder, apart from the database."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Let one process at a time in. SQLite's lock works everywhere, and dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "start.lock"
    with closing(sqlite3.connect(file, timeout=120, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def secret_key(folder: Path) -> str:
    """Return this installation's own key, made on first use: one in the source is no secret."""
    file = folder / "secret_key"
    with lock(folder):
        if not file.exists():
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "w") as f:
                f.write(secrets.token_hex(32))
        return file.read_text()
