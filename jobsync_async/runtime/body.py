"""The task that runs the body of an ``async with Job``: it is interrupted when the job cannot go
on.

It is cancelled as `asyncio.timeout` does it, not by a cancel scope. Test fixtures and framework
lifespans enter the block in one task and leave it in another, and no scope could bear that.
"""

from __future__ import annotations

import asyncio

from jobsync_async.host.interruption import Interruption


class Body:
    """The body and its task: `enter` and `leave` frame it; `interrupt` and `insist` may come at any
    time."""

    def __init__(self) -> None:
        self._interruption: Interruption | None = None

    @property
    def running(self) -> bool:
        """Whether it has begun and not yet ended."""
        return self._interruption is not None

    def enter(self) -> None:
        """The current task begins the body."""
        task = asyncio.current_task()
        self._interruption = None if task is None else Interruption(task)

    def interrupt(self) -> None:
        """Cancel the body, if one is running and that has not been done."""
        if self._interruption is not None:
            self._interruption.once()

    def insist(self) -> None:
        """Cancel the body, and again after growing waits if it goes on."""
        if self._interruption is not None:
            self._interruption.begin()

    def leave(self, error: BaseException | None) -> bool:
        """The body has ended with `error`. True when that is the cancellation that was asked for
        here, and nobody else's."""
        interruption, self._interruption = self._interruption, None
        if interruption is None:
            return False
        interruption.end()
        return interruption.ours(error)
