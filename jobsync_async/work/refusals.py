"""Pieces of a batch that could not be kept, though their tokens seem to be here.

The tables know better. Others may do such a piece meanwhile, which is seen when it is begun again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable

from jobsync_async.core.batch_ids import BatchIds
from jobsync_async.core.lease import Backoff
from jobsync_async.errors import NotOwner, OwnershipLost
from jobsync_async.host.logs import WorkerLog
from jobsync_async.tasks.worker import Worker

_BACKOFF = Backoff(first_sec=0.2, most_sec=10)
# Refusals are usual while a token moves; so many in a row for one task are not.
_REFUSALS_TO_WARN = 4


class Refusals:
    """Has each tried again, after ever longer waits.

    Args:
        again: called with the number of one that is to be tried again now.
    """

    def __init__(self, worker: Worker, ids: BatchIds, again: Callable[[int], object]) -> None:
        self._log = WorkerLog(__name__, worker.identity.name)
        self._ids = ids
        self._try_again = again
        self._in_a_row: Counter[int] = Counter()
        self._timers: dict[int, asyncio.TimerHandle] = {}

    @property
    def waiting(self) -> int:
        """How many wait for another try."""
        return len(self._timers)

    def add(self, number: int, error: NotOwner | OwnershipLost) -> None:
        """Its claim was refused."""
        self._in_a_row[number] += 1
        refusals = self._in_a_row[number]
        wait_sec = _BACKOFF.wait_sec(refusals, random.random())  # noqa: S311 - a jitter
        self._log.log(
            logging.INFO if refusals < _REFUSALS_TO_WARN else logging.WARNING,
            "task %r could not be kept, and is tried again in %.1f s: %s",
            self._ids.ids[number],
            wait_sec,
            error,
            task_id=self._ids.texts[number],
            token_id=self._ids.tokens[number],
            failures=refusals,
            seconds=wait_sec,
        )
        later = asyncio.get_running_loop().call_later
        self._timers[number] = later(wait_sec, self._again, number)

    def _again(self, number: int) -> None:
        del self._timers[number]
        self._try_again(number)

    def end(self) -> None:
        """Nothing is tried again any more."""
        while self._timers:
            self._timers.popitem()[1].cancel()

    def over(self, number: int) -> None:
        """It was kept."""
        self._in_a_row.pop(number, None)
