"""How handlers are run: in tasks of their own, in threads, and what comes out of them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys

import anyio
import psycopg
import pytest

from jobsync_async import Job, OwnershipLost, UsageError
from tests.handling import await_what_somebody_cancels, nothing, owned_by
from tests.waiting import until

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


# -- a cancellation that is not ours


async def test_a_cancelled_error_out_of_a_handler_is_a_failure_of_its_task_alone(config, caplog):
    async def handle(claim) -> None:
        if claim.task_id == 3:
            await await_what_somebody_cancels()

    async with Job("a", config) as job:
        with anyio.fail_after(10):
            result = await job.run_batch(range(6), handle, concurrency=2, attempts=2)
    assert result.completed_here == {0, 1, 2, 4, 5}
    assert result.failed == {3: "CancelledError"}
    assert "the handler of task 3 raised in attempt 2 of 2" in caplog.text


async def test_a_cancelled_error_out_of_a_coroutine_ends_no_other(config, caplog):
    running: set[str] = set()
    starts: list[str] = []

    async def handle(claim) -> None:
        starts.append(claim.task_id)
        running.add(claim.task_id)
        try:
            if claim.task_id == "bad":
                await await_what_somebody_cancels()
            await anyio.sleep_forever()
        finally:
            running.discard(claim.task_id)

    async with Job("a", config) as job:
        owned = asyncio.ensure_future(job.run_owned(["good", "bad"], handle))
        await until(lambda: starts.count("bad") >= 3)
        await until(lambda: running == {"good"})
        assert starts.count("good") == 1
        assert "the handler of task 'bad' raised (2 in a row)" in caplog.text
        owned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await owned


@pytest.mark.parametrize("plain", [True, False])
async def test_a_cancelled_error_out_of_progress_is_an_error_and_no_end_in_order(plain):
    async def cancelled(progress) -> None:
        await await_what_somebody_cancels()

    def plainly(progress) -> None:
        raise asyncio.CancelledError

    async with Job("a") as job:
        with pytest.raises(
            UsageError, match="progress callback of run_batch raised CancelledError"
        ):
            await job.run_batch(
                ["x"], lambda claim: anyio.sleep(60), progress=plainly if plain else cancelled
            )


async def test_no_batch_returns_while_ids_are_open():
    """Somebody cancels every task that there is, but the one that runs the batch."""
    async with Job("a") as job:
        entered = asyncio.Event()

        async def hang(claim) -> None:
            entered.set()
            await anyio.sleep_forever()

        before = asyncio.all_tasks()
        batch = asyncio.ensure_future(job.run_batch(["x"], hang))
        await entered.wait()
        for task in asyncio.all_tasks() - before - {batch}:
            task.cancel()
        with (
            pytest.raises(UsageError, match="cut off while 1 of its tasks were not done"),
            anyio.fail_after(5),
        ):
            await batch


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup came with Python 3.11")
async def test_a_task_group_that_failed_before_changes_nothing(config):
    """On Python 3.11 and 3.12 it leaves the count of the task's cancellations raised."""

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError

    async def handle(claim) -> None:
        with pytest.raises(Exception, match="unhandled errors"):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        if claim.task_id == 3:
            await await_what_somebody_cancels()

    async with Job("a", config) as job:

        async def caller() -> None:
            with pytest.raises(Exception, match="unhandled errors"):
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
            result = await job.run_batch(range(5), handle, attempts=1)
            assert result.completed_here == {0, 1, 2, 4}
            assert result.failed == {3: "CancelledError"}
            with anyio.move_on_after(0.2):
                await job.run_owned(["x"], handle)

        await asyncio.ensure_future(caller())


async def test_each_call_sees_the_context_of_whoever_runs_them_and_no_other(config):
    seen: list[str] = []
    tasks: set[object] = set()

    async def handle(claim) -> None:
        seen.append(variable.get())
        variable.set(f"of {claim.task_id}")
        tasks.add(asyncio.current_task())
        if len(seen) == 1:
            raise ValueError("once more")

    async with Job("a", config) as job:
        variable.set("the caller's")
        await job.run_batch(range(5), handle, concurrency=1)
    assert seen == ["the caller's"] * 6
    assert len(tasks) == 6


async def test_whoever_cancels_the_runner_has_its_handlers_cancelled_once_and_waits_for_their_end(
    config, caplog
):
    ended: list[str] = []
    entered = asyncio.Event()

    async def handle(claim) -> None:
        entered.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.3)
            ended.append(f"{claim.leaving} {claim.valid}")
            raise ValueError("out of the cleanup")

    async with Job("a", config) as job:
        for run in (job.run_batch, job.run_owned):
            entered.clear()
            running = asyncio.ensure_future(run(["x"], handle))
            await entered.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    assert ended == ["stopping True"] * 2
    assert caplog.text.count("was cancelled (stopping), and raised while it ended") == 2


