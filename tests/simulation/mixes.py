"""What times the workers of a run have, and the bound on timeouts that it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, TypeVar

from jobsync_async.core.lease import Times

if TYPE_CHECKING:
    from tests.simulation.faults import Profile

T = TypeVar("T")
USUAL, QUICK, SLOW = Times(3, 1), Times(1.5, 0.4), Times(6, 2)


class Mix:
    """The times of one run. `longest`, `shortest`: timeouts of any worker."""

    def __init__(self, profile: Profile, random: Random) -> None:
        self._profile = profile
        self._random = random
        self._choices = self._one_of(profile.mixes)
        timeouts = [times.timeout_sec for times in (*self._choices, *profile.times.values())]
        self.longest, self.shortest = max(timeouts), min(timeouts)

    def _one_of(self, choices: Sequence[T]) -> T:
        return self._random.choice(choices) if len(choices) > 1 else choices[0]

    def of(self, name: str) -> Times:
        """Those of a new process."""
        return self._profile.times.get(name) or self._one_of(self._choices)

    def first_bound(self) -> dict[str, float]:
        """As after a first worker: with the longest timeout, or with the shortest, and then an
        operator has to raise it."""
        may_rise = (
            self._profile.weights.get("bound")
            and self._profile.script is None
            and self.shortest < self.longest
        )
        bound = self.shortest if may_rise and self._random.random() < 0.5 else self.longest
        return {"longest_wait": bound, "longest_allowed": bound}
