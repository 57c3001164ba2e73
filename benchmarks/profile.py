"""Where the time of a click of a new visitor goes, on a site with PostgreSQL under load, in shares::

    python -m benchmarks.profile --seconds 20

py-spy looks at a worker a hundred times a second, also while it waits. Each look counts for one part: that of the
innermost function that belongs to one, so that what Flask-SQLAlchemy does for us is not ours. Another scenario, another
contestant on Flask, and SQLite may be chosen.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from threading import Thread
from time import sleep

from benchmarks.scenarios import SCENARIOS
from benchmarks.sites import CONTESTANTS, ROOT
from benchmarks.web import Benchmark

#: What belongs to which part: what the names of its files begin with.
PARTS = {
    "the database: sent, and waited for": ("psycopg", "sqlite3"),
    "SQLAlchemy: pool": ("sqlalchemy/pool/",),
    "SQLAlchemy: ORM session": ("sqlalchemy/orm/", "flask_sqlalchemy/"),
    "SQLAlchemy: statements": ("sqlalchemy/",),
    "the visitor's key, signed": ("flask_referrals/web/visitor_key.py",),
    "session cookie": ("flask/sessions.py",),
    "Flask-Login": ("flask_login/",),
    "Flask-Referrals": ("flask_referrals/",),
    "the contestant": ("benchmarks/contestants/",),
    "Flask": ("flask/", "werkzeug/"),
    "gunicorn": ("gunicorn/",),
}
#: A function as py-spy prints it: its name, and its file, of which we want what begins with the package.
_FUNCTION = re.compile(rf"(\S+) \((?:.*/site-packages/|{re.escape(str(ROOT))}/)?(.+):\d+\)")


def part_of(stack: Iterable[str]) -> str | None:
    """Return the part that a stack's time belongs to; ``None``: no request is there.

    :param stack: the functions, the innermost last.
    """
    functions = [match.groups() for match in map(_FUNCTION.fullmatch, stack) if match]
    if ("SyncWorker.handle", "gunicorn/workers/sync.py") not in functions:
        return None
    for _, file in reversed(functions):
        for part, beginnings in PARTS.items():
            if file.startswith(beginnings):
                return part
    return "anything else"


def shares(recorded: str) -> dict[str, float]:
    """Return each part's share of the time in which something is done.

    :param recorded: by py-spy, raw.
    """
    looks: Counter[str] = Counter()
    for line in recorded.splitlines():
        stack, _, count = line.rpartition(" ")
        part = part_of(stack.split(";"))
        if part is not None:
            looks[part] += int(count)
    return {part: count / looks.total() for part, count in looks.most_common()}


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--scenario", choices=SCENARIOS, default="new")
    parser.add_argument("--contestant", choices=CONTESTANTS, default="ours")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--stored", type=int, default=100_000, help="responses to begin with (default: 100,000)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "flask-referrals-benchmarks")
    options = parser.parse_args()
    scenario, contestant = SCENARIOS[options.scenario], CONTESTANTS[options.contestant]
    with (
        Benchmark(options.database, options.stored, options.cache) as benchmark,
        tempfile.TemporaryDirectory() as folder,
    ):
        benchmark.begin(scenario, [contestant])
        file = Path(folder, "stacks.txt")
        load = Thread(target=benchmark.run, args=(contestant, scenario, options.seconds + 2))
        load.start()
        sleep(1)
        command = [
            str(Path(sys.executable).with_name("py-spy")),
            "record",
            "--format=raw",
            "--full-filenames",
            "--idle",
        ]
        command += ["--subprocesses", f"--duration={options.seconds}", f"--output={file}"]
        pid = benchmark.site(contestant).pid
        subprocess.run([*command, f"--pid={pid}"], check=True, stdout=sys.stderr, stderr=sys.stderr)  # noqa: S603
        load.join()
        found = shares(file.read_text())
    print(f"{scenario.title}, {options.database}, {contestant.name}")
    for part, share in found.items():
        print(f"{share:8.1%}  {part}")


if __name__ == "__main__":
    main()
