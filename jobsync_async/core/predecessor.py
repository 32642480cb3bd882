"""Which workers of jobsync live. Pure: time is an argument.

A worker of jobsync writes its own clock into its row, so what the row says is compared with no clock. It is watched: a worker
lives while its row is new or changes, and is dead when its row has stood still for the timeout. One whose row is gone has left.
"""

from __future__ import annotations

from collections.abc import Mapping

# jobsync's own default; where ours is longer, theirs is taken to be, too.
LEAST_TIMEOUT_SEC = 15.0


class Watch:
    """What was seen of their rows.

    Args:
        timeout_sec: so long a row must have stood still.
    """

    def __init__(self, timeout_sec: float) -> None:
        self._timeout_sec = max(LEAST_TIMEOUT_SEC, timeout_sec)
        self._seen: dict[str, tuple[object, float]] = {}

    def saw(self, beats: Mapping[str, object], now: float) -> list[str]:
        """One look at all rows, by name; `now` is when its answer arrived. The names of those that live."""
        before, self._seen = self._seen, {}
        for name, beat in beats.items():
            known = before.get(name)
            self._seen[name] = known if known is not None and known[0] == beat else (beat, now)
        return sorted(name for name, (_, since) in self._seen.items() if now - since < self._timeout_sec)

    def missed(self, now: float) -> None:
        """A look failed: perhaps nobody could write either, so what has not stood still for long enough yet is watched anew."""
        self._seen = {name: seen for name, seen in self._seen.items() if now - seen[1] >= self._timeout_sec}
