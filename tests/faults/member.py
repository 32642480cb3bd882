"""One worker process of a fleet: what it has said so far, and how it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import history


def clock() -> float:
    """The clock that the workers write down."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Member:
    """One worker process.

    Attributes:
        exit_status: asks for it; None while the process runs, negative for a signal.
        state: when it last said something of itself, whether it was healthy, whether it led, and
            what it owned.
        stopped_at, dead, cut: what the test has done to it.
    """

    name: str
    pid: int
    folder: Path
    exit_status: Callable[[], int | None]
    events: list[list[Any]] = field(default_factory=list)
    state: tuple[float, bool, bool, frozenset[int]] = (0.0, False, False, frozenset())
    pauses: list[history.Pause] = field(default_factory=list)
    stopped_at: float | None = None
    dead: bool = False
    cut: bool = False
    _read: int = 0
    _partial: bytes = b""

    def look(self) -> None:
        """Take in what it has written since."""
        path = self.folder / f"{self.name}.log"
        if not path.exists():
            return
        with path.open("rb") as log:
            log.seek(self._read)
            data = log.read()
        self._read += len(data)
        complete, newline, self._partial = (self._partial + data).rpartition(b"\n")
        new = history.parse(complete + newline)
        self.events += new
        for kind, t, *values in new:
            if kind == "state":
                self.state = (t, values[0], values[1], frozenset(values[2]))

    def said(self, kind: str, *values: Any, since: float = 0.0) -> list[list[Any]]:
        """Events of a kind that begin with these values, time included, from a moment on."""
        return [
            e
            for e in self.events
            if e[0] == kind and e[1] >= since and tuple(e[2 : 2 + len(values)]) == values
        ]

    def diary(self) -> list[str]:
        """The end of its own log, under its name."""
        path = self.folder / f"{self.name}.diary"
        return (
            [f"-- {self.name}", *path.read_text("utf-8", "replace").splitlines()[-12:]]
            if path.exists()
            else []
        )

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped_at = clock()
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)
        assert self.stopped_at is not None
        self.pauses.append(history.Pause(self.name, self.stopped_at, clock()))
        self.stopped_at = None

    def all_pauses(self) -> list[history.Pause]:
        """Its pauses, the one that has not ended included."""
        return self.pauses + (
            []
            if self.stopped_at is None
            else [history.Pause(self.name, self.stopped_at, float("inf"))]
        )

    def await_end(self, expected: int) -> None:
        """Wait until the process has ended, as it should."""
        deadline = time.monotonic() + 30
        while (status := self.exit_status()) is None:
            assert time.monotonic() < deadline, f"{self.name} did not end"
            time.sleep(0.002)
        assert status == expected, "\n".join([f"{self.name} ended with {status}:", *self.diary()])
        self.dead = True

    def end(self) -> None:
        """Whatever has become of it: leave no process behind."""
        if self.exit_status() is None:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.exit_status() is None and time.monotonic() < deadline:
            time.sleep(0.002)
