"""Pins: which workers a task may run on."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, TypeVar

from jobsync_async.api.base import Started, check_text
from jobsync_async.errors import LockConflict
from jobsync_async.types import LockInfo, TaskOrId
from jobsync_async.work.pins import PinRegistry

if TYPE_CHECKING:
    from typing import ParamSpec

    P = ParamSpec("P")
    T = TypeVar("T")


def _remembered(
    method: Callable[Concatenate[PinCalls, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[PinCalls, P], Coroutine[Any, Any, T]]:
    """While `lock_provider` runs, remember the call: a plain function may have called it as in
    jobsync, without ``await``."""

    @wraps(method)
    def call(self: PinCalls, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        work = method(self, *args, **kwargs)
        if self._called is not None:
            self._called.append(work)
        return work

    return call


class PinCalls(Started):
    """Registering, listing and clearing pins. All of it asks PostgreSQL, and raises
    StoreUnavailable."""

    _called: list[Coroutine[Any, Any, Any]] | None = None

    @asynccontextmanager
    async def _finishing(self) -> AsyncIterator[None]:
        """In here `lock_provider` runs; what it has called and not awaited is done afterwards, in
        order."""
        self._called = []
        try:
            yield
            await asyncio.sleep(0)  # what it has given to a task begins there
            while forgotten := self._not_begun():
                await forgotten[0]
        finally:
            for work in self._not_begun():  # something has raised: say nothing of these
                work.close()
            self._called = None

    def _not_begun(self) -> list[Coroutine[Any, Any, Any]]:
        return [
            work
            for work in self._called or ()
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED
        ]

    @_remembered
    async def register_lock(
        self,
        task_id: TaskOrId,
        node_patterns: str | Sequence[str],
        reason: str | None = None,
        expires_in_days: float | None = None,
    ) -> None:
        """Pin a task: it runs only on workers whose name matches the first of the patterns that any
        live worker matches.

        Args:
            node_patterns: SQL LIKE patterns, in order of preference. `%` is any text, `_` any
                character, `\\` makes the next character literal.
            expires_in_days: None never expires.

        Registering a task again replaces its pin. Its token moves at once; while no live worker
        matches, it has no owner.

        Raises:
            LockConflict: another task on the same token is pinned to other patterns; that pin
                stays.
            ConfigError: a pattern, id, reason or number cannot be one.
        """
        refused = await self._locks().register([(task_id, node_patterns, reason)], expires_in_days)
        if refused:
            raise refused[0]

    @_remembered
    async def register_locks_bulk(
        self,
        locks: Iterable[tuple[TaskOrId, str | Sequence[str], str | None]],
        expires_in_days: float | None = None,
    ) -> list[LockConflict]:
        """`register_lock` for many triples (task, patterns, reason), in one statement. The pins
        that were refused come back as `LockConflict`, not raised; all others are stored."""
        return await self._locks().register(locks, expires_in_days)

    async def list_locks(self) -> list[LockInfo]:
        """The pins in force, oldest first."""
        return await self._locks().list()

    @_remembered
    async def clear_locks_by_creator(self, name: str) -> int:
        """Delete the pins that the worker of this name has made; how many there were."""
        check_text("name", name)
        return await self._locks().clear(name)

    @_remembered
    async def clear_all_locks(self) -> int:
        """Delete all pins; how many there were."""
        return await self._locks().clear(None)

    def _locks(self) -> PinRegistry:
        if self._state == "starting":  # lock_provider runs before the worker has joined
            self._worker.home.require()
            return self._engine.locks
        self._require_started()
        return self._engine.locks
