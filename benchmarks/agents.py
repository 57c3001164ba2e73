"""How well ``flask_referrals.web.agents`` detects programs, on lists of other projects.

Run it with ``python benchmarks/agents.py`` where this package is installed. It fetches the packages below into a
temporary folder (or into the folder that is its argument, and then only once), and unpacks them there. They are other
projects than crawler-user-agents, the list that the module uses. By hand::

    pip download --no-deps device-detector==6.5.1
    pip download --no-deps --no-binary crawlerdetect crawlerdetect==0.4.2
    pip download --no-deps fake-useragent==2.2.0 forge-useragent==3.0.1
    npm pack user-agents@2.1.108 user-agents@2.1.198 top-user-agents@2.1.138 woothee@1.11.1
    npm pack @ulixee/real-user-agents@2.0.0-alpha.34

With ``--missed`` it prints every agent that was judged wrongly.

The module's expression was written by looking at one half of each list, and at the other half afterwards; ``--unseen``
measures on that other half alone.
"""

import argparse
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import typing as t
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from flask_referrals.web import agents

PIP = (
    ["device-detector==6.5.1"],
    ["--no-binary=crawlerdetect", "crawlerdetect==0.4.2"],
    ["fake-useragent==2.2.0", "forge-useragent==3.0.1"],
)
NPM = [
    "user-agents@2.1.108",
    "user-agents@2.1.198",
    "top-user-agents@2.1.138",
    "woothee@1.11.1",
    "@ulixee/real-user-agents@2.0.0-alpha.34",
]


class Agents(t.NamedTuple):
    """A published list; ``bots`` is ``None`` where it is about neither people nor programs."""

    name: str
    bots: bool | None
    agents: list[str]


def fetch(folder: Path) -> None:
    """Download and unpack all packages that are not there yet, each into a folder with the name of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        for arguments in PIP:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*pip, *arguments], cwd=folder, check=True)  # noqa: S603
        subprocess.run(["npm", "pack", "--silent", *NPM], cwd=folder, check=True, stdout=sys.stderr)  # noqa: S603, S607
    for archive in [path for path in folder.iterdir() if path.is_file()]:
        target = folder / f"{archive.name}.d"
        if target.exists():
            continue
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(target)  # noqa: S202
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")


def matomo(folder: Path) -> Iterator[tuple[str, str]]:
    """Read Matomo's tests: each agent, and its client's type or ``"bot"``.

    This reads as much of YAML as these files have; of 38,271 agents, it gets three wrong.
    """
    for path in sorted(folder.glob("device_detector-*.d/device_detector/tests/fixtures/upstream/*.yml")):
        for entry in re.split(r"^- *\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            match = re.match(r" +user_agent: (.*(?:\n {4,}.*)*)", entry)
            if match is None:
                continue
            agent = re.sub(r"\n +", " ", match[1])
            if agent[0] == agent[-1] == "'":
                agent = agent[1:-1].replace("''", "'")
            elif agent[0] == agent[-1] == '"':
                agent = json.loads(agent)
            client = re.search(r"^ +client: *\n +type: (.*)", entry, re.MULTILINE)
            yield agent, "bot" if re.search(r"^ +bot:", entry, re.MULTILINE) else client[1] if client else ""


def woothee(folder: Path) -> Iterator[tuple[str, str]]:
    """Read woothee's tests: each agent, and its category."""
    for path in sorted(folder.glob("woothee-*.d/package/woothee/testsets/*.yaml")):
        if path.name not in ("blank.yaml", "misc.yaml"):
            text = path.read_text(encoding="utf-8")
            yield from re.findall(r"^- target: '?(.*?)'?\n(?:  .*\n)*?  category: (\w+)", text, re.MULTILINE)


def lines(folder: Path, pattern: str) -> list[str]:
    """Read the one file with a name."""
    (path,) = folder.glob(pattern)
    return path.read_text(encoding="utf-8").splitlines()


