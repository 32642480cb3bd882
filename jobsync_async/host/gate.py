"""Letting several run beside each other, or one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Who may run: several beside each other, or one alone. Whoever comes first is first."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def beside_others(self) -> AsyncIterator[None]:
        """With others that do not have to be alone."""
        async with self._door:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """When all others have left; those that come meanwhile wait."""
        async with self._door:
            await self._empty.wait()
            yield
