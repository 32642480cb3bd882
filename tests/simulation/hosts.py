"""The machines that processes run on: who can see whose end, and when it is told.

Numbers of processes are few, so that they soon come again; together with the start they are unique.
"""

from __future__ import annotations

import asyncio
import errno
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from jobsync_async.core import rows
from jobsync_async.core.rows import Announcement
from tests.simulation.scheduler import Scheduler

if TYPE_CHECKING:
    from tests.simulation.process import Process

_HIDDEN = 0.03
_LATE = 0.2
_LATEST_SEC = 3.0


class Hosts:
    """Attributes:
    hides: whether a look at another process may fail, and the word of its end be late.
    """

    def __init__(self, scheduler: Scheduler, random: Random) -> None:
        self.hides = True
        self._scheduler = scheduler
        self._random = random
        self._alive: dict[tuple[str, rows.Process], Process] = {}
        self._open: dict[int, tuple[Process, str, rows.Process]] = {}
        self._starts = count(1)
        self._descriptors = count(1_000_000)

    def begin(self, process: Process, host: str) -> None:
        """A process begins on a host."""
        taken = {number.pid for where, number in self._alive if where == host}
        pid = next(pid for pid in count(2) if pid not in taken)
        process.host, process.number = host, rows.Process(pid, next(self._starts))
        self._alive[host, process.number] = process

    def ended(self, process: Process) -> None:
        """It has ended; whoever watches it is told soon."""
        key = (process.host, process.number)
        self._alive.pop(key, None)
        for descriptor, (watcher, *watched) in self._open.items():
            if tuple(watched) == key:
                late = self.hides and self._random.random() < _LATE
                seconds = (
                    self._random.uniform(0, _LATEST_SEC) if late else self._random.expovariate(500)
                )
                self._scheduler.after(seconds, self._tell, watcher, descriptor)

    @staticmethod
    def _tell(watcher: Process, descriptor: int) -> None:
        if not watcher.loop.dead:
            watcher.loop.readable(descriptor)

    # -- what the library asks, in the process that runs now ---------------------------------------

    def announce(self, weight: float, address: str | None) -> Announcement:
        process = _present()
        where = (
            process.host,
            process.number.pid,
            f"boot of {process.host}",
            "namespace",
            process.number.started,
        )
        return Announcement(weight, address, *where)

    def open_process(self, number: rows.Process) -> int:
        process = _present()
        if self.hides and self._random.random() < _HIDDEN:
            raise PermissionError(errno.EPERM, "it is hidden")
        if (process.host, number) not in self._alive:
            raise ProcessLookupError(errno.ESRCH, "it has ended")
        descriptor = next(self._descriptors)
        self._open[descriptor] = (process, process.host, number)
        return descriptor

    def has_ended(self, descriptor: int) -> bool:
        return self._open[descriptor][1:] not in self._alive

    def known_dead(self, number: rows.Process) -> bool:
        return (_present().host, number) not in self._alive

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor)


def _present() -> Process:
    loop: Any = asyncio.get_running_loop()
    process: Process = loop.process
    return process
