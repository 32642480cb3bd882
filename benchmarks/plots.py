"""``python -m benchmarks.plots FOLDER``: draws what docs/performance.md and docs/scaling.md show,
from the measurements that ``python -m benchmarks --plots FOLDER`` wrote there. Needs the dependency
group ``bench``.

A picture whose measurements are not all there is left out. The same measurements always make the
same file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

OURS = "#0072b2"
_MARKS = "osD^v<>P"
_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4a00")
_LEAST_SEC = 0.01  # where an axis of reaction times begins

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "jobsync_async",  # the same names of parts each time
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)

Case = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """Who is drawn in one colour, and the values of each kind of event."""

    name: str
    values: dict[str, Sequence[float]]


def draw(folder: Path) -> list[Path]:
    """Draw into a folder what its measurements allow; the files."""
    measured = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    figures = {
        "reaction": _reaction(measured),
        "distribution": _distribution(measured),
        "growth": _growth(measured),
    }
    drawn = []
    for name, figure in figures.items():
        if figure is not None:
            drawn.append(folder / f"{name}.svg")
            figure.savefig(
                drawn[-1], metadata={"Date": None}, bbox_inches="tight", facecolor="white"
            )
            lines = drawn[-1].read_text("utf-8").splitlines()
            drawn[-1].write_text("\n".join(line.rstrip() for line in lines) + "\n", "utf-8")
    return drawn


def _values(case: Case, side: str) -> list[float]:
    """What did come to its end."""
    return [value for value in case["values"][side] if value is not None]


def _of(cases: Sequence[Case], pattern: str) -> dict[tuple[str, ...], Case]:
    """Those whose whole name matches, by the groups of the pattern."""
    return {
        match.groups(): case for case in cases if (match := re.fullmatch(pattern, case["name"]))
    }


_EVENTS = {  # as lines of `reaction` begin, and those of the other peers end
    "a worker joins": "joins",
    "graceful leave": "leaves",
    "a follower is killed": "killed",
    "a follower is killed on another host": "killed on another host",
    "the leader is killed": None,
    "the leader is killed on another host": None,
}


def _reaction(measured: dict[str, list[Case]]) -> Figure | None:
    """A row for each event, a dot for the median of each side, and a line from least to most."""
    if "reaction" not in measured:
        return None
    sides = [Side("ours", {}), Side("jobsync", {})]
    for (event, elsewhere), case in _of(
        measured["reaction"], r"([^:]+), \d to \d( on another host)?"
    ).items():
        for side, key in zip(sides, ("ours", "theirs"), strict=True):
            if values := _values(case, key):
                side.values[event + (elsewhere or "")] = values
    for name in ("zookeeper", "kafka"):
        events: dict[str, dict[str, Sequence[float]]] = {}
        for (setting, event), case in _of(
            measured.get(name, []), r"(.+, [\d,]+): ([a-z, ]+)"
        ).items():
            row = next((row for row, word in _EVENTS.items() if word == event), None)
            if row is not None:
                events.setdefault(setting, {})[row] = _values(case, "theirs")
        sides += [Side(_wrapped(setting), values) for setting, values in events.items()]
    rows = [row for row in _EVENTS if row in sides[0].values]
    figure = Figure(figsize=(8, 0.1 * len(rows) * len(sides) + 1.2), layout="constrained")
    axes = figure.subplots()
    for index, side in enumerate(sides):
        colour = OURS if index == 0 else _COLOURS[(index - 1) % len(_COLOURS)]
        offset = (index - (len(sides) - 1) / 2) * 0.8 / len(sides)
        places = [
            (number + offset, side.values[row])
            for number, row in enumerate(rows)
            if side.values.get(row)
        ]
        for place, values in places:
            axes.plot(
                [min(values), max(values)], [place, place], color=colour, linewidth=2, alpha=0.5
            )
        medians = [median(values) for _, values in places]
        axes.plot(
            medians,
            [place for place, _ in places],
            _MARKS[index],
            color=colour,
            markersize=5,
            label=side.name,
        )
    axes.set_xscale("log")
    axes.set_xlim(left=_LEAST_SEC)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for number in range(1, len(rows)):
        axes.axhline(number - 0.5, color="#bbbbbb", linewidth=0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("until everything is owned again, and evenly: median, least to most")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _wrapped(setting: str) -> str:
    """``name, settings, count`` on two lines."""
    name, _, rest = setting.partition(", ")
    settings, _, total = rest.rpartition(", ")
    return f"{name}, {total} elements\n  {settings}"


def _distribution(measured: dict[str, list[Case]]) -> Figure | None:
    """Milliseconds by number of tokens, for each kind of distribution."""
    cases = _of(
        measured.get("distribution", []),
        r"([\d,]+) tokens: (first distribution|7th worker joins|1 of 7 dies)",
    )
    if not cases:
        return None
    kinds = list(dict.fromkeys(kind for _, kind in cases))
    figure = Figure(figsize=(8, 2.8))
    for axes, kind in zip(
        figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True
    ):
        for key, name, colour in (("ours", "ours", OURS), ("theirs", "jobsync", _COLOURS[0])):
            points = [
                (_number(total), _values(case, key))
                for (total, of), case in cases.items()
                if of == kind
            ]
            points = [(total, values) for total, values in points if values]
            axes.plot(
                [total for total, _ in points],
                [median(values) for _, values in points],
                "o-",
                color=colour,
                label=name,
            )
        axes.set(xscale="log", yscale="log", title=kind, xlabel="tokens")
        axes.yaxis.set_major_formatter(
            lambda value, _: f"{value:g} ms" if value < 1000 else f"{value / 1000:g} s"
        )
    figure.axes[0].legend()
    return figure


def _growth(measured: dict[str, list[Case]]) -> Figure | None:
    """Seconds to absorb an event, and statements while nothing happens, by number of workers."""
    cases = _of(measured.get("scale", []), r"([\d,]+) workers, 10,000 tokens: (.+)")
    if not cases:
        return None
    figure = Figure(figsize=(8, 2.8))
    left, right = figure.subplots(1, 2)
    lines = {"one more joins": OURS, "it leaves": _COLOURS[0], "one is killed": _COLOURS[1]}
    for axes, titles in ((left, lines), (right, {"statements each": OURS})):
        for title, colour in titles.items():
            points = sorted(
                (_number(workers), _values(case, "ours"))
                for (workers, of), case in cases.items()
                if of == title
            )
            points = [(workers, values) for workers, values in points if values]
            axes.plot(
                [many for many, _ in points],
                [median(values) for _, values in points],
                "o-",
                color=colour,
                label=title,
            )
        axes.set(xscale="log", xlabel="workers")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.set(yscale="log", ylabel="until all own evenly")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    left.yaxis.set_minor_formatter(lambda *_: "")
    left.set_ylim(0.01, 100)
    left.legend()
    right.set(ylabel="statements per minute and worker")
    right.set_ylim(0, 1.25 * right.get_ylim()[1])
    return figure


def _number(text: str) -> int:
    return int(text.replace(",", ""))


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1])):
        print(path)
