"""Batches: what is counted when a worker ends or leaves in the midst of its work. Two workers, `a`
and `b`, and all is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import anyio

from jobsync_async import BatchResult, OwnershipLost, StoreUnavailable, UsageError
from jobsync_async.core.hashing import task_key
from jobsync_async.core.runs import Run
from jobsync_async.work.batch_run import BatchRun
from tests.simulation.invariants import Violation
from tests.simulation.scripts import by_name, until

if TYPE_CHECKING:
    from jobsync_async.work.claims import Claim
    from tests.simulation.process import Process
    from tests.simulation.simulation import Simulation

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
        self.results: list[BatchResult] = []

    def run_at(self, process: Process) -> None:
        process.spawn("batch", lambda: self._run(process), public=False)

    async def _run(self, process: Process) -> None:
        assert process.job is not None
        open_here = self.at_work[process] = set()

        async def handle(claim: Claim) -> None:
            text = str(claim.task_id)
            self.calls[text] += 1
            open_here.add(text)
            await anyio.sleep(1000 if process is self._slow else 0.01)
            open_here.remove(text)

        try:
            result = await process.job.run_batch(self.ids, handle, name=self._name, concurrency=4)
        except (OwnershipLost, StoreUnavailable, UsageError):  # its job has ended
            return
        complete = {row[0] for row in self._tables.committed.audit.values() if row[5] == self._name}
        if left := set(self.ids) - complete - set(result.failed):
            raise Violation(f"run_batch returned {NOT_ALL}: {sorted(left)} are left")
        self.results.append(result)

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


# == switches of the rules =========================================================================


def ends_in_silence() -> AbstractContextManager[Any]:
    """What was begun and ends in order is not said to have ended."""

    async def let_go(self: BatchRun, works: Any) -> None:
        return

    return patch.object(BatchRun, "let_go", let_go)


def named_as_others() -> AbstractContextManager[Any]:
    """A task has one key, whatever the batch's name."""
    return patch.object(Run, "key", lambda self, text: task_key(text))
