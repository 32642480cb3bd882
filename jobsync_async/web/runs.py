"""How far runs of batches are, look by look: their speed is measured between two of them."""

from __future__ import annotations

import datetime as dt
from collections import deque
from typing import Any

from jobsync_async.operations.batches import described, rate_between, rate_over, speed
from jobsync_async.operations.survey import Stillness, look_at_runs
from jobsync_async.postgres.batch_runs import RunRow
from jobsync_async.postgres.store import Store
from jobsync_async.web import view as views

_OFTEN_SEC, _SELDOM_SEC = 1.0, 10.0
_OVER_SEC = 10.0  # a rate is measured over so long, if we have looked so long
_Key = tuple[bytes, dt.date]


class RunLooks:
    """The looks of the last seconds at each open run.

    Attributes:
        known: what the last look found, as `survey` takes it.
        shown: the same for the page, the open ones first.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {"batches": [], "set_aside": 0}
        self.shown: list[views.RunView] = []
        self._looks: dict[_Key, deque[RunRow]] = {}
        self._still = Stillness()
        self._at = float("-inf")
        self._open = False

    def due(self, now: float, *, whole: bool) -> bool:
        """Whether to look again: often while a run is open, or when something happened."""
        return now >= self._at + (_OFTEN_SEC if self._open or whole else _SELDOM_SEC)

    async def look(self, store: Store, now: float) -> None:
        """Look at the runs. Two statements. Raises StoreUnavailable."""
        rows, self.known = await look_at_runs(store)
        self._at, self._open = now, any(row.finished_at is None for row in rows)
        self._still.note(self.known, now)
        kept, self._looks = self._looks, {}
        for row in rows:
            if row.finished_at is None:
                looks = self._looks[_key(row)] = kept.get(_key(row), deque())
                looks.append(row)
                while (row.at - looks[0].at).total_seconds() > _OVER_SEC and len(looks) > 2:
                    looks.popleft()
        self.shown = [self.view(row) for row in rows]

    def view(self, row: RunRow) -> views.RunView:
        """A run with its speed. No I/O."""
        if row.finished_at is not None:
            rate = rate_over(row)
        else:
            looks = self._looks.get(_key(row))
            rate = rate_between(looks[0], row) if looks else None
        told = speed(row, rate)
        return views.run(described(row), told["rate_per_sec"], told["left_sec"])


def _key(row: RunRow) -> _Key:
    return row.batch_key, row.date
