"""Keeps what was measured, so that the figures in the documentation are those."""

import json
import os
import platform
from pathlib import Path
from typing import Any

#: Where the figures of the documentation are.
FOLDER = Path(__file__).with_name("results")


def keep(file: Path | None, of: dict[str, Any], measured: Any) -> None:
    """Write a measurement into a file, in the place of an older one of the same.

    :param file: JSON; ``None``: it is not kept.
    :param of: what was measured.
    :param measured: the figures.
    """
    if file is None:
        return
    entries = [entry for entry in read(file) if entry["of"] != of]
    machine = f"{os.cpu_count()} processors, Python {platform.python_version()}"
    entries.append({"of": of, "on": machine, "measured": measured})
    entries.sort(key=lambda entry: [str(value).rjust(12) for value in entry["of"].values()])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entries, indent=1) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """Return all that was kept in a file, each with ``of``, ``on`` and ``measured``."""
    entries: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return entries
