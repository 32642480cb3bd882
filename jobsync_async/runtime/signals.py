"""SIGTERM and SIGINT as requests to leave, for ``async with Job(..., handle_signals=True)``.

The handlers are Python's own (`signal.signal`), so that the ones from before, whoever set them, can
be put back exactly.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, ClassVar

from jobsync_async.errors import UsageError

logger = logging.getLogger(__name__)

_HANDLED = (signal.SIGTERM, signal.SIGINT)

PATIENCE_SEC = 2.0
"""How long after the second signal the block may take to end. Then the process dies by that
signal."""
_LOG_SEC = 0.5


class Signals:
    """From `install` to `restore`: the first signal calls `on_first`, the second one `on_second`,
    both on the event loop.

    Signals of either kind count together. After the second one, a third does what it did before,
    and the process dies by the second, as if nobody had handled it, if `restore` is not called
    within `PATIENCE_SEC`: also when the event loop is blocked. Several of these at a time, for
    several jobs in one process, hear of the same signals; the last one to go puts back what was
    there before the first.

    Args:
        at_work: says what is still at work, for the last line in the log. Called in a thread of its
            own.

    Attributes:
        received: the first that came; None before.
    """

    _active: ClassVar[list[Signals]] = []
    _before: ClassVar[dict[signal.Signals, Any]] = {}

    def __init__(
        self,
        on_first: Callable[[], object],
        on_second: Callable[[], object],
        at_work: Callable[[], Sequence[str]],
    ) -> None:
        self.received: signal.Signals | None = None
        self._on_first = on_first
        self._on_second = on_second
        self._at_work = at_work
        self._loop: asyncio.AbstractEventLoop | None = None
        self._came_before = False
        self._over = True

    def install(self) -> None:
        """Begin to handle. Raises UsageError in any thread but the main one, where Python allows no
        handlers."""
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "handle_signals=True works in the main thread only, where Python delivers signals, "
                f"and this Job runs in thread {threading.current_thread().name!r}: leave it out "
                "here, and end this job from the main thread's handler, for example by cancelling "
                "its task with loop.call_soon_threadsafe(task.cancel)"
            )
        self._loop = asyncio.get_running_loop()
        self._over = False
        if not self._active:
            self._before.update(
                {number: signal.signal(number, self._handle) for number in _HANDLED}
            )
        self._active.append(self)

    def restore(self) -> None:
        """Handle no more: the block has ended. Doing it again does nothing."""
        self._over = True
        self._put_back()

    def _put_back(self) -> None:
        if self in self._active:
            self._active.remove(self)
            if not self._active:
                self._put_all_back()

    @classmethod
    def _put_all_back(cls) -> None:
        cls._active.clear()
        for number, handler in cls._before.items():
            # None: it was not set from Python, and cannot be set again from there; the default is
            # what is closest.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        cls._before.clear()

    @classmethod
    def _handle(cls, number: int, frame: FrameType | None) -> None:
        heard = [active._hear(signal.Signals(number)) for active in tuple(cls._active)]
        if not any(heard):  # their event loops were closed under them: it is not for us
            cls._put_all_back()
            os.kill(os.getpid(), number)

    def _hear(self, number: signal.Signals) -> bool:
        assert self._loop is not None, "it was installed"
        if self._loop.is_closed():
            return False
        if self._came_before:
            # By what takes no lock: the handler may have come in the middle of anything.
            _thread.start_new_thread(self._die_if_it_takes_long, (number,))
            self._loop.call_soon_threadsafe(self._on_second)
            self._put_back()
        else:
            self._came_before = True
            self._loop.call_soon_threadsafe(self._came, number)
        return True

    def _came(self, number: signal.Signals) -> None:
        self.received = number
        self._on_first()

    def _die_if_it_takes_long(self, number: signal.Signals) -> None:
        time.sleep(PATIENCE_SEC)
        if self._over:
            return
        told = _thread.allocate_lock()
        told.acquire()
        _thread.start_new_thread(self._tell_of_death, (number, told))
        told.acquire(timeout=_LOG_SEC)  # whoever blocks the main thread may have the log's lock
        _die_by(number)

    def _tell_of_death(self, number: signal.Signals, told: _thread.LockType) -> None:
        try:
            logger.critical(
                "the process ends by %s: %g s after the second signal these are still at work: %s",
                number.name,
                PATIENCE_SEC,
                ", ".join(self._at_work()) or "nothing that the job knows of",
                extra={"signal": number.name},
            )
        finally:
            told.release()

    def exit(self) -> BaseException:
        """What to raise where the program cannot go on: what Python does for SIGINT, and what
        shells expect of SIGTERM."""
        if self.received == signal.SIGINT:
            return KeyboardInterrupt()
        return SystemExit(128 + signal.SIGTERM)


def _die_by(number: signal.Signals) -> None:
    """End this process as the signal does by default, from any thread, also while the main one is
    blocked."""
    try:
        import ctypes  # noqa: PLC0415 - Python's own signal.signal works in the main thread only

        ctypes.CDLL(None).signal(int(number), 0)
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    finally:  # the first process of a container does not die by a signal of its own
        os._exit(128 + number)


if hasattr(os, "register_at_fork"):
    # A child that was not told to handle signals must end by them.
    os.register_at_fork(after_in_child=Signals._put_all_back)
