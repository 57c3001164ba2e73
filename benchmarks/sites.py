"""The sites under gunicorn: which there are, how one is started, and what its processes cost."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from benchmarks.contestants import counting
from benchmarks.contestants.settings import DATABASE

ROOT = Path(__file__).parents[1]
WORKERS = 2
#: How many connections wrk keeps busy.
CONNECTIONS = 4

PINAX = ("pinax-referrals==4.5.0", "Django==5.2.*")

_BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
#: Nothing takes longer, in seconds, unless it hangs.
_PATIENCE = 60
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Contestant:
    """A site.

    :param module: where its ``create_app`` is.
    :param options: what that is called with.
    :param is_pinax: whether it needs the other virtual environment, and the other tables.
    """

    name: str
    module: str
    options: tuple[tuple[str, bool], ...] = ()
    is_pinax: bool = False

    @property
    def table(self) -> str:
        """Where it stores responses."""
        return "referrals_referralresponse" if self.is_pinax else "referral_response"

    @property
    def click(self) -> str:
        """The path of a link, to be formatted with its code."""
        return "/referrals/{}/" if self.is_pinax else "/referrals/{}"


OURS = Contestant("Flask-Referrals", "benchmarks.contestants.ours")
WITHOUT = Contestant("the same site without it", "benchmarks.contestants.ours", (("with_referrals", False),))
PINAX_DOCUMENTED = Contestant("pinax-referrals", "benchmarks.contestants.pinax", is_pinax=True)
PINAX_TUNED = Contestant("pinax-referrals, tuned", "benchmarks.contestants.pinax", (("tuned", True),), is_pinax=True)
RAW = Contestant("floor: driver", "benchmarks.contestants.raw")
CORE = Contestant("floor: SQLAlchemy Core", "benchmarks.contestants.core")
IDIOMATIC = Contestant("floor: Flask-SQLAlchemy", "benchmarks.contestants.idiomatic")
#: All, as the command line calls them.
CONTESTANTS = {
    "ours": OURS,
    "pinax": PINAX_DOCUMENTED,
    "pinax-tuned": PINAX_TUNED,
    "driver": RAW,
    "core": CORE,
    "flask-sqlalchemy": IDIOMATIC,
    "without": WITHOUT,
}


def install_pinax(cache: Path) -> Path:
    """Return the Python of a virtual environment with pinax-referrals, which is made when it is not there yet.

    :param cache: the folder where it is kept.
    """
    folder = cache / "pinax-4.5.0"
    python = folder / "bin" / "python"
    installed = folder / "installed.json"
    wanted = [*PINAX, *(f"{name}=={version(name)}" for name in ("gunicorn", "psycopg", "psycopg-binary"))]
    if not installed.exists() or json.loads(installed.read_text()) != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)  # noqa: S603
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)  # noqa: S603
        installed.write_text(json.dumps(wanted))
    return python


class Load(NamedTuple):
    """What wrk saw.

    :param requests: how many were answered.
    :param p50: in milliseconds.
    :param failed: how many were answered with 400 or more, or not at all.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    failed: int


