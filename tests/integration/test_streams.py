"""Streams of ownership changes, and `on_rebalance`."""

from __future__ import annotations

import asyncio
import gc

import anyio
import pytest

from jobsync_async import Job, RebalanceEvent, UsageError


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


async def test_a_closed_stream_that_is_asked_again_holds_nothing_up(jobs):
    (a,) = await jobs.start("a")
    async with a.token_changes() as changes:
        await changes.__anext__()
    with pytest.raises(StopAsyncIteration):
        await changes.__anext__()
    (b,) = await jobs.start("b")
    assert len(b.my_tokens) == 60


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
    assert seen[1:] == [(0, 120, 0)], (
        "leaving is told as a revocation, so that readers can let go in order"
    )


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
    assert [(event.is_initial, event.tokens_added, event.tokens_removed) for event in events] == [
        (True, 120, 0)
    ]
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


async def test_an_error_in_on_rebalance_ends_the_job_in_order_and_reaches_the_user(
    jobs, config, admin
):
    def fail(event: RebalanceEvent) -> None:
        if not event.is_initial:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with Job("a", config, on_rebalance=fail):
            starting = asyncio.ensure_future(jobs.start("b"))
            await asyncio.sleep(60)
    await starting
    assert await jobs.settled() == {"b": 120}
    assert (await (await admin.execute("SELECT array_agg(name) FROM sync_node")).fetchone()) == (
        ["b"],
    )


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
