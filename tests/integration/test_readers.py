"""Whose a reader of changes is, and when it holds tokens no more."""

from __future__ import annotations

import asyncio
import gc
from functools import partial

import anyio
import pytest

from jobsync_async import Job, RebalanceEvent, TokenChange

# -- whose a reader is -----------------------------------------------------------------------------


async def read(job: Job) -> None:
    async for _ in job.token_changes():
        pass


async def read_and_fail(job: Job) -> None:
    async for change in job.token_changes():
        raise KeyError(change.version)


async def read_and_keep(job: Job, kept: list[object]) -> None:
    changes = job.token_changes()
    kept.append(changes)
    await changes.__anext__()


@pytest.mark.parametrize("ending", ["cancelled", "raised", "returned", "timed out"])
async def test_a_reader_whose_task_has_ended_holds_nothing_up_whoever_still_refers_to_it(
    config, ending
):
    kept: list[object] = []
    async with Job("a", config) as job:
        reading = (
            read_and_fail
            if ending == "raised"
            else partial(read_and_keep, kept=kept)
            if ending == "returned"
            else read
        )
        task = asyncio.create_task(
            asyncio.wait_for(read(job), 0.1) if ending == "timed out" else reading(job)
        )
        await asyncio.sleep(0.05)
        if ending == "cancelled":
            task.cancel()
        # With its traceback, and what that refers to.
        kept.append((await asyncio.gather(task, return_exceptions=True))[0])
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 2
    assert len(kept) == 1 + (ending == "returned")


async def test_a_token_is_handed_on_when_the_task_that_was_told_of_it_has_been_cancelled(jobs):
    (a,) = await jobs.start("a")
    told = asyncio.Event()

    async def hold() -> None:
        async for change in a.token_changes():
            if change.revoked:
                told.set()
                await asyncio.sleep(60)

    holding = asyncio.create_task(hold())
    await asyncio.sleep(0)
    starting = asyncio.ensure_future(jobs.start("b"))
    await told.wait()
    await asyncio.sleep(0.1)
    assert not starting.done(), "it is still at work on what was revoked"
    holding.cancel()
    with anyio.fail_after(5):
        await starting
        results = await asyncio.gather(holding, return_exceptions=True)
    assert jobs.counts() == {"a": 60, "b": 60} and isinstance(results[0], asyncio.CancelledError)


async def ask(changes) -> object:
    return await changes.__anext__()


@pytest.mark.parametrize("how", ["wait_for", "create_task", "a helper that returns it"])
async def test_an_item_that_a_helper_task_got_for_another_is_that_ones_until_it_comes_back(
    jobs, how
):
    (a,) = await jobs.start("a")
    changes = a.token_changes()
    get = {
        "wait_for": lambda: asyncio.wait_for(changes.__anext__(), 10),
        "create_task": lambda: asyncio.create_task(changes.__anext__()),
        "a helper that returns it": lambda: asyncio.create_task(ask(changes)),
    }[how]
    await get()
    starting = asyncio.ensure_future(jobs.start("b"))
    change = await get()
    assert len(change.revoked) == 60
    await asyncio.sleep(0.2)
    assert not starting.done(), "the token is worked on by whoever has the item"
    following = asyncio.ensure_future(get())
    await starting
    following.cancel()
    await asyncio.wait([following])
    changes.close()


async def test_several_tasks_may_ask_one_reader_in_turn_and_are_told_what_went_meanwhile(jobs):
    (a,) = await jobs.start("a")
    changes = a.token_changes()

    async def take() -> set[int]:
        return set((await changes.__anext__()).owned)

    everything = await asyncio.create_task(take())
    assert len(everything) == 120
    with anyio.fail_after(5):
        await jobs.start("b")  # nobody is told, and nobody is waited for
    change = await changes.__anext__()
    assert change.lost | change.revoked == everything - a.my_tokens and not change.assigned
    changes.close()


async def test_an_asking_task_that_ended_before_its_item_came_is_no_end_of_the_reader(jobs):
    (a,) = await jobs.start("a")
    changes = a.token_changes()
    await changes.__anext__()

    async def begin_to_ask() -> asyncio.Task:
        return asyncio.ensure_future(changes.__anext__())

    asking = await asyncio.create_task(begin_to_ask())
    starting = asyncio.ensure_future(jobs.start("b"))
    assert len((await asking).revoked) == 60
    await asyncio.sleep(0.2)
    assert not starting.done()
    changes.close()
    await starting


async def test_an_error_that_nobody_retrieves_is_still_reported_by_asyncio(config):
    reported: list[dict] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context))
    async with Job("a", config) as job:
        task = asyncio.create_task(read_and_fail(job))
        await asyncio.wait([task])
        await asyncio.sleep(0)
        del task
        gc.collect()
    loop.set_exception_handler(None)
    assert [context["message"] for context in reported] == ["Task exception was never retrieved"]


async def test_dropped_readers_leave_nothing_at_their_task(config):
    async with Job("a", config) as job:
        for _ in range(100):
            async for _ in job.token_changes():
                break
        gc.collect()
        assert len(asyncio.current_task()._callbacks or ()) <= 1


# -- what is told after the lease ------------------------------------------------------------------


async def test_nobody_is_told_of_tokens_whose_lease_is_over_by_the_clock(quick):
    told: list[tuple[bool, int]] = []

    def note(change: RebalanceEvent | TokenChange) -> None:
        told.append((job._worker.may_act(), len(change.assigned)))

    async def read() -> None:
        async for change in job.token_changes():
            note(change)

    job = Job("a", quick, on_rebalance=note)
    async with job:
        reading = asyncio.create_task(read())
        await job.drain()
        worker, now, before = job._worker, job._worker.clock, job._worker.snapshot_read
        blocked = asyncio.Event()

        def block_after_reading(snapshot) -> None:
            before(snapshot)
            if worker.ownership.grants and not blocked.is_set():
                # As if the event loop had been blocked for a minute right here.
                worker.clock = lambda: now() + 60
                blocked.set()

        told.clear()
        worker.snapshot_read = block_after_reading
        await job.undrain()
        with anyio.fail_after(10):
            await blocked.wait()
            while sum(count for _, count in told) < 2 * 120:
                await asyncio.sleep(0.01)
        assert all(valid for valid, count in told if count)
    await reading
