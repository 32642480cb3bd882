"""What a worker says of the process it runs in: for people, and so that workers on one host can see each other's."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from jobsync_async.core.rows import Announcement


def announce(weight: float, address: str | None) -> Announcement:
    """The announcement of a worker in this process. Reads ``/proc`` where there is one."""
    return Announcement(
        weight=weight,
        address=address,
        host=socket.gethostname(),
        pid=os.getpid(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        process_started=_started(),
    )


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started() -> int | None:
    """When the process started, in clock ticks since boot: with the process id, it names a process for ever."""
    try:
        # The second field is a name in parentheses, which may hold anything; the fields after it are numbers.
        after_name = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2]
    except OSError:
        return None
    return int(after_name.split()[19])
