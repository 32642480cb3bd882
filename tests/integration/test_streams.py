"""Streams of ownership changes, and `on_rebalance`."""

from __future__ import annotations

import asyncio
import gc
from functools import partial

import anyio
import pytest

from jobsync_async import Job, RebalanceEvent, TokenChange, UsageError


async def until_waiting(job: Job, token: int) -> None:
    """Wait until a token is revoked here and in use."""
    with anyio.fail_after(5):
        while token not in job._worker.ownership.busy():
            await asyncio.sleep(0.005)


async def test_the_first_item_is_the_snapshot(config):
    async with Job("a", config) as job, job.token_changes() as changes:
        first = await changes.__anext__()
        assert first.is_initial and first.owned == first.assigned == job.my_tokens
        assert not first.revoked and not first.lost and first.version == job.token_version


async def test_revoked_tokens_are_handed_on_when_the_reader_comes_back(jobs):
    (a,) = await jobs.start("a")
    changes = a.token_changes()
    await changes.__anext__()
    starting = asyncio.ensure_future(jobs.start("b"))
    change = await changes.__anext__()
    assert len(change.revoked) == 60 and change.owned == a.my_tokens
    await asyncio.sleep(0.1)
    assert not starting.done()
    following = asyncio.ensure_future(changes.__anext__())
    (b,) = await starting
    assert b.my_tokens == change.revoked
    await jobs.stop("b")
    assert (await following).assigned == change.revoked
    changes.close()


async def test_a_slow_reader_gets_one_merged_change(jobs):
    (a,) = await jobs.start("a")
    async with a.token_changes() as quick, a.token_changes() as slow:
        await slow.__anext__()
        await quick.__anext__()
        starting = asyncio.ensure_future(jobs.start("b", "c", "d"))
        told: set[int] = set()

        async def read_quickly() -> None:
            async for change in quick:
                told.update(change.revoked)

        reading = asyncio.ensure_future(read_quickly())
        with anyio.fail_after(5):
            while len(told) < 90:
                await asyncio.sleep(0.005)
        assert (await slow.__anext__()).revoked == told
        coming_back = asyncio.ensure_future(slow.__anext__())
        await starting
        assert await jobs.even() == {"a": 30, "b": 30, "c": 30, "d": 30}
        for task in (reading, coming_back):
            task.cancel()
        await asyncio.wait([reading, coming_back])


async def test_a_reader_that_breaks_off_is_forgotten_at_once(jobs):
    (a,) = await jobs.start("a")
    async for change in a.token_changes():
        assert change.is_initial
        break
    async with a.token_changes() as changes:
        await changes.__anext__()
    dropped = a.token_changes()
    await dropped.__anext__()
    del dropped
    gc.collect()
    await jobs.start("b")
    assert jobs.counts() == {"a": 60, "b": 60}


async def test_what_was_lost_is_told_as_lost_and_comes_back_as_assigned(config, admin):
    async with Job("a", config) as job, job.token_changes() as changes:
        everything = (await changes.__anext__()).owned
        await admin.execute("DELETE FROM sync_node")
        change = await changes.__anext__()
        assert change.lost == everything
        if not change.assigned:
            assert not change.owned
            change = await changes.__anext__()
        assert change.assigned == everything


async def test_streams_end_with_the_job(config):
    job = Job("a", config)
    await job.start()
    seen = []

    async def read() -> None:
        async for change in job.token_changes():
            seen.append((len(change.assigned), len(change.revoked), len(change.lost)))

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0.05)
    await job.stop()
    await asyncio.wait_for(reading, 5)
    assert seen[0] == (120, 0, 0)
    assert seen[1:] == [(0, 120, 0)], "leaving is told as a revocation, so that readers can let go in order"


async def test_two_tasks_cannot_ask_one_reader(config):
    async with Job("a", config) as job, job.token_changes() as changes:
        await changes.__anext__()
        waiting = asyncio.ensure_future(changes.__anext__())
        await asyncio.sleep(0)
        with pytest.raises(UsageError):
            await changes.__anext__()
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_a_stuck_reader_delays_only_what_it_holds(jobs):
    (a,) = await jobs.start("a")
    stuck = a.token_changes()
    await stuck.__anext__()
    starting = asyncio.ensure_future(jobs.start("b"))
    token = min((await stuck.__anext__()).revoked)
    await until_waiting(a, token)
    assert len(a.my_tokens) == 60
    stuck.close()
    await starting
    assert jobs.counts() == {"a": 60, "b": 60}