def published(folder: Path) -> list[Agents]:
    """Read all lists."""
    clients = list(matomo(folder))
    old = list(woothee(folder))
    pages = [agent for agent, kind in clients if kind == "mobile app" and "Mozilla/" in agent]
    seen = {"bot", "browser"}
    programs = [agent for agent, kind in clients if kind not in seen and agent not in set(pages)]
    crawlerdetect = "crawlerdetect-*.d/*/tests/fixtures/user_agent/"
    top = json.loads("".join(lines(folder, "top-user-agents-*.d/package/src/index.json")))
    real = {
        version: json.loads("".join(lines(folder, f"user-agents-{version}.tgz.d/package/dist/user-agents.json")))
        for version in ("2.1.108", "2.1.198")
    }
    fake = {
        name: lines(folder, f"{name}_useragent-*.d/fake_useragent/data/browsers.jsonl") for name in ("fake", "forge")
    }
    browsers = "ulixee-real-user-agents-*.d/package/data/external-raw/browserstack/userAgents.json"
    tested = json.loads("".join(lines(folder, browsers)))
    return [
        Agents("device-detector 6.5.1, bots", True, [agent for agent, kind in clients if kind == "bot"]),
        Agents("crawlerdetect 0.4.2, crawlers", True, lines(folder, crawlerdetect + "crawlers.txt")),
        Agents("woothee 1.11.1, crawlers", True, [agent for agent, kind in old if kind == "crawler"]),
        Agents("device-detector 6.5.1, browsers", False, [agent for agent, kind in clients if kind == "browser"]),
        Agents("device-detector 6.5.1, pages in apps", False, pages),
        Agents("crawlerdetect 0.4.2, devices", False, lines(folder, crawlerdetect + "devices.txt")),
        Agents("user-agents 2.1.108", False, [entry["userAgent"] for entry in real["2.1.108"]]),
        Agents("user-agents 2.1.198", False, [entry["userAgent"] for entry in real["2.1.198"]]),
        Agents("forge-useragent 3.0.1", False, [json.loads(line)["useragent"] for line in fake["forge"]]),
        Agents("real-user-agents 2.0.0-alpha.34", False, [entry["string"] for entry in tested]),
        Agents("fake-useragent 2.2.0", False, [json.loads(line)["useragent"] for line in fake["fake"]]),
        Agents("top-user-agents 2.1.138", False, top),
        Agents("woothee 1.11.1, phones and desktops", False, [agent for agent, kind in old if kind != "crawler"]),
        Agents("device-detector 6.5.1, other programs", None, programs),
    ]


def microseconds(judge: t.Callable[[str], bool], each: Iterable[str]) -> float:
    """Return the mean time of a judgement."""
    each = list(each)
    start = time.perf_counter()
    for agent in each:
        judge(agent)
    return (time.perf_counter() - start) / len(each) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="How well people are told from programs.")
    parser.add_argument("folder", nargs="?", type=Path, help="where to keep the packages")
    parser.add_argument("--missed", action="store_true", help="print what is judged wrongly")
    parser.add_argument("--unseen", action="store_true", help="only what the expression was not written for")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        fetch(folder)
        everything = published(folder)

    start = time.perf_counter()
    agents.is_bot("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
    print(f"the first agent: {(time.perf_counter() - start) * 1e3:.0f} ms")
    huge = ("Mozilla/5.0 " + "x" * 2**20)[: agents.MAX_READ]
    first, again = microseconds(agents.is_bot, [huge]), microseconds(agents.is_bot, [huge])
    print(f"an agent of 1 MB: {first:.0f} µs, then {again:.1f} µs")
    print(f"{'list':38}{'agents':>8}{'recall':>9}{'false +':>9}{'µs':>6}{'cached':>8}")
    for name, bots, listed in everything:
        chosen = sorted({agent for agent in listed if agent.strip()})
        if options.unseen:
            chosen = [agent for agent in chosen if zlib.crc32(agent.encode()) % 2]
        found = {agent for agent in chosen if agents.is_bot(agent[: agents.MAX_READ])}
        share = f"{len(found) / len(chosen):.2%}"
        columns = f"{share if bots else '':>9}{share if bots is False else '':>9}"
        sample = chosen[:: len(chosen) // 1000 + 1]
        agents.is_bot.cache_clear()
        times = f"{microseconds(agents.is_bot, sample):6.0f}{microseconds(agents.is_bot, sample):8.2f}"
        print(f"{name:38}{len(chosen):8}{columns}{times}" + ("" if bots is not None else f"  ({share} are programs)"))
        if options.missed and bots is not None:
            for agent in chosen:
                if (agent in found) is not bots:
                    print("   ", agent)


if __name__ == "__main__":
    main()