class Site:
    """A contestant under gunicorn, with synchronous workers; as a context manager it starts and ends it.

    :param contestant: which.
    :param python: what runs it.
    :param url: its database.
    :param is_counting: whether it tells the statements of each request; it has one worker then.
    """

    def __init__(self, contestant: Contestant, python: Path, url: str, *, is_counting: bool = False) -> None:
        self.contestant = contestant
        self._python = python
        self._url = url
        self._is_counting = is_counting

    def __enter__(self) -> "Site":
        options = [f"{name}={value}" for name, value in self.contestant.options]
        module = self.contestant.module
        if self._is_counting:
            module, options = counting.__name__, [repr(module), *options]
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._log = tempfile.TemporaryFile("w+")
        descriptor = self._listener.fileno()
        command = [str(self._python), "-m", "gunicorn", f"{module}:create_app({', '.join(options)})"]
        command += [f"--bind=fd://{descriptor}", f"--workers={1 if self._is_counting else WORKERS}"]
        self._server = subprocess.Popen(  # noqa: S603
            [*command, "--worker-class=sync", "--log-level=warning", "--no-control-socket"],
            cwd=ROOT,
            env={**os.environ, DATABASE: self._url},
            stdout=self._log,
            stderr=self._log,
            pass_fds=[descriptor],
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        """Wait until it answers: the socket takes requests before anybody is there."""
        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                self.get("/page", timeout=1)
            except TimeoutError:
                if self._server.poll() is not None or time.monotonic() > give_up:
                    raise self._error("did not start") from None
            else:
                return

    def __exit__(self, *exc_info: object) -> None:
        self._server.terminate()
        try:
            self._server.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
        self._listener.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._server.pid

    @property
    def _address(self) -> tuple[str, int]:
        address: tuple[str, int] = self._listener.getsockname()
        return address

    def get(self, path: str, cookies: str = "", timeout: float = _PATIENCE) -> HTTPResponse:
        """Ask for a page, as a browser does, and have it all.

        :param cookies: the header.
        :param timeout: in seconds.
        :raises RuntimeError: the answer is an error; the site's log comes with it.
        """
        headers = {"User-Agent": _BROWSER, **({"Cookie": cookies} if cookies else {})}
        with closing(HTTPConnection(*self._address, timeout=timeout)) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            response.read()
        if response.status >= 400:
            raise self._error(f"answered {path} with {response.status}")
        return response

    def _error(self, what: str) -> RuntimeError:
        self._log.seek(0)
        return RuntimeError(f"{self.contestant.name} {what}:\n{self._log.read()}")

    def cookies_after(self, *paths: str) -> str:
        """Ask for pages as somebody new, and return the cookies that one has afterwards, as a header."""
        jar: dict[str, str] = {}
        for path in paths:
            for cookie in self.get(path, _header(jar)).headers.get_all("Set-Cookie") or []:
                name, _, value = cookie.partition(";")[0].partition("=")
                jar[name] = value
        return _header(jar)

    def load(self, requests: Iterable[tuple[str, str]], seconds: float) -> Load:
        """Send requests, over and over, as fast as they are answered.

        :param requests: paths and cookies.
        :param seconds: for how long.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
            file.writelines(f"{path}\t{cookies}\n" for path, cookies in requests)
            file.flush()
            host, port = self._address
            command = [
                "wrk",
                "-t1",
                f"-c{CONNECTIONS}",
                f"-d{seconds:g}s",
                "-s",
                str(Path(__file__).with_name("wrk.lua")),
            ]
            command += [f"http://{host}:{port}", "--", file.name]
            printed = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        return Load(**json.loads(printed.stdout.splitlines()[-1]))


def _header(jar: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in jar.items())


class _Process(NamedTuple):
    parent: int
    own: float
    #: That of its children who have ended.
    ended: float


def _processes() -> dict[int, _Process]:
    """All processes, and the seconds of CPU time that they took."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            times = [int(field) / _TICKS for field in fields[11:15]]
            found[int(path.parent.name)] = _Process(int(fields[1]), sum(times[:2]), sum(times[2:]))
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process took with all its children, those that have ended too.

    :param pid: a server's first process.
    """
    processes = _processes()

    def total(pid: int) -> float:
        own = processes[pid].own + processes[pid].ended
        return own + sum(total(child) for child, process in processes.items() if process.parent == pid)

    return total(pid)


def server_of(engine: sa.Engine) -> int | None:
    """Return the first process of PostgreSQL's server, or ``None`` when it is not on this machine."""
    if engine.dialect.name != "postgresql":
        return None
    with engine.connect() as connection:
        backend = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        process = _processes().get(backend)
        command = Path(f"/proc/{backend}/comm")
        is_here = process is not None and "postgres" in command.read_text()
    return process.parent if process is not None and is_here else None
