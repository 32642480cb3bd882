"""SIGTERM and SIGINT as requests to leave, for ``async with Job(..., handle_signals=True)``.

The handlers are Python's own (`signal.signal`), so that the ones from before, whoever set them, can be put back exactly.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

from jobsync_async.errors import UsageError

_HANDLED = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """From `install` to `restore`: the first signal calls `on_first`, the second one `on_second`, both on the event loop.

    Signals of either kind count together. After the second one, a third does what it did before. Several of these at a time,
    for several jobs in one process, hear of the same signals; the last one to go puts back what was there before the first.

    Attributes:
        received: the first that came; None before.
    """

    _active: ClassVar[list[Signals]] = []
    _before: ClassVar[dict[signal.Signals, Any]] = {}

    def __init__(self, on_first: Callable[[], object], on_second: Callable[[], object]) -> None:
        self.received: signal.Signals | None = None
        self._on_first = on_first
        self._on_second = on_second
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self) -> None:
        """Begin to handle. Raises UsageError in any thread but the main one, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "handle_signals=True works in the main thread only, where Python delivers signals, and this Job runs in thread "
                f"{threading.current_thread().name!r}: leave it out here, and end this job from the main thread's handler, for "
                "example by cancelling its task with loop.call_soon_threadsafe(task.cancel)"
            )
        self._loop = asyncio.get_running_loop()
        if not self._active:
            self._before.update({number: signal.signal(number, self._handle) for number in _HANDLED})
        self._active.append(self)

    def restore(self) -> None:
        """Handle no more. Doing it again does nothing."""
        if self not in self._active:
            return
        self._active.remove(self)
        if not self._active:
            for number, handler in self._before.items():
                # None: it was not set from Python, and cannot be set again from there; the default is what is closest.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._before.clear()

    @classmethod
    def _handle(cls, number: int, frame: FrameType | None) -> None:
        for active in cls._active:
            assert active._loop is not None, "it was installed"
            active._loop.call_soon_threadsafe(active._came, signal.Signals(number))

    def _came(self, number: signal.Signals) -> None:
        if self.received is None:
            self.received = number
            self._on_first()
        else:
            self.restore()
            self._on_second()

    def exit(self) -> BaseException:
        """What to raise where the program cannot go on: what Python does for SIGINT, and what shells expect of SIGTERM."""
        if self.received == signal.SIGINT:
            return KeyboardInterrupt()
        return SystemExit(128 + signal.SIGTERM)
