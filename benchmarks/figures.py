"""What was measured on a site under load, in figures, and the table of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from benchmarks.scenarios import Scenario, goal_of
from benchmarks.sites import CONNECTIONS, OURS, Contestant, Load


class Run(NamedTuple):
    """A scenario on a site, for some seconds.

    :param recorded: how many responses there are more.
    :param app_cpu: the CPU seconds of the site's processes.
    :param database_cpu: those of the database's; ``None``: it cannot be read.
    """

    load: Load
    recorded: int
    app_cpu: float
    database_cpu: float | None

    @property
    def speed(self) -> float:
        """Requests per second."""
        return self.load.requests / self.load.seconds

    @property
    def app_cost(self) -> float:
        """The site's CPU time, in milliseconds per request."""
        return self.app_cpu / self.load.requests * 1000


@dataclass(frozen=True)
class Figures:
    """A site in all rounds: medians, unless it is said otherwise.

    :param ratio: ours against it in requests per second, of each round.
    :param cpu_ratio: the same for the site's CPU time per request.
    :param answered: in all rounds; so is ``recorded``.
    """

    speed: float
    slowest: float
    fastest: float
    ratio: float
    cpu_ratio: float
    p50: float
    p99: float
    app_cpu: float
    database_cpu: float | None
    statements: str
    answered: int
    recorded: int
    rounds: int


def figures_of(runs: Sequence[Run], ours: Sequence[Run], sent: Sequence[str]) -> Figures:
    """Sum up a site's rounds.

    :param ours: those of our site, in the same rounds.
    :param sent: the first word of each statement of a request.
    """
    speeds = [run.speed for run in runs]
    database = [run.database_cpu / run.load.requests * 1000 for run in runs if run.database_cpu is not None]
    pairs = list(zip(ours, runs, strict=True))
    return Figures(
        speed=median(speeds),
        slowest=min(speeds),
        fastest=max(speeds),
        ratio=median(our.speed / run.speed for our, run in pairs),
        cpu_ratio=median(our.app_cost / run.app_cost for our, run in pairs),
        p50=median(run.load.p50 for run in runs),
        p99=median(run.load.p99 for run in runs),
        app_cpu=median(run.app_cost for run in runs),
        database_cpu=median(database) if database else None,
        statements=", ".join(f"{count} {word}" for word, count in Counter(sent).items()),
        answered=sum(run.load.requests for run in runs),
        recorded=sum(run.recorded for run in runs),
        rounds=len(runs),
    )


def report(
    database: str,
    name: str,
    scenario: Scenario,
    stored: int,
    runs: dict[Contestant, list[Run]],
    sent: dict[Contestant, list[str]],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Print a scenario's table; return its figures by contestant, and what went wrong, in words."""
    row = "{:26}{:>24}{:>9}{:>9}{:>9}{:>9}{:>5}{:>17}{:>9}{:>9}  {}"
    print(f"\n{scenario.title}, {database}, {stored:,} stored")
    titles = ("requests/s", "p50 ms", "p99 ms", "app CPU", "db CPU", "SQL", "recorded", "ours/it", "CPU/its", "goal")
    print(row.format("", *titles))
    found, missed = {}, []
    for contestant, each in runs.items():
        figures = figures_of(each, runs[OURS], sent[contestant])
        found[contestant.name] = asdict(figures)
        goal = goal_of(database, name, stored, contestant)
        verdicts = []
        if goal is not None:
            asked = [(figures.ratio >= goal.speed, f"{goal.speed}", f"{figures.ratio:.3f}")]
            if goal.cpu is not None:
                asked.append((figures.cpu_ratio <= goal.cpu, f"CPU {goal.cpu}", f"CPU {figures.cpu_ratio:.2f}"))
            for is_met, wanted, measured in asked:
                verdicts.append(f"{wanted} {'met' if is_met else 'MISSED' if goal.is_required else 'not met'}")
                if goal.is_required and not is_met:
                    missed.append(f"{scenario.title}, {database}: {measured} of {contestant.name}, not {wanted}")
        print(
            row.format(
                contestant.name,
                f"{figures.speed:,.0f} [{figures.slowest:,.0f}..{figures.fastest:,.0f}]",
                f"{figures.p50:.1f}",
                f"{figures.p99:.1f}",
                f"{figures.app_cpu:.2f}",
                "" if figures.database_cpu is None else f"{figures.database_cpu:.2f}",
                len(sent[contestant]),
                f"{figures.recorded}/{figures.answered}" if scenario.records else "",
                "" if contestant == OURS else f"{figures.ratio:.3f}" if scenario.is_close else f"{figures.ratio:.2f}",
                "" if contestant == OURS else f"{figures.cpu_ratio:.2f}",
                ", ".join(verdicts),
            )
        )
        missed += _faults(scenario, contestant, each)
    for name, figures_by_name in found.items():
        print(f"    {name}: {figures_by_name['statements'] or 'no statement'}")
    return found, missed


def _faults(scenario: Scenario, contestant: Contestant, runs: Sequence[Run]) -> list[str]:
    """Tell what a site did wrong, in words."""
    found = []
    for run in runs:
        # Those that were under way when wrk ended are recorded, and not counted as answered.
        more = run.recorded - (run.load.requests - run.load.failed if scenario.records else 0)
        if not 0 <= more <= CONNECTIONS * scenario.records:
            found.append(f"{scenario.title}: {contestant.name} recorded {more:+} beyond what it answered")
        if run.load.failed:
            found.append(f"{scenario.title}: {contestant.name} failed {run.load.failed} times")
    return found
