"""What says that a process is dead, and what does not: real processes of this host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jobsync_async.core.rows import Process
from jobsync_async.host import process
from jobsync_async.host.process import (
    announce,
    has_ended,
    known_dead,
    open_process,
    started,
    why_unwatchable,
)

SLEEP = "import sys; print(flush=True); sys.stdin.read()"
# The first thread ends, another one goes on: /proc calls that a zombie.
FIRST_THREAD_ENDS = """
import ctypes, os, sys, threading
def go_on():
    os.write(1, b"\\n")
    sys.stdin.read()
threading.Thread(target=go_on).start()
ctypes.CDLL(None).pthread_exit(None)
"""

pytestmark = pytest.mark.skipif(
    why_unwatchable(announce(0, None)) is not None,
    reason=f"processes: {why_unwatchable(announce(0, None))}",
)


def run(program: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    yield from run(SLEEP)


@pytest.fixture
def headless() -> Iterator[subprocess.Popen[bytes]]:
    yield from run(FIRST_THREAD_ENDS)


def of(child: subprocess.Popen[bytes]) -> Process:
    since = started(child.pid)
    assert since is not None
    return Process(child.pid, since)


def wait_until_dead(child: subprocess.Popen[bytes]) -> None:
    """Without reaping it."""
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def letter(child: subprocess.Popen[bytes]) -> str:
    with open(f"/proc/{child.pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_a_process_that_lives_is_not_dead_and_its_descriptor_tells_when_it_is(child):
    seen = of(child)
    assert not known_dead(seen)
    descriptor = open_process(seen)
    try:
        assert not has_ended(descriptor)
        child.kill()
        wait_until_dead(child)
        assert has_ended(descriptor)
    finally:
        os.close(descriptor)


def test_a_process_that_nobody_has_reaped_is_dead(child):
    seen = of(child)
    child.kill()
    wait_until_dead(child)
    assert letter(child) == "Z"
    assert known_dead(seen)


def test_a_process_whose_first_thread_alone_has_ended_is_not_dead(headless):
    seen = of(headless)
    while letter(headless) != "Z":  # it says so as soon as the thread has ended
        os.sched_yield()
    assert not known_dead(seen)
    headless.kill()
    wait_until_dead(headless)
    assert known_dead(seen)


def test_a_process_that_is_stopped_is_not_dead(child):
    seen = of(child)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert not known_dead(seen)


def test_a_number_that_nobody_has_is_that_of_a_dead_process(child):
    seen = of(child)
    child.kill()
    child.wait()
    assert known_dead(seen)


def test_a_number_that_another_process_has_by_now_is_that_of_a_dead_process(child):
    assert known_dead(of(child)._replace(started=1))
    assert known_dead(Process(os.getpid(), 1)), "my own number, before me"


def test_a_proc_that_shows_nothing_proves_nothing(child, monkeypatch):
    monkeypatch.setattr(process, "started", lambda pid: None)
    seen = Process(child.pid, 1)
    assert not known_dead(seen)
    child.kill()
    wait_until_dead(child)
    assert known_dead(seen), "whoever had the number has ended: the one that was meant has, too"


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(1, "refused"),
        OSError(24, "too many open files"),
        OSError(38, "no such call"),
    ],
)
def test_what_cannot_be_looked_at_is_not_dead(child, monkeypatch, error):
    def refuse(pid: int) -> int:
        raise error

    monkeypatch.setattr(process, "_pidfd_open", refuse)
    assert not known_dead(of(child))
    with pytest.raises(OSError, match=str(error.strerror)):
        open_process(of(child))
    assert error.strerror in str(why_unwatchable(announce(0, None)))


def test_no_descriptor_is_left_open(child):
    before = len(os.listdir("/proc/self/fd"))
    known_dead(of(child))
    known_dead(of(child)._replace(started=1))
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_announcement_names_this_process_for_ever():
    said = announce(1.0, None)
    assert (said.pid, said.process_started) == (os.getpid(), started(os.getpid()))
    assert said.boot_id and said.pid_namespace and said.pid_namespace.startswith("pid:[")
    assert said.session_tag is None
