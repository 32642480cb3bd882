"""How far the workers of a batch are together, and whether that is all.

* What they record is counted in the tables. These few numbers are read, and not the ids, unless the
  numbers leave open whether all is done.
* An id is taken for done elsewhere only when the numbers, or its own rows, say so for certain.
* Whoever sees that nothing is left says so to all, and they look at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from jobsync_async.core.batch_ids import ELSEWHERE, FAILED, HERE, OPEN, BatchIds
from jobsync_async.core.rows import TaskProgress
from jobsync_async.core.runs import NOTHING_BEFORE, Before, Parts, Tally, given_up_before
from jobsync_async.host.waiting import signalled
from jobsync_async.tasks.worker import Worker
from jobsync_async.work.batch_run import BatchRun, portions

# So many ids are looked at in one statement.
_AT_A_TIME = 2_000
# Who sees the end says so to all. So a look is due when half of what is left may be done at the
# pace of late, or, where nothing is done, later each time.
_FIRST_LOOK_SEC, _MOST_LOOK_SEC, _MOST_QUIET_LOOK_SEC = 0.05, 1.0, 5.0
# Between two looks at all open ids, where the numbers leave open whether all is done: growing, for
# such a look costs.
_FIRST_READ_SEC, _MOST_READ_SEC = 0.25, 120.0
# The same where they do not, for ids that somebody completes by hand: so long for each open id.
_READ_EACH_SEC = 0.0015
# The same while there is a worker that counts nothing, or one with other ids.
_MOST_UNTRUSTED_SEC = 2.0
# Failures from an earlier run are tried again by the owner of the task, if it runs the batch too.
# Others wait so long for that.
_OLD_FAILURE_SEC = 3.0
# Nothing has been heard of ids that others own for so long: they may run another date, or be at
# other ids of a stream.
_ELSEWHERE_SEC = 5.0


class Others:
    """What the workers of a batch have done. `run` and `hear_of_ends` are tasks.

    Attributes:
        counted: how many ids are done with elsewhere, by the numbers.
        told_over: somebody has said that nothing is left of the run.

    Args:
        is_idle: whether there is nothing to do here: all that is open is others' to do.
        close: an id is done with; False when it was before.
        close_rest: all that is open was done elsewhere.
        on_news: told when the numbers have changed.
        before: what came before these ids, where they are a portion of a stream.
    """

    def __init__(
        self,
        worker: Worker,
        run: BatchRun,
        ids: BatchIds,
        is_idle: Callable[[], bool],
        close: Callable[[int, int, str | None], bool],
        close_rest: Callable[[], None],
        on_news: Callable[[], None],
        before: Before = NOTHING_BEFORE,
    ) -> None:
        self._worker = worker
        self._run = run
        self._ids = ids
        self._is_idle = is_idle
        self._close = close
        self._close_rest = close_rest
        self._on_news = on_news
        self._tally = Tally(len(ids), before)
        self._look_now = asyncio.Event()
        self._started_at = worker.clock()
        self.counted = 0
        self.told_over = False

    async def resume(self, there: bool = True) -> None:
        """Leave out what is complete or set aside; try again what was given up in an earlier
        run.

        Args:
            there: whether the run is at these ids, as it is unless they are a portion of a stream.
                It is so afterwards, if any of them is to be begun here.
        """
        # Nothing was done with before it, and all that was since is counted.
        clean = there and self._run.opened.clean
        if clean and not self._run.stream:
            return
        asked = await self._run.read_parts()
        if clean and not asked.otherwise:
            return
        mine, given_up = list[str](), 0
        for numbers in portions(range(len(self._ids))):
            texts = [self._ids.texts[number] for number in numbers]
            progress = await self._run.read_progress(texts)
            set_aside = await self._run.read_set_aside(texts)
            old = given_up_before(progress, self._run.called_at).keys() - set_aside.keys()
            self.close_done(numbers, progress, set_aside, earlier=True)
            given_up += len(old)
            mine += [
                self._ids.texts[number]
                for number in (numbers if old else ())
                if self._ids.texts[number] in old and self._owned(number)
            ]
        if not there and (mine or self._ids.count(OPEN) > given_up):
            await self._run.advance(anyhow=True)
        await self._looked(asked)
        for some in portions(mine):
            await self._run.forget_failures(some)

    async def _looked(self, asked: Parts) -> None:
        """All open ids were looked at, after `asked`. What is complete is counted before it is
        asked again how far the run is: so what is completed here meanwhile counts once."""
        complete = self._ids.count(HERE) + self._ids.count(ELSEWHERE)
        self._tally.looked(asked, await self._run.read_parts(), complete)

    def _owned(self, number: int) -> bool:
        return self._worker.owns(self._ids.tokens[number])

    async def run(self) -> None:
        """Learn how far the others are, and whether that is all. When there is something to do
        here, that is only for whoever watches the progress."""
        worker = self._worker
        wait_sec, read_sec = _FIRST_LOOK_SEC, _FIRST_READ_SEC
        read_at = quiet_since = worker.clock()
        counted, looked_at = -1, read_at
        while open_ids := self._ids.count(OPEN):
            await signalled(self._look_now, wait_sec if self._is_idle() else _MOST_LOOK_SEC)
            now = worker.clock()
            parts = await self._run.read_parts()
            before, counted = counted, self._tally.counted(parts)
            quiet_sec = min(max(_MOST_LOOK_SEC, open_ids * _READ_EACH_SEC), _MOST_READ_SEC)
            if counted == before:
                wait_sec = min(1.5 * wait_sec, quiet_sec, _MOST_QUIET_LOOK_SEC)
            else:
                left_sec = (len(self._ids) - counted) * (now - looked_at) / abs(counted - before)
                wait_sec = min(max(_FIRST_LOOK_SEC, left_sec / 2), _MOST_LOOK_SEC)
                quiet_since = now
                self._tell_counted(counted)
            looked_at = now
            if not self._is_idle():
                quiet_since = now
                continue
            trusted = not parts.other_ids and not parts.uncounted
            over = trusted and (parts.finished or parts.moved_on)  # somebody saw that
            if (over and not parts.otherwise) or (trusted and self._tally.all_done(parts)):
                self.told_over = over and parts.finished
                self._close_rest()
                return
            if over:
                due_sec = _FIRST_READ_SEC
            elif not trusted or self._tally.may_be_done(parts):
                due_sec = read_sec
            else:
                due_sec = quiet_sec
            if now - read_at >= due_sec:
                noted = await self._read_open()
                read_at = worker.clock()
                most_sec = quiet_sec if trusted else _MOST_UNTRUSTED_SEC
                read_sec = _FIRST_READ_SEC if noted else min(2 * read_sec, most_sec)
                quiet_since = read_at if noted else quiet_since
            if now - quiet_since >= _ELSEWHERE_SEC:
                quiet_since = now
                await self._look_where_they_are(parts)

    async def _look_where_they_are(self, parts: Parts) -> None:
        """Whether the owners of what is waited for will ever do it."""
        if parts.other_dates:
            await self._run.warn_of_other_dates(self._waited_for())
        if parts.other_ids:
            await self._run.warn_of_strays(self._waited_for())

    def _tell_counted(self, counted: int) -> None:
        self.counted = counted - self._ids.count(HERE)
        self._on_news()

    async def hear_of_ends(self) -> None:
        """Look at once when somebody says that a batch has ended."""
        worker = self._worker
        while not worker.ended:
            seen = worker.batch_ends
            await worker.until(lambda: worker.ended or worker.batch_ends != seen)  # noqa: B023
            self._look_now.set()

    def look(self) -> None:
        """There is nothing to do here any more: look at once how far the others are."""
        self._look_now.set()

    async def _read_open(self) -> int:
        """Look at every id that is open and not ours to do; how many are done with that were not
        known to be."""
        asked, noted = await self._run.read_parts(), 0
        for numbers in self._waited_for():
            texts = [self._ids.texts[number] for number in numbers]
            progress = await self._run.read_progress(texts)
            # On whatever date that was: nothing need be written of it in this run.
            aside = await self._run.read_set_aside(texts) if asked.otherwise else {}
            noted += self.close_done(numbers, progress, aside)
        await self._looked(asked)
        return noted

    def _waited_for(self) -> Iterable[list[int]]:
        """What is open and not ours to do."""
        return self._ids.waiting(_AT_A_TIME, lambda token: not self._worker.owns(token))

    def close_done(
        self,
        numbers: Iterable[int],
        progress: Mapping[str, TaskProgress],
        set_aside: Mapping[str, TaskProgress] = MappingProxyType({}),
        *,
        earlier: bool = False,
    ) -> int:
        """Close what is done with, `earlier` than this run or in it, or set aside; how much was
        new. What was given up before is to be tried again first."""
        me, closed, done = self._worker.identity.name, 0, {**progress, **set_aside}
        if done and (earlier or self._worker.clock() - self._started_at < _OLD_FAILURE_SEC):
            for text in given_up_before(progress, self._run.called_at).keys() - set_aside.keys():
                del done[text]
        for number in numbers if done else ():
            entry = done.get(self._ids.texts[number])
            if entry is None:
                continue
            # What this worker has completed in this run: by another batch, or by a completion whose
            # answer was lost.
            ours = entry.node == me and not earlier
            state = FAILED if entry.error is not None else HERE if ours else ELSEWHERE
            closed += self._close(number, state, entry.error)
        return closed
