"""Interrupting a task that may not listen: it is cancelled once, and, where it must end, again and
again with growing waits.

An anyio scope would cancel a body that swallows its cancellation at every turn of the event loop.
So the task is cancelled by `asyncio.Task.cancel`, with three rules of its own:

* What an anyio scope shields inside of the body is not cut off, a thread that is waited for least
  of all. The cancellation comes when the shield ends, at the very next await.
* A cancellation by somebody else that is under way already is not covered up by ours.
* In the end it is known whose cancellation came out of the body (`ours`). The message tells, and,
  from Python 3.11 on, the count of `Task.cancelling`, compared with what it was: an
  `asyncio.TaskGroup` of Python 3.11 and 3.12 may leave it raised.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

_FIRST_SEC, _MOST_SEC = 0.1, 5.0
_ANYIO = "anyio._backends._asyncio"


class Interruption:
    """The way to interrupt what a task does from here on, until `end`.

    Args:
        fresh: the task has just been made for this, so all that is under way in it is inside.

    Attributes:
        task: the task.
        count: how often it was cancelled by this.
    """

    def __init__(self, task: asyncio.Task[Any], *, fresh: bool = False) -> None:
        self.count: int = 0
        self.task = task
        self._loop = task.get_loop()
        self._outer = None if fresh else _scope_of(task)
        self._at_entry = self._before = 0 if fresh else _cancelling(task)
        self._due = self._looking = self._ended = False
        self._again_sec: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def _message(self) -> str:
        return f"jobsync_async ended what it was doing ({id(self):x})"

    def once(self, patience_sec: float | None = None) -> None:
        """Cancel the task, if that has not been done. Its cleanup may await what it likes, until
        the patience is over."""
        if patience_sec is not None and self._timer is None:
            self._timer = self._loop.call_later(patience_sec, self.begin)
        if not self.count:
            self._due = True
            self._check()

    def begin(self) -> None:
        """Cancel the task now, and again after growing waits until it ends. Calling it again does
        nothing."""
        if self._again_sec is None:
            self._again_sec = _FIRST_SEC
            self._due = True
            self._check()

    def end(self) -> None:
        """The body has ended; nothing is cancelled any more."""
        self._ended = True
        self._stop_timer()

    def ours(self, error: BaseException | None) -> bool:
        """Whether what came out of the body is our cancellation and nobody else's. What was counted
        of it is taken back. Once, after `end`, in the task itself."""
        left = self._before
        for _ in range(self.count):
            left = _uncancel(self.task)
        if not self.count or not isinstance(error, asyncio.CancelledError):
            return False
        if not _COUNTED:
            return self._message in error.args and not self._covers_another(error)
        if left > self._before:
            return False  # cancelled by somebody else after us
        # Raised before us: left so by a TaskGroup, or cancelled by somebody else, whose
        # cancellation the body was handling.
        return self._before <= self._at_entry or not self._covers_another(error)

    def _covers_another(self, error: BaseException) -> bool:
        before = error.__context__
        while before is not None:
            if isinstance(before, asyncio.CancelledError) and self._message not in before.args:
                return True
            before = before.__context__
        return False

    # -- when to cancel ----------------------------------------------------------------------------

    def _check(self, _: object = None) -> None:
        """Cancel the task if that is due and can be done now; else look again when the task has
        moved on."""
        self._looking = False
        if self._ended or not self._due or self.task.done():
            return
        cancelled = _cancelled_already(self.task)
        # Then it must not get lost in another one, which may be swallowed.
        only_once = self._again_sec is None
        if (
            asyncio.current_task(self._loop) is self.task
            or self._shielded()
            or (cancelled and only_once)
        ):
            self._check_later()
            return
        self._due = False
        if not cancelled:
            if not self.count:
                self._before = _cancelling(self.task)
            self.count += 1
            self.task.cancel(self._message)
        if self._again_sec is not None:
            self._stop_timer()
            self._timer = self._loop.call_later(self._again_sec, self._again)
            self._again_sec = min(2 * self._again_sec, _MOST_SEC)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        self._due = True
        self._check()

    def _check_later(self) -> None:
        """When the task has made its next step: what it waits for wakes the task first."""
        if self._looking:
            return
        self._looking = True
        waits_for = getattr(self.task, "_fut_waiter", None)
        if waits_for is None:
            self._loop.call_soon(self._check)
        else:
            waits_for.add_done_callback(self._check)

    def _shielded(self) -> bool:
        """Whether an anyio scope inside of the body shields it."""
        scope = _scope_of(self.task)
        while scope is not None and scope is not self._outer:
            if scope.shield:
                return True
            scope = getattr(scope, "_parent_scope", None)
        return False


async def give_way() -> None:
    """Let a cancellation come first that anyio scopes around have under way. It is level: it comes
    at the next await."""
    if _ANYIO in sys.modules:
        # only where somebody uses anyio
        from anyio.lowlevel import checkpoint_if_cancelled  # noqa: PLC0415

        await checkpoint_if_cancelled()


# What asyncio and anyio do not tell in public. Where they do not tell it at all, nothing is taken
# for shielded or cancelled.

_COUNTED = sys.version_info >= (3, 11)


def _cancelling(task: asyncio.Task[Any]) -> int:
    return task.cancelling() if _COUNTED else 0  # type: ignore[attr-defined]


def _uncancel(task: asyncio.Task[Any]) -> int:
    return task.uncancel() if _COUNTED else 0  # type: ignore[attr-defined]


def _cancelled_already(task: asyncio.Task[Any]) -> bool:
    """Whether a cancellation is on its way into the task."""
    waits_for = getattr(task, "_fut_waiter", None)
    return getattr(task, "_must_cancel", False) or (waits_for is not None and waits_for.cancelled())


def _scope_of(task: asyncio.Task[Any]) -> Any:
    """The innermost anyio scope that the task is in; None where there is none, or nobody has used
    anyio."""
    backend = sys.modules.get(_ANYIO)
    states = getattr(backend, "_task_states", {})
    return getattr(states.get(task), "cancel_scope", None)
