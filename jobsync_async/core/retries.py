"""When to come back for rows that somebody's transaction locks. Pure."""

from __future__ import annotations

_FIRST_SEC, _MOST_SEC = 0.05, 1.0
_MOST_DOUBLINGS = 10


class Retries:
    """Waits between tries: ever longer, and a short one after each. So a transaction that takes long costs few tries, and a row
    that is locked often, but briefly, is hardly ever missed twice."""

    def __init__(self) -> None:
        self._misses = 0

    def missed(self) -> float:
        """One more try found rows locked; seconds until the next, 0.05 to 1."""
        self._misses += 1
        doublings, short = divmod(self._misses, 2)
        return _FIRST_SEC if short else min(_MOST_SEC, _FIRST_SEC * 2.0 ** min(doublings, _MOST_DOUBLINGS))

    def done(self) -> None:
        """Nothing was locked any more."""
        self._misses = 0
