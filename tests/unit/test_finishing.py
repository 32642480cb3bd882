"""Waiting for a statement's end although the caller was cancelled."""

from __future__ import annotations

import asyncio

import anyio

from jobsync_async.host.finishing import finish_first


async def test_a_cancelled_scope_waits_for_the_end_without_turning_the_event_loop_over_and_over():
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()

    async def statement() -> None:
        await asyncio.sleep(0.2)
        finished.set()

    called = 0
    original = loop.call_soon

    def call_soon(*args, **options):
        nonlocal called
        called += 1
        return original(*args, **options)

    loop.call_soon = call_soon  # type: ignore[method-assign]
    try:
        with anyio.move_on_after(0.01) as scope:
            await finish_first(statement())
    finally:
        loop.call_soon = original  # type: ignore[method-assign]
    assert scope.cancelled_caught
    assert finished.is_set()
    assert called < 100, f"the loop was woken {called} times while one statement was waited for"
