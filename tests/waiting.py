"""Waiting in tests for what nothing tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Return when the condition holds; fail if that takes so long."""
    with anyio.fail_after(seconds):
        while not condition():
            await asyncio.sleep(0.005)
