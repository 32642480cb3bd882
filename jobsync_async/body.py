"""The task that runs the body of an ``async with Job``: it is interrupted when the job cannot go on.

It is cancelled as `asyncio.timeout` does it, not by a cancel scope, which could not be entered in one task and left in another,
as test fixtures and framework lifespans do.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Body:
    """The body and its task: `enter` and `leave` frame it; `interrupt` may come at any time."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._interrupted = False

    def enter(self) -> None:
        """The current task begins the body."""
        self._task = asyncio.current_task()

    def interrupt(self) -> None:
        """Cancel the body, if one is running."""
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def leave(self, error: BaseException | None) -> bool:
        """The body has ended with `error`. True when that is the cancellation that `interrupt` asked for, and nobody else."""
        task, self._task = self._task, None
        if not self._interrupted or not isinstance(error, asyncio.CancelledError):
            return False
        # Python 3.10 does not count cancellations.
        return task is None or not hasattr(task, "uncancel") or task.uncancel() == 0