@pytest.mark.parametrize("plain", [True, False])
async def test_on_rebalance_is_called_first_when_start_ends_and_then_for_every_change(jobs, plain):
    events: list[RebalanceEvent] = []

    async def asynchronous(event: RebalanceEvent) -> None:
        await asyncio.sleep(0)
        events.append(event)

    await jobs.start("a", on_rebalance=events.append if plain else asynchronous)
    assert [(event.is_initial, event.tokens_added, event.tokens_removed) for event in events] == [(True, 120, 0)]
    await jobs.start("b")
    assert (events[1].tokens_added, events[1].tokens_removed, len(events[1].revoked)) == (0, 60, 60)
    await jobs.stop("b")
    with anyio.fail_after(5):
        while len(events) < 3:
            await asyncio.sleep(0.01)
    assert events[2].assigned == events[1].revoked


async def test_on_rebalance_may_take_no_argument(jobs):
    calls = []

    def called() -> None:
        calls.append(1)

    await jobs.start("a", on_rebalance=called)
    assert calls == [1]


async def test_tokens_wait_for_on_rebalance_to_return(jobs):
    leave = asyncio.Event()

    async def slow(event: RebalanceEvent) -> None:
        if event.revoked:
            await leave.wait()

    await jobs.start("a", on_rebalance=slow)
    starting = asyncio.ensure_future(jobs.start("b"))
    with anyio.fail_after(5):
        while len(jobs["a"]._worker.ownership.busy()) < 60:
            await asyncio.sleep(0.005)
    assert not starting.done()
    leave.set()
    await starting
    assert jobs.counts() == {"a": 60, "b": 60}


async def test_an_error_in_on_rebalance_ends_the_job_in_order_and_reaches_the_user(jobs, config, admin):
    def fail(event: RebalanceEvent) -> None:
        if not event.is_initial:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with Job("a", config, on_rebalance=fail):
            starting = asyncio.ensure_future(jobs.start("b"))
            await asyncio.sleep(60)
    await starting
    assert await jobs.settled() == {"b": 120}
    assert (await (await admin.execute("SELECT array_agg(name) FROM sync_node")).fetchone()) == (["b"],)


async def test_an_error_in_the_first_on_rebalance_reaches_start(config, admin):
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Job("a", config, on_rebalance=fail).start()
    assert (await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone()) == (0,)


async def test_a_body_that_reads_and_is_cancelled_leaves_at_once(config):
    started = asyncio.Event()

    async def body() -> None:
        async with Job("anna", config) as job:
            changes = job.token_changes()
            async for _ in changes:
                started.set()

    running = asyncio.ensure_future(body())
    await started.wait()
    running.cancel()
    with anyio.fail_after(2), pytest.raises(asyncio.CancelledError):
        await running


async def test_a_body_that_raises_while_it_reads_leaves_at_once(config):
    with anyio.fail_after(5), pytest.raises(KeyError):
        async with Job("anna", config) as job:
            async for change in job.token_changes():
                raise KeyError(change.version)


# -- whose a reader is ----------------------------------------------------------------------------------------------------


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
async def test_a_reader_whose_task_has_ended_holds_nothing_up_whoever_still_refers_to_it(config, ending):
    kept: list[object] = []
    async with Job("a", config) as job:
        reading = read_and_fail if ending == "raised" else partial(read_and_keep, kept=kept) if ending == "returned" else read
        task = asyncio.create_task(asyncio.wait_for(read(job), 0.1) if ending == "timed out" else reading(job))
        await asyncio.sleep(0.05)
        if ending == "cancelled":
            task.cancel()
        kept.append((await asyncio.gather(task, return_exceptions=True))[0])  # with its traceback, and what that refers to
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
async def test_an_item_that_a_helper_task_got_for_another_is_that_ones_until_it_comes_back(jobs, how):
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


# -- what is told after the lease -----------------------------------------------------------------------------------------


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
                worker.clock = lambda: now() + 60  # as if the event loop had been blocked for a minute right here
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
