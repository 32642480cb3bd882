"""Handlers and other work for tests."""

from __future__ import annotations

import asyncio
import time

from jobsync_async import Job


async def nothing(claim) -> None:
    """A handler that does nothing."""


async def await_what_somebody_cancels() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


def block(seconds: float) -> None:
    """Hold up the event loop."""
    time.sleep(seconds)


def owned_by(job: Job, count: int = 1) -> list[int]:
    return [i for i in range(10_000) if job.owns(i)][:count]


def lose(job: Job) -> None:
    """All tokens are lost, as when the lease ends."""
    worker = job._worker
    worker.publish(worker.ownership.forget(), why="lost by the test")
