"""How long ``import flask_referrals`` takes beyond what Flask-SQLAlchemy imports already, in fresh interpreters::

    python -m benchmarks.imports

Each interpreter imports Flask-SQLAlchemy first and then Flask-Referrals, which is timed; the median is judged. Then
come the modules that took most of it, each without what it imports itself, as ``python -X importtime`` says. Ends with
1 when it takes longer than ``GOAL``.
"""

import argparse
import atexit
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

from benchmarks import results

#: Milliseconds at most.
GOAL = 30
#: How many modules are shown.
_SHOWN = 15

_BEFORE = "import flask_sqlalchemy"
_TIMED = """
import sys, time
{before}
began = time.perf_counter()
{timed}
print((time.perf_counter() - began) * 1000)
"""
#: Microseconds of its own, microseconds with all that it imports, and the name, which is indented.
_LINE = re.compile(r"import time: +(\d+) \| +(\d+) \| ( *)(\S+)")


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [sys.executable, *arguments], check=True, capture_output=True, text=True, env=_environment()
    )


@cache
def _environment() -> dict[str, str]:
    """Have modules compiled once, as on a site, whatever this machine is told."""
    folder = mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}


def milliseconds(before: str, timed: str) -> float:
    """Return how long an import takes in a fresh interpreter.

    :param before: a statement that comes first.
    :param timed: the one that is timed.
    """
    return float(_python("-c", _TIMED.format(before=before, timed=timed)).stdout)


def by_module() -> dict[str, float]:
    """Return the milliseconds of each module that comes with us, of its own."""
    printed = _python("-X", "importtime", "-c", f"{_BEFORE}; import flask_referrals").stderr
    before = {match[4] for match in _LINE.finditer(_python("-X", "importtime", "-c", _BEFORE).stderr)}
    return {match[4]: int(match[1]) / 1000 for match in _LINE.finditer(printed) if match[4] not in before}


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="keep the figure there too")
    options = parser.parse_args()
    without: list[float] = []
    ours: list[float] = []
    modules: dict[str, list[float]] = {}
    milliseconds(_BEFORE, "import flask_referrals")  # compiles them
    for _ in range(options.repeats):
        without.append(milliseconds("", _BEFORE))
        ours.append(milliseconds(_BEFORE, "import flask_referrals"))
        for module, took in by_module().items():
            modules.setdefault(module, []).append(took)
    beyond = median(ours)
    verdict = "met" if beyond <= GOAL else "MISSED"
    print(f"import flask_sqlalchemy: {median(without):.1f} ms")
    print(f"import flask_referrals after it: {beyond:.1f} ms [{min(ours):.1f}..]; at most {GOAL}: {verdict}")
    for module, each in sorted(modules.items(), key=lambda item: -median(item[1]))[:_SHOWN]:
        print(f"{median(each):8.1f} ms  {module}")
    print(f"{sum(median(each) for each in modules.values()):8.1f} ms  in {len(modules)} modules, while they were timed")
    results.keep(options.json, {"import": "flask_referrals"}, round(beyond, 1))
    return 0 if beyond <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
