"""`Job.run_batch`: every id of a batch is completed once per date, whoever joins, leaves or dies on
the way.

* Each worker works on the ids whose tokens it owns. Pieces are begun ahead and recorded in groups,
  each in a statement that is fenced (`work/pieces.py`). So an id is completed by one worker, and
  what is complete is not begun again.
* What others do is counted in the tables, with what they record. A worker reads these few numbers,
  and looks at single ids only where the numbers leave it open whether all is done.
* Whoever sees that nothing is left says so to all. Nobody waits for a look that is due later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

from jobsync_async.core.batch_ids import ELSEWHERE, FAILED, HERE, OPEN, BatchIds
from jobsync_async.core.rows import Work
from jobsync_async.core.runs import NOTHING_BEFORE, Before, Begun
from jobsync_async.errors import NotOwner, OwnershipLost, UsageError
from jobsync_async.host.gate import Gate
from jobsync_async.host.logs import WorkerLog
from jobsync_async.host.task_groups import task_group
from jobsync_async.types import BatchResult, Pause, TaskOrId
from jobsync_async.work.attempts import Attempts, HeldUp
from jobsync_async.work.batch_run import BatchRun, Grouped, all_of, find_tokens, lost, taken_in
from jobsync_async.work.order import Order
from jobsync_async.work.others import Others
from jobsync_async.work.pieces import Ahead, Piece, Recorder
from jobsync_async.work.progress import BatchProgress, Reporter
from jobsync_async.work.refusals import Refusals

Task = Callable[[], Coroutine[Any, Any, None]]


class Batch:
    """One worker's part in a batch, or in a portion of one whose ids are a stream. `run` does a
    batch; of a portion, `work` comes after `prepare`.

    Args:
        tell: called when the progress has changed.
    """

    def __init__(self, order: Order, tell: Callable[[], None] = lambda: None) -> None:
        self._order = order
        self._worker = order.worker
        self._log = WorkerLog(__name__, order.worker.identity.name)
        self._tell = tell
        self._call = Attempts(
            order.worker, order.handler, order.attempts, order.asked.name, self._note_failure
        )
        # Of those that are not begun ahead: how many wait for a slot, or have one.
        self._busy = 0
        self._gate = Gate()
        self._alone: set[int] = set()
        self._news = asyncio.Event()

    async def run(self, given: Iterable[TaskOrId]) -> BatchResult:
        """Until all ids are done with, anywhere. Raises UsageError when the job ends first."""
        order, worker = self._order, self._worker
        started_at = worker.clock()
        ids = await taken_in(given, order.codec)
        run = BatchRun(worker, order.records, order.asked, ids, order.attempts)
        reporter = None
        if order.progress is not None:
            reporter = Reporter(order.progress, lambda: self.progress(worker.clock() - started_at))
            self._tell = reporter.changed
        self.prepare(run, ids)
        if await run.find_complete():
            ids.close_rest()
        else:
            await find_tokens(ids, order.token_of)
            await run.open()
            keep = partial(worker.runners.keep, run.runner, ids.on_tokens)
            await self.work(keep, *([] if reporter is None else [reporter.run]))
            if not self._others.told_over:
                await run.finish()
        if reporter is not None:
            await reporter.finish()
        return await self._result()

    def prepare(self, run: BatchRun, ids: BatchIds, before: Before = NOTHING_BEFORE) -> None:
        """These are the ids.

        Args:
            before: what came before them, where they are a portion of a stream.
        """
        order, worker = self._order, self._worker
        self._run, self._ids = run, ids
        self._refusals = Refusals(worker, ids, self._give_back)
        told = (self._idle, self._close, self._close_rest, self._tell)
        self._others = Others(worker, run, ids, *told, before)
        self._recorder = Recorder(run.complete, self._recorded)
        told_of_pieces = (lambda: self._recorder.behind, self._judge, self._one_by_one)
        self._ahead = Ahead(worker, run, ids, order.fence, order.concurrency, *told_of_pieces)
        self._begin = Grouped(self._begin_some)

    async def work(self, *beside: Task, there: bool = True) -> None:
        """Until all ids are done with, whose tokens are known.

        Args:
            beside: tasks that run as long as there is anything to do.
            there: as in `Others.resume`.
        """
        await self._others.resume(there)
        if self._ids.count(OPEN):
            await self._work_together(beside)

    def leave(self) -> None:
        """Nothing is done any more, and its ids may go."""
        self._refusals.end()
        self._ids.forget()

    async def _work_together(self, beside: Iterable[Task]) -> None:
        ahead, others = self._ahead, self._others
        tasks = (
            self._watch_ownership, others.run, others.hear_of_ends, ahead.run, ahead.release,
            self._begin.run, self._recorder.run, *beside,
        )  # fmt: skip
        slots = [self._work] * min(self._order.concurrency, len(self._ids))
        try:
            async with task_group() as group:
                for task in (*tasks, *slots):
                    group.start_soon(task)
                await self._until_done()
                group.cancel_scope.cancel()
        finally:
            await ahead.let_go_of_all()
        if left := self._ids.count(OPEN):
            # A task of the group was cancelled, by somebody who cancels all tasks there are.
            raise UsageError(
                f"the batch was cut off while {left} of its tasks were not done; run it again"
            )

    async def _result(self) -> BatchResult:
        ids, (date, name, _) = self._ids, self._run.run
        here, elsewhere = await all_of(ids, HERE), await all_of(ids, ELSEWHERE)
        failed = {ids.ids[number]: error for number, error in ids.errors.items()}
        return BatchResult(here, elsewhere, failed, date, name)

    def progress(self, seconds: float) -> BatchProgress:
        """How far it is, so long after it was called for."""
        ids = self._ids
        here, failed = ids.count(HERE), ids.count(FAILED)
        elsewhere = max(ids.count(ELSEWHERE), self._others.counted)
        elsewhere = min(elsewhere, len(ids) - here - failed)
        return BatchProgress(len(ids), here, elsewhere, failed, seconds)

    async def _until_done(self) -> None:
        while self._ids.count(OPEN):
            if self._worker.ended:
                left = self._ids.count(OPEN)
                raise self._order.ended(f"{left} tasks of the batch were not done; run it again")
            self._news.clear()
            await self._news.wait()

    def _idle(self) -> bool:
        """Whether there is nothing to do here: all that is open is others' to do."""
        return self._all_done and self._recorder.idle

    @property
    def _all_done(self) -> bool:
        """Whether handlers have done what there was; it may have to be recorded yet."""
        return not self._busy and not self._refusals.waiting and self._ahead.idle

    def _owned(self, number: int) -> bool:
        return self._worker.owns(self._ids.tokens[number])

    # -- what is done here -------------------------------------------------------------------------

    async def _watch_ownership(self) -> None:
        """Offer the ids whose tokens come here; when the cluster is paused, put back what waits."""
        worker = self._worker
        seen: frozenset[int] = frozenset()
        paused = None
        while not worker.ended:
            owned = worker.ownership.owned
            if owned is not seen:
                self._ids.offer(owned)
                seen = owned
            if worker.paused != paused:
                paused = worker.paused
                self._tell_pause(paused)
            self._ahead.want()
            await worker.changed()
        self._news.set()

    def _tell_pause(self, pause: Pause | None) -> None:
        if pause is not None:
            self._ahead.put_back()
        date, name, _ = self._run.run
        said = "goes on" if pause is None else f"waits: the cluster is {pause}"
        text = "%s %s"
        self._log.info(text, self._run.runner, said, batch=name, date=date.isoformat())

    def _one_by_one(self, number: int) -> None:
        """To be begun when a slot is free, and not ahead."""
        self._busy += 1
        self._ahead.ready.put_nowait(number)

    async def _judge(self, not_begun: Sequence[tuple[Piece, Begun | None]]) -> None:
        """What is to be done about pieces that were not begun."""
        complete = []
        for piece, begun in not_begun:
            if begun is None:
                self._refused(piece.number, lost(piece.work))
            elif begun.set_aside is not None:
                self._close(piece.number, FAILED, begun.set_aside)
            elif begun.complete:
                complete.append(piece)
            else:  # somebody has ended at work on it
                self._one_by_one(piece.number)
        await self._close_complete(complete)

    async def _close_complete(self, pieces: Sequence[Piece]) -> None:
        """These are done with, by whom the tables know."""
        if not pieces:
            return
        numbers = [piece.number for piece in pieces]
        self._others.close_done(
            numbers, await self._run.read_progress([piece.task for piece in pieces])
        )
        for number in numbers:
            self._give_back(number)  # unless it is done with

    async def _work(self) -> None:
        """One of the slots in which handlers run."""
        while True:
            taken = await self._ahead.ready.get()
            if not isinstance(taken, Piece):
                await self._do_one(taken)
                self._busy -= 1
            else:
                await self._gate.enter()
                try:
                    if self._ahead.start(taken):
                        self._busy += 1
                        await self._do(taken)
                        self._busy -= 1
                finally:
                    self._gate.leave()
            self._look_if_idle()

    async def _do_one(self, number: int) -> None:
        """Begin an id by itself, and do it. Alone, if the next worker that ends at work on it is
        the last: then it must be the only one."""
        if number in self._alone:
            self._ahead.pause()
            try:
                async with self._gate.alone():
                    await self._begin_one(number)
            finally:
                self._ahead.resume()
            return
        await self._gate.enter()
        try:
            await self._begin_one(number)
        finally:
            self._gate.leave()

    async def _begin_one(self, number: int) -> None:
        piece = self._ahead.hold(number)
        try:
            await piece.enter()
        except NotOwner as error:
            self._refused(number, error)
            return
        begun = None
        try:
            if piece.waited:  # whoever was before us in this worker may have done with it
                self._others.close_done([number], await self._run.read_progress([piece.task]))
            if not self._ids.is_open(number):
                return
            begun = await self._ask_to_begin(piece)
        except OwnershipLost as error:
            self._refused(number, error)
            return
        finally:
            if begun is None or not begun.begun:
                piece.leave()
        if begun.begun:
            await self._do(piece)
        elif begun.complete or begun.set_aside is not None:
            await self._judge([(piece, begun)])
        else:
            self._alone.add(number)
            self._one_by_one(number)

    async def _begin_some(self, works: Sequence[Work]) -> dict[str, Begun]:
        return await self._run.begin(works, self._run.lost_limit - 2)

    async def _ask_to_begin(self, piece: Piece) -> Begun:
        """Raises OwnershipLost where its ownership did not hold."""
        if piece.number not in self._alone:
            return await self._begin(piece.work)
        held = await self._run.begin([piece.work], self._run.lost_limit - 1)
        if piece.task not in held:
            raise lost(piece.work)
        return held[piece.task]

    async def _do(self, piece: Piece) -> None:
        """Call the handler of a task that was begun, and see to it that it is recorded how it
        ended."""
        me, over, held_up = self._worker.identity, False, False
        try:
            error = await self._call.run(piece)
            if error is not None:
                if not await self._run.give_up(piece.work, error):
                    raise lost(piece.work)
                self._close(piece.number, FAILED, error)
            over = True
        except OwnershipLost as error:  # of this claim: what the handler raises does not come here
            self._refused(piece.number, error)
        except HeldUp:
            held_up = True
        finally:
            # A lease that is over is the end of an incarnation, in whose work this task was.
            if not over and self._worker.may_act() and self._worker.identity == me:
                await self._run.let_go([piece.work])
            if not over or not self._ids.is_open(piece.number):
                piece.leave()
        if over and self._ids.is_open(piece.number):
            self._recorder.add(piece)
        elif held_up:
            self._give_back(piece.number)

    async def _note_failure(self, work: Work, error: str) -> None:
        await self._run.note_failure(work, error)

    async def _recorded(self, pieces: Sequence[tuple[Piece, bool | None]]) -> None:
        """These were done here; of each, whether it was completed by that."""
        before = []
        for piece, completed in pieces:
            if completed is None:
                self._refused(piece.number, lost(piece.work))
            elif completed:
                self._close(piece.number, HERE)
                self._refusals.over(piece.number)
            else:
                before.append(piece)
        await self._close_complete(before)
        self._ahead.want()
        self._look_if_idle()

    # -- what becomes of ids -----------------------------------------------------------------------

    def _refused(self, number: int, error: NotOwner | OwnershipLost) -> None:
        """Another worker does it, or this one if the token comes back. Where it seems to be here,
        it is tried again."""
        if self._owned(number):
            self._refusals.add(number, error)
        else:
            self._give_back(number)

    def _give_back(self, number: int) -> None:
        """To be begun again, if it is open, where its token is."""
        self._ids.give_back(number)
        if self._owned(number):
            self._ids.offer([self._ids.tokens[number]])
            self._ahead.want()
        self._look_if_idle()

    def _close(self, number: int, state: int, error: str | None = None) -> bool:
        """It is done with; False when it was before."""
        if not self._ids.close(number, state, error):
            return False
        self._tell()
        if not self._ids.count(OPEN):
            self._news.set()
        return True

    def _close_rest(self) -> None:
        """All that is open was done elsewhere."""
        self._ids.close_rest()
        self._news.set()

    def _look_if_idle(self) -> None:
        if not self._all_done:
            return
        if self._recorder.idle:
            self._others.look()
        else:
            self._recorder.hurry()
