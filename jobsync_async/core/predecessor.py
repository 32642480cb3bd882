"""Which workers of jobsync live. Pure: time is an argument.

* What a row of jobsync's says is compared with no clock, for its worker wrote its own clock there.
* A worker lives while its row is new or changes. It is dead when its row has stood still for the
  timeout, which is never shorter than jobsync's own.
* A look after a long pause takes nobody for dead who was not dead before.

One whose row is gone has left.
"""

from __future__ import annotations

from collections.abc import Mapping

# jobsync's own default; where ours is longer, theirs is taken to be, too.
LEAST_TIMEOUT_SEC = 15.0


class PredecessorBeats:
    """What was seen of their rows.

    Args:
        timeout_sec: so long a row must have stood still.
    """

    def __init__(self, timeout_sec: float) -> None:
        self._timeout_sec = max(LEAST_TIMEOUT_SEC, timeout_sec)
        self._seen: dict[str, tuple[object, float]] = {}
        self._looked_at = 0.0

    def observe(self, beats: Mapping[str, object], now: float) -> list[str]:
        """One look at all rows, by name; `now` is when its answer arrived. The names of those that
        live."""
        if now - self._looked_at > self._timeout_sec / 3:
            self.missed()
        before, self._seen, self._looked_at = self._seen, {}, now
        for name, beat in beats.items():
            known = before.get(name)
            self._seen[name] = known if known is not None and known[0] == beat else (beat, now)
        return sorted(
            name for name, (_, since) in self._seen.items() if now - since < self._timeout_sec
        )

    def missed(self) -> None:
        """Nothing was read for a while. Perhaps nobody could write either: what was not dead by
        then is watched anew."""
        at = self._looked_at
        self._seen = {
            name: seen for name, seen in self._seen.items() if at - seen[1] >= self._timeout_sec
        }
