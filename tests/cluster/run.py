"""Visitors on all nodes at once, a node that dies under them and comes back, and what is in the database afterwards."""

import inspect
import re
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from flask_referrals import Referral, ReferralResponse
from flask_referrals.db.transactions import HostTransaction
from tests.cluster.galera import DATABASE, Cluster, Node
from tests.cluster.haproxy import new_proxy
from tests.cluster.site import Site, Visit, new_host
from tests.host import Host, get_one
from tests.web import ROOT, Clients

_CLIENTS = 12
#: The longest time without an answer, in seconds.
_PATIENCE = 90.0

#: How many responses each link has from before the run, one for each day.
_DAYS = 3
#: What the log says of an error in the host's code: in a view, or in the function that loads the user.
_HOST_ERROR = re.compile("Exception on|Could not load the user")
#: How often a transaction of the host's own is tried.
_TRIES = 20


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    :param clicks: how many were answered with 302.
    :param actions: how many actions were answered with the code that deserved credit.
    :param members: how many visitors logged in.
    :param links: how many links were made.
    :param commits: how many transactions came over each node since it was last started.
    :param repeated: what visitors had to send again, by path and status.
    :param errors: lines of the site's log, by what went wrong and whose code it was in.
    :param slowest: the longest wait for an answer, in seconds.
    :param faults: what should not have been, in words.
    """

    clicks: int
    actions: int
    members: int
    links: int
    commits: dict[str, int]
    repeated: Counter[str]
    errors: Counter[str]
    slowest: float
    seconds: float
    faults: list[str]


def run(cluster: Cluster, folder: Path, *, clicks: int, kills: int = 1, is_replaced: bool = False) -> Outcome:
    """Kill nodes under load, one after the other, and bring each back.

    :param cluster: running, with nothing in it.
    :param folder: for the logs.
    :param clicks: how many must be answered, at least.
    :param kills: how often a node is killed.
    :param is_replaced: whether a node comes back without its data.
    """
    with new_proxy(cluster.nodes, folder) as port:
        url = f"mysql+pymysql://root@127.0.0.1:{port}/{DATABASE}"
        site = Site(url, folder)
        host = new_host(url)
        with host.app.app_context():
            old = _add_history(host)
        began = time.monotonic()
        with site, Clients(site.visit, _CLIENTS) as clients:
            for number in range(kills):
                node = cluster.nodes[-1 - number % len(cluster.nodes)]
                _wait_for(clients, clicks * (number + 1) // (kills + 2))
                node.kill()
                if number == 0:
                    _roll_up(host, old)
                if is_replaced:
                    node.empty()
                cluster.bring_back(node)
                _wait_until_used(node)
            _wait_for(clients, clicks)
        seconds = time.monotonic() - began
        with host.app.app_context():
            host.db.engine.dispose()
    visits = clients.answers
    errors = Counter(kind_of_error(error) for error in site.errors())
    states = [_State(node, site) for node in cluster.nodes]
    return Outcome(
        clicks=sum(len(visit.clicks) for visit in visits),
        actions=sum(len(visit.actions) for visit in visits),
        members=sum(visit.user is not None for visit in visits),
        links=len({code for visit in visits for code in visit.codes.values()}),
        commits={node.name: node.commits() for node in cluster.nodes},
        repeated=Counter(kind for visit in visits for kind in visit.repeated),
        errors=errors,
        slowest=max(visit.slowest for visit in visits),
        seconds=seconds,
        faults=[*_faults(visits, states), *(f"{kind}: {count}" for kind, count in errors.items() if "ours" in kind)],
    )


def _add_history(host: Host) -> list[int]:
    """Store responses of the days before, and return their keys."""
    db, response = host.db, host.referrals.ReferralResponse
    today = datetime.now(timezone.utc)
    links = db.session.scalars(sa.select(host.referrals.Referral.id)).all()
    rows = [
        {"referral_id": link, "action": "RESPONDED", "is_touch": True, "created_at": today - timedelta(days=day)}
        for link in links
        for day in range(1, _DAYS + 1)
    ]
    db.session.execute(sa.insert(response), rows)
    db.session.commit()
    return list(db.session.scalars(sa.select(response.id)))


def _roll_up(host: Host, old: Iterable[int]) -> None:
    """Roll up the days that are over, and void some of their responses before and after."""
    *some, last = list(old)[::_DAYS]
    for key in some:
        _void(host, key)
    result = host.app.test_cli_runner().invoke(args=["referrals", "rollup"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    _void(host, last)


def _void(host: Host, key: int) -> None:
    """Void a response as a site does: what it read it in is its own transaction, and its own to repeat."""
    for _ in range(_TRIES):
        with host.app.app_context(), suppress(sa.exc.OperationalError):
            get_one(host.db, ReferralResponse, key).void("a test")
            return
    raise TimeoutError("A response could not be voided.")


def _wait_for(clients: Clients[Visit], clicks: int) -> None:
    seen, give_up = 0, time.monotonic() + _PATIENCE
    while sum(len(visit.clicks) for visit in clients.answers) < clicks:
        if len(clients.answers) > seen:
            seen, give_up = len(clients.answers), time.monotonic() + _PATIENCE
        if time.monotonic() > give_up:
            raise TimeoutError(f"No answer in {_PATIENCE} s.")
        time.sleep(0.05)


def _wait_until_used(node: Node) -> None:
    give_up = time.monotonic() + _PATIENCE
    while node.commits() == 0:
        if time.monotonic() > give_up:
            raise TimeoutError(f"{node.name} came back, and is not used.")
        time.sleep(0.1)


def kind_of_error(error: str) -> str:
    """Say in a few words what a record of the log is about, and who has to mend or repeat what failed.

    It is the host if its own code failed, or if the database rolled back its transaction while the extension used it:
    only the host can repeat its own work.
    """
    first, *rest = error.splitlines()
    frames = re.findall(rf'File "{re.escape(str(ROOT))}/((?:flask_referrals|tests)/.+)", line (\d+)', error)
    is_ours = frames[-1][0].startswith("flask_referrals/") if frames else not _HOST_ERROR.search(first)
    what = re.sub(r"^\[.*?\] ERROR in \w+: ", "", first)
    what = re.sub(r"'[\w-]{12}'", "…", what)
    reason = next((line for line in reversed(rest) if re.match(r"[\w.]+(Error|Exception)", line)), "")
    if reason.startswith("sqlalchemy.exc.OperationalError"):
        is_ours &= not any(_is_in_host_transaction(file, int(line)) for file, line in frames)
    return f"{'ours' if is_ours else 'host'}: {what} {reason}"[:200]


def _is_in_host_transaction(file: str, line: int) -> bool:
    lines, first = inspect.getsourcelines(HostTransaction.run)
    return file == "flask_referrals/db/transactions.py" and line in range(first, first + len(lines))


class _State:
    """What a node has in its tables."""

    def __init__(self, node: Node, site: Site) -> None:
        host = new_host(node.url)
        with host.app.app_context():
            session = host.db.session
            tables = ", ".join(f"`{table}`" for table in host.db.metadata.tables)
            self.checksums = session.execute(sa.text(f"CHECKSUM TABLE {tables} EXTENDED")).all()
            response = host.referrals.ReferralResponse
            self.clicks: dict[str, list[Any]] = {}
            self.actions: dict[str, list[Any]] = {}
            columns = (response.params, response.action, response.key, response.user_id)
            for params, action, key, user_id in session.execute(sa.select(*columns)):
                if action == "RESPONDED" and params:
                    self.clicks.setdefault(params["sub"], []).append(user_id)
                elif action in ("VIEWED", "PAID", "PAID_AGAIN"):
                    self.actions.setdefault(f"{action} {key}", []).append(user_id)
            referral = host.referrals.Referral
            self.codes: dict[str, list[str]] = {}
            for label, code in session.execute(sa.select(referral.label, referral.code)):
                self.codes.setdefault(label, []).append(code)
            self.users: dict[str, int] = {
                row.name: row.id for row in session.execute(sa.select(host.User.name, host.User.id))
            }
            counted = sa.select(sa.func.count()).where(response.ignored.is_(None), response.action == "RESPONDED")
            self.counted = session.scalar(counted)
            self.told = sum(link.response_count for link in session.scalars(sa.select(Referral)))
            session.remove()
            host.db.engine.dispose()


def _faults(visits: list[Visit], states: list[_State]) -> list[str]:
    found = []
    if any(state.checksums != states[0].checksums for state in states):
        found.append(f"the nodes differ: {[state.checksums for state in states]}")
    state = states[0]

    def tell(what: str, wrong: list[Any]) -> None:
        if wrong:
            found.append(f"{what}: {len(wrong)}, as {wrong[:5]}")

    answered = [mark for visit in visits for mark in visit.clicks]
    tell("clicks lost", [mark for mark in answered if mark not in state.clicks])
    tell("clicks doubled", [mark for mark, rows in state.clicks.items() if len(rows) > 1])
    actions = [key for visit in visits for key in visit.actions]
    tell("actions lost", [key for key in actions if key not in state.actions])
    tell("actions doubled", [key for key, rows in state.actions.items() if len(rows) > 1])
    tell("actions not credited", [each for visit in visits for each in visit.uncredited])
    codes = [(label, code) for visit in visits for label, code in visit.codes.items()]
    tell("links lost or doubled", [(label, code) for label, code in codes if state.codes.get(label) != [code]])
    tell("links doubled", [label for label, codes in state.codes.items() if len(codes) > 1])
    tell("never answered", [each for visit in visits for each in visit.given_up])

    def is_stuck(visit: Visit) -> bool:
        rows = [*(state.clicks.get(mark, []) for mark in visit.clicks), *(state.actions[key] for key in visit.actions)]
        return {owner for owners in rows for owner in owners} != {state.users.get(visit.user or "")}

    tell("visitors stuck", [visit for visit in visits if visit.user is not None and is_stuck(visit)])
    if state.told != state.counted:
        found.append(f"{state.counted} clicks count, and the links tell of {state.told}")
    return found
