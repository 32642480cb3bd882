"""Batches: what is counted when a worker ends or leaves in the midst of its work. Two workers, `a`
and `b`, and all is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import anyio

from jobsync_async import BatchCounts, Job, OwnershipLost, StoreUnavailable, UsageError
from jobsync_async.core.hashing import task_key
from jobsync_async.core.runs import Run, Tally
from jobsync_async.work import others, portions
from jobsync_async.work.batch_run import BatchRun
from tests.simulation.invariants import Violation
from tests.simulation.scripts import by_name, until

if TYPE_CHECKING:
    from jobsync_async.work.claims import Claim
    from tests.simulation.process import Process
    from tests.simulation.simulation import Simulation

    Handle = Callable[[Claim], Awaitable[None]]

LOST = "lost owners"
NOT_ONCE = "not exactly once"
NOT_ALL = "before all was done"


class _Batch:
    """All ids as one batch, at any process. At `slow` the work never ends by itself.

    Attributes:
        at_work: the ids under way at each process. calls: how often each was begun. results: what
            came back.
    """

    def __init__(
        self, simulation: Simulation, slow: Process | None, name: str | None = None
    ) -> None:
        self._slow = slow
        self._name = name
        self._tables = simulation.server.tables
        self.ids = [str(token) for token in range(simulation.config.total_tokens)]
        self.at_work: dict[Process, set[str]] = {}
        self.calls: Counter[str] = Counter()
        self.results: list[Any] = []

    def run_at(self, process: Process) -> None:
        process.spawn("batch", lambda: self._run(process), public=False)

    async def _run(self, process: Process) -> None:
        assert process.job is not None
        open_here = self.at_work[process] = set()

        async def handle(claim: Claim) -> None:
            text = str(claim.task_id)
            self.calls[text] += 1
            open_here.add(text)
            await anyio.sleep(1000 if self._is_slow(process, text) else 0.01)
            open_here.remove(text)

        try:
            result, failed = await self._call(process.job, handle)
        except (OwnershipLost, StoreUnavailable, UsageError):  # its job has ended
            return
        if left := set(self.ids) - self.complete - failed:
            raise Violation(f"run_batch returned {NOT_ALL}: {sorted(left)} are left")
        self.results.append(result)

    async def _call(self, job: Job, handle: Handle) -> tuple[Any, set[str]]:
        """What comes back, and what of it has failed."""
        result = await job.run_batch(self.ids, handle, name=self._name, concurrency=4)
        return result, set(result.failed)

    def _is_slow(self, process: Process, text: str) -> bool:
        return process is self._slow

    @property
    def complete(self) -> set[str]:
        """The ids that are."""
        return {row[0] for row in self._tables.committed.audit.values() if row[5] == self._name}

    def check(self, simulation: Simulation, lost: set[str]) -> None:
        """These ids lost one owner each, and the others none."""
        rows = [
            row
            for row in simulation.server.tables.committed.claim.values()
            if row.batch == self._name
        ]
        counted = {row.task_id: row.owners_lost for row in rows}
        meant = {text: int(text in lost) for text in self.ids}
        if counted != meant:
            wrong = {
                text: counted.get(text) for text in self.ids if counted.get(text) != meant[text]
            }
            raise Violation(
                f"{LOST} were counted wrongly: {wrong}, and at work were {sorted(lost)}"
            )


class _Stream(_Batch):
    """More ids, as a stream, four to a portion. At `slow` the work of the second portion never ends
    by itself.

    Attributes:
        wrong: what was begun while an id of a portion before it was open.
    """

    SIZE = 4

    def __init__(self, simulation: Simulation, slow: Process | None) -> None:
        super().__init__(simulation, slow, "stream")
        self.ids = [str(number) for number in range(2 * len(self.ids))]
        self.wrong: list[str] = []

    def _is_slow(self, process: Process, text: str) -> bool:
        return super()._is_slow(process, text) and self._portion(text) == 1

    def _portion(self, text: str) -> int:
        return self.ids.index(text) // self.SIZE

    async def _given(self) -> AsyncIterator[str]:
        for text in self.ids:
            yield text

    async def _call(self, job: Job, handle: Handle) -> tuple[BatchCounts, set[str]]:
        async def in_order(claim: Claim) -> None:
            before = self.ids[: self._portion(str(claim.task_id)) * self.SIZE]
            if left := set(before) - self.complete:
                self.wrong.append(f"{claim.task_id} was begun {NOT_ALL}: {sorted(left)} are left")
            await handle(claim)

        run = job.run_batch
        result = await run(self._given(), in_order, name="stream", concurrency=4)
        return result, set(result.errors)

    def finish(self, simulation: Simulation) -> None:
        """Until somebody has done it all, or something was wrong."""
        until(simulation, lambda: self.wrong or self.results, 30)
        if self.wrong:
            raise Violation(self.wrong[0])


class _OthersFirst(_Stream):
    """At `slow`, it is run over other ids before, all of them its own, and breaks off there."""

    broken_off = False

    def _is_slow(self, process: Process, text: str) -> bool:
        return process is self._slow and self.broken_off

    async def _call(self, job: Job, handle: Handle) -> tuple[BatchCounts, set[str]]:
        if self._slow is not None and job is self._slow.job:
            await self._break_off(job, handle)
        return await super()._call(job, handle)

    async def _break_off(self, job: Job, handle: Handle) -> None:
        async def others() -> AsyncIterator[str]:
            for text in job.filter_owned(map(str, range(1_000, 1_100)))[: self.SIZE]:
                yield text
            self.broken_off = True
            raise ZeroDivisionError

        with suppress(ZeroDivisionError):
            await job.run_batch(others(), handle, name="stream")


def killed_at_work(simulation: Simulation) -> None:
    """`b` is killed in the midst of its work: each id that was under way there has lost an
    owner."""
    batch, begun = _interrupted(simulation, simulation.kill)
    batch.check(simulation, begun)


def left_at_work(simulation: Simulation) -> None:
    """`b` leaves, and its work is cancelled when the hand-off time-out is over: no id has lost an
    owner."""
    batch, _ = _interrupted(simulation, simulation.leave)
    batch.check(simulation, set())


def _interrupted(simulation: Simulation, end: Callable[[Process], None]) -> tuple[_Batch, set[str]]:
    a, b = by_name(simulation, "a"), by_name(simulation, "b")
    batch = _Batch(simulation, b)
    batch.run_at(b)
    until(simulation, lambda: len(batch.at_work.get(b, ())) == 4)
    simulation.go(0.2)  # the tables know it
    claims = simulation.server.tables.committed.claim.values()
    begun = {row.task_id for row in claims if row.open}  # under way, or begun ahead
    if not begun > batch.at_work[b]:
        raise Violation(f"begun are {sorted(begun)}, and under way {sorted(batch.at_work[b])}")
    end(b)
    batch.run_at(a)
    until(simulation, lambda: batch.results, 20)
    return batch, begun


def answers_lost(simulation: Simulation) -> None:
    """`a` does not hear that what it has done was recorded, and records it again; `b` has one id,
    is not done with it, and is killed in the end."""
    a, b = by_name(simulation, "a"), by_name(simulation, "b")
    assert a.worker is not None and b.worker is not None
    batch = _Batch(simulation, b)
    theirs = min(b.worker.ownership.owned)
    batch.ids = [str(token) for token in (*a.worker.ownership.owned, theirs)]
    for process in (b, a):
        batch.run_at(process)
    until(simulation, lambda: batch.at_work.get(b))
    audit, network = simulation.server.tables, simulation.network

    def unrecorded() -> int:
        return len(batch.calls) - len(batch.at_work[a]) - 1 - len(audit.committed.audit)

    until(simulation, lambda: batch.at_work.get(a) is not None and unrecorded() > 0)
    before = len(audit.committed.audit)
    network.cut(a, outwards=False, inwards=True)
    until(simulation, lambda: len(audit.committed.audit) > before)
    simulation.go(1.5)  # it gives the answer up
    network.heal(a)
    simulation.go(10)
    simulation.kill(b)
    until(simulation, lambda: batch.results, 20)


def two_over_the_same_ids(simulation: Simulation) -> None:
    """Two named batches over the same ids at the same time: each completes each id once."""
    batches = [_Batch(simulation, None, name) for name in ("first", "second")]
    for batch in batches:
        for process in simulation.running:
            batch.run_at(process)
    until(
        simulation,
        lambda: all(len(batch.results) == len(simulation.running) for batch in batches),
        20,
    )
    for batch in batches:
        here = Counter(text for result in batch.results for text in result.completed_here)
        if not here == batch.calls == dict.fromkeys(batch.ids, 1):
            raise Violation(
                f"ids of a batch were done {NOT_ONCE}: {dict(batch.calls)}, and completed "
                f"{dict(here)}"
            )


def a_stream_with_a_crash(simulation: Simulation) -> None:
    """A stream of ids. `a` does not hear that it is at the second portion, and says so again. `b`
    is killed in the midst of that one."""
    a, b = by_name(simulation, "a"), by_name(simulation, "b")
    batch, tables, network = _Stream(simulation, b), simulation.server.tables, simulation.network

    def taken() -> int | None:
        return next((row.total for row in tables.committed.batch.values()), None)

    with patch.object(portions, "PORTION", batch.SIZE):
        for process in (b, a):
            batch.run_at(process)
        until(simulation, lambda: len(batch.complete) >= batch.SIZE - 1)
        network.cut(a, outwards=False, inwards=True)
        until(simulation, lambda: taken() == 2 * batch.SIZE)
        simulation.go(1.5)  # it gives the answer up
        network.heal(a)
        until(simulation, lambda: batch.at_work.get(b))
        simulation.go(5)  # for several looks
        simulation.kill(b)
        batch.finish(simulation)


def a_stream_after_other_ids(simulation: Simulation) -> None:
    """`a` waits for ids of `b` in the first portion of a stream. `b` completes as many others under
    its name, and then comes to these, and never ends."""
    a, b = by_name(simulation, "a"), by_name(simulation, "b")
    batch = _OthersFirst(simulation, b)
    with patch.object(portions, "PORTION", batch.SIZE):
        batch.run_at(a)
        until(simulation, lambda: a in batch.at_work)
        simulation.go(1)
        batch.run_at(b)
        until(simulation, lambda: batch.broken_off and batch.at_work[b])
        simulation.go(5)  # for several looks
        simulation.kill(b)
        batch.finish(simulation)


# == switches of the rules =========================================================================


def ends_in_silence() -> AbstractContextManager[Any]:
    """What was begun and ends in order is not said to have ended."""

    async def let_go(self: BatchRun, works: Any) -> None:
        return

    return patch.object(BatchRun, "let_go", let_go)


def nothing_came_before() -> AbstractContextManager[Any]:
    """What was counted in the portions before counts in this one."""
    return patch.object(others, "Tally", lambda total, before: Tally(total))


def named_as_others() -> AbstractContextManager[Any]:
    """A task has one key, whatever the batch's name."""
    return patch.object(Run, "key", lambda self, text: task_key(text))
