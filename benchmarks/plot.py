"""Draws the pictures of ``docs/performance.rst`` from what is kept in ``benchmarks/results``::

    python -m benchmarks.plot

A file without the measurements that a picture needs is an error: no picture shows what was not measured.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks import results
from benchmarks.scenarios import SCENARIOS
from benchmarks.sites import IDIOMATIC, OURS, PINAX_DOCUMENTED, PINAX_TUNED, RAW, ROOT

_WIDTH = 760
_NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}
#: What each contestant's bars are filled with.
_CLASSES = {OURS: "ours", RAW: "floor", IDIOMATIC: "floor", PINAX_TUNED: "pinax", PINAX_DOCUMENTED: "pinax"}
#: The colours are told apart by those who see no red or green, too; the picture brings its own background.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
text.title { font-weight: 600; }
text.faint { fill: #59636e; }
.ground { fill: #ffffff; } .grid { stroke: #d1d9e0; }
rect.ours { fill: #0969da; } rect.floor { fill: #8c959f; } rect.pinax { fill: #d4741c; }
path { fill: none; stroke-width: 2; } path.pinax { stroke-dasharray: 6 4; }
path.ours { stroke: #0969da; } path.pinax { stroke: #d4741c; }
circle.ours { fill: #0969da; } circle.pinax { fill: #d4741c; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } text.faint { fill: #9198a1; }
  .ground { fill: #0d1117; } .grid { stroke: #3d444d; }
  rect.ours { fill: #4493f8; } rect.floor { fill: #656c76; } rect.pinax { fill: #db8a3d; }
  path.ours { stroke: #4493f8; } path.pinax { stroke: #db8a3d; }
  circle.ours { fill: #4493f8; } circle.pinax { fill: #db8a3d; }
}
"""


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" class="grid"/>'


def _picture(title: str, height: float, drawn: Iterable[str]) -> str:
    size = f'width="{_WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" {size} role="img">'
    style = f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    return "\n".join([head, style, f'<rect {size} rx="6" class="ground"/>', *drawn, "</svg>", ""])


def speeds(file: Path, database: str, stored: int) -> str:
    """Draw each contestant's requests per second, the raw driver's being 1.

    :param file: what ``benchmarks.web`` kept.
    """
    measured = {
        entry["of"]["scenario"]: entry["measured"]
        for entry in results.read(file)
        if (entry["of"]["database"], entry["of"]["stored"]) == (database, stored)
    }
    left, right, bar = 210.0, _WIDTH - 70.0, 20.0
    relative = {
        name: {each: measured[name][RAW.name]["ratio"] / measured[name][each.name]["ratio"] for each in _CLASSES}
        for name, scenario in SCENARIOS.items()
        if name in measured and RAW in scenario.contestants
    }
    scale = (right - left) / max(1, *(value for each in relative.values() for value in each.values()))
    drawn, y = [], 28.0
    title = f"Requests per second; the raw driver's are 1 ({_NAMES[database]}, {stored:,} stored responses)"
    drawn.append(_text(20, y, title, "title"))
    top = y + 14
    for name, values in relative.items():
        y += 36
        drawn.append(_text(20, y, SCENARIOS[name].title, "title"))
        for contestant, kind in _CLASSES.items():
            y += bar
            width = values[contestant] * scale
            drawn.append(_text(left - 8, y, contestant.name, anchor="end"))
            drawn.append(f'<rect x="{left}" y="{y - 12:.1f}" width="{width:.1f}" height="14" rx="2" class="{kind}"/>')
            drawn.append(_text(left + width + 6, y, f"{values[contestant]:.2f}", "faint"))
    return _picture(title, y + 24, [_line(left + scale, top, left + scale, y + 8), *drawn])


@dataclass
class _Curve:
    """What an operation costs with each number of stored responses."""

    title: str
    points: list[tuple[int, float]]
    kind: str


#: What is drawn of the operations of ``benchmarks.growth``, and what it is called there.
_DRAWN = {
    "click of a stranger, quiet link": "click",
    "action of a visitor, quiet link": "action",
    "newest 50 of the busy owner": "newest 50, busy owner",
    "response_count of the busy link": "count, busy link",
}


def growth(file: Path, database: str) -> str:
    """Draw what operations cost as stored responses grow, ours beside those of pinax-referrals.

    :param file: what ``benchmarks.growth`` kept.
    """
    measured = {
        (entry["of"]["operation"], entry["of"]["stored"]): entry["measured"]
        for entry in results.read(file)
        if entry["of"]["database"] == database
    }
    curves = []
    for prefix, kind, whose in (("", "ours", "Flask-Referrals"), ("pinax-referrals: ", "pinax", "pinax-referrals")):
        for operation, called in _DRAWN.items():
            points = sorted((stored, took) for (title, stored), took in measured.items() if title == prefix + operation)
            if points:
                curves.append(_Curve(f"{whose}: {called}", points, kind))
    every = [point for curve in curves for point in curve.points]
    first, last = min(stored for stored, _ in every), max(stored for stored, _ in every)
    low = 10 ** math.floor(math.log10(min(took for _, took in every)))
    high = 10 ** math.ceil(math.log10(max(took for _, took in every)))
    left, right, top, bottom = 70.0, _WIDTH - 280.0, 56.0, 400.0

    def at(stored: float, took: float) -> tuple[float, float]:
        x = left + (right - left) * math.log(stored / first) / math.log(last / first)
        return x, bottom - (bottom - top) * math.log(took / low) / math.log(high / low)

    title = f"Milliseconds of an operation as stored responses grow ({_NAMES[database]})"
    drawn = [_text(20, 28, title, "title")]
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        _, y = at(first, 10**power)
        drawn += [_line(left, y, right, y), _text(left - 8, y + 4, f"{10.0**power:g} ms", "faint", "end")]
    for stored in sorted({stored for stored, _ in every}):
        x, _ = at(stored, low)
        drawn += [_line(x, top, x, bottom), _text(x, bottom + 20, f"{stored:,}", "faint", "middle")]
    for curve in curves:
        places = [at(*point) for point in curve.points]
        drawn.append(f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in places)}" class="{curve.kind}"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="{curve.kind}"/>' for x, y in places]
    # A label stands beside the end of its curve, and below those that are there already.
    free = top - 10
    for curve in sorted(curves, key=lambda curve: -curve.points[-1][1]):
        x, y = at(*curve.points[-1])
        free = max(free + 17, y + 4)
        drawn += [_line(x + 5, y, right + 14, free - 4), _text(right + 18, free, curve.title)]
    return _picture(title, max(bottom + 36, free + 16), drawn)


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--stored", type=int, default=100_000, help="in the first picture (default: 100,000)")
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    parser.add_argument("--into", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    drawn = {
        "performance-web.svg": speeds(options.results / "web.json", options.database, options.stored),
        "performance-growth.svg": growth(options.results / "growth.json", options.database),
    }
    for name, picture in drawn.items():
        (options.into / name).write_text(picture)


if __name__ == "__main__":
    main()
