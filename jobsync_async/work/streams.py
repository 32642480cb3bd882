"""Streams of ownership changes.

A reader belongs to the task that asked it for its last item. When that task has ended, nobody comes
back to say that the work is done: the reader holds nothing any more, whoever still refers to it. (A
traceback does, and keeps it from being collected.) Only a task that ended by handing its item on
says nothing: then whoever has the item is at work on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import ref

from jobsync_async.errors import UsageError
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import TokenChange

if TYPE_CHECKING:
    from typing_extensions import Self


class TokenChanges:
    """An asynchronous iterator of `TokenChange`, made by `Job.token_changes`.

    Asking for the next item says that you are done with what the last one revoked: only then is it
    handed on. Changes are not queued: a slow reader gets one that merges them all. The iteration
    ends when the job stops. A reader holds nothing up any more when it is dropped, when its
    ``async with`` ends, or when the task that last asked has ended. The same is so when that task
    is stopping the job itself, as a body that raises or is cancelled does. Several tasks may ask in
    turn. A helper task that asks for you must return the item itself.

    Raises:
        UsageError: when the next item is asked for by a second task while one waits for it, or on
            another event loop.
    """

    def __init__(self, worker: Worker, *, is_callback: bool = False) -> None:
        self._worker = worker
        self._reader = worker.ownership.reader()
        self._closed = False
        self._waiting = False
        self.asked_by: asyncio.Task[Any] | None = None
        self.is_callback = is_callback
        self._last: TokenChange | None = None
        self._on_end = _OnEnd(self)
        worker.streams.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "waiting" if self._waiting else "open"
        return f"<TokenChanges of {self._worker.identity.name!r} {state}>"

    @property
    def purpose(self) -> str:
        """What it is, for people."""
        return "on_rebalance" if self.is_callback else "a task that reads token_changes()"

    @property
    def at_work(self) -> bool:
        """Whether an item of it is being dealt with."""
        return self.asked_by is not None and not self._waiting

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, TokenChange]:
        # Not an async function: `asyncio.wait_for` and others run what this returns in another task
        # than the one that asks.
        return self._next(asyncio.current_task())

    async def _next(self, asker: asyncio.Task[Any] | None) -> TokenChange:
        worker = self._worker
        worker.home.require()
        if self._closed:
            raise StopAsyncIteration
        if self._waiting:
            raise UsageError(
                "two tasks ask one token_changes() for its next item; give each its own"
            )
        if self._reader.come_back():
            worker.user_left()
        self._waiting = True
        self._belongs_to(asker)
        try:
            while not self._closed:
                worker.check_lease()  # what is told of from here on is so at this moment
                if self._reader.started or worker.ownership.known:
                    change = self._reader.next_change()
                    if change is not None:
                        if asker is None or asker.done():
                            self._belongs_to(asyncio.current_task())
                        self._last = change
                        return change
                if worker.ended:
                    break
                await worker.changed()
        finally:
            self._waiting = False
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _belongs_to(self, task: asyncio.Task[Any] | None) -> None:
        self._last = None
        if self.asked_by is not None:
            self.asked_by.remove_done_callback(self._on_end)
        self.asked_by = task
        if task is not None:
            task.add_done_callback(self._on_end)
        self._worker.ownership.readmit(self._reader)

    def asker_ended(self, task: asyncio.Task[Any]) -> None:
        """The task that asked has ended. Another may go on to read: what went meanwhile, it is told
        of."""
        self.asked_by = None
        # Not `task.exception()`: after that asyncio would not report an error that nobody else
        # looks at.
        raised = task.cancelled() or getattr(task, "_exception", None) is not None
        handed_on = self._last is not None and not raised and task.result() is self._last
        if not handed_on and not self._waiting:
            self._worker.ownership.forget_reader(self._reader)
            self._worker.user_left()

    def lets_go_of(self, token: int, task: asyncio.Task[Any] | None) -> bool:
        """Whether `task` reads this, was told that the token is to go, and has not asked for the
        next item yet."""
        return self.asked_by is task and self._reader.lets_go_of(token)

    def close(self) -> None:
        """Stop reading; nothing waits for this reader any more."""
        self._closed = True
        if self.asked_by is not None:
            self.asked_by.remove_done_callback(self._on_end)
            self.asked_by = None
        self._worker.ownership.forget_reader(self._reader)
        self._worker.user_left()

    def __del__(self) -> None:
        if self._closed:
            return
        if self._worker.home.is_here():
            self.close()
        else:  # the garbage collector runs in any thread
            self._worker.home.call_soon(self._worker.user_left)


class _OnEnd:
    """Tells a reader of its task's end, and does not keep it alive until then."""

    def __init__(self, changes: TokenChanges) -> None:
        self._changes = ref(changes)

    def __call__(self, task: asyncio.Task[Any]) -> None:
        changes = self._changes()
        if changes is not None:
            changes.asker_ended(task)
