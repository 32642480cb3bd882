"""What a batch asks the tables: which run it belongs to, what of it is done with, and what is begun
and ends here."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import anyio
from anyio import to_thread

from jobsync_async.core.batch_ids import BatchIds
from jobsync_async.core.hashing import key_ends, name_key
from jobsync_async.core.lease import Backoff
from jobsync_async.core.rows import TaskProgress, Work
from jobsync_async.core.runs import (
    Asked,
    Begun,
    Elsewhere,
    Opened,
    Parts,
    Place,
    Run,
    elsewhere,
    is_done,
    lost_limit,
)
from jobsync_async.errors import CoordinationError, OwnershipLost, SchemaError, StoreError
from jobsync_async.host.logs import WorkerLog
from jobsync_async.tasks.outages import BATCH
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import Runner, TaskOrId
from jobsync_async.work.engine import WorkRecords

R = TypeVar("R")
T = TypeVar("T")

_BACKOFF = Backoff(first_sec=0.2, most_sec=10)
_MOST_AT_ONCE = 10_000
# The event loop is held for no longer than so many ids take.
AT_A_TIME = 2_000
# What holds up a token while others wait for it must be short.
_LET_GO_SEC = 0.5


class Grouped(Generic[R]):
    """Records works in as few statements as possible: those that arrive while a statement is under
    way share the next one.

    Calling it returns what was recorded of a work; it raises OwnershipLost if the fence did not
    hold. `run` is a task.
    """

    def __init__(self, record: Callable[[Sequence[Work]], Awaitable[dict[str, R]]]) -> None:
        self._record = record
        self._waiting: list[tuple[Work, asyncio.Future[R]]] = []
        self._there = asyncio.Event()

    async def __call__(self, work: Work) -> R:
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, answer))
        self._there.set()
        return await answer

    async def run(self) -> None:
        """Send what waits, for ever."""
        while True:
            await self._there.wait()
            self._there.clear()
            sent, self._waiting = self._waiting, []
            held = await self._record([work for work, _ in sent])
            for work, answer in sent:
                if answer.done():  # whoever waited was cancelled
                    continue
                if work.task_id in held:
                    answer.set_result(held[work.task_id])
                else:
                    answer.set_exception(lost(work))


def lost(work: Work) -> OwnershipLost:
    """The error for a work whose fence did not hold."""
    return OwnershipLost(
        f"task {work.task_id!r} (token {work.token_id}, epoch {work.epoch}) is not this worker's "
        "any more",
        task_id=work.task_id,
        token_id=work.token_id,
        epoch=work.epoch,
    )


class BatchRun:
    """One worker's part in a run of a batch, as the tables see it. `open` comes first. Statements
    are sent until PostgreSQL is there: recording twice does no harm, and a claim that is lost
    meanwhile is cancelled.

    Args:
        ids: the batch's; none, where they are a stream.
        attempts: as in `Job.run_batch`.
        stream: whether they are one. Then `go_on_to` comes before each portion.

    Attributes:
        run: the run's date and name, after `open`.
        opened: what is known of it since then.
        called_at: when `open` was called, or a little before, by the server's clock.
        stream: as given.
        lost_limit: a task is set aside when it has lost so many owners.
    """

    run: Run
    opened: Opened
    called_at: dt.datetime

    def __init__(
        self,
        worker: Worker,
        records: WorkRecords,
        asked: Asked,
        ids: BatchIds,
        attempts: int,
        stream: bool = False,
    ) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._records = records
        self._asked = asked
        self._ids = ids
        self._key = ids.key if asked.name is None else name_key(asked.name)
        self.stream = stream
        self._place: Place | None = None
        self._suspected: frozenset[Elsewhere] = frozenset()
        self._strays: frozenset[str] = frozenset()
        self._ended: list[tuple[Work, None]] = []
        self._sending: asyncio.Task[None] | None = None
        self.lost_limit: int = lost_limit(attempts)

    @property
    def runner(self) -> Runner:
        """What this worker says that it runs."""
        return Runner("batch", self.run.batch, self.run.date.isoformat())

    # -- the run -----------------------------------------------------------------------------------

    async def find_complete(self) -> bool:
        """Whether it ran to its end already, with all its ids completed. Then that is its run, and
        nothing is opened."""
        find, ids = self._records.find_complete, self._ids
        found = await self._patiently(partial(find, self._key, ids.key, self._asked, len(ids)))
        if found is None or found.tasks != len(ids):
            return False
        run, ends = Run(found.date, self._asked.name, self._key), 0
        for texts in portions(ids.texts):
            ends += key_ends(texts, self._asked.name)
            await anyio.lowlevel.checkpoint()
        if ends != found.ends:
            return False
        self.run = run
        return True

    async def open(self) -> None:
        """Begin a run, or continue the one that is open. An open one of another day in which
        nothing is left to do is finished, and a new one begun: whoever did the last of it did not
        live to say so."""
        called = self._worker.clock()
        while True:
            opened = await self._patiently(self._begin_batch)
            self.called_at = opened.at - dt.timedelta(seconds=self._worker.clock() - called)
            self.opened, self.run = opened, Run(opened.date, self._asked.name, self._key)
            if opened.is_fresh:
                return
            if self.stream or not await self._is_over():
                self._log.warning(
                    "continues %s, which %s began and nobody finished; give date= for another run",
                    self.run,
                    opened.started_by,
                    batch=self.run.batch,
                    date=str(self.run.date),
                    started_by=opened.started_by,
                )
                return
            await self.finish()

    async def _begin_batch(self) -> Opened:
        me, ids = self._worker.identity, self._ids
        total = None if self.stream else len(ids)
        return await self._records.begin_batch(me, self._key, ids.key, self._asked, total)

    async def _is_over(self) -> bool:
        for texts in portions(self._ids.texts):
            if not is_done(texts, await self.read_progress(texts)):
                return False
        return True

    async def finish(self) -> None:
        """All ids are done with."""
        # The job has ended: whoever opens this run finds that nothing is left of it.
        with suppress(StoreError):
            finish = self._records.finish_batch
            await self._patiently(partial(finish, self.run, self.opened, self._ids.key))

    async def go_on_to(self, ids: BatchIds, place: Place) -> bool:
        """The next portion of a stream; whether the run is there too."""
        self._ids, self._place = ids, place
        return await self.advance(anyhow=False)

    async def advance(self, *, anyhow: bool) -> bool:
        """Have the run be at this portion, if it is there or at the one before, or `anyhow`.
        Whether it is."""
        assert self._place is not None, "go_on_to comes first"
        send = partial(self._records.advance_batch, anyhow=anyhow)
        place = self._place
        return await self._patiently(lambda: send(self._worker.identity, self.run, place))

    async def read_parts(self) -> Parts:
        """How far the run is, as all workers count it together."""
        read = self._records.read_parts
        return await self._patiently(partial(read, self.run, self.opened, self._ids.key))

    async def warn_of_other_dates(self, numbers: Iterable[list[int]]) -> None:
        """Ask whether owners of these tasks run the batch under another date. They do these tasks
        there, and never here.

        Raises CoordinationError when two looks, one after the other, say so.
        """
        seen = set[tuple[str, dt.date]]()
        for some in numbers:
            tokens = {self._ids.texts[number]: self._ids.tokens[number] for number in some}
            seen |= await self._patiently(partial(self._records.find_dates, self.run, tokens))
        me = self._worker.identity.name
        found = frozenset(one for one in elsewhere(seen, self.run.date) if one.node != me)
        certain, self._suspected = found & self._suspected, found
        if certain:
            other = min(certain)
            raise CoordinationError(
                f"{me} runs {self.run} and waits for ids that {other.node} owns, but {other.node} "
                f"runs that of {other.date}: neither does the other's ids. Give all workers one "
                "date=, or none, and run it again: it resumes"
            )

    async def warn_of_strays(self, numbers: Iterable[list[int]]) -> None:
        """Ask whether owners of these tasks are at other ids of the stream, and not behind.

        Raises CoordinationError when two looks, one after the other, say so.
        """
        if self._place is None:  # no stream
            return
        seen = set[str]()
        for some in numbers:
            tokens = {self._ids.tokens[number] for number in some}
            find = partial(self._records.find_strays, self.run, self._place, tokens)
            seen |= await self._patiently(find)
        certain, self._strays = seen & self._strays, frozenset(seen)
        if certain:
            raise CoordinationError(
                f"{self._worker.identity.name} runs {self.run} and waits for ids that "
                f"{min(certain)} owns, but that worker is at other ids of its stream, and passes "
                "these by. Have every worker give the same ids in the same order, and run it "
                "again: it resumes"
            )

    # -- what is done with -------------------------------------------------------------------------

    async def read_progress(self, texts: Sequence[str]) -> dict[str, TaskProgress]:
        """Which of some tasks are done with; no more than one statement can take."""
        return await self._patiently(partial(self._records.read_progress, self.run, texts))

    async def read_set_aside(self, texts: Sequence[str]) -> dict[str, TaskProgress]:
        """Which of some tasks are set aside, on whatever date."""
        return await self._patiently(partial(self._records.read_set_aside, self.run, texts))

    async def forget_failures(self, texts: Sequence[str]) -> None:
        """Try again what was given up."""
        forget = self._records.forget_failures
        await self._patiently(lambda: forget(self._worker.identity, self.run, texts))

    # -- what is done here -------------------------------------------------------------------------

    async def begin(self, works: Sequence[Work], most_lost: int) -> dict[str, Begun]:
        """Begin tasks; what came of each whose ownership held.

        Args:
            most_lost: a task that has lost more owners than this is not begun now.
        """
        send = partial(self._records.begin_tasks, lost_limit=self.lost_limit, most_lost=most_lost)
        return await self._patiently(lambda: send(self._worker.identity, self.run, works))

    async def complete(self, works: Sequence[Work]) -> dict[str, bool]:
        """Complete tasks; for each whose ownership held, whether this call completed it."""
        record = self._records.record_completions
        return await self._patiently(lambda: record(self._worker.identity, self.run, works))

    async def give_up(self, work: Work, error: str) -> bool:
        """Every attempt failed. False when somebody has begun it anew since."""
        end, ended = self._records.end_claims, [(work, error)]
        return await self._patiently(lambda: end(self._worker.identity, self.run, ended)) > 0

    async def note_failure(self, work: Work, error: str) -> None:
        """An attempt failed, and another follows. Told to people; nothing depends on it."""
        try:
            await self._records.note_failure(self.run, work, error)
        except StoreError as failure:
            self._log.debug("a failure of task %r is not counted: %s", work.task_id, failure)

    async def let_go(self, works: Iterable[Work]) -> None:
        """Tasks that were begun have ended here in order, and are not complete. Comes before their
        claims' end, so that the next owner does not take this worker for one that died of them.

        Those that end together share a statement. It is waited for, but not for long: if it cannot
        be written before another worker begins the task, one lost owner too many is counted.
        """
        self._ended += [(work, None) for work in works]
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(
                self._send_ended(), name=f"{self._worker.identity.name} ends claims"
            )
        with anyio.CancelScope(shield=True):
            await asyncio.wait([self._sending], timeout=_LET_GO_SEC)

    async def _send_ended(self) -> None:
        while self._ended:
            ended, self._ended = self._ended[:_MOST_AT_ONCE], self._ended[_MOST_AT_ONCE:]
            try:
                await self._records.end_claims(self._worker.identity, self.run, ended)
            except StoreError as error:
                self._log.debug("%d claims stay open in the tables: %s", len(ended), error)

    async def _patiently(self, call: Callable[[], Awaitable[R]]) -> R:
        """Try again until PostgreSQL is there; for the length of a lease, until rights or tables
        are back. Recording twice does no harm; a claim that is lost meanwhile is cancelled."""
        worker, failures, begun = self._worker, 0, self._worker.clock()
        try:
            while True:
                tried_at = worker.clock()
                try:
                    answer = await call()
                except StoreError as error:
                    refused = isinstance(error, SchemaError)
                    failures += 1
                    worker.outages.failed(BATCH, error, failures, tried_at)
                    waited_sec = worker.clock() - begun
                    if worker.ended or (refused and waited_sec > worker.config.lease_sec):
                        raise
                else:
                    if failures:
                        worker.outages.succeeded(BATCH, tried_at)
                    return answer
                # a jitter
                await anyio.sleep(_BACKOFF.wait_sec(failures, random.random()))  # noqa: S311
        except BaseException:  # cleaned up, and raised again
            if failures:
                worker.outages.forget(BATCH)
            raise


def portions(every: Sequence[T]) -> Iterator[Sequence[T]]:
    """Parts that one statement can take."""
    for start in range(0, len(every), _MOST_AT_ONCE):
        yield every[start : start + _MOST_AT_ONCE]


async def taken_in(ids: Iterable[TaskOrId], codec: str) -> BatchIds:
    """All ids of a batch, some at a time; without their tokens. Raises ConfigError for those that
    cannot be ids."""
    batch, every = BatchIds(), iter(ids)
    while some := list(islice(every, AT_A_TIME)):
        batch.add(some, codec)
        await anyio.lowlevel.checkpoint()
    batch.complete()
    return batch


async def all_of(batch: BatchIds, state: int) -> frozenset[Hashable]:
    """The ids in a state, as a set. That of many is made in a thread, and one by one, so that the
    thread lets the event loop go on."""
    found = batch.in_state(state)
    if batch.count(state) <= 10 * AT_A_TIME:
        return frozenset(found)
    # The limit of its own: user code may use up the other.
    limiter = anyio.CapacityLimiter(1)
    return await to_thread.run_sync(lambda: frozenset(each for each in found), limiter=limiter)


async def find_tokens(batch: BatchIds, token_of: Callable[[Any], int]) -> None:
    """The tokens of all ids, some at a time. Raises ConfigError for ids that have none."""
    while batch.hash_tokens(AT_A_TIME, token_of):
        await anyio.lowlevel.checkpoint()