# -- errors of the user's that look like ours


@pytest.mark.parametrize("kind", ["entered", "raised", "another claim's"])
async def test_an_error_about_another_claim_is_the_handlers_failure(jobs, kind, caplog):
    a, b = await jobs.start("a", "b")
    await jobs.even()
    (mine,), (theirs,) = owned_by(a), owned_by(b)
    calls = 0

    async def handle(claim) -> None:
        nonlocal calls
        calls += 1
        if kind == "entered":
            async with a.claim(theirs):
                pass
        elif kind == "raised":
            raise OwnershipLost("by hand")
        else:
            async with b.claim(theirs) as other:
                pass
            other.check()

    with anyio.fail_after(10):
        result = await a.run_batch([mine], handle, attempts=2)
    assert calls == 2
    assert result.failed[mine].startswith("NotOwner: " if kind == "entered" else "OwnershipLost: ")
    calls = 0
    with anyio.move_on_after(1):
        await a.run_owned([mine], handle)
    assert 2 <= calls <= 4, "after growing waits"
    assert f"the handler of task {mine} raised (2 in a row)" in caplog.text


async def test_a_claim_that_the_tables_refuse_is_tried_again_after_growing_waits_with_a_word(
    config, admin, caplog
):
    caplog.set_level(logging.INFO)
    async with Job("a", config) as job:
        await admin.execute("UPDATE sync_token SET epoch = epoch + 1")
        with anyio.move_on_after(1.5):
            await job.run_batch(["x"], nothing)
        told = [record for record in caplog.records if "could not be kept" in record.message]
        assert 2 <= len(told) <= 5
        assert told[0].task_id == "x"


async def test_a_handler_whose_fence_is_refused_is_started_again_after_growing_waits(config, admin):
    calls = 0

    async def handle(claim) -> None:
        nonlocal calls
        calls += 1
        # where psycopg is cancelled while it connects, the server keeps the session for a while
        with anyio.CancelScope(shield=True):
            async with await psycopg.AsyncConnection.connect(config.dsn) as connection:
                await job.fence(connection, claim)

    async with Job("a", config) as job:
        await admin.execute("UPDATE sync_token SET epoch = epoch + 1")
        with anyio.move_on_after(1):
            await job.run_owned(["x"], handle)
    assert 2 <= calls <= 4


async def test_whatever_a_handlers_error_says_is_recorded_and_ends_nothing(config, admin):
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    errors = {
        "surrogate": OSError("caf\udce9"),
        "nul": ValueError("a\0b"),
        "long": ValueError("x" * 5_000_000),
        "mute": Mute(),
        "empty": ZeroDivisionError(),
    }

    async def handle(claim) -> None:
        if claim.task_id in errors:
            raise errors[claim.task_id]

    async with Job("a", config) as job:
        result = await job.run_batch([*errors, "good"], handle, attempts=1)
    assert result.completed_here == {"good"}
    stored = dict(
        await (
            await admin.execute("SELECT task_id, error FROM sync_claim WHERE error IS NOT NULL")
        ).fetchall()
    )
    assert stored == result.failed
    assert stored["surrogate"] == "OSError: caf\\udce9"
    assert stored["nul"] == "ValueError: a\\x00b"
    assert len(stored["long"]) < 4_100
    assert stored["long"].endswith("(shortened: it has 5,000,012 characters)")
    assert stored["mute"] == "Mute (what it says cannot be told: its __str__ raised RuntimeError)"
    assert stored["empty"] == "ZeroDivisionError"


# -- the job ends


async def test_what_runs_on_a_job_that_fails_raises_the_reason(make_config):
    config = make_config(total_tokens=120, handoff_timeout_sec=0.3)
    hanging = asyncio.Event()

    async def hang(claim) -> None:
        hanging.set()
        await anyio.sleep_forever()

    def on_rebalance(event) -> None:
        if not event.is_initial:
            raise ZeroDivisionError("as meant")

    for name in ("run_batch", "run_owned"):
        hanging.clear()
        job = Job("a", config, on_rebalance=on_rebalance)
        await job.start()
        running = asyncio.ensure_future(getattr(job, name)(["x"], hang))
        await hanging.wait()
        async with Job("b", config, weight=5):
            with (
                pytest.raises(
                    UsageError, match="what ended it: ZeroDivisionError: as meant"
                ) as caught,
                anyio.fail_after(10),
            ):
                await running
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            await job.stop()
