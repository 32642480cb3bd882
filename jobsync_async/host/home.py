"""Where a job lives: the process and the event loop that it was started in. Anywhere else there is
nothing that it could do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from weakref import WeakSet

from jobsync_async.errors import UsageError

_homes: WeakSet[Home] = WeakSet()


class Home:
    """The home of one start of a job.

    A child made by fork has a copy of everything, but it is not the worker: it holds nothing, also
    while the parent lives. For when the parent is dead, its tokens are others' at once.

    Args:
        name: the worker's.
        void: called in a child when the process is forked, if the job was started and `leave` was
            not called.

    Attributes:
        loop: the event loop; None before the start.
        forked: this is the copy, in a child, of a home that was settled in its parent.
    """

    def __init__(self, name: str, void: Callable[[], object]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.forked: bool = False
        self._name = name
        self._void = void

    def settle(self) -> None:
        """The job is being started, on the event loop that runs here."""
        self.loop = asyncio.get_running_loop()
        _homes.add(self)

    def leave(self) -> None:
        """The job has ended: a child may start it as well as this process."""
        _homes.discard(self)

    def lost_to_fork(self) -> None:
        """Called in a child."""
        self.forked = True
        self._void()

    def require_own_process(self) -> None:
        """Raise UsageError in a child of the process in which it was started."""
        if self.forked:
            raise UsageError(
                f"the job {self._name!r} was started before this process was forked: the worker is "
                "the parent, and this copy holds nothing and can do nothing. Start the Job after "
                "the fork, in the child: one that was made before works"
            )

    def is_here(self) -> bool:
        """Whether this is called on the job's own event loop, in its own process."""
        return not self.forked and self.loop is not None and _running_loop() is self.loop

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have the event loop call it, from any thread; if that loop is closed, nobody has any use
        for it."""
        if not self.forked and self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function)

    def require(self) -> None:
        """Raise UsageError unless this is called on the job's own event loop, in its own
        process."""
        self.require_own_process()
        if not self.is_here():
            here = _running_loop()
            raise UsageError(
                f"the job {self._name!r} runs on the event loop {self.loop!r}, and this was called "
                f"{'where none runs' if here is None else f'on {here!r}'}. Call it on the job's "
                "own, from another thread by `asyncio.run_coroutine_threadsafe(…, loop)` or "
                "`anyio.from_thread.run(…)`; what asks without I/O, such as owns(…), may be called "
                "from anywhere"
            )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _after_fork() -> None:
    for home in tuple(_homes):
        home.lost_to_fork()
    _homes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
