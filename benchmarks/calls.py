"""Python calls per request of a site with Flask-Referrals, and of floors, all in this process::

    python -m benchmarks.calls --database postgresql --files

cProfile counts the calls of Python functions and of functions in C, from the call of the WSGI application until its
response is closed. Each count is the median over several visitors, after others have warmed the statement caches. A
visitor is new, and sends the requests of the scenario only: a "returning" visitor or an "action" follows one click.
"""

import argparse
import cProfile
import os
import random
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

import sqlalchemy as sa
from flask import Flask
from werkzeug.test import create_environ

import flask_referrals
from benchmarks import results, rows
from benchmarks.contestants.settings import DATABASE
from benchmarks.scenarios import SCENARIOS
from benchmarks.sites import IDIOMATIC, OURS, RAW, WITHOUT, Contestant
from tests.databases import NAMES, new_database

_LINK = "/referrals/{code}"
_BUY = "/buy"
#: The paths that a visitor requests, one after the other. The last request is counted.
VISITS = {
    "new": (_LINK,),
    "returning": (_LINK, _LINK),
    "action": (_LINK, _BUY),
    "member": ("/login/{member}", _LINK, _LINK),
    "page": ("/page",),
}
_CONTESTANTS = (OURS, RAW, IDIOMATIC, WITHOUT)
#: The headers of a browser that follows a link on another site.
_HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "https://blog.example/",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-User": "?1",
}
_PACKAGE = Path(flask_referrals.__file__).parent
#: Parts of the function around them; Python 3.12 runs most of them without a call.
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
#: How many visits come first: psycopg prepares a statement when it is executed for the sixth time.
_WARM_UP = 15
_COUNTED = 15


@dataclass(frozen=True)
class Count:
    """What a request calls.

    :param calls: the calls of all functions.
    :param files: the package's files whose functions it calls, each with these functions.
    """

    calls: int
    files: dict[str, list[str]]

    @property
    def functions(self) -> int:
        """The number of the package's functions that it calls."""
        return sum(map(len, self.files.values()))


def count_of(profile: cProfile.Profile) -> Count:
    """Return what a profiler has counted."""
    entries = profile.getstats()
    codes = {entry.code for entry in entries if isinstance(entry.code, CodeType)}
    files: dict[str, list[str]] = {}
    for code in sorted(codes, key=lambda code: (code.co_filename, code.co_firstlineno)):
        path = Path(code.co_filename)
        if path.is_relative_to(_PACKAGE) and code.co_name not in _COMPREHENSIONS:
            # Python 3.10 does not know the class of a method.
            name = getattr(code, "co_qualname", code.co_name)
            files.setdefault(str(path.relative_to(_PACKAGE)), []).append(name)
    return Count(sum(entry.callcount for entry in entries), files)


class Sites:
    """The contestants on one new database; as a context manager it drops the database at the end.

    :param database: ``"sqlite"``, ``"postgresql"`` or ``"mariadb"``.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._people = rows.Population(1_000)
        self._apps: dict[Contestant, Flask] = {}

    def __enter__(self) -> "Sites":
        with ExitStack() as self._stack:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            os.environ[DATABASE] = url = self._stack.enter_context(new_database(self._database, folder))
            self._engine = sa.create_engine(url, poolclass=sa.NullPool)
            self._app(OURS).extensions["sqlalchemy"].metadata.create_all(self._engine)
            rows.store(self._engine, rows.ours(self._people))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _app(self, contestant: Contestant) -> Flask:
        if contestant not in self._apps:
            app = import_module(contestant.module).create_app(**dict(contestant.options))
            if "sqlalchemy" in app.extensions:
                with app.app_context():
                    self._stack.callback(app.extensions["sqlalchemy"].engine.dispose)
            self._apps[contestant] = app
        return self._apps[contestant]

    def count(self, contestant: Contestant, scenario: str) -> Count:
        """Count what the last request of a scenario calls.

        :raises RuntimeError: a request failed, or did not record what it should.
        """
        app, paths = self._app(contestant), VISITS[scenario]
        before = self._recorded()
        profiles = [self._visit(app, paths) for _ in range(_WARM_UP + _COUNTED)]
        if self._recorded() - before != len(profiles) * sum(path in (_LINK, _BUY) for path in paths):
            raise RuntimeError(f"{contestant.name} did not record each request of {scenario!r}.")
        return sorted(map(count_of, profiles[_WARM_UP:]), key=lambda count: count.calls)[_COUNTED // 2]

    def _recorded(self) -> int:
        with self._engine.connect() as connection:
            return int(connection.scalar(sa.text("SELECT count(*) FROM referral_response")) or 0)

    def _visit(self, app: Flask, paths: tuple[str, ...]) -> cProfile.Profile:
        """Send the requests of a new visitor; return what the last one called."""
        member = random.choice(self._people.members[1:])  # noqa: S311
        cookies: dict[str, str] = {}
        for path in paths:
            code = rows.code_of(random.randint(2, self._people.links))  # noqa: S311
            profile = _request(app, path.format(code=code, member=member), cookies)
        return profile


def _request(app: Flask, path: str, cookies: dict[str, str]) -> cProfile.Profile:
    """Send a request as a WSGI server does, and keep the cookies of its response."""
    header = "; ".join(f"{name}={value}" for name, value in cookies.items())
    environ = create_environ(path, headers={**_HEADERS, **({"Cookie": header} if header else {})})
    environ["REMOTE_ADDR"] = "192.0.2.1"
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        started.extend((status, headers))

    with cProfile.Profile() as profile:
        body: Any = app(environ, start_response)
        for _ in body:
            pass
        body.close()
    status, headers = started
    if status >= "400":
        raise RuntimeError(f"The answer to {path} is {status}.")
    cookies.update(value.partition(";")[0].split("=", 1) for name, value in headers if name == "Set-Cookie")
    return profile


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--scenario", choices=VISITS, action="append", help="only this one; may be given again")
    parser.add_argument("--files", action="store_true", help="list our files and functions that a request passes")
    parser.add_argument("--json", type=Path, help="keep the figures there too")
    options = parser.parse_args()
    row = "{:30}" + "{:>26}" * len(_CONTESTANTS)
    print(row.format("", *(contestant.name for contestant in _CONTESTANTS)))
    listing = []
    with Sites(options.database) as sites:
        for name in options.scenario or VISITS:
            title = SCENARIOS[name].title
            # The site without the extension has no links to follow.
            contestants = [each for each in _CONTESTANTS if each != WITHOUT or not SCENARIOS[name].records]
            counts = {each.name: sites.count(each, name) for each in contestants}
            calls = {contestant: count.calls for contestant, count in counts.items()}
            print(row.format(title, *(calls.get(each.name, "") for each in _CONTESTANTS)))
            ours = counts[OURS.name]
            listing.append(f"\n{title}: {len(ours.files)} of our files, {ours.functions} of our functions")
            listing += [f"  {file}: {', '.join(functions)}" for file, functions in ours.files.items()]
            figures = {"calls": calls, "files": len(ours.files), "functions": ours.functions}
            results.keep(options.json, {"database": options.database, "scenario": name}, figures)
    if options.files:
        print("\n".join(listing))


if __name__ == "__main__":
    main()
