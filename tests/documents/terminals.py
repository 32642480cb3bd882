"""Terminals as a reader has them: each a bash on a pseudoterminal. Ctrl-C reaches what runs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

KEYS = {"^C": b"\x03", "^\\": b"\x1c"}

_PROMPT = re.compile(r"<<(\d+)>> ")
_LAST_PROMPT = re.compile(_PROMPT.pattern + r"\Z")
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LIMIT_SEC = 90
_SETTINGS = {"PS1": "<<$?>> ", "TERM": "xterm", "VIRTUAL_ENV_DISABLE_PROMPT": "1"}
# The shell gets the pseudoterminal as its controlling terminal, and leaves no core files. Keys that
# end programs do so there, also where whoever runs the tests in the background ignores them.
_BASH = """
import fcntl, os, resource, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for key in (signal.SIGINT, signal.SIGQUIT):
    signal.signal(key, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
"""


class Terminal:
    """One window with a shell. What does not happen in time fails with what the window shows."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._name = name
        self._text = ""
        self._changed = threading.Condition()
        self._sent_at = 0  # where in the text the last command or key was sent
        self._seen_to = 0  # up to where lines have been found since
        self._pressed = False
        self._keyboard, inner = pty.openpty()
        attributes = termios.tcgetattr(inner)
        attributes[3] &= ~termios.ECHO  # what is typed is no output
        termios.tcsetattr(inner, termios.TCSANOW, attributes)
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._shell = subprocess.Popen(
            [sys.executable, "-c", _BASH],
            cwd=folder,
            env={**environment, **_SETTINGS},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def run(self, commands: Iterable[str]) -> None:
        """Type commands, each when the one before has ended well. The last one may go on."""
        for command in commands:
            status = self.wait_for_prompt()
            assert status == 0 or self._pressed, f"{self}: a command ended with status {status}"
            self._send(command.encode() + b"\n", pressed=False)

    def press(self, key: str) -> None:
        """Press a key that ends the program which runs now."""
        assert self._status() is None, f"{self}: nothing runs that {key} could end"
        self._send(KEYS[key], pressed=True)

    def wait_for(self, lines: Sequence[str]) -> None:
        """Wait until the window shows all of these lines, in any order.

        What counts came after the last command or key, and was not found before. A number stands
        for any other, but 0 for itself alone. An ellipsis stands for anything.
        """
        wanted = [re.compile(_pattern(line)) for line in lines]

        def found() -> bool:
            shown = list(_lines(self._text, self._seen_to))
            seen_to = self._seen_to
            for pattern in wanted:
                at = next((at for at, (line, _) in enumerate(shown) if pattern.fullmatch(line)), -1)
                if at < 0:
                    return False
                seen_to = max(seen_to, shown.pop(at)[1])
            self._seen_to = seen_to
            return True

        self._wait(found, "\n".join(["the page says that one sees", *lines]))

    def wait_for_prompt(self) -> int:
        """Wait until nothing runs; the status of what ran last."""
        self._wait(lambda: self._status() is not None, "what runs does not end")
        status = self._status()
        assert status is not None
        return status

    def shown(self) -> str:
        """All that the window has shown, without colours."""
        with self._changed:
            return "\n".join(line for line, _ in _lines(self._text, 0))

    def close(self) -> None:
        """Close the window: what still runs in it is told so."""
        # 0 as long as the shell has not taken the terminal: that would be this very process group.
        if group := os.tcgetpgrp(self._keyboard):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGHUP)
        self._shell.send_signal(signal.SIGHUP)
        try:
            self._shell.wait(10)
        except subprocess.TimeoutExpired:
            self._shell.kill()
            self._shell.wait()
        self._reader.join(10)
        os.close(self._keyboard)

    def __str__(self) -> str:
        return f"{self._name} shows\n{self.shown()}\n"

    def _send(self, typed: bytes, *, pressed: bool) -> None:
        with self._changed:
            self._sent_at = self._seen_to = len(self._text)
            self._pressed = pressed
        os.write(self._keyboard, typed)

    def _status(self) -> int | None:
        """None while something runs."""
        prompt = _LAST_PROMPT.search(self._text, self._sent_at)
        return int(prompt[1]) if prompt else None

    def _wait(self, condition: Callable[[], bool], why: str) -> None:
        deadline = time.monotonic() + _LIMIT_SEC
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                over = left <= 0 or self._status() is not None or self._shell.poll() is not None
                assert not over, f"{why}; but {self}"
                self._changed.wait(min(left, 1))

    def _read(self) -> None:
        pending = b""
        while True:
            try:
                got = os.read(self._keyboard, 65_536)
            except OSError:  # nobody has it open any more
                return
            pending += got
            text = pending.decode("utf-8", "ignore")  # a character may come in two parts
            pending = pending[len(text.encode()) :]
            with self._changed:
                self._text += text
                self._changed.notify_all()


def _pattern(line: str) -> str:
    parts = re.split(r"(\d+|…)", line)
    return "".join(_pattern_of_a_part(part) for part in parts)


def _pattern_of_a_part(part: str) -> str:
    if part == "…":
        return ".*"
    if part.isdigit():
        return r"0*[1-9]\d*" if int(part) else "0+"
    return re.escape(part)


def _lines(text: str, start: int) -> Iterable[tuple[str, int]]:
    """The lines from a place on, each with the place of its end, without colours and prompts."""
    for match in re.finditer(r"[^\r\n]+", text[start:]):
        for part in _PROMPT.split(_CONTROLS.sub("", match[0]))[::2]:
            if part.strip():
                yield part.strip(), start + match.end()
