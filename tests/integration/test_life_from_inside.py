"""Stopping, draining and failing out of what the job itself calls: callbacks, handlers, claims and
readers."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from jobsync_async import Job, NotOwner, RebalanceEvent, UsageError
from tests.integration.test_life import names
from tests.waiting import until

# -- who is waited for cannot wait -----------------------------------------------------------------


@pytest.mark.parametrize("what", ["stop", "drain"])
async def test_stop_and_drain_out_of_on_rebalance_are_refused_and_end_the_job_in_order(
    jobs, config, admin, what
):
    async def on_rebalance(event: RebalanceEvent) -> None:
        if not event.is_initial:
            await getattr(job, what)()

    job = Job("a", config, on_rebalance=on_rebalance)
    await job.start()
    with anyio.fail_after(5):
        await jobs.start("b")
        await until(lambda: jobs.counts() == {"b": 120})
        with pytest.raises(
            UsageError, match=rf"{what}\(\) was called in on_rebalance.*create_task\(job\.{what}"
        ):
            await job.stop()


async def test_stop_out_of_the_first_on_rebalance_or_lock_provider_is_refused(config, admin):
    async def call(*args: object) -> None:
        await job.stop()

    for options, where in [
        ({"on_rebalance": call}, "on_rebalance"),
        ({"lock_provider": call}, "lock_provider"),
    ]:
        job = Job("a", config, **options)
        with (
            anyio.fail_after(5),
            pytest.raises(UsageError, match=rf"stop\(\) was called in {where}"),
        ):
            await job.start()
        assert await names(admin) == []


async def test_stop_and_drain_in_a_claim_are_refused_and_the_work_goes_on(config):
    async with Job("a", config) as job:
        async with job.claim("x") as claim:
            for call in (job.stop, job.drain):
                with (
                    anyio.fail_after(1),
                    pytest.raises(UsageError, match="was called in the work on task 'x'"),
                ):
                    await call()
            assert claim.valid and job.owns("y")
        await job.drain()
        assert not job.my_tokens


@pytest.mark.parametrize("what", ["stop", "drain"])
async def test_stop_and_drain_in_a_handler_are_refused(config, what):
    async with Job("a", config) as job:
        refused: list[str] = []

        async def handle(claim) -> None:
            with pytest.raises(
                UsageError, match=rf"{what}\(\) was called in the work on task 'x'"
            ) as caught:
                await getattr(job, what)()
            refused.append(str(caught.value))

        with anyio.fail_after(5):
            assert (await job.run_batch(["x"], handle)).completed_here == {"x"}
            owning = asyncio.create_task(job.run_owned(["x"], handle))
            await until(lambda: len(refused) == 2)
            owning.cancel()
            await asyncio.wait([owning])
        assert job.owns("x")


async def test_stop_in_a_task_of_its_own_may_come_from_anywhere(config, admin):
    stopping: list[asyncio.Task[None]] = []

    def on_rebalance(event: RebalanceEvent) -> None:
        if not event.is_initial and not stopping:
            stopping.append(asyncio.create_task(job.stop()))

    job = Job("a", config, on_rebalance=on_rebalance)
    await job.start()
    async with job.claim("x"):
        pass
    async with Job("b", config) as other:
        await until(lambda: len(other.my_tokens) == 120)
        await stopping[0]


async def test_a_drain_by_the_reader_of_changes_is_refused_and_a_stop_closes_the_reader(
    config, admin
):
    job = Job("a", config)
    await job.start()
    with anyio.fail_after(5):
        async for change in job.token_changes():
            with pytest.raises(UsageError, match=r"a task that reads token_changes\(\)"):
                await job.drain()
            assert change.is_initial
            await job.stop()
    assert await names(admin) == []


async def test_a_drain_that_undrain_calls_off_says_so(jobs):
    a, b = await jobs.start("a", "b")
    task = next(n for n in range(1000) if a.owns(n))
    async with a.claim(task):
        draining = asyncio.create_task(a.drain())
        await until(lambda: not a.my_tokens)
        await a.undrain()
        with anyio.fail_after(5), pytest.raises(UsageError, match="called off"):
            await draining
    await jobs.even()


async def test_a_job_that_leaves_takes_no_tokens(config):
    job = Job("a", config)
    await job.start()
    async with job.claim("x"):
        stopping = asyncio.create_task(job.stop())
        await until(lambda: not job.my_tokens)
        with pytest.raises(UsageError, match="is leaving"):
            await job.undrain()
    await stopping


async def test_the_first_on_rebalance_may_ask_what_is_owned_and_call_the_cluster(config):
    seen = []

    async def on_rebalance(event: RebalanceEvent) -> None:
        seen.append(
            (
                len(job.my_tokens),
                job.owns("x"),
                job.filter_owned(["x"]),
                (await job.owner_of("x")).node,
            )
        )

    job = Job("a", config, on_rebalance=on_rebalance)
    async with job:
        assert seen == [(120, True, ["x"], "a")]


# -- a cancellation that is not ours ---------------------------------------------------------------


async def cancel_a_task_and_await_it(*args: object) -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def raise_it(*args: object) -> None:
    raise asyncio.CancelledError


def raise_it_plainly(*args: object) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("callback", [cancel_a_task_and_await_it, raise_it, raise_it_plainly])
@pytest.mark.parametrize("where", ["on_rebalance", "lock_provider"])
@pytest.mark.parametrize("clustered", [True, False], ids=["in a cluster", "standalone"])
async def test_a_cancelled_error_out_of_a_callback_is_a_failure_of_start(
    config, admin, callback, where, clustered
):
    job = Job("a", config if clustered else None, **{where: callback})
    with (
        anyio.fail_after(5),
        pytest.raises(UsageError, match=f"{where} raised CancelledError") as caught,
    ):
        await job.start()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert job.failure is caught.value
    assert await names(admin) == []


async def test_a_cancelled_error_out_of_a_later_on_rebalance_makes_the_job_leave_and_raise(
    jobs, config, admin
):
    async def on_rebalance(event: RebalanceEvent) -> None:
        if event.revoked:
            await cancel_a_task_and_await_it()

    with (
        anyio.fail_after(10),
        pytest.raises(UsageError, match="on_rebalance raised CancelledError"),
    ):
        async with Job("a", config, on_rebalance=on_rebalance):
            joining = asyncio.create_task(jobs.start("b"))
            await asyncio.sleep(60)
    await joining
    assert await jobs.settled() == {"b": 120}


@pytest.mark.parametrize("first", [(), ("Coordinator.ended", "Life._live"), ("Life._live",)])
async def test_whoever_cancels_all_tasks_ends_the_job_and_stop_says_so(config, first):
    """In whatever order."""
    job = Job("a", config)
    await job.start()
    every = asyncio.all_tasks() - {asyncio.current_task()}
    leading = {task.get_coro().__qualname__: task for task in every}
    for task in [leading[name] for name in first] + list(every):
        task.cancel()
    with anyio.fail_after(5), pytest.raises(UsageError, match="somebody cancelled all tasks"):
        await job.stop()
    assert "all tasks" in str(job.failure)


async def test_on_rebalance_is_told_of_the_end_and_may_let_go_in_order_also_standalone(config):
    for clustered in (config, None):
        seen = []

        async def on_rebalance(event: RebalanceEvent, seen=seen) -> None:
            await asyncio.sleep(0.05)
            seen.append((len(event.assigned), len(event.revoked | event.lost)))

        async with Job("a", clustered, on_rebalance=on_rebalance) as job:
            everything = len(job.my_tokens)
        assert seen == [(everything, 0), (0, everything)]


async def test_standalone_a_drain_takes_all_tokens_and_undrain_gives_them_back():
    events: list[RebalanceEvent] = []
    async with Job("a", on_rebalance=events.append) as job:
        epoch = (await job.owner_of("x")).epoch
        async with job.claim("x") as claim:
            await job.drain()
            assert claim.valid and not job.my_tokens and not job.owns("x") and not job.owns("y")
            with pytest.raises(NotOwner):
                async with job.claim("y"):
                    pytest.fail("entered")
            await until(lambda: len(events) == 2)
            await until(
                lambda: (
                    not job._worker.streams
                    or all(not stream.at_work for stream in job._worker.streams)
                )
            )
            assert await job.owner_of("y") is None
            assert (await job.owner_of("x")).epoch == epoch, "it is still worked on"
        await job.drain()
        assert await job.owner_of("x") is None
        await job.undrain()
        assert len(job.my_tokens) == 10_000 and (await job.owner_of("x")).epoch > epoch
        await until(lambda: len(events) == 3)
    assert [(len(event.assigned), len(event.revoked)) for event in events[:3]] == [
        (10_000, 0),
        (0, 10_000),
        (10_000, 0),
    ]
