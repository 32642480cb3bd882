"""Handlers that hold up the event loop or wait for one another, and what is done here though the
lease ended meanwhile."""

from __future__ import annotations

import asyncio
import re

import anyio

from jobsync_async import Job
from tests.handling import block, nothing
from tests.waiting import until


async def test_a_handler_that_blocks_past_its_lease_is_blamed_by_name_and_bounded_by_attempts(
    quick_jobs, caplog
):
    """The claim is taken from it each time, so that what it has done does not count."""
    (a,) = await quick_jobs.start("a")
    calls = 0

    async def handle(claim) -> None:
        nonlocal calls
        calls += 1
        block(1.3)
        await asyncio.sleep(60)

    with anyio.fail_after(30):
        result = await a.run_batch(["x"], handle, attempts=2)
    assert calls == 2
    assert re.match(
        r"it blocked the event loop for 1\.\d s, so that no heartbeat was sent", result.failed["x"]
    )
    told = [record for record in caplog.records if "blocked the event loop" in record.message]
    assert [(record.task_id, record.levelname) for record in told] == [("x", "ERROR")] * 2
    assert all(record.seconds >= 1.3 for record in told)


async def test_only_the_handler_that_blocked_is_blamed(quick_jobs, caplog):
    (a,) = await quick_jobs.start("a")

    async def handle(claim) -> None:
        if claim.task_id == "guilty":
            await asyncio.sleep(0.05)
            block(1.3)
        await asyncio.sleep(0.2)

    with anyio.fail_after(30):
        result = await a.run_batch(["guilty", *range(4)], handle, attempts=1, concurrency=5)
    assert set(result.failed) == {"guilty"}
    assert result.completed_here == set(range(4))


async def test_what_this_worker_has_done_is_told_as_done_here_though_its_lease_ended_meanwhile(
    quick_jobs,
):
    (a,) = await quick_jobs.start("a")

    async def handle(claim) -> None:
        if claim.task_id == 3:
            block(1.3)

    result = await a.run_batch([3, 4, 5], handle, attempts=1)
    assert result.completed_here == {3, 4, 5}


async def test_what_this_worker_has_done_is_told_as_done_here_though_it_joined_anew_meanwhile(
    quick_jobs, admin
):
    (a,) = await quick_jobs.start("a")
    me = a._worker.identity

    async def handle(claim) -> None:
        if claim.task_id == 7 and a._worker.identity == me:
            await admin.execute("DELETE FROM sync_node")
            await asyncio.sleep(60)

    assert (await a.run_batch([7, 8], handle)).completed_here == {7, 8}
    assert a._worker.identity != me


async def test_two_batches_over_the_same_ids_in_one_worker_call_one_handler_for_each_id(config):
    calls: list[int] = []
    now: set[int] = set()

    async def handle(claim) -> None:
        assert claim.task_id not in now
        now.add(claim.task_id)
        calls.append(claim.task_id)
        await asyncio.sleep(0.01)
        now.discard(claim.task_id)
        if claim.task_id == 7:
            raise ValueError("as meant")

    async with Job("a", config) as job:
        one, two = await asyncio.gather(
            *(job.run_batch(range(10), handle, attempts=1) for _ in range(2))
        )
    assert sorted(calls) == list(range(10))
    assert one.completed_here == two.completed_here == set(range(10)) - {7}
    assert one.failed == two.failed == {7: "ValueError: as meant"}


async def test_whoever_waits_long_for_another_in_this_worker_says_so(monkeypatch, caplog):
    monkeypatch.setattr("jobsync_async.work.holding._LONG_WAIT_SEC", 0.05)
    async with Job("a") as job:
        holding = job._hold("x")
        await holding.enter()
        batch = asyncio.ensure_future(job.run_batch(["x"], nothing))
        await until(lambda: "somebody else in this worker works on it" in caplog.text)
        holding.leave()
        assert (await batch).completed_here == {"x"}
