"""Waiting for so long at most, and tasks that end however often they must be told."""

from __future__ import annotations

import asyncio

import pytest

from jobsync_async.host.waiting import end, signalled


async def test_an_event_that_is_set_ends_the_wait_and_is_cleared():
    event = asyncio.Event()
    event.set()
    await signalled(event, 60)
    assert not event.is_set()


async def test_without_an_event_the_wait_ends_in_time():
    event = asyncio.Event()
    await signalled(event, 0.01)
    await signalled(event, -1)
    assert not event.is_set()


async def test_a_wait_that_is_cancelled_leaves_no_timer_behind():
    event = asyncio.Event()
    waiting = asyncio.ensure_future(signalled(event, 0.02))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0.04)
    assert not event.is_set()


async def test_a_task_that_goes_on_is_cancelled_again(monkeypatch):
    monkeypatch.setattr("jobsync_async.host.waiting._AGAIN_SEC", 0.01)
    cancelled = 0

    async def stubborn() -> None:
        nonlocal cancelled
        while cancelled < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1

    task = asyncio.ensure_future(stubborn())
    await asyncio.sleep(0)
    await end([task])
    assert task.done() and cancelled == 3


async def test_a_caller_that_is_cancelled_waits_for_the_tasks_and_is_cancelled_then():
    ended = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await ended.wait()

    task = asyncio.ensure_future(slow_to_end())
    await asyncio.sleep(0)
    ending = asyncio.ensure_future(end([task]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.sleep(0)
    assert not ending.done()
    ended.set()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert task.done()
