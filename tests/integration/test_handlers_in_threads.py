"""Handlers that are plain functions run in threads, and what a handler may be at all."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time

import anyio
import pytest
from anyio import from_thread

from jobsync_async import Job, UsageError
from tests.waiting import until

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_a_plain_function_runs_in_a_thread_and_may_ask_from_there(config):
    threads: set[str] = set()

    def handle(claim) -> None:
        threads.add(threading.current_thread().name)
        assert claim.valid
        assert claim.leaving is None
        claim.check()
        assert job.owns(claim.task_id)
        assert variable.get() == "the caller's"
        from_thread.run(asyncio.sleep, 0)
        if claim.task_id == 3:
            raise ValueError("as meant")

    async with Job("a", config) as job:
        variable.set("the caller's")
        result = await job.run_batch(range(60), handle, concurrency=60, attempts=2)
    assert result.completed_here == set(range(60)) - {3}
    assert result.failed == {3: "ValueError: as meant"}
    assert threading.current_thread().name not in threads


async def test_more_threads_run_at_once_than_anyio_lets_run_by_default():
    together = threading.Barrier(60, timeout=10)

    def handle(claim) -> None:
        together.wait()

    async with Job("a") as job:
        assert (
            len((await job.run_batch(range(60), handle, concurrency=60, attempts=1)).completed_here)
            == 60
        )


class AsyncCall:
    """A callable object."""

    def __init__(self) -> None:
        self.where: list[bool] = []

    async def __call__(self, claim) -> None:
        self.where.append(threading.current_thread() is threading.main_thread())


async def test_an_async_handler_is_known_through_whatever_is_around_it():
    where: list[bool] = []

    async def handle(more, claim) -> None:
        where.append(threading.current_thread() is threading.main_thread())

    class Holder:
        async def method(self, claim) -> None:
            await handle(None, claim)

    called = AsyncCall()
    handlers = [
        functools.partial(handle, None),
        functools.partial(functools.partial(called)),
        called,
        Holder().method,
        lambda claim: handle(None, claim),
        lambda claim: asyncio.wait_for(handle(None, claim), 1),
    ]
    async with Job("a") as job:
        for number, handler in enumerate(handlers):
            assert (await job.run_batch([number], handler)).completed_here == {number}
    assert where == [True] * 4
    assert called.where == [True] * 2


async def test_what_is_no_handler_is_refused_by_name():
    def generator(claim):
        yield

    async def asynchronous(claim):
        yield

    async with Job("a") as job:
        for handler in (None, "x", generator, asynchronous, functools.partial(generator)):
            for run in (job.run_batch, job.run_owned):
                with pytest.raises(
                    UsageError, match="the handler must be a function that takes a Claim"
                ):
                    await run(["x"], handler)


@pytest.mark.parametrize("how", ["native", "anyio", "every task"])
async def test_a_thread_is_never_given_up_however_its_runner_is_cancelled(how):
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def handle(claim) -> None:
        began.set()
        may_end.wait(10)
        ended.set()

    async with Job("a") as job:
        scope = anyio.CancelScope()

        async def work() -> None:
            with scope:
                await job.run_owned(["x"], handle)

        before = asyncio.all_tasks()
        task = asyncio.ensure_future(work())
        await until(began.is_set)
        if how == "anyio":
            scope.cancel()
        for one in {"native": {task}, "anyio": set(), "every task": asyncio.all_tasks() - before}[
            how
        ]:
            one.cancel()
        await asyncio.sleep(0.3)
        assert not task.done()
        assert job._worker.ownership._users, "the claim lasts as long as the thread"
        may_end.set()
        await asyncio.wait([task])
        assert ended.is_set()
        assert not job._worker.ownership._users


async def test_the_token_of_a_thread_is_handed_on_when_the_thread_has_returned(make_config):
    config = make_config(total_tokens=1, handoff_timeout_sec=0.2)
    at_work: list[str] = []
    may_end = threading.Event()
    seen: set[str | None] = set()

    def handler_of(name: str):
        def handle(claim) -> None:
            assert not at_work
            at_work.append(name)
            while claim.leaving is None and not may_end.is_set():
                time.sleep(0.01)
            seen.add(claim.leaving)
            may_end.wait(10)
            at_work.remove(name)

        return handle

    async with Job("a", config) as a:
        working = asyncio.ensure_future(a.run_owned(["x"], handler_of("a")))
        await until(lambda: at_work == ["a"])
        async with Job("b", config, wait_on_enter=20) as b:
            other = asyncio.ensure_future(b.run_owned(["x"], handler_of("b")))
            await a.register_lock("x", "b")
            await until(lambda: a.metrics.handoffs_overdue)
            assert not b.my_tokens
            assert seen == {"revoked"}
            may_end.set()
            await until(lambda: b.my_tokens)
            for task in (working, other):
                task.cancel()
            await asyncio.wait([working, other])
