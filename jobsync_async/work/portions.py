"""`Job.run_batch` over a stream of ids, of which no more than a portion is kept.

* All workers take the same ids in the same order, so they have the same portions. Each portion is a
  batch. A worker goes on when all of it is done with, by whomever. So whoever is further has seen
  that nothing is left of what came before.
* The run in the tables is at one portion. Only who is there counts together with others. Whoever
  comes late looks first, and passes by what is done with.
* Whoever begins ids elsewhere says so before. Then nobody trusts the count, and single ids are
  looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from itertools import islice
from typing import Any

import anyio

from jobsync_async.core.batch_ids import ELSEWHERE, FAILED, HERE, BatchIds
from jobsync_async.core.hashing import ids_key
from jobsync_async.core.runs import Before, Place
from jobsync_async.errors import UsageError
from jobsync_async.host.task_groups import task_group
from jobsync_async.types import BatchCounts, TaskOrId
from jobsync_async.work.batch import Batch
from jobsync_async.work.batch_run import AT_A_TIME, BatchRun, find_tokens
from jobsync_async.work.handlers import apart
from jobsync_async.work.order import Order
from jobsync_async.work.progress import BatchProgress, Reporter

PORTION = 50_000
"""So many ids are a portion, of whatever release the workers are: it is where they meet."""

_MOST_ERRORS = 10_000


class Portions:
    """One worker's part in a batch whose ids are a stream. `run` does it."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._started_at = order.worker.clock()
        self._reporter: Reporter | None = None
        if order.progress is not None:
            self._reporter = Reporter(order.progress, self._progress)
        self._batch: Batch | None = None  # of the present portion
        self._ids = BatchIds()
        self._more = True
        # Of the portions before: how many ids they had, and what became of these.
        self._before = self._here = self._elsewhere = self._failed = 0
        self._errors: dict[Any, str] = {}

    async def run(self, given: AsyncIterable[TaskOrId]) -> BatchCounts:
        """Until the stream has ended, and all ids are done with, anywhere. Raises what the stream
        raises, and UsageError when the job ends first."""
        order, worker, reporter = self._order, self._order.worker, self._reporter
        run = BatchRun(worker, order.records, order.asked, self._ids, order.attempts, stream=True)
        source = _Source(order, given)
        async with task_group() as group:
            group.start_soon(source.run)
            if reporter is not None:
                group.start_soon(reporter.run)
            await run.open()
            with worker.runners.running(run.runner, self._on_tokens):
                while self._more:
                    ids = BatchIds(self._ids.sum)
                    self._more = await source.fill(ids)
                    if len(ids):
                        await self._do(run, ids)
            await run.finish()
            group.cancel_scope.cancel()
        if reporter is not None:
            await reporter.finish()
        date, name, _ = run.run
        assert name is not None, "a stream has a name"
        return BatchCounts(self._here, self._elsewhere, self._failed, self._errors, date, name)

    async def _do(self, run: BatchRun, ids: BatchIds) -> None:
        """A portion, until all of it is done with."""
        await find_tokens(ids, self._order.token_of)
        place = Place(ids_key(self._ids.sum), ids.key, self._before + len(ids))
        self._ids = ids
        batch = Batch(self._order, self._tell)
        batch.prepare(run, ids, Before(self._before, self._failed))
        self._batch = batch
        try:
            await batch.work(there=await run.go_on_to(ids, place))
            self._add_up(ids)
        finally:
            self._batch = None
            batch.leave()

    def _add_up(self, ids: BatchIds) -> None:
        self._before += len(ids)
        self._here += ids.count(HERE)
        self._elsewhere += ids.count(ELSEWHERE)
        self._failed += ids.count(FAILED)
        room = _MOST_ERRORS - len(self._errors)
        self._errors |= {ids.ids[at]: error for at, error in islice(ids.errors.items(), room)}

    def _on_tokens(self) -> Mapping[int, int]:
        return self._ids.on_tokens()

    def _tell(self) -> None:
        if self._reporter is not None:
            self._reporter.changed()

    def _progress(self) -> BatchProgress:
        seconds = self._order.worker.clock() - self._started_at
        now = BatchProgress(0, 0, 0, 0, seconds)
        if self._batch is not None:
            now = self._batch.progress(seconds)
        return BatchProgress(
            self._before + now.total,
            self._here + now.completed_here,
            self._elsewhere + now.completed_elsewhere,
            self._failed + now.failed,
            seconds,
            self._more,
        )


class _Source:
    """Takes in a stream when it is asked for more. `run` is a task. The stream's own code begins
    and ends in one of its own."""

    def __init__(self, order: Order, given: AsyncIterable[TaskOrId]) -> None:
        self._order = order
        self._given = given
        self._wanted = asyncio.Event()
        self._into: BatchIds | None = None
        self._more = True
        self._cut_off = False

    async def fill(self, ids: BatchIds) -> bool:
        """Take in a portion; whether there may be more. Raises UsageError when the job ends."""
        worker = self._order.worker
        self._into = ids
        self._wanted.set()
        await worker.until(lambda: worker.ended or self._cut_off or self._into is None)
        if worker.ended:
            raise self._order.ended("the stream of ids had not ended; run it again")
        if self._cut_off:
            # By somebody who cancels all tasks there are.
            raise UsageError("the batch was cut off before its stream had ended; run it again")
        return self._more

    async def run(self) -> None:
        """Take in what is asked for, to the end."""
        try:
            await apart("the stream of ids of run_batch", self._take_all)
        except asyncio.CancelledError:
            self._cut_off = True
            self._order.worker.wake_waiters()
            raise

    async def _take_all(self) -> None:
        stream = aiter(self._given)
        try:
            while self._more:
                await self._wanted.wait()
                self._wanted.clear()
                assert self._into is not None, "it is wanted"
                self._more = await self._take(stream, self._into)
                self._into = None
                self._order.worker.wake_waiters()
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    async def _take(self, stream: AsyncIterator[TaskOrId], into: BatchIds) -> bool:
        codec, room = self._order.codec, PORTION
        some: list[TaskOrId] = []
        async for each in stream:
            some.append(each)
            if len(some) < min(AT_A_TIME, room):
                continue
            into.add(some, codec)
            room -= len(some)
            some = []
            await anyio.lowlevel.checkpoint()
            if not room:
                break
        into.add(some, codec)
        into.complete()
        return not room
