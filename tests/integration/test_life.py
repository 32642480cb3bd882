"""A job's life: calls in any order, from anywhere, and its end."""

from __future__ import annotations

import asyncio
import logging
import re
import threading

import anyio
import pytest

from jobsync_async import Job, NodeNameTaken, NotOwner, OwnershipLost, RebalanceEvent, StoreUnavailable, UsageError


async def names(admin) -> list[str]:
    return [name for (name,) in await (await admin.execute("SELECT name FROM sync_node ORDER BY joined")).fetchall()]


async def until(condition, seconds: float = 5) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await asyncio.sleep(0.005)


# -- starting and stopping in any order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 10, 30, 100])
async def test_after_a_stop_during_start_the_job_does_not_run_and_start_says_why(config, admin, steps):
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
    changes, scope = job.token_changes(), job.claim("x")
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
    with pytest.raises(UsageError):
        await scope.__aenter__()
    await job.stop()


async def test_a_name_that_another_worker_has_says_to_put_the_process_id_into_it(config):
    async with Job("web", config):
        with pytest.raises(NodeNameTaken, match="process id"):
            await Job("web", config).start()


# -- who is waited for cannot wait ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["stop", "drain"])
async def test_stop_and_drain_out_of_on_rebalance_are_refused_and_end_the_job_in_order(jobs, config, admin, what):
    async def on_rebalance(event: RebalanceEvent) -> None:
        if not event.is_initial:
            await getattr(job, what)()

    job = Job("a", config, on_rebalance=on_rebalance)
    await job.start()
    with anyio.fail_after(5):
        await jobs.start("b")
        await until(lambda: jobs.counts() == {"b": 120})
        with pytest.raises(UsageError, match=rf"{what}\(\) was called in on_rebalance.*create_task\(job\.{what}"):
            await job.stop()


async def test_stop_out_of_the_first_on_rebalance_or_lock_provider_is_refused(config, admin):
    async def call(*args: object) -> None:
        await job.stop()

    for options, where in [({"on_rebalance": call}, "on_rebalance"), ({"lock_provider": call}, "lock_provider")]:
        job = Job("a", config, **options)
        with anyio.fail_after(5), pytest.raises(UsageError, match=rf"stop\(\) was called in {where}"):
            await job.start()
        assert await names(admin) == []


async def test_stop_and_drain_in_a_claim_are_refused_and_the_work_goes_on(config):
    async with Job("a", config) as job:
        async with job.claim("x") as claim:
            for call in (job.stop, job.drain):
                with anyio.fail_after(1), pytest.raises(UsageError, match="was called in the work on task 'x'"):
                    await call()
            assert claim.valid and job.owns("y")
        await job.drain()
        assert not job.my_tokens


@pytest.mark.parametrize("what", ["stop", "drain"])
async def test_stop_and_drain_in_a_handler_are_refused(config, what):
    async with Job("a", config) as job:
        refused: list[str] = []

        async def handle(claim) -> None:
            with pytest.raises(UsageError, match=rf"{what}\(\) was called in the work on task 'x'") as caught:
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


async def test_a_drain_by_the_reader_of_changes_is_refused_and_a_stop_closes_the_reader(config, admin):
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
        seen.append((len(job.my_tokens), job.owns("x"), job.filter_owned(["x"]), (await job.owner_of("x")).node))

    job = Job("a", config, on_rebalance=on_rebalance)
    async with job:
        assert seen == [(120, True, ["x"], "a")]


# -- a cancellation that is not ours --------------------------------------------------------------------------------------


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
async def test_a_cancelled_error_out_of_a_callback_is_a_failure_of_start(config, admin, callback, where, clustered):
    job = Job("a", config if clustered else None, **{where: callback})
    with anyio.fail_after(5), pytest.raises(UsageError, match=f"{where} raised CancelledError") as caught:
        await job.start()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert job.failure is caught.value
    assert await names(admin) == []


async def test_a_cancelled_error_out_of_a_later_on_rebalance_makes_the_job_leave_and_raise(jobs, config, admin):
    async def on_rebalance(event: RebalanceEvent) -> None:
        if event.revoked:
            await cancel_a_task_and_await_it()

    with anyio.fail_after(10), pytest.raises(UsageError, match="on_rebalance raised CancelledError"):
        async with Job("a", config, on_rebalance=on_rebalance):
            joining = asyncio.create_task(jobs.start("b"))
            await asyncio.sleep(60)
    await joining
    assert await jobs.settled() == {"b": 120}


