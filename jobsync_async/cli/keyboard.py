"""The keys that are pressed while a command runs, where its input is a terminal."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import termios
import tty
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_KEYS = {
    "[A": "up", "OA": "up", "k": "up",
    "[B": "down", "OB": "down", "j": "down",
    "[5~": "page up", "b": "page up",
    "[6~": "page down", " ": "page down",
    "[H": "top", "OH": "top", "[1~": "top", "[7~": "top", "g": "top",
    "[F": "bottom", "OF": "bottom", "[4~": "bottom", "[8~": "bottom", "G": "bottom",
    "q": "quit", "Q": "quit",
}  # fmt: skip
_KEY = re.compile(rb"\x1b((?:\[[0-9;]*[@-~])|O[@-~])|([^\x1b])")
_BEGUN = re.compile(rb"\x1b(?:\[[0-9;]*|O)?\Z")


def keys(typed: bytes) -> tuple[list[str], bytes]:
    """Which keys of ours were pressed, and the beginning of one of which the rest is still to come.
    Pure."""
    begun = _BEGUN.search(typed)
    whole = typed[: begun.start()] if begun else typed
    found = (match[1] or match[2] for match in _KEY.finditer(whole))
    names = (_KEYS.get(key.decode("ascii", "replace")) for key in found)
    return [name for name in names if name], begun[0] if begun else b""


class Keyboard:
    """Keys come as they are pressed and are not shown, from `open` to `close`, where the input is a
    terminal. Ctrl-C and Ctrl-Z are signals as ever."""

    def __init__(self) -> None:
        self.there: bool = sys.stdin.isatty()
        self._before: list[Any] | None = None

    def open(self) -> None:
        """Change the terminal's settings."""
        if self.there:
            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin, termios.TCSANOW)

    def close(self) -> None:
        """The terminal is as it was."""
        if self._before is not None:
            with suppress(termios.error):  # it is gone
                termios.tcsetattr(sys.stdin, termios.TCSANOW, self._before)

    async def read(self, press: Callable[[str], None]) -> None:
        """Call `press` with each key. Returns when no more can be pressed, as when the terminal is
        gone. No thread waits for them."""
        loop, typed = asyncio.get_running_loop(), asyncio.Queue[bytes]()
        fileno, rest = sys.stdin.fileno(), b""

        def take() -> None:  # here, not later: it may block when somebody has read before
            try:
                typed.put_nowait(os.read(fileno, 1024))
            except OSError:
                typed.put_nowait(b"")

        loop.add_reader(fileno, take)
        try:
            while more := await typed.get():
                names, rest = keys(rest + more)
                for name in names:
                    press(name)
        finally:
            loop.remove_reader(fileno)
