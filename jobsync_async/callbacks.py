"""The user's callbacks: plain or asynchronous, with or without arguments."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from jobsync_async.streams import TokenChanges
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import RebalanceEvent, TokenChange

Callback = Callable[..., Awaitable[object] | object]


async def call(callback: Callback, *args: Any) -> Any:
    """Call it, and await what it returns if that can be awaited. A plain function runs on the event loop: keep it short."""
    result = callback(*args)
    return await result if inspect.isawaitable(result) else result


class RebalanceCallback:
    """Calls ``on_rebalance`` for every change, one at a time; a token is handed on when the call that told of it has returned.

    The first call is made by `first`, the others by `run`, which is a task.
    """

    def __init__(self, worker: Worker, callback: Callback) -> None:
        self._worker = worker
        self._callback = callback
        self._takes_event = _takes_argument(callback)
        self._changes: TokenChanges | None = None

    async def first(self) -> None:
        """Tell of what is owned at the start."""
        self._changes = TokenChanges(self._worker)
        try:
            await self._tell(await self._changes.__anext__())
        except BaseException:  # cleaned up, and raised again
            self._changes.close()  # nothing waits for a callback that failed
            raise

    async def run(self) -> None:
        """Tell of every change from then on, until the worker ends."""
        assert self._changes is not None, "first() comes first"
        async with self._changes as changes:
            async for change in changes:
                await self._tell(change)

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
        await call(self._callback, *([event] if self._takes_event else []))


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
