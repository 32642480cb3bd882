"""What a case measured, beside what a peer did and what is asked of it, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Result:
    """Values of one quantity, ours and a peer's.

    Attributes:
        goal: what the median of ours may be at most, or must be at least when more is better; None
            for none.
        times: how many times better than the peer's ours must be; None for no such goal.
        more: more is better, as it is with rates.
    """

    name: str
    unit: str
    ours: Sequence[float]
    goal: float | None = None
    theirs: Sequence[float] = ()
    times: float | None = None
    more: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better ours is; None without a peer."""
        if not self.theirs:
            return None
        ours, theirs = median(self.ours), median(self.theirs)
        better, worse = (ours, theirs) if self.more else (theirs, ours)
        if better == worse:
            return 1.0
        return better / worse if worse else inf

    @property
    def met(self) -> bool:
        """Whether every goal that it has is met."""
        ours, ratio = median(self.ours), self.ratio
        absolute = self.goal is None or (ours >= self.goal if self.more else ours <= self.goal)
        return absolute and (self.times is None or ratio is None or ratio >= self.times)

    def goals(self) -> str:
        """The goals in words."""
        parts = []
        if self.goal is not None:
            parts.append(f"{'at least' if self.more else 'at most'} {self.goal:,g}")
        if self.times is not None and self.theirs:
            parts.append(f"{self.times:g} x")
        return ", ".join(parts)

    def line(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:,.1f} x"
        verdict = ("met" if self.met else "MISSED") if self.goals() else ""
        return (
            f"{self.name:{_WIDTH}.{_WIDTH}} {self.unit:10.10} {_shown(self.ours):26} "
            f"{_shown(self.theirs):26} {ratio:>10}  {self.goals():20} {verdict}"
        ).rstrip()

    def case(self) -> dict[str, Any]:
        """As JSON has it. What is infinite is null there, and `null` says why."""
        why = {
            side: "did not come to its end"
            for side in ("ours", "theirs")
            if not all(map(isfinite, getattr(self, side)))
        }
        if self.ratio is not None and not isfinite(self.ratio):
            why["ratio"] = "one side is zero or did not come to its end"
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": _finite(median(self.ours)),
            "theirs": _finite(median(self.theirs)) if self.theirs else None,
            "ratio": None if self.ratio is None else _finite(self.ratio),
            "goal": self.goals() or None,
            "met": self.met,
            "null": why,
            "values": {
                "ours": list(map(_finite, self.ours)),
                "theirs": list(map(_finite, self.theirs)),
            },
        }


_WIDTH = 74
HEAD = (
    f"{'case':{_WIDTH}} {'unit':10} {'ours: median (min-max)':26} {'theirs':26} {'better':>10}  "
    "goal"
)


def _shown(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{median(values):,.3g} ({min(values):,.3g}-{max(values):,.3g})"


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def save(results: Sequence[Result], path: Path) -> None:
    """Write results as JSON: a list of cases."""
    path.write_text(
        json.dumps([result.case() for result in results], indent=1, allow_nan=False) + "\n", "utf-8"
    )
