"""The user's callbacks: plain or asynchronous, with or without arguments."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from jobsync_async.errors import UsageError
from jobsync_async.host.waiting import end
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import RebalanceEvent, TokenChange
from jobsync_async.work.streams import TokenChanges

Callback = Callable[..., Awaitable[object] | object]


async def call(callback: Callback, *args: Any) -> Any:
    """Call it, and await what it returns if that can be awaited. A plain function runs on the event
    loop: keep it short."""
    result = callback(*args)
    return await result if inspect.isawaitable(result) else result


class RebalanceCallback:
    """Calls ``on_rebalance`` for every change, one at a time; a token is handed on when the call
    that told of it has returned.

    The calls are made in a task of their own, from `begin` to `end`.

    Args:
        fail: called with the error if a call raises; then there are no more.

    Attributes:
        begun: the first call has returned, or failed.
        over: there are no calls any more.
    """

    def __init__(
        self, worker: Worker, callback: Callback, fail: Callable[[Exception], object]
    ) -> None:
        self._worker = worker
        self._callback = callback
        self._fail = fail
        self._takes_event = _takes_argument(callback)
        self._task: asyncio.Task[None] | None = None
        self.begun = self.over = False
        self._ending = False

    def begin(self) -> None:
        """Tell of what is owned, and then of every change."""
        self._task = asyncio.create_task(
            self._run(), name=f"jobsync_async {self._worker.identity.name} on_rebalance"
        )

    async def end(self) -> None:
        """Cancel the call under way, and make no more."""
        self._ending = True
        if self._task is not None:
            await end([self._task])

    async def _run(self) -> None:
        try:
            async with TokenChanges(self._worker, is_callback=True) as changes:
                async for change in changes:
                    await self._tell(change)
                    self.begun = True
                    if change.is_initial:
                        self._worker.wake_waiters()
        except Exception as error:  # the user's, whatever it is: the job ends with it
            self._fail(error)
        finally:
            self.begun = self.over = True
            self._worker.wake_waiters()

    async def _tell(self, change: TokenChange) -> None:
        event = RebalanceEvent(
            is_initial=change.is_initial,
            token_version=change.version,
            tokens_added=len(change.assigned),
            tokens_removed=len(change.revoked) + len(change.lost),
            assigned=change.assigned,
            revoked=change.revoked,
            lost=change.lost,
        )
        try:
            await call(self._callback, *([event] if self._takes_event else []))
        except asyncio.CancelledError as error:
            if self._ending:
                raise
            raise not_our_cancellation("on_rebalance") from error
        except NameError as error:
            if self.begun:
                raise
            raise UsageError(
                f"on_rebalance raised NameError: {error}. Its first call is made while the job "
                "starts, before `async with Job(…) as job` binds its name: write `job = Job(…)` "
                "first, and then `async with job:`"
            ) from error


def not_our_cancellation(callback: str) -> UsageError:
    """What to raise in place of a CancelledError that came out of a callback which nobody had
    cancelled: raised as it is, it would be taken for the cancellation of whoever waits for the
    job."""
    return UsageError(
        f"{callback} raised CancelledError, though nobody had cancelled it: it awaited a task that "
        "was cancelled, perhaps by itself. Wait for such a task by `asyncio.wait`, or catch the "
        "CancelledError"
    )


def _takes_argument(callback: Callback) -> bool:
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):  # some callables written in C tell nothing
        return True
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return any(parameter.kind in positional for parameter in parameters)
