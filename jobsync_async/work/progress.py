"""How a batch proceeds, and who is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from jobsync_async.work.callbacks import call
from jobsync_async.work.handlers import apart

_AT_MOST_EVERY_SEC = 0.2  # what people can follow


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is, seen from one worker, which asks about once a second how far the others
    are.

    Attributes:
        total: different ids in the batch; of a stream, those that were taken in so far.
        completed_here: ids that this worker has completed in this run.
        completed_elsewhere: ids that others have completed, or that were complete before.
        failed: ids that were given up.
        seconds: since `Job.run_batch` was called.
        more: whether ids are a stream that has not ended, so that `total` may grow.
    """

    total: int
    completed_here: int
    completed_elsewhere: int
    failed: int
    seconds: float
    more: bool = False

    @property
    def remaining(self) -> int:
        """Ids that are not done with, as far as this worker knows."""
        return self.total - self.completed_here - self.completed_elsewhere - self.failed


ProgressCallback = Callable[[BatchProgress], Awaitable[object] | object]
"""Called with a `BatchProgress`; a plain one blocks the event loop while it runs."""


class Reporter:
    """Calls a callback: first at once, then after changes, but not too often, and in the end. `run`
    is a task."""

    def __init__(self, callback: ProgressCallback, current: Callable[[], BatchProgress]) -> None:
        self._callback = callback
        self._current = current
        self._changed = asyncio.Event()
        self._told: BatchProgress | None = None

    def changed(self) -> None:
        """There is something to report."""
        self._changed.set()

    async def run(self) -> None:
        """Report for ever. What the callback raises passes."""
        while True:
            await self._tell()
            await anyio.sleep(_AT_MOST_EVERY_SEC)
            await self._changed.wait()
            self._changed.clear()

    async def finish(self) -> None:
        """Report the end, with `run` no longer running, unless `run` has."""
        if self._told is None or self._told.remaining or self._told.more:
            await self._tell()

    async def _tell(self) -> None:
        progress = self._current()

        async def tell() -> None:
            await call(self._callback, progress)
            self._told = progress

        await apart("the progress callback of run_batch", tell)
