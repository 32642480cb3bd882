"""Processes of tests, none of which outlives its test."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def short_lived() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands. Each is killed after 30 s, or when the block ends."""
    started: list[tuple[subprocess.Popen[str], threading.Timer]] = []

    def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        limit = threading.Timer(30, process.kill)
        limit.start()
        started.append((process, limit))
        return process

    yield start
    for process, limit in started:
        limit.cancel()
        with process:  # closes its pipes, and waits for it
            process.kill()
