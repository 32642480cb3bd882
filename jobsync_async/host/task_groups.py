"""Task groups whose error reaches the caller as itself, not wrapped in a group of one."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup
else:
    from builtins import BaseExceptionGroup

__all__ = ["BaseExceptionGroup", "task_group"]


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """A task group; of several errors, the first one is raised."""
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as errors:  # unwrapped, and raised again
        first = _first(errors)
        raise first from first.__cause__


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