async def test_whoever_cancels_all_tasks_ends_the_job_and_stop_says_so(config):
    job = Job("a", config)
    await job.start()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
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
            await until(lambda: not job._worker.streams or all(not stream.at_work for stream in job._worker.streams))
            assert await job.owner_of("y") is None
            assert (await job.owner_of("x")).epoch == epoch, "it is still worked on"
        await job.drain()
        assert await job.owner_of("x") is None
        await job.undrain()
        assert len(job.my_tokens) == 10_000 and (await job.owner_of("x")).epoch > epoch
        await until(lambda: len(events) == 3)
    assert [(len(event.assigned), len(event.revoked)) for event in events[:3]] == [(10_000, 0), (0, 10_000), (10_000, 0)]


# -- the end --------------------------------------------------------------------------------------------------------------


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


# -- the name before it is bound ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clustered", [True, False], ids=["in a cluster", "standalone"])
async def test_on_rebalance_that_uses_the_name_before_it_is_bound_is_told_what_to_write(config, admin, clustered):
    seen = []

    def on_rebalance() -> None:
        seen.append(len(job.my_tokens))

    with pytest.raises(UsageError, match=r"write `job = Job\(…\)` first, and then `async with job:`"):
        async with Job("worker-01", config if clustered else None, on_rebalance=on_rebalance) as job:
            pytest.fail("entered")
    job = Job("worker-01", config if clustered else None, on_rebalance=on_rebalance)
    async with job:
        assert seen == [120 if clustered else 10_000]
    assert await names(admin) == []


# -- from elsewhere -------------------------------------------------------------------------------------------------------


def in_a_thread(function) -> list[BaseException]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except Exception as error:  # whatever it is: the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return raised


@pytest.mark.parametrize("clustered", [True, False], ids=["in a cluster", "standalone"])
async def test_calls_from_another_event_loop_are_refused_at_once_and_name_both(config, clustered):
    async with Job("a", config if clustered else None) as job:
        changes, scope = job.token_changes(), job.claim("x")
        async with job.claim("y") as claim:
            here = repr(asyncio.get_running_loop())
            calls = [
                job.stop,
                job.drain,
                job.undrain,
                changes.__anext__,
                scope.__aenter__,
                job.write_audit,
                job.list_locks,
                job.get_active_nodes,
                job.get_coordination_status,
                lambda: job.owner_of("x"),
                lambda: job.add_task("x"),
                lambda: job.fence(None, claim),
                lambda: job.run_batch(["x"], print),
                lambda: job.run_owned(["x"], print),
                lambda: asyncio.sleep(0, job.claim("x")),
                lambda: asyncio.sleep(0, job.token_changes()),
            ]
            for call in calls:

                async def main(call=call) -> None:
                    await call()

                (error,) = in_a_thread(lambda main=main: asyncio.run(main()))
                assert isinstance(error, UsageError), (call, error)
                assert here in str(error) and len(re.findall("<_.*?EventLoop|<uvloop", str(error))) == 2, error
        for call in (lambda: job.claim("x"), job.token_changes):
            (error,) = in_a_thread(call)
            assert isinstance(error, UsageError) and "run_coroutine_threadsafe" in str(error)
        assert job.owns("x")


async def test_a_thread_may_call_through_the_loop(config):
    async with Job("a", config) as job:
        loop = asyncio.get_running_loop()

        def call() -> str:
            return asyncio.run_coroutine_threadsafe(job.owner_of("x"), loop).result(5).node

        assert await asyncio.to_thread(call) == "a"
        assert await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(job.owner_of, "x").node) == "a"


def test_a_job_whose_event_loop_was_closed_can_be_started_on_another():
    job = Job("a")

    async def start() -> None:
        await job.start()
        assert job.owns("x")

    asyncio.run(start())
    asyncio.run(start())

    async def use() -> None:
        async with job:
            assert job.owns("x")

    asyncio.run(use())
    assert repr(job) == "<Job 'a' stopped>"
