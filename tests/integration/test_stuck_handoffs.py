"""Users that never let go: only their own tokens wait, everybody can see it, and a worker may leave
because of it."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from jobsync_async import Job
from jobsync_async.errors import CoordinationError
from jobsync_async.tasks.overdue import stuck_tokens
from tests.clusters import cluster


@pytest.fixture
def hasty(make_config):
    """A small cluster that gives work on revoked tokens a tenth of a second."""
    return lambda **more: make_config(
        total_tokens=40,
        handoff_timeout_sec=0.1,
        heartbeat_interval_sec=0.3,
        heartbeat_timeout_sec=1.5,
        **more,
    )


class Stubborn:
    """Work on one task that ignores every cancellation until it is let off."""

    def __init__(self, job: Job, task_id: int) -> None:
        self.let_off = asyncio.Event()
        self.begun = asyncio.Event()
        self._task = asyncio.ensure_future(self._work(job, task_id))

    async def _work(self, job: Job, task_id: int) -> None:
        async with job.claim(task_id):
            self.begun.set()
            with anyio.CancelScope(shield=True):
                await self.let_off.wait()

    async def end(self) -> None:
        self.let_off.set()
        await asyncio.wait([self._task])
        self._task.exception()


async def stuck_of(job: Job) -> list[dict]:
    """What everybody sees of it, once there is something to see."""
    with anyio.fail_after(5):
        while not (shown := (await job.get_coordination_status())["stuck_handoffs"]):
            await asyncio.sleep(0.01)
    return shown


async def test_work_that_never_ends_delays_its_own_token_alone_and_everybody_sees_it(hasty, caplog):
    config = hasty(hash_function="modulo")
    async with cluster(config) as jobs:
        (a,) = await jobs.start("a")
        stubborn = [Stubborn(a, task) for task in range(40)]  # whatever moves is in use
        for one in stubborn:
            await one.begun.wait()
        for one in stubborn[1:]:
            one.let_off.set()
        (b,) = await jobs.start("b", weight=1_000)  # nearly all moves
        assert await jobs.settled(unowned=1) == {"a": 1, "b": 38}
        (shown,) = await stuck_of(b)
        assert (shown["node"], shown["token_id"], shown["task_id"]) == ("a", 0, "0")
        assert 0.1 <= shown["seconds"] < 10
        assert a.metrics.handoffs_overdue == 1
        assert a.metrics.handoff_overdue_sec >= 0.1
        (record,) = [record for record in caplog.records if getattr(record, "task_id", None) == "0"]
        assert (record.levelname, record.token_id, record.node) == ("WARNING", 0, "a")
        await stubborn[0].end()
        await jobs.settled()
        with anyio.fail_after(5):
            while (await b.get_coordination_status())[
                "stuck_handoffs"
            ] or a.metrics.handoffs_overdue:
                await asyncio.sleep(0.01)
        for one in stubborn:
            await one.end()


async def test_a_reader_that_never_comes_back_is_shown_without_a_task(hasty):
    async with cluster(hasty()) as jobs:
        (a,) = await jobs.start("a")
        changes = a.token_changes()
        await changes.__anext__()
        starting = asyncio.ensure_future(jobs.start("b"))
        shown = await stuck_of(a)
        assert {(one["node"], one["task_id"]) for one in shown} == {("a", None)}
        await changes.__anext__()  # what was revoked
        reading = asyncio.ensure_future(changes.__anext__())  # and now it may go
        await starting
        await jobs.even()
        reading.cancel()


async def test_a_worker_may_leave_because_of_work_that_never_ends(hasty):
    config = hasty(hash_function="modulo", on_handoff_timeout="leave")
    async with cluster(config) as jobs:
        a, b = Job("a", config), Job("b", config)
        await a.start()
        stubborn = Stubborn(a, 0)
        await stubborn.begun.wait()
        await b.start()
        jobs.jobs["b"] = b
        await b.register_lock(0, "b")  # whichever tokens moved for b: this one must
        with anyio.fail_after(10):
            while a.am_i_healthy():
                await asyncio.sleep(0.01)
            with pytest.raises(
                CoordinationError,
                match=r"token 0 was revoked .* work on task '0' has gone on since",
            ):
                await a.stop()
        assert len(await jobs.settled()) == 1  # the lease of the worker that left is over
        await stubborn.end()


async def test_a_worker_leaves_only_if_so_configured(hasty):
    config = hasty(hash_function="modulo")
    async with cluster(config) as jobs:
        (a,) = await jobs.start("a")
        stubborn = Stubborn(a, 0)
        await stubborn.begun.wait()
        (b,) = await jobs.start("b")
        await b.register_lock(0, "b")
        (shown,) = await stuck_of(b)
        assert shown["task_id"] == "0"
        with anyio.fail_after(5):
            while not stuck_tokens(a._worker, a._worker.clock()):  # by then it would have left
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert a.am_i_healthy()
        await stubborn.end()
        await jobs.settled()
