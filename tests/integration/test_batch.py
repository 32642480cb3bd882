"""`run_batch`: every id once per date, whoever comes, goes or fails."""

from __future__ import annotations

import asyncio
import datetime as dt

import anyio
import pytest

from jobsync_async import ConfigError, Job, UsageError
from tests.handling import nothing


async def completed(admin) -> list[str]:
    cursor = await admin.execute("SELECT task_id FROM sync_audit ORDER BY task_id")
    return [task_id for (task_id,) in await cursor.fetchall()]


async def test_every_id_is_done_once_by_its_owner(jobs, admin):
    await jobs.start("anna", "berta", "carla")
    ids = [f"file-{n:03}" for n in range(200)]
    done: list[tuple[str, str]] = []

    def handler_of(name: str):
        async def handle(claim) -> None:
            assert claim.valid
            assert jobs[name].owns(claim.task_id)
            await asyncio.sleep(0)
            done.append((claim.task_id, name))

        return handle

    results = await asyncio.gather(
        *(job.run_batch(ids, handler_of(name)) for name, job in jobs.jobs.items())
    )
    assert sorted(task for task, _ in done) == ids
    assert await completed(admin) == ids
    for name, result in zip(jobs.jobs, results, strict=True):
        assert result.completed_here == {task for task, by in done if by == name}
        assert result.completed_here | result.completed_elsewhere == set(ids)
        assert not result.completed_here & result.completed_elsewhere
        assert result.failed == {}


async def test_run_again_it_does_nothing_and_another_date_does_everything(config):
    async with Job("anna", config, date=dt.date(2024, 2, 29)) as job:
        first = await job.run_batch(range(20), nothing)
        again = await job.run_batch(range(25), nothing)
    assert first.completed_here == set(range(20))
    assert again.completed_here == set(range(20, 25))
    assert again.completed_elsewhere == set(range(20))
    async with Job("anna", config, date=dt.date(2024, 3, 1)) as job:
        assert (await job.run_batch(range(20), nothing)).completed_here == set(range(20))


async def test_an_id_given_twice_is_done_once_and_no_ids_are_a_batch_too(config):
    calls: list[object] = []

    async def handle(claim) -> None:
        calls.append(claim.task_id)

    async with Job("anna", config) as job:
        result = await job.run_batch(["a", "a", 1, "1"], handle)
        assert len(calls) == 2
        assert len(result.completed_here) == 2
        assert (await job.run_batch([], handle)).completed_here == frozenset()


async def test_a_handler_that_raises_is_called_again_and_then_reported_everywhere(jobs):
    await jobs.start("anna", "berta")
    calls: dict[object, int] = {}

    async def handle(claim) -> None:
        calls[claim.task_id] = calls.get(claim.task_id, 0) + 1
        if claim.task_id == "always" or (claim.task_id == "once" and calls["once"] == 1):
            raise RuntimeError("as meant")

    ids = ["always", "once", *"abc"]
    results = await asyncio.gather(
        *(job.run_batch(ids, handle, attempts=2) for job in jobs.jobs.values())
    )
    for result in results:
        assert result.failed == {"always": "RuntimeError: as meant"}
        assert result.completed_here | result.completed_elsewhere == {"once", *"abc"}
    assert calls == {"always": 2, "once": 2, "a": 1, "b": 1, "c": 1}


async def test_what_failed_is_tried_anew_when_the_batch_is_run_again(config):
    async def fail(claim) -> None:
        raise ValueError(claim.task_id)

    async with Job("anna", config) as job:
        assert set((await job.run_batch(["x"], fail, attempts=1)).failed) == {"x"}
        assert (await job.run_batch(["x"], nothing)).completed_here == {"x"}


async def test_a_joiner_takes_over_its_share_in_the_midst_of_the_batch(jobs, admin):
    (anna,) = await jobs.start("anna")
    ids = [f"file-{n:03}" for n in range(60)]
    by: dict[str, list[object]] = {"anna": [], "berta": []}
    enough = asyncio.Event()
    go_on = asyncio.Event()

    async def by_anna(claim) -> None:
        by["anna"].append(claim.task_id)
        if len(by["anna"]) == 10:
            enough.set()
            await go_on.wait()

    async def by_berta(claim) -> None:
        by["berta"].append(claim.task_id)

    async with anyio.create_task_group() as group:
        results = {}

        async def run(job: Job, handler) -> None:
            results[job.node_name] = await job.run_batch(ids, handler, concurrency=1)

        group.start_soon(run, anna, by_anna)
        await enough.wait()
        (berta,) = await jobs.start("berta", wait_on_enter=5)
        group.start_soon(run, berta, by_berta)
        while not by["berta"]:
            await asyncio.sleep(0.005)
        go_on.set()
    assert sorted(by["anna"] + by["berta"]) == ids
    assert len(by["berta"]) > 10
    assert results["anna"].completed_elsewhere == set(by["berta"])
    assert await completed(admin) == ids


async def test_what_a_dead_worker_had_begun_is_done_by_another(quick_jobs):
    anna, berta = await quick_jobs.start("anna", "berta")
    ids = [f"file-{n:03}" for n in range(40)]
    stuck = asyncio.Event()

    async def hang(claim) -> None:
        stuck.set()
        await anyio.sleep_forever()

    hanging = asyncio.ensure_future(berta.run_batch(ids, hang))
    await stuck.wait()
    working = asyncio.ensure_future(anna.run_batch(ids, nothing))
    await quick_jobs.crash("berta")
    with pytest.raises(UsageError):
        await hanging
    with anyio.fail_after(15):
        result = await working
    assert result.completed_here == set(ids)


async def test_a_batch_ends_with_its_job(config):
    job = Job("anna", config)
    await job.start()
    entered = asyncio.Event()

    async def hang(claim) -> None:
        entered.set()
        await anyio.sleep_forever()

    running = asyncio.ensure_future(job.run_batch(["x"], hang))
    await entered.wait()
    stopping = asyncio.ensure_future(job.stop())
    await asyncio.sleep(0)
    stopping.cancel()  # do not wait for the hand-off time-out
    with pytest.raises(asyncio.CancelledError):
        await stopping
    with pytest.raises(UsageError, match="1 tasks of the batch were not done"):
        await running


async def test_a_batch_that_is_cancelled_leaves_nothing_claimed(config):
    async with Job("anna", config) as job:
        running = asyncio.ensure_future(job.run_batch(["x"], lambda claim: anyio.sleep_forever()))
        while not job.metrics.claims:
            await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with job.claim("x"):
            pass


async def test_concurrency_is_kept(config):
    now = most = 0

    async def handle(claim) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1

    async with Job("anna", config) as job:
        await job.run_batch(range(50), handle, concurrency=3)
    assert most == 3


@pytest.mark.parametrize(
    "bad", [{"concurrency": 0}, {"attempts": 0}, {"attempts": True}, {"concurrency": 1.5}]
)
async def test_bad_numbers_are_refused(config, bad):
    async with Job("anna", config) as job:
        with pytest.raises(ConfigError):
            await job.run_batch(["x"], nothing, **bad)
        with pytest.raises(UsageError):
            await job.run_batch(["x"], "no function")
