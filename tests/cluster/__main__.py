"""Starts a cluster of three nodes, lets visitors loose on all of them, and kills a node under them.

::

    python -m tests.cluster --clicks 20000

Ends with 1 when a click that was answered is lost, when anything is there twice, when a visitor is not credited with
what they did, when the nodes differ, or when the site's log has an error of the extension.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.cluster import galera, haproxy
from tests.cluster.run import run


def main() -> int:
    """Run it as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=1, help="how often a node is killed")
    parser.add_argument("--replace", action="store_true", help="a node comes back without its data")
    options = parser.parse_args()
    reason = galera.missing() or haproxy.missing()
    if reason is not None:
        parser.error(reason)
    with galera.new_cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        outcome = run(cluster, Path(folder), clicks=options.clicks, kills=options.kills, is_replaced=options.replace)
    print(
        f"{options.kills} kills, {outcome.clicks} clicks answered, {outcome.actions} actions, "
        f"{outcome.members} logins, {outcome.links} links; "
        f"the slowest answer took {outcome.slowest:.1f} s; {outcome.seconds:.0f} s"
    )
    print("commits:", ", ".join(f"{name} {count}" for name, count in outcome.commits.items()))
    for kind, count in [*outcome.repeated.most_common(), *outcome.errors.most_common()]:
        print(f"{count:6} x {kind}")
    for fault in outcome.faults:
        print(f"FAULT: {fault}")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
