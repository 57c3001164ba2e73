"""What the sites are asked for, by whom, and how they are to compare."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks import rows
from benchmarks.sites import CORE, IDIOMATIC, OURS, PINAX_DOCUMENTED, PINAX_TUNED, RAW, WITHOUT, Contestant, Site


@dataclass(frozen=True)
class Scenario:
    """What is asked for, and by whom.

    :param title: what it is called in the table.
    :param cookies: gives somebody's cookies, before it is measured; ``None``: nobody has any.
    :param path: gives the path of a request.
    :param records: whether each request is to leave a response.
    :param contestants: who takes part.
    :param is_close: whether a hundredth makes a difference: then all take turns each second.
    """

    title: str
    cookies: Callable[[Site, rows.Population], str] | None
    path: Callable[[Contestant, rows.Population], str]
    records: bool
    contestants: tuple[Contestant, ...] = (OURS, PINAX_DOCUMENTED, PINAX_TUNED, RAW, IDIOMATIC)
    is_close: bool = False


def _any_link(contestant: Contestant, people: rows.Population) -> str:
    return contestant.click.format(rows.code_of(random.randint(2, people.links)))  # noqa: S311


def _click(site: Site, people: rows.Population) -> str:
    # Twice: some of what is kept in a session comes with the second request.
    return site.cookies_after(*(_any_link(site.contestant, people) for _ in range(2)))


def _log_in(site: Site, people: rows.Population) -> str:
    member = random.choice(people.members[1:])  # noqa: S311
    return site.cookies_after(f"/login/{member}", _any_link(site.contestant, people))


#: All, as the command line calls them.
SCENARIOS = {
    "new": Scenario(
        "click of a new visitor",
        None,
        _any_link,
        records=True,
        contestants=(OURS, PINAX_DOCUMENTED, PINAX_TUNED, RAW, CORE, IDIOMATIC),
    ),
    "returning": Scenario("click of a returning visitor", _click, _any_link, records=True),
    "action": Scenario("action of a referred visitor", _click, lambda *_: "/buy", records=True),
    "member": Scenario("click of a logged-in member", _log_in, _any_link, records=True),
    "page": Scenario(
        "page without a referral",
        None,
        lambda *_: "/page",
        records=False,
        contestants=(OURS, WITHOUT, PINAX_DOCUMENTED, PINAX_TUNED),
        is_close=True,
    ),
}


class Goal(NamedTuple):
    """How a scenario is to go on our site, against another.

    :param speed: at least how many times as many requests per second.
    :param cpu: at most how many times the site's CPU time per request.
    :param stored: the number of stored responses that it is about; ``None``: any.
    :param is_required: whether the benchmark fails when it is missed.
    """

    against: Contestant
    speed: float
    cpu: float | None = None
    stored: int | None = None
    is_required: bool = True


GOALS = {
    ("postgresql", "new"): (Goal(PINAX_DOCUMENTED, 7), Goal(PINAX_TUNED, 2.6), Goal(RAW, 0.75, cpu=1.6)),
    ("postgresql", "returning"): (
        Goal(PINAX_DOCUMENTED, 5.5, is_required=False),
        Goal(PINAX_TUNED, 1.55, is_required=False),
        Goal(RAW, 0.7, is_required=False),
    ),
    ("postgresql", "action"): (
        Goal(PINAX_DOCUMENTED, 11, stored=100_000),
        Goal(PINAX_TUNED, 5, stored=100_000),
        Goal(PINAX_DOCUMENTED, 50, stored=1_000_000),
        Goal(PINAX_TUNED, 40, stored=1_000_000),
        Goal(RAW, 0.7, is_required=False),
    ),
    ("postgresql", "member"): (
        Goal(PINAX_DOCUMENTED, 5.5, is_required=False),
        Goal(PINAX_TUNED, 1.7, is_required=False),
    ),
    ("postgresql", "page"): (Goal(WITHOUT, 0.98),),
    ("sqlite", "new"): (Goal(PINAX_TUNED, 1.8, is_required=False), Goal(RAW, 0.55, cpu=1.6)),
    ("sqlite", "returning"): (Goal(PINAX_TUNED, 1.25, is_required=False), Goal(RAW, 0.5, is_required=False)),
    ("sqlite", "action"): (
        Goal(PINAX_TUNED, 7, stored=100_000, is_required=False),
        Goal(RAW, 0.5, is_required=False),
    ),
    ("sqlite", "page"): (Goal(WITHOUT, 0.98),),
}


def goal_of(database: str, name: str, stored: int, contestant: Contestant) -> Goal | None:
    """Return the goal against a contestant, if there is one.

    :param database: ``"postgresql"`` or ``"sqlite"``.
    :param name: the scenario, as the command line calls it.
    :param stored: how many responses are stored.
    :param contestant: whom ours is compared with.
    """
    for goal in GOALS.get((database, name), ()):
        if goal.against == contestant and goal.stored in (None, stored):
            return goal
    return None
