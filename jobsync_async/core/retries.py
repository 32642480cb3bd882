"""When to come back for rows that somebody's transaction locks. Pure.

* A try comes at most a second after the one that found rows locked.
* Of two tries in a row, one comes soon. So a row that is locked often, but briefly, is hardly ever
  missed twice.
"""

from __future__ import annotations

_FIRST_SEC, _MOST_SEC = 0.05, 1.0
_MOST_DOUBLINGS = 10


class Retries:
    """When to try again: after ever longer, and soon once more each time. So a transaction that
    takes long costs few tries, and a row that is locked often, but briefly, is hardly ever missed
    twice.

    Attributes:
        due_at: the moment; infinity when nothing was missed.
    """

    def __init__(self) -> None:
        self._misses = 0
        self.due_at: float = float("inf")

    def missed(self, now: float) -> None:
        """One more try found rows locked: the next is due in 0.05 to 1 s."""
        self._misses += 1
        doublings, soon = divmod(self._misses, 2)
        self.due_at = now + (
            _FIRST_SEC
            if soon
            else min(_MOST_SEC, _FIRST_SEC * 2.0 ** min(doublings, _MOST_DOUBLINGS))
        )

    def done(self) -> None:
        """Nothing was locked any more."""
        self._misses, self.due_at = 0, float("inf")
