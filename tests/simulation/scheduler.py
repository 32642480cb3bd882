"""One virtual clock, one seeded scheduler, and an event loop per worker's process that lives by
them.

Each simulated process has an asyncio event loop of its own, with its own clock (an offset and a
rate), and runs its callbacks in the order in which they became ready, as asyncio promises. Which
process runs its next callback is the scheduler's choice, and the seed's. A process that is stopped
is not chosen; one that was killed never again.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from random import Random
from typing import Any

_MOST_STEPS_AT_ONCE = 20_000
_WINDOW_SEC = 0.01
_MOST_ROUNDS = 100


class Livelock(Exception):
    """The processes go on and on without time passing."""


class Call:
    """Something that happens at a virtual time, unless it is cancelled."""

    __slots__ = ("args", "call", "cancelled")

    def __init__(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.call = call
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Scheduler:
    """The virtual clock, and the order of everything.

    Attributes:
        now: virtual seconds since the run began.
        random: the one source of chance.
        after_step: called with the loop whose callback just ran.
        preemption: how likely a process is interrupted for some milliseconds after a callback.
    """

    def __init__(self, random: Random) -> None:
        self.now = 0.0
        self.random = random
        self.after_step: Callable[[ProcessLoop], None] = lambda loop: None
        self.preemption = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Any]] = []
        self._order = count()
        self._runnable: list[ProcessLoop] = []

    def at(self, when: float, call: Callable[..., object], *args: Any) -> Call:
        """Call it at a virtual time."""
        entry = Call(call, args)
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), entry))
        return entry

    def after(self, seconds: float, call: Callable[..., object], *args: Any) -> Call:
        return self.at(self.now + seconds, call, *args)

    def timer(self, when: float, handle: asyncio.TimerHandle) -> None:
        """A loop's own timer."""
        heapq.heappush(self._heap, (when, next(self._order), handle))

    def ready(self, loop: ProcessLoop) -> None:
        """The loop has something to run."""
        if not loop.queued and not loop.stopped:
            loop.queued = True
            self._runnable.append(loop)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Run everything until a virtual time, or until `done` says so whenever time is about to
        pass."""
        runnable = self._runnable
        window, steps = self.now, self.steps
        while True:
            while runnable:
                self._step(runnable)
                if self.steps - steps > _MOST_STEPS_AT_ONCE:
                    raise Livelock(
                        f"{runnable or 'a process'} runs on and on at {self.now:.3f} s, and no "
                        "time passes"
                    )
            if done():
                return
            heap = self._heap
            while heap and self._cancelled(heap[0][2]):
                heapq.heappop(heap)
            if not heap or heap[0][0] > until:
                self.now = max(self.now, until)
                return
            when, _, entry = heapq.heappop(heap)
            self.now = when
            if when - window > _WINDOW_SEC:
                window, steps = when, self.steps
            if isinstance(entry, Call):
                entry.call(*entry.args)
            else:
                entry._loop.due(entry)

    @staticmethod
    def _cancelled(entry: Any) -> bool:
        return entry.cancelled if isinstance(entry, Call) else entry._cancelled or entry._loop.dead

    def _step(self, runnable: list[ProcessLoop]) -> None:
        index = int(self.random.random() * len(runnable)) if len(runnable) > 1 else 0
        loop = runnable[index]
        if loop.ready and not loop.stopped:
            handle = loop.ready.popleft()
            if not handle._cancelled:
                self.steps += 1
                loop.run_one(handle)
                self.after_step(loop)
                if self.preemption and self.random.random() < self.preemption:
                    loop.stop_for(self.random.expovariate(50.0))
        if not loop.ready or loop.stopped:
            loop.queued = False
            runnable.remove(loop)


class Ordered(dict):  # type: ignore[type-arg]
    """A set that is iterated in the order of insertion."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)

    def remove(self, item: Any) -> None:
        del self[item]


