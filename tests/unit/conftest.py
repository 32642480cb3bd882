"""The event loops on which a test of tasks and cancellation runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest


def plainly(main: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(main())


def with_eager_tasks(main: Callable[[], Awaitable[Any]]) -> None:
    if sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")

    async def eagerly() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await main()

    asyncio.run(eagerly())


def on_uvloop(main: Callable[[], Awaitable[Any]]) -> None:
    uvloop = pytest.importorskip("uvloop")
    anyio.run(main, backend_options={"loop_factory": uvloop.new_event_loop})


def inside_anyio_scopes(main: Callable[[], Awaitable[Any]]) -> None:
    async def scoped() -> None:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope(shield=True):
                group.start_soon(main)
                await anyio.lowlevel.checkpoint()

    anyio.run(scoped)


@pytest.fixture(params=[plainly, with_eager_tasks, on_uvloop, inside_anyio_scopes])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], None]:
    return request.param
