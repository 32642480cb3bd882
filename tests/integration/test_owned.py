"""`run_owned`: one coroutine per owned id, cluster-wide."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import pytest

from jobsync_async import Job, UsageError

IDS = [f"sym-{n}" for n in range(30)]


class Running:
    """Who runs what, with a look that nothing runs twice."""

    def __init__(self) -> None:
        self.by: dict[object, str] = {}
        self.starts: list[tuple[object, str]] = []

    def handler_of(self, name: str, cleanup_sec: float = 0):
        async def handle(claim) -> None:
            assert claim.task_id not in self.by, (
                f"{name} starts {claim.task_id}, which {self.by[claim.task_id]} runs"
            )
            self.by[claim.task_id] = name
            self.starts.append((claim.task_id, name))
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await asyncio.sleep(cleanup_sec)
                del self.by[claim.task_id]

        return handle

    async def all_run(self, workers: set[str], ids=IDS) -> None:
        with anyio.fail_after(5):
            while self.by.keys() != set(ids) or set(self.by.values()) != workers:
                await asyncio.sleep(0.002)


async def until_the_job_ends(job: Job, handler) -> None:
    with suppress(UsageError):
        await job.run_owned(IDS, handler)


async def test_one_coroutine_per_id_wherever_it_is_owned(jobs):
    running = Running()
    async with anyio.create_task_group() as group:
        for name in ("anna", "berta", "carla"):
            (job,) = await jobs.start(name)
            group.start_soon(until_the_job_ends, job, running.handler_of(name, cleanup_sec=0.02))
            await running.all_run(set(jobs.jobs))
        await jobs.stop("berta")
        await running.all_run({"anna", "carla"})
        group.cancel_scope.cancel()
    assert running.by == {}


async def test_the_next_worker_starts_when_the_cleanup_here_has_returned(jobs):
    running = Running()
    (anna,) = await jobs.start("anna")
    may_end = asyncio.Event()
    cleaning: set[object] = set()

    async def slow_to_end(claim) -> None:
        running.by[claim.task_id] = "anna"
        try:
            await anyio.sleep_forever()
        finally:
            cleaning.add(claim.task_id)
            with anyio.CancelScope(shield=True):
                await may_end.wait()
            del running.by[claim.task_id]

    async with anyio.create_task_group() as group:
        group.start_soon(anna.run_owned, IDS, slow_to_end)
        await running.all_run({"anna"})
        (berta,) = await jobs.start("berta", wait_on_enter=5)
        group.start_soon(berta.run_owned, IDS, running.handler_of("berta"))
        while not cleaning:
            await asyncio.sleep(0.002)
        assert not berta.filter_owned(cleaning)
        assert "berta" not in running.by.values()
        may_end.set()
        await running.all_run({"anna", "berta"})
        group.cancel_scope.cancel()


async def test_a_coroutine_that_raises_is_started_again_and_one_that_returns_is_not(config):
    calls: dict[object, int] = {}
    raised_twice = asyncio.Event()

    async def handle(claim) -> None:
        calls[claim.task_id] = calls.get(claim.task_id, 0) + 1
        if claim.task_id == "bad":
            if calls["bad"] == 3:
                raised_twice.set()
                return
            raise RuntimeError("as meant")

    async with Job("anna", config) as job, anyio.create_task_group() as group:
        group.start_soon(job.run_owned, ["bad", "good"], handle)
        with anyio.fail_after(5):
            await raised_twice.wait()
        group.cancel_scope.cancel()
    assert calls == {"bad": 3, "good": 1}


async def test_ids_may_be_a_callable_that_is_asked_again(config):
    ids = ["a"]
    running = Running()

    async def current() -> list[str]:
        return list(ids)

    async with Job("anna", config) as job, anyio.create_task_group() as group:
        group.start_soon(
            lambda: job.run_owned(current, running.handler_of("anna"), refresh_sec=0.02)
        )
        await running.all_run({"anna"}, ["a"])
        ids[:] = ["b", "c"]
        await running.all_run({"anna"}, ["b", "c"])
        group.cancel_scope.cancel()


async def test_coroutines_end_when_ownership_is_lost_and_start_again_when_it_is_back(config, admin):
    running = Running()
    async with Job("anna", config) as job, anyio.create_task_group() as group:
        group.start_soon(job.run_owned, IDS, running.handler_of("anna"))
        await running.all_run({"anna"})
        await admin.execute("DELETE FROM sync_node")
        with anyio.fail_after(10):
            while len(running.starts) < 2 * len(IDS):
                job._worker.beat_wanted.set()  # the next heartbeat would find it in a few seconds
                await asyncio.sleep(0.01)
        await running.all_run({"anna"})
        assert sorted(map(str, running.starts)) == sorted(2 * [str((task, "anna")) for task in IDS])
        group.cancel_scope.cancel()


async def test_after_a_suspension_all_run_again_and_the_loss_is_no_failure_of_theirs(jobs, caplog):
    """Each notices by the clock that its claim is over, before anything else does. Else the third
    loss would keep its id waiting for seconds after the token is back."""
    (anna,) = await jobs.start("anna")
    starts, worker = [], anna._worker
    clock, suspended_sec = worker.clock, 0.0
    worker.clock = lambda: clock() + suspended_sec

    async def handle(claim) -> None:
        starts.append(claim.task_id)
        while True:
            await asyncio.sleep(0)
            claim.check()

    running = asyncio.ensure_future(until_the_job_ends(anna, handle))
    with anyio.fail_after(20):
        for times in (1, 2, 3, 4):
            while len(starts) < times * len(IDS):
                worker.beat_wanted.set()
                await asyncio.sleep(0.005)
            suspended_sec += 10 * worker.config.heartbeat_timeout_sec
    assert [one.getMessage() for one in caplog.records if "in a row" in one.getMessage()] == []
    await jobs.stop("anna")
    await running


async def test_it_says_that_the_job_was_stopped(config):
    running = Running()
    job = Job("anna", config)
    await job.start()
    owned = asyncio.ensure_future(job.run_owned(IDS, running.handler_of("anna")))
    await running.all_run({"anna"})
    await job.stop()
    with (
        anyio.fail_after(2),
        pytest.raises(UsageError, match="the job ended because it was stopped"),
    ):
        await owned
    assert running.by == {}


async def test_what_is_no_handler_is_refused(config):
    async with Job("anna", config) as job:
        with pytest.raises(UsageError):
            await job.run_owned(IDS, None)
