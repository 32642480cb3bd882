"""What a case measured, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Result:
    """Values of one quantity, and the most that it may be."""

    name: str
    unit: str
    values: Sequence[float]
    goal: float

    @property
    def met(self) -> bool:
        return median(self.values) <= self.goal

    def line(self) -> str:
        shown = f"{median(self.values):,.3g} ({min(self.values):,.3g} to {max(self.values):,.3g}, n={len(self.values)})"
        return f"{self.name:62} {shown:36} {self.unit:16} at most {self.goal:<10,g} {'met' if self.met else 'MISSED'}"


def save(results: Sequence[Result], path: Path) -> None:
    """Write results as JSON: a list of cases."""
    cases = [{**asdict(result), "median": median(result.values), "met": result.met} for result in results]
    path.write_text(json.dumps(cases, indent=2), "utf-8")