class NumberedTask(asyncio.Task):  # type: ignore[type-arg]
    """A task whose place in a set does not depend on its address in memory."""

    def __init__(
        self, coro: Coroutine[Any, Any, Any], *, loop: ProcessLoop, **options: Any
    ) -> None:
        self.number = loop.next_number()
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<task {self.number}>"


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one process.

    Attributes:
        stopped: nothing of it runs, as after SIGSTOP. dead: never again.
        errors: what asyncio reported and nobody caught.
    """

    def __init__(
        self, scheduler: Scheduler, name: str, *, offset: float = 0.0, rate: float = 1.0
    ) -> None:
        self.scheduler = scheduler
        self.name = name
        self.ready: deque[asyncio.Handle] = deque()
        self.queued = False
        self.stops = 0
        self.dead = False
        self.errors: list[dict[str, Any]] = []
        self.readers: dict[int, asyncio.Handle] = {}
        self._offset = offset
        self._rate = rate
        self._numbers = count(1)
        self.process: Any = None

    def __repr__(self) -> str:
        return f"<ProcessLoop {self.name}>"

    # -- time --------------------------------------------------------------------------------------

    def time(self) -> float:
        """The machine's monotonic clock: it has an offset and may run a little fast or slow."""
        return self._offset + self.scheduler.now * self._rate

    def virtual(self, when: float) -> float:
        return (when - self._offset) / self._rate

    # -- running -----------------------------------------------------------------------------------

    @property
    def stopped(self) -> bool:
        return self.stops > 0 or self.dead

    def stop_for(self, seconds: float) -> None:
        """Run nothing for so long."""
        self.stops += 1
        self.scheduler.after(seconds, self._go_on)

    def _go_on(self) -> None:
        self.stops -= 1
        if self.ready:
            self.scheduler.ready(self)

    def run_one(self, handle: asyncio.Handle) -> None:
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)

    def due(self, timer: asyncio.TimerHandle) -> None:
        self.ready.append(timer)
        self.scheduler.ready(self)

    def next_number(self) -> int:
        return next(self._numbers)

    def kill(self) -> None:
        """End the process as SIGKILL does. What its tasks would still do when Python lets go of
        them happens in a world of its own: `dead` is set first, and nothing that is dead reaches
        anything."""
        self.dead = True
        tasks = self.tasks()
        for _ in range(_MOST_ROUNDS):
            left = self.tasks()
            if not left:
                break
            # First, so that every task has begun before it is cancelled.
            for _ in range(_MOST_STEPS_AT_ONCE):
                if not self.ready:
                    break
                handle = self.ready.popleft()
                if not handle._cancelled:
                    self.run_one(handle)
            for task in left:
                task.cancel()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.errors.clear()

    def tasks(self) -> list[NumberedTask]:
        """The tasks that have not ended."""
        return sorted(asyncio.all_tasks(self), key=lambda task: task.number)  # type: ignore[attr-defined,arg-type,return-value]

    # -- what asyncio and anyio call ---------------------------------------------------------------

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.ready.append(handle)
        if not self.queued:
            self.scheduler.ready(self)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if when != float("inf"):
            # A timer fires when the clock has passed it, never before: the division may round down.
            self.scheduler.timer(max(self.scheduler.now, self.virtual(when) + 1e-9), handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays in the scheduler's heap until its time."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Any = None, **_: Any
    ) -> NumberedTask:  # type: ignore[override]
        options: dict[str, Any] = {"name": name}
        if context is not None and sys.version_info >= (3, 11):
            options["context"] = context
        return NumberedTask(coro, loop=self, **options)

    def add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        self.readers[fd] = asyncio.Handle(callback, args, self)

    def remove_reader(self, fd: int) -> bool:  # type: ignore[override]
        return self.readers.pop(fd, None) is not None

    def readable(self, fd: int) -> None:
        """Something has arrived on the (simulated) socket."""
        handle = self.readers.get(fd)
        if handle is not None:
            self.call_soon(handle._run)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def get_debug(self) -> bool:
        return False

    def get_task_factory(self) -> None:  # type: ignore[override]
        return None

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False
