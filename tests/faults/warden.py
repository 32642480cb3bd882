"""Runs a program, and takes everything that came of it along when its own input ends.

That is when whoever started it closes the pipe, or is gone itself, however it ended. What daemons
leave behind them stays below this process, which adopts it. It is run by its path, as ``warden.py
UID GID PROGRAM ARGUMENTS...``; -1 leaves the user as it is. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress

_ADOPT_ORPHANS = 36
_IN_ORDER_SEC = 3.0


def below(ancestor: int) -> list[int]:
    """The processes that descend from one, each after its parent; zombies are left out."""
    children = defaultdict[int, list[int]](list)
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as f:
            state, parent = f.read().rpartition(")")[2].split()[:2]
            if state != "Z":
                children[int(parent)].append(int(name))
    found, ahead = list[int](), [ancestor]
    while ahead:
        grown = children[ahead.pop()]
        found += grown
        ahead += grown
    return found


def send(pids: list[int], *signals: signal.Signals) -> None:
    """Send signals to processes, some of which may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            for number in signals:
                os.kill(pid, number)


def main(user: int, group: int, *command: str) -> None:
    """Run the program until the input ends."""
    ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the test, which ends this
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    as_user = {} if user < 0 else {"user": user, "group": group, "extra_groups": []}
    subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **as_user)
    while os.read(0, 100):
        pass
    # A server that quits takes its shared memory along.
    send(below(os.getpid()), signal.SIGCONT, signal.SIGQUIT)
    in_order_until = time.monotonic() + _IN_ORDER_SEC
    while left := below(os.getpid()):
        if time.monotonic() > in_order_until:
            send(left, signal.SIGKILL)
        time.sleep(0.02)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
