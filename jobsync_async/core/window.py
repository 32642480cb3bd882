"""How many pieces of a batch are begun before their handlers are called. Pure.

* There are as many as handlers take in a tenth of a second, so that a statement carries many. A
  handler that takes long has few, which would all have to be let go of.
* At first there are four times as many as run at once.
* Where handlers had to wait, nobody knows how many they take: twice as many are begun next time,
  or what they took of late if that is more.
"""

from __future__ import annotations

_MOST = 1_000
"""More would save little, and make more suspicious when a worker ends."""
_AHEAD_SEC = 0.1
_FIRST = 4


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
        a_second = 0.0
        if before is not None and now > before[1]:
            a_second = (ended - before[0]) / (now - before[1])
        elif not dry:
            return
        take = round(a_second * _AHEAD_SEC)
        self.size = max(self._least, min(max(twice, take) if dry else min(twice, take), _MOST))
