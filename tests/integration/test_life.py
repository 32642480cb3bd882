"""A job's life: calls in any order, from anywhere, and its end."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest

from jobsync_async import (
    Job,
    NodeNameTaken,
    NotOwner,
    OwnershipLost,
    RebalanceEvent,
    StoreUnavailable,
    UsageError,
)
from tests.waiting import until


async def names(admin) -> list[str]:
    return [
        name
        for (name,) in await (
            await admin.execute("SELECT name FROM sync_node ORDER BY joined")
        ).fetchall()
    ]


# -- starting and stopping in any order ------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 10, 30, 100])
async def test_after_a_stop_during_start_the_job_does_not_run_and_start_says_why(
    config, admin, steps
):
    job = Job("a", config)
    starting = asyncio.create_task(job.start())
    for _ in range(steps):
        await asyncio.sleep(0)
    await job.stop()
    assert repr(job) == "<Job 'a' stopped>" and not job.my_tokens
    with pytest.raises(UsageError, match=r"stop\(\) was called while the job was starting"):
        await starting
    assert await names(admin) == []
    async with job:
        assert await names(admin) == ["a"]


async def test_a_stop_while_start_waits_for_others_leaves_at_once(make_config, admin):
    job = Job("a", make_config(minimum_nodes=2))
    starting = asyncio.create_task(job.start())
    await until(lambda: job._engine._supervisor is not None)
    with anyio.fail_after(5):
        await asyncio.gather(job.stop(), job.stop())
    with pytest.raises(UsageError, match="while the job was starting"):
        await starting
    assert await names(admin) == []


async def test_a_stop_while_lock_provider_runs_cancels_it(config, admin):
    called = asyncio.Event()

    async def provide(job: Job) -> None:
        called.set()
        await asyncio.sleep(60)

    job = Job("a", config, lock_provider=provide)
    starting = asyncio.create_task(job.start())
    await called.wait()
    await job.stop()
    with pytest.raises(UsageError, match="while the job was starting"):
        await starting


async def test_cancelling_stop_hurries_it_and_it_still_ends(config, admin):
    job = Job("a", config)
    await job.start()
    ended = asyncio.Event()

    async def work() -> None:
        with pytest.raises(OwnershipLost):
            async with job.claim("x"):
                await asyncio.sleep(60)
        ended.set()

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(job.stop())
    await until(lambda: not job.my_tokens)
    stopping.cancel()
    with anyio.fail_after(5), pytest.raises(asyncio.CancelledError):
        await stopping
    await working
    assert ended.is_set() and repr(job) == "<Job 'a' stopped>" and await names(admin) == []


@pytest.mark.parametrize("clustered", [True, False], ids=["in a cluster", "standalone"])
async def test_stopping_a_job_that_does_not_run_does_nothing_and_it_starts_again(config, clustered):
    job = Job("a", config if clustered else None)
    await job.stop()
    seen = set()
    for _ in range(3):
        await job.start()
        assert job.owns("x") and job.am_i_healthy()
        seen.add(job._worker.identity.incarnation)
        await asyncio.gather(job.stop(), job.stop())
        await job.stop()
        with pytest.raises(UsageError, match="has stopped: start it again"):
            job.owns("x")
    assert len(seen) == 3


async def test_a_stop_ends_the_stay_of_wait_on_exit_when_it_is_cancelled(config, admin):
    job = Job("a", config, wait_on_exit=60)
    await job.start()
    stopping = asyncio.create_task(job.stop())
    await asyncio.sleep(0.05)
    assert job.owns("x"), "it stays"
    stopping.cancel()
    with anyio.fail_after(5), pytest.raises(asyncio.CancelledError):
        await stopping
    assert await names(admin) == []


async def test_a_job_that_runs_cannot_be_started_and_goes_on(config):
    async with Job("a", config, handle_signals=True) as job:
        with pytest.raises(UsageError, match="running already"):
            await job.start()
        with pytest.raises(UsageError, match="running already"):
            async with job:
                pytest.fail("entered twice")
        assert job.owns("x")


async def test_what_was_got_before_a_restart_stays_over(config):
    job = Job("a", config)
    await job.start()
    changes, scope, unused = job.token_changes(), job.claim("x"), job.claim("y")
    claim = await scope.__aenter__()
    await changes.__anext__()
    stopping = asyncio.create_task(job.stop())
    await until(lambda: not job.my_tokens)
    await scope.__aexit__(None, None, None)
    assert (await changes.__anext__()).revoked
    ending = asyncio.create_task(changes.__anext__())
    await stopping
    with pytest.raises(StopAsyncIteration):
        await ending
    await job.start()
    with pytest.raises(OwnershipLost):
        claim.check()
    with pytest.raises(StopAsyncIteration):
        await changes.__anext__()
    with pytest.raises(NotOwner):
        await unused.__aenter__()
    await job.stop()


async def test_a_name_that_another_worker_has_says_to_put_the_process_id_into_it(config):
    async with Job("web", config):
        with pytest.raises(NodeNameTaken, match="process id"):
            await Job("web", config).start()


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("clustered", [True, False], ids=["in a cluster", "standalone"])
async def test_on_end_is_called_once_when_a_job_was_stopped(config, admin, plain, clustered):
    told: list[object] = []

    async def on_end(failure: BaseException | None) -> None:
        told.append((failure, await names(admin), job.failure))
        await job.stop()  # does nothing

    job = Job("a", config if clustered else None, on_end=told.append if plain else on_end)
    async with job:
        assert told == []
    await job.stop()
    assert told == [None if plain else (None, [], None)]


async def test_on_end_is_called_with_what_ended_the_job_also_when_nobody_awaits_it(jobs, config):
    told: asyncio.Queue[BaseException | None] = asyncio.Queue()

    def on_rebalance(event: RebalanceEvent) -> None:
        if not event.is_initial:
            raise ZeroDivisionError

    job = Job("a", config, on_rebalance=on_rebalance, on_end=told.put)
    await job.start()
    assert job.failure is None
    starting = asyncio.create_task(jobs.start("b"))
    with anyio.fail_after(10):
        failure = await told.get()
    assert isinstance(failure, ZeroDivisionError) and job.failure is failure
    assert not job.am_i_healthy() and repr(job) == "<Job 'a' stopped>"
    await starting
    with pytest.raises(ZeroDivisionError):
        await job.stop()
    await job.stop()
    assert told.empty()


async def test_on_end_is_called_when_the_tasks_of_the_loop_are_cancelled(config):
    told = []
    job = Job("a", config, on_end=told.append)
    await job.start()
    job._engine._supervisor.cancel()
    await until(lambda: told)
    assert told == [job.failure] and isinstance(job.failure, UsageError)


async def test_an_error_in_on_end_is_logged(caplog):
    def fail(failure: BaseException | None) -> None:
        raise ZeroDivisionError

    async with Job("a", on_end=fail):
        pass
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "a: on_end raised" and record.exc_info[0] is ZeroDivisionError


async def test_on_end_may_start_the_job_again(jobs, config):
    failures = []

    def on_rebalance(event: RebalanceEvent) -> None:
        if event.revoked and not failures:
            raise ZeroDivisionError

    async def on_end(failure: BaseException | None) -> None:
        failures.append(failure)
        if failure is not None:
            await job.start()

    job = Job("a", config, on_rebalance=on_rebalance, on_end=on_end)
    await job.start()
    await jobs.start("b")
    await until(lambda: job.am_i_healthy() and len(job.my_tokens) == 60, 10)
    assert job.failure is None and len(failures) == 1
    await job.stop()
    assert failures[1] is None


async def test_a_start_that_fails_is_told_by_start_alone(make_config):
    told = []
    job = Job("a", make_config(dsn="host=127.0.0.1 port=1"), on_end=told.append)
    with pytest.raises(StoreUnavailable) as caught:
        await job.start()
    assert job.failure is caught.value and told == []
