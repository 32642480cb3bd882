"""Cancellation at every await of every public coroutine, one after the other: nothing may be left,
and all must go on.

A coroutine is wrapped so that it is cancelled when it has suspended for the n-th time; n goes up
until it ends before that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any
from unittest.mock import patch

import anyio
import psycopg

from jobsync_async import CoordinationError, Job, StoreUnavailable, UsageError
from jobsync_async.work import portions
from jobsync_async.work.claims import Claim
from tests.simulation.driver import Connection
from tests.simulation.faults import Profile
from tests.simulation.invariants import Violation
from tests.simulation.process import Process
from tests.simulation.simulation import Report, Simulation

Make = Callable[[Job], Coroutine[Any, Any, object]]
_MAY_RAISE = (CoordinationError, StoreUnavailable, UsageError)
_IDS = range(12)
_WORKERS_OWN = (
    "jobsync_async/runtime/coordinator.py",
    "jobsync_async/work/callbacks.py",
    "jobsync_async/api/life.py",
    "jobsync_async/postgres/",
)


class _Cancelled(Coroutine[Any, Any, Any]):
    """Runs a coroutine, and cancels its task after it has suspended for the n-th time. `suspended`
    counts."""

    def __init__(self, inner: Coroutine[Any, Any, Any], at: int) -> None:
        self._inner = inner
        self._at = at
        self.suspended = 0

    def send(self, value: Any) -> Any:
        return self._after(self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._after(self._inner.throw(*error))

    def _after(self, waits_for: Any) -> Any:
        self.suspended += 1
        if self.suspended == self._at:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
        return waits_for

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise AssertionError("it is the coroutine of a task")


def _belongs_to_the_worker(task: asyncio.Task[Any]) -> bool:
    """Whether it is one of the coordination tasks, or a statement of one."""
    coroutine: Any = task.get_coro()
    return any(part in coroutine.cr_code.co_filename for part in _WORKERS_OWN)


class Interrupted(Simulation):
    """Two workers, without faults; in the first one the coroutine is cancelled at its n-th await.

    Attributes:
        reached: whether there was an n-th await.
    """

    def __init__(self, make: Make | None, at: int) -> None:
        super().__init__(at, Profile(fault_sec=0))
        self._make = make
        self._at = at
        self.reached = False

    def _run(self) -> None:
        if self._make is None:
            self._interrupt_start()
        else:
            first, _ = self.start("a"), self.start("b")
            self._wait_until_well()
            self._interrupt(first, self._make)
        self._wait_until_well()
        self.stop_all()

    def _interrupt(self, process: Process, make: Make) -> None:
        job = process.job
        assert job is not None
        wrapped: list[_Cancelled] = []

        def spawn() -> None:
            wrapped.append(_Cancelled(make(job), self._at))
            process.loop.create_task(wrapped[0], name="interrupted").add_done_callback(
                self._retrieved
            )

        process.loop.call_soon(spawn)
        self.go(30)
        self.reached = wrapped[0].suspended >= self._at
        left = [
            task.get_name() for task in process.loop.tasks() if task.get_name() == "interrupted"
        ]
        if left:
            raise Violation("the cancelled coroutine goes on")
        if job._state == "stopped":
            process.over = process.leaving = True
            self.check_nothing_left(process)
        else:
            self._nothing_held(process)

    @staticmethod
    def _nothing_held(process: Process) -> None:
        worker, job = process.worker, process.job
        assert worker is not None
        assert job is not None
        # These wait to be written, whoever is cancelled.
        added = {one for day in job._task_log._added.values() for one in day}
        left = set(worker.ownership.users()) - added
        if left:
            raise Violation(f"claims were left: {left}")
        if any(reader._letting_go for reader in worker.ownership._readers):
            raise Violation("a reader was left that holds up a token")
        extra = [
            task.get_name() for task in process.loop.tasks() if not _belongs_to_the_worker(task)
        ]
        if extra:
            raise Violation(f"tasks were left: {extra}")

    def _retrieved(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.transcript.note("world", f"it ended with {error!r}")
            if not isinstance(error, (psycopg.Error, *_MAY_RAISE)):
                raise Violation(f"it ended with {error!r}") from error

    def _interrupt_start(self) -> None:
        """The start itself is cancelled, in a process that joins another one."""
        self.start("b")
        self._wait_until_well()
        process = self.process("a")
        wrapped: list[_Cancelled] = []

        def spawn() -> None:
            wrapped.append(_Cancelled(self.start_job(process), self._at))
            process.loop.create_task(wrapped[0], name="interrupted").add_done_callback(
                self._retrieved
            )

        process.loop.call_soon(spawn)
        self.go(10)
        self.reached = wrapped[0].suspended >= self._at
        if not process.started:
            self.check_nothing_left(process)

    def _wait_until_well(self) -> None:
        what = self._wait(self._unsettled, self.scheduler.now + 30)
        if what is not None:
            raise Violation(what)


def interrupted(make: Make | None, at: int, *, transcript: bool = False) -> tuple[Report, bool]:
    """Cancel at the `at`-th await; the run's report, and whether there was such an await. None is
    the start of a job."""
    simulation = Interrupted(make, at)
    simulation.transcript.wanted = transcript
    return simulation.run(), simulation.reached


# == the public coroutines =========================================================================


async def stop(job: Job) -> None:
    await job.stop()


async def body(job: Job) -> None:
    """The end of an ``async with Job``, whose body is interrupted."""
    try:
        await anyio.sleep(1)
    finally:
        await job.__aexit__(None, None, None)


def _mine(job: Job) -> int:
    return next(task for task in _IDS if job.owns(task))


async def claim(job: Job) -> None:
    async with job.claim(_mine(job)):
        await anyio.sleep(0.1)


async def fence(job: Job) -> None:
    connection = await Connection.connect("user", autocommit=True)
    try:
        async with job.claim(_mine(job)) as held, connection.transaction():
            await job.fence(connection, held)  # type: ignore[arg-type]
            await anyio.sleep(0.1)
    finally:
        await connection.close()


async def add_tasks(job: Job) -> None:
    await job.add_tasks([_mine(job)])
    await job.add_task(_mine(job))
    await job.set_claim(_mine(job))
    await job.write_audit()
    await job.get_audit()


async def token_changes(job: Job) -> None:
    async with job.token_changes() as changes:
        await changes.__anext__()
        with anyio.move_on_after(1):
            await changes.__anext__()


async def handle(held: Claim) -> None:
    await anyio.sleep(0.1)


async def run_owned(job: Job) -> None:
    with anyio.move_on_after(1):
        await job.run_owned(_IDS, handle)


async def run_batch(job: Job) -> None:
    await job.run_batch([task for task in range(24) if job.owns(task % 12)], handle, concurrency=2)


async def run_stream(job: Job) -> None:
    async def stream() -> AsyncIterator[int]:
        for task in range(24):
            if job.owns(task % 12):
                yield task

    with patch.object(portions, "PORTION", 6):
        await job.run_batch(stream(), handle, name="stream", concurrency=2)


async def drain(job: Job) -> None:
    try:
        await job.drain()
    finally:
        with anyio.CancelScope(shield=True):
            await job.undrain()


async def undrain(job: Job) -> None:
    await job.undrain()


async def pause(job: Job) -> None:
    """And whoever waits for its end, who must not begin before."""
    waiting = None
    try:
        await job.pause("to look at something")
        waiting = asyncio.ensure_future(claim_when_it_goes_on(job))
        waiting.set_name("interrupted's")
        await anyio.sleep(0.1)
        await job.resume()
        await waiting
    finally:
        if waiting is not None and not waiting.done():
            waiting.cancel()


async def claim_when_it_goes_on(job: Job) -> None:
    async with job.claim(min(job.my_tokens), if_paused="wait"):
        await anyio.sleep(0.05)


async def pins(job: Job) -> None:
    await job.register_lock("3", "a")
    await job.register_locks_bulk([("4", "b", None)])
    await job.list_locks()
    await job.clear_locks_by_creator("a")
    await job.clear_all_locks()


async def status(job: Job) -> None:
    await job.owner_of(3)
    await job.get_active_nodes()
    await job.get_dead_nodes()
    await job.get_coordination_status()


_MADE: tuple[Make, ...] = (
    stop, body, claim, fence, add_tasks, token_changes, run_owned, run_batch, run_stream, drain,
    undrain, pause, pins, status
)  # fmt: skip
COROUTINES: dict[str, Make | None] = {"start": None, **{make.__name__: make for make in _MADE}}  # type: ignore[attr-defined]
