"""How many pieces of a batch are begun before their handlers are called. Pure.

* There are as many as handlers take in a tenth of a second, so that a statement carries many. A
  handler that takes long has few, which would all have to be let go of.
* At first there are four times as many as run at once, and then twice as many.
* Where handlers have to wait after that, they took all within a round trip or two. So they take
  many times as many in a tenth of a second: eight times as many are begun next time, or what they
  took of late if that is more.
"""

from __future__ import annotations

_MOST = 1_000
"""More would save little, and make more suspicious when a worker ends."""
_AHEAD_SEC, _LEAST_SEC = 0.1, 1e-6
_FIRST = 4
_MORE = 8


class Window:
    """How many wait for their handlers at most.

    Args:
        least: how many handlers run at once.

    Attributes:
        size: how many.
    """

    def __init__(self, least: int) -> None:
        self.size: int = min(_FIRST * least, max(least, _MOST))
        self._least = least
        self._before: tuple[int, float] | None = None

    def adapt(self, started: int, now: float, *, dry: bool) -> None:
        """Some more have been begun.

        Args:
            started: how many handlers had been called by now.
            now: when these were asked for, in seconds.
            dry: whether handlers have had to wait for these.
        """
        # As many at least have ended: those that were called first may all be running still.
        ended, before = max(started - self._least, 0), self._before
        self._before = (ended, now)
        twice = 2 * self.size
        if before is None:
            size = twice if dry else self.size
        else:
            take = round((ended - before[0]) / max(now - before[1], _LEAST_SEC) * _AHEAD_SEC)
            size = max(_MORE * self.size, take) if dry else min(twice, take)
        self.size = max(self._least, min(size, _MOST))
