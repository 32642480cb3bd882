"""Waiting and ending tasks with asyncio alone, for what every worker does all the time.

anyio, which claims, batches and owned coroutines use, takes more than a megabyte: a worker that
uses none of them is spared it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

_AGAIN_SEC = 1.0


async def signalled(event: asyncio.Event, most_sec: float) -> None:
    """Wait for `event` for so long at most, then clear it. The time's end sets it, too: one task
    alone may wait for it."""
    timer = None
    if most_sec < float("inf"):
        timer = asyncio.get_running_loop().call_later(max(0.0, most_sec), event.set)
    try:
        await event.wait()
    finally:
        if timer is not None:
            timer.cancel()
    event.clear()


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait for a task's end, however it comes, and leave its outcome alone."""
    await asyncio.wait([task])


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end, whatever cancels the caller meanwhile. One that goes on
    is cancelled again."""
    cancelled = False
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=_AGAIN_SEC)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
