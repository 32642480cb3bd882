"""`Job.run_batch`: every id of a batch is completed once per date, whoever joins, leaves or dies on
the way.

Each worker works on the ids whose tokens it owns. Beginning a task asks the tables whether an
earlier owner completed it, in the same fenced statement that records the claim; completing it is
fenced too. So a task is completed by one worker, and what is complete is not begun again. Workers
learn of each other's progress by asking, when they have nothing to do themselves.

What a handler has done is written down also if its lease ended meanwhile: the statement's fence
says whether it counts.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping

import anyio

from jobsync_async.core.ids import Item
from jobsync_async.core.lease import Backoff
from jobsync_async.core.rows import TaskProgress, Work
from jobsync_async.core.runs import Asked, Begun, given_up_before
from jobsync_async.core.texts import error_text
from jobsync_async.errors import NotOwner, OwnershipLost, UsageError
from jobsync_async.host.gate import Gate
from jobsync_async.host.logs import WorkerLog
from jobsync_async.host.task_groups import task_group
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import BatchResult
from jobsync_async.work.batch_run import BatchRun, Grouped, lost
from jobsync_async.work.claims import Claim, Holding
from jobsync_async.work.engine import WorkRecords
from jobsync_async.work.handlers import Handler, HandlerRunner, blocked_text
from jobsync_async.work.progress import BatchProgress, ProgressCallback, Reporter

_BACKOFF = Backoff(first_sec=0.2, most_sec=10)
_FIRST_POLL_SEC, _MOST_POLL_SEC = 0.25, 1.0
# Refusals are usual while a token moves; so many in a row for one task are not.
_REFUSALS_TO_WARN = 4
# Failures from an earlier run are tried again by the owner of the task, if it runs the batch too.
# Others wait so long for that.
_OLD_FAILURE_SEC = 3.0
# Nothing has been heard of ids that others own for so long: they may run another date.
_ELSEWHERE_SEC = 5.0


class Batch:
    """One worker's part in a batch. `run` does it.

    Args:
        hold: makes the holding for an id.
        ended: makes the error for a job that has ended, with what that means here.
        asked: which run of the batch is wanted.
        items: the ids, by their text.
        concurrency: how many handlers may run at once here.
        attempts: how often a handler that fails is called here before the task is given up.
        progress: called as the batch proceeds.
    """

    def __init__(
        self,
        worker: Worker,
        records: WorkRecords,
        hold: Callable[[Hashable], Holding],
        ended: Callable[[str], UsageError],
        asked: Asked,
        items: Mapping[str, Item],
        handler: Handler,
        concurrency: int,
        attempts: int,
        progress: ProgressCallback | None = None,
    ) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._hold = hold
        self._ended = ended
        self._runner = HandlerRunner(worker, handler)
        self._concurrency = concurrency
        self._attempts = attempts
        # What is not done with.
        self._open = dict(items)
        # Ours to do: waiting in the queue, or under way.
        self._queue: asyncio.Queue[Item] = asyncio.Queue()
        self._queued: set[str] = set()
        # By task: how many attempts have failed here, the last one's error, and how often its claim
        # was refused in a row.
        self._failures: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._refusals: Counter[str] = Counter()
        self._old_failures: dict[str, TaskProgress] = {}
        self._here: set[Hashable] = set()
        self._elsewhere: set[Hashable] = set()
        self._failed: dict[Hashable, str] = {}
        self._news = asyncio.Event()
        self._total, self._started_at = len(self._open), worker.clock()
        self._reporter = None if progress is None else Reporter(progress, self._progress)
        self._run = BatchRun(
            worker, records, asked, {text: item.token for text, item in items.items()}, attempts
        )
        self._begin = Grouped(self._run.begin)
        self._complete = Grouped(self._run.complete)
        self._gate = Gate()
        self._alone: set[str] = set()

    async def run(self) -> BatchResult:
        """Until all ids are done with, anywhere. Raises UsageError when the job ends first."""
        await self._run.open()
        await self._resume()
        async with task_group() as group:
            for task in (self._watch_ownership, self._poll, self._begin.run, self._complete.run):
                group.start_soon(task)
            group.start_soon(self._worker.runners.keep, self._run.runner, self._ids_on)
            if self._reporter is not None:
                group.start_soon(self._reporter.run)
            for _ in range(min(self._concurrency, len(self._open))):
                group.start_soon(self._work)
            await self._until_done()
            group.cancel_scope.cancel()
        # A task of the group was cancelled, by somebody who cancels all tasks there are.
        if self._open:
            raise UsageError(
                f"the batch was cut off while {len(self._open)} of its tasks were not done; run "
                "it again"
            )
        await self._run.finish()
        if self._reporter is not None:
            await self._reporter.finish()
        date, name = self._run.run
        return BatchResult(
            frozenset(self._here), frozenset(self._elsewhere), dict(self._failed), date, name
        )

    def _ids_on(self) -> Mapping[int, int]:
        return Counter(item.token for item in self._open.values())

    def _progress(self) -> BatchProgress:
        here, elsewhere, failed = len(self._here), len(self._elsewhere), len(self._failed)
        return BatchProgress(
            self._total, here, elsewhere, failed, self._worker.clock() - self._started_at
        )

    async def _until_done(self) -> None:
        while self._open:
            if self._worker.ended:
                raise self._ended(
                    f"{len(self._open)} tasks of the batch were not done; run it again"
                )
            self._news.clear()
            await self._news.wait()

    # -- what others did ---------------------------------------------------------------------------

    async def _resume(self) -> None:
        """Leave out what is complete or set aside; try again what was given up in an earlier
        run."""
        progress = await self._run.read_progress(self._open)
        set_aside = await self._run.read_set_aside(self._open)
        given_up = given_up_before(progress, self._run.called_at)
        self._old_failures = {
            text: entry for text, entry in given_up.items() if text not in set_aside
        }
        self._close_done(progress | set_aside, earlier=True)
        mine = [text for text in self._old_failures if self._worker.owns(self._open[text].token)]
        if mine:
            await self._run.forget_failures(mine)
        for text in mine:
            del self._old_failures[text]

    async def _poll(self) -> None:
        """Ask for the progress of others while there is nothing to do here, less often while
        nothing happens."""
        worker = self._worker
        started_at = quiet_since = worker.clock()
        wait_sec = _FIRST_POLL_SEC
        while self._open:
            await anyio.sleep(wait_sec)
            if self._queued:
                quiet_since = worker.clock()
                continue
            if worker.clock() - started_at >= _OLD_FAILURE_SEC:
                self._old_failures.clear()
            noted = self._close_done(await self._run.read_progress(self._waited_for()))
            wait_sec = _FIRST_POLL_SEC if noted else min(_MOST_POLL_SEC, 1.5 * wait_sec)
            if noted or worker.clock() - quiet_since >= _ELSEWHERE_SEC:
                if not noted:
                    await self._run.warn_of_other_dates(self._waited_for())
                quiet_since = worker.clock()

    def _waited_for(self) -> list[str]:
        """What is open and not ours to do."""
        return [text for text in self._open if text not in self._queued]

    def _close_done(
        self, progress: dict[str, TaskProgress], *, earlier: bool = False, queued: bool = False
    ) -> int:
        """Take in what is done with, `earlier` than this run or in it, and what is `queued` here
        too; how much was new."""
        me = self._worker.identity.name
        noted = 0
        for text, entry in progress.items():
            if (
                text in self._open
                and (queued or text not in self._queued)
                and self._old_failures.get(text) != entry
            ):
                noted += 1
                # What this worker has completed in this run: by another batch, or by a completion
                # whose answer was lost.
                ours = entry.node == me and not earlier
                self._close(self._open[text], self._here if ours else self._elsewhere, entry.error)
        return noted

    # -- what is done here -------------------------------------------------------------------------

    async def _watch_ownership(self) -> None:
        """Queue the tasks whose tokens come here."""
        worker = self._worker
        by_token: dict[int, list[str]] = {}
        for text, item in self._open.items():
            by_token.setdefault(item.token, []).append(text)
        seen: frozenset[int] = frozenset()
        while not worker.ended:
            owned = worker.ownership.owned
            if owned is not seen:
                for token in by_token.keys() & owned:
                    by_token[token] = [text for text in by_token[token] if text in self._open]
                    for text in by_token[token]:
                        self._enqueue(self._open[text])
                seen = owned
            await worker.changed()
        self._news.set()

    def _enqueue(self, item: Item) -> None:
        if item.text not in self._queued:
            self._queued.add(item.text)
            self._queue.put_nowait(item)

    async def _work(self) -> None:
        """One of the slots in which handlers run."""
        while True:
            item = await self._queue.get()
            try:
                inside = (
                    self._gate.alone() if item.text in self._alone else self._gate.beside_others()
                )
                async with inside, (holding := self._hold(item.task_id)):
                    await self._attempt(item, holding)
            except (NotOwner, OwnershipLost) as error:
                # Of this claim: what the handler raises does not come out here.
                self._refused(item, error)
            else:
                del self._refusals[item.text]
                self._again(item)

    def _again(self, item: Item) -> None:
        """Queue what is not done with and still ours."""
        self._queued.discard(item.text)
        if item.text in self._open and self._worker.owns(item.token):
            self._enqueue(item)

    def _refused(self, item: Item, error: NotOwner | OwnershipLost) -> None:
        """Another worker does it, or this one if the token comes back. Where it seems to be here,
        the tables know better: then it is tried again after ever longer waits."""
        worker = self._worker
        if not worker.owns(item.token):
            self._queued.discard(item.text)
            return
        self._refusals[item.text] += 1
        refusals = self._refusals[item.text]
        wait_sec = _BACKOFF.wait_sec(refusals, random.random())  # noqa: S311 - a jitter
        self._log.log(
            logging.INFO if refusals < _REFUSALS_TO_WARN else logging.WARNING,
            "task %r could not be kept, and is tried again in %.1f s: %s",
            item.task_id,
            wait_sec,
            error,
            task_id=item.text,
            token_id=item.token,
            failures=refusals,
            seconds=wait_sec,
        )
        self._queued.discard(item.text)  # others may do it meanwhile, which `_poll` sees
        asyncio.get_running_loop().call_later(wait_sec, self._again, item)

    async def _attempt(self, item: Item, holding: Holding) -> None:
        """Do a task whose claim is held. Raises OwnershipLost when the claim did not last."""
        claim = holding.claim
        work = Work(item.text, claim.token_id, claim.epoch)
        if holding.waited and self._close_done(
            await self._run.read_progress([item.text]), queued=True
        ):
            return  # whoever was before us in this worker has done it, or has given it up
        begun = await self._begin_one(work)
        if begun.complete:
            self._close_done(await self._run.read_progress([item.text]), queued=True)
        elif begun.set_aside is not None:
            self._close(item, self._elsewhere, begun.set_aside)
        # The next worker that ends at work on it is the last: then it must be the only one.
        elif not begun.begun:
            self._alone.add(item.text)
        else:
            await self._do(item, work, holding)

    async def _begin_one(self, work: Work) -> Begun:
        if work.task_id not in self._alone:
            return await self._begin(work)
        held = await self._run.begin([work], alone=True)
        if work.task_id not in held:
            raise lost(work)
        return held[work.task_id]

    async def _do(self, item: Item, work: Work, holding: Holding) -> None:
        """Call the handler of a task that was begun, and record how it ended."""
        me, recorded = self._worker.identity, False
        try:
            error = await self._handle(item, holding)
            if error is not None:
                if not await self._run.give_up(work, error):
                    raise lost(work)
                self._close(item, self._elsewhere, error)
            elif await self._complete(work):
                self._close(item, self._here)
            else:
                self._close_done(await self._run.read_progress([item.text]), queued=True)
            recorded = True
        finally:
            # A lease that is over is the end of an incarnation, in whose work this task was.
            if not recorded and self._worker.may_act() and self._worker.identity == me:
                await self._run.let_go(work)

    async def _handle(self, item: Item, holding: Holding) -> str | None:
        """Call the handler, again if it fails; the last error's text, None when it succeeded."""
        text = item.text
        while self._failures[text] < self._attempts:
            outcome = await self._runner.run(holding)
            # Told in the log; it may have succeeded all the same, as the tables will say.
            if outcome.blocked_sec:
                self._failures[text] += 1
                self._errors[text] = f"it {blocked_text(outcome.blocked_sec)}"
            if outcome.cut or outcome.lost:
                raise holding.claim.lost_error("its handler was told so" if outcome.lost else None)
            if outcome.error is None:
                return None
            if not outcome.blocked_sec:
                self._failures[text] += 1
            self._errors[text] = error_text(outcome.error)
            self._log_failure(holding.claim, text, outcome.error)
            if self._failures[text] < self._attempts:
                # a jitter
                with anyio.move_on_after(_BACKOFF.wait_sec(self._failures[text], random.random())):  # noqa: S311
                    await holding.gone.wait()
                holding.claim.check()
        return self._errors[text]

    def _log_failure(self, claim: Claim, text: str, error: BaseException) -> None:
        attempt = self._failures[text]
        self._log.warning(
            "the handler of task %r raised in attempt %d of %d",
            claim.task_id,
            attempt,
            self._attempts,
            exc_info=error,
            task_id=text,
            token_id=claim.token_id,
            failures=attempt,
        )

    def _close(self, item: Item, where: set[Hashable], error: str | None = None) -> None:
        if self._open.pop(item.text, None) is None:
            return
        if error is None:
            where.add(item.task_id)
        else:
            self._failed[item.task_id] = error
        if self._reporter is not None:
            self._reporter.changed()
        if not self._open:
            self._news.set()
