"""What a worker says of the process it runs in, and how it sees that another process of its host is
dead.

Soundness: the number of a process is nobody else's from its start to its end, a zombie included. So
a process is dead in
three cases: no process has its number; one with another start time has it; or a descriptor was
opened by the number, and what had it then has ended since. None of these is ever true of one that
lives. A ``/proc`` that shows nothing proves nothing.

A descriptor of a process (pidfd) becomes readable when its last thread has ended, also while nobody
has reaped it. The letter in ``/proc/PID/stat`` is not asked: it says "zombie" of a process whose
first thread ended while others go on.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path
from typing import Protocol, cast

from jobsync_async.core.rows import Announcement, Process


def announce(weight: float, address: str | None) -> Announcement:
    """The announcement of a worker in this process. Reads ``/proc`` where there is one."""
    return Announcement(
        weight=weight,
        address=address,
        host=socket.gethostname(),
        pid=os.getpid(),
        boot_id=_boot_id(),
        pid_namespace=_namespace(),
        process_started=started(os.getpid()),
    )


def why_unwatchable(announcement: Announcement) -> str | None:
    """Why processes of this host cannot be watched from here; None when they can be."""
    if None in (announcement.boot_id, announcement.pid_namespace, announcement.process_started):
        return "/proc does not show this process"
    try:
        os.close(_pidfd_open(os.getpid()))
    except OSError as error:
        return f"this system or this Python offers no pidfd_open ({error.strerror})"
    return None


def open_process(process: Process) -> int:
    """A descriptor that becomes readable when the process ends; to be closed by the caller.

    Raises:
        ProcessLookupError: it is dead.
        OSError: it cannot be watched, and may live.
    """
    try:
        descriptor = _pidfd_open(process.pid)
    except OSError as error:
        # On kernels that say so, the number may have become that of a thread.
        if error.errno in (errno.EINVAL, errno.ENOENT) and _is_another(process):
            raise ProcessLookupError(errno.ESRCH, "another has its number") from error
        raise
    if _is_another(process) or has_ended(descriptor):
        os.close(descriptor)
        raise ProcessLookupError(errno.ESRCH, "it has ended")
    return descriptor


def has_ended(descriptor: int) -> bool:
    """Whether the process of a descriptor has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def known_dead(process: Process) -> bool:
    """Whether the process, which ran on this host and in this namespace, is dead for certain. False
    is no proof of life."""
    try:
        os.close(open_process(process))
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when ``/proc`` does not show it, or
    shows another namespace's."""
    try:
        own = Path("/proc/self/status").read_text("utf-8", "replace")
        # The second field is a name in parentheses, which may hold anything; the fields after it
        # are numbers.
        after_name = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2]
    except OSError:
        return None
    # Our own number, once for each namespace from that of this /proc down to ours. In another's,
    # numbers name other processes.
    numbers = next((line.split()[1:] for line in own.splitlines() if line.startswith("NSpid:")), [])
    return int(after_name.split()[19]) if numbers == [str(os.getpid())] else None


def _is_another(process: Process) -> bool:
    since = started(process.pid)
    return since is not None and since != process.started


class _PidfdOpen(Protocol):
    def __call__(self, pid: int, flags: int = 0) -> int: ...


def _pidfd_open(pid: int) -> int:
    opener = vars(os).get("pidfd_open")  # not everywhere, so that a type checker may not know it
    if opener is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return cast(_PidfdOpen, opener)(pid)


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    """In which namespace of process ids this process is, and in which one of clocks, which shifts
    the start times it reads."""
    try:
        pids = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    try:
        return f"{pids} {os.readlink('/proc/self/ns/time')}"
    except OSError:  # Linux before 5.6 has one time for all
        return pids
