"""A terminal of some size with one command in it, as a reader sees it: its screen, line by line."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import pyte

from tests.waiting import until

KEYS = {
    "up": b"\x1b[A",
    "down": b"\x1b[B",
    "page up": b"\x1b[5~",
    "page down": b"\x1b[6~",
    "home": b"\x1b[H",
    "end": b"\x1b[F",
    "^C": b"\x03",
    "^Z": b"\x1a",
}
# The command gets the pseudoterminal as its controlling terminal. Keys that end programs do so,
# also where whoever runs the tests in the background ignores them.
_RUN = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for key in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
    signal.signal(key, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Pane:
    """An ``async with``; the command is killed in the end, if it still runs.

    Attributes:
        told: all bytes that the command has written.
        process: where it runs.
    """

    def __init__(self, command: Sequence[str], *, columns: int = 80, lines: int = 24) -> None:
        self.told = b""
        self._gone = False
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._keyboard, self._inner = pty.openpty()
        self._resize(columns, lines)
        self._settings = termios.tcgetattr(self._inner)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *command],
            stdin=self._inner,
            stdout=self._inner,
            stderr=self._inner,
            # a size that shells have exported once is not the terminal's
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "40", "LINES": "9"},
            start_new_session=True,
        )

    async def __aenter__(self) -> Pane:
        os.set_blocking(self._keyboard, False)
        asyncio.get_running_loop().add_reader(self._keyboard, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._gone:
            asyncio.get_running_loop().remove_reader(self._keyboard)
        self.process.kill()
        await anyio.to_thread.run_sync(self.process.wait)
        if not self._gone:
            os.close(self._keyboard)
        os.close(self._inner)

    def hang_up(self) -> None:
        """Take the terminal away, as when its window is closed."""
        asyncio.get_running_loop().remove_reader(self._keyboard)
        os.close(self._keyboard)
        self._gone = True

    @property
    def lines(self) -> list[str]:
        """What is on the screen now."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was: its settings, its cursor, what was on it."""
        return (
            termios.tcgetattr(self._inner) == self._settings
            and self.told.rfind(b"\x1b[?1049l") > self.told.rfind(b"\x1b[?1049h")
            and self.told.rfind(b"\x1b[?25h") > self.told.rfind(b"\x1b[?25l")
        )

    def press(self, key: str) -> None:
        """Press a key: one of `KEYS`, or a character."""
        os.write(self._keyboard, KEYS.get(key, key.encode()))

    def resize(self, columns: int, lines: int) -> None:
        """Make the terminal of another size; the command is told."""
        self._resize(columns, lines)
        self._screen.resize(lines, columns)

    async def shows(self, condition: Callable[[list[str]], Any], seconds: float = 20) -> list[str]:
        """Wait until the screen is so; what it shows then."""
        try:
            await until(lambda: condition(self.lines), seconds)
        except TimeoutError:
            raise AssertionError("the screen shows\n" + "\n".join(self.lines)) from None
        return self.lines

    async def ended(self, seconds: float = 20) -> int:
        """Wait until the command has ended; with which status."""
        await until(lambda: self.process.poll() is not None, seconds)
        if not self._gone:
            self._read()
        assert self.process.returncode is not None
        return self.process.returncode

    def _resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, size)

    def _read(self) -> None:
        try:
            while got := os.read(self._keyboard, 65_536):
                self.told += got
                self._stream.feed(got)
        except OSError:  # no more now, or nobody has it open
            return
