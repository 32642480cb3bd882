"""How long the answer to a statement may stay away before the connection is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Limited:
    """A connection of one user at a time."""

    _limits: tuple[float, ...] = ()
    _timer: asyncio.TimerHandle | None = None

    def give_up(self) -> None:
        """End the connection from outside: whoever waits for an answer gets an error."""
        raise NotImplementedError

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Give it up when the block takes longer. A limit inside another takes its place, and
        afterwards the outer one begins anew: so each of several statements can have one."""
        self._limits = (*self._limits, seconds)
        self._start_timer()
        try:
            yield
        finally:
            self._limits = self._limits[:-1]
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._limits:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._limits[-1], self.give_up)
