"""Streams of ownership changes."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from typing_extensions import Self

from jobsync_async.errors import UsageError
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import TokenChange


class TokenChanges:
    """An asynchronous iterator of `TokenChange`, made by `Job.token_changes`.

    Asking for the next item says that you are done with what the last one revoked: only then is it handed on. Changes are not
    queued: a slow reader gets one that merges them all. The iteration ends when the job stops. A reader that is dropped, or
    whose ``async with`` ends, holds nothing up any more; nor does one whose task is stopping the job itself, as a body that
    raises or is cancelled does.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._reader = worker.ownership.reader()
        self._closed = False
        self._waiting = False
        self._asked_by: asyncio.Task[Any] | None = None
        worker.streams.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "waiting" if self._waiting else "open"
        return f"<TokenChanges of {self._worker.identity.name!r} {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChange:
        worker = self._worker
        if self._waiting:
            raise UsageError("two tasks ask one token_changes() for its next item; give each its own")
        if self._reader.come_back():
            worker.user_left()
        self._waiting = True
        self._asked_by = asyncio.current_task()
        try:
            while not self._closed:
                if self._reader.started or worker.ownership.known:
                    change = self._reader.take()
                    if change is not None:
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stopped_by(self, task: asyncio.Task[Any] | None) -> None:
        """`task` stops the job. If it is the one that reads, it will not come back before the job has stopped."""
        if self._asked_by is task:
            self.close()

    def lets_go_of(self, token: int, task: asyncio.Task[Any] | None) -> bool:
        """Whether `task` reads this, was told that the token is to go, and has not asked for the next item yet."""
        return self._asked_by is task and self._reader.lets_go_of(token)

    def close(self) -> None:
        """Stop reading; nothing waits for this reader any more."""
        self._closed = True
        self._worker.ownership.forget_reader(self._reader)
        self._worker.user_left()

    def __del__(self) -> None:
        if not self._closed:
            self.close()
