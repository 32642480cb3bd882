"""The body of an ``async with Job``: whether it ended because the job interrupted it, or because
somebody else did."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest

from jobsync_async.runtime.body import Body

counted = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 does not count cancellations"
)


async def leave_a_count_behind() -> None:
    """What a TaskGroup that failed leaves behind on 3.11 and 3.12, on all Pythons: a request that
    is over."""
    task = asyncio.current_task()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    assert task.cancelling() == 1


async def fail_in_a_task_group() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(10)
    except BaseExceptionGroup:  # noqa: F821 - not on 3.10
        pass


async def wait() -> None:
    await asyncio.sleep(10)


async def wait_in_wait_for() -> None:
    await asyncio.wait_for(asyncio.sleep(10), 10)


async def wait_in_a_scope() -> None:
    with anyio.move_on_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(asyncio.sleep, 10)


async def ends(
    body: Body, run: Callable[[], Awaitable[None]], *happen: Callable[[asyncio.Task], object]
) -> bool:
    """Whether the body ended by the interruption alone, when these happen to it at one moment while
    it waits."""
    result: list[bool] = []
    inside = asyncio.Event()

    async def block() -> None:
        body.enter()
        try:
            inside.set()
            await run()
        except BaseException as error:
            result.append(body.leave(error))
        else:
            result.append(body.leave(None))

    task = asyncio.create_task(block())
    await inside.wait()
    await asyncio.sleep(0.02)
    for act in happen:
        act(task)
    await asyncio.wait([task])
    return result[0]


def cancel(task: asyncio.Task) -> None:
    task.cancel()


@pytest.mark.parametrize("run", [wait, wait_in_wait_for, wait_in_a_scope])
async def test_an_interruption_alone_is_ours(run):
    body = Body()
    assert await ends(body, run, lambda task: body.interrupt())


@counted
@pytest.mark.parametrize("before", [leave_a_count_behind, fail_in_a_task_group])
async def test_a_count_that_was_left_behind_changes_nothing(before):
    async def run() -> None:
        await before()
        await wait()

    body = Body()
    assert await ends(body, run, lambda task: body.interrupt())


@counted
@pytest.mark.parametrize("before", [None, leave_a_count_behind, fail_in_a_task_group])
@pytest.mark.parametrize("first", ["ours", "theirs"])
async def test_a_cancellation_by_somebody_else_at_the_same_moment_is_theirs(before, first):
    async def run() -> None:
        if before is not None:
            await before()
        await wait()

    body = Body()
    happen = [lambda task: body.interrupt(), cancel]
    assert not await ends(body, run, *(happen if first == "ours" else happen[::-1]))


@counted
async def test_an_interruption_while_the_body_cleans_up_after_a_cancellation_of_others_is_theirs():
    cleaning = asyncio.Event()
    body = Body()

    async def run() -> None:
        try:
            await wait()
        finally:
            cleaning.set()
            await asyncio.sleep(10)

    async def interrupt() -> None:
        await cleaning.wait()
        body.interrupt()

    interrupting = asyncio.create_task(interrupt())
    assert not await ends(body, run, cancel)
    await interrupting


@counted
async def test_nothing_of_an_interruption_is_left_on_the_task_also_when_the_body_swallowed_it():
    async def block() -> int:
        body = Body()
        body.enter()
        asyncio.get_running_loop().call_soon(body.interrupt)
        with suppress(asyncio.CancelledError):
            await wait()
        assert not body.leave(None)
        return asyncio.current_task().cancelling()

    assert await asyncio.create_task(block()) == 0
