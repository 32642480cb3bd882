"""A process that has imported everything and forks workers from it: a worker is there in
milliseconds.

It reads one line of JSON for each worker to start and answers with ``{"started": pid}``; when one
ends it tells ``{"ended": pid, "status": status}``. It ends when its input does, and takes what is
left of its workers along.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self


class Nursery:
    """The test's end of it. Use it as a context manager.

    Args:
        code: a folder with another version of the library and of its tests, whose workers these are
            to be.
    """

    def __init__(self, code: Path | None = None) -> None:
        self._code = code

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.faults.nursery"]
        self._process = subprocess.Popen(
            command,
            cwd=self._code,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._started: queue.Queue[int] = queue.Queue()
        self._ended: dict[int, int] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._reader.join(5)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "started" in told:
                self._started.put(told["started"])
            else:
                self._ended[told["ended"]] = told["status"]

    def start(self, settings: dict[str, Any]) -> int:
        """The process id of a new worker."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        return self._started.get(timeout=20)

    def status(self, pid: int) -> int | None:
        """The exit status of a worker, negative for a signal; None while it runs."""
        return self._ended.get(pid)


def serve() -> None:
    """The process itself."""
    from tests.faults import worker

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the test, which ends this
    children: set[int] = set()
    buffer = b""
    while True:
        readable, _, _ = select.select([0, wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 1000)
            _reap(children)
        if 0 not in readable:
            continue
        data = os.read(0, 100_000)
        if not data:
            break
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                _live(worker.main, json.loads(line))
            children.add(pid)
            print(json.dumps({"started": pid}), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _reap(children: set[int]) -> None:
    for pid in tuple(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.remove(pid)
            print(
                json.dumps({"ended": pid, "status": os.waitstatus_to_exitcode(status)}), flush=True
            )


def _live(main: Any, settings: dict[str, Any]) -> None:
    """The rest of the life of a forked process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    errors = os.open(settings["diary"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, target in ((nothing, 0), (nothing, 1), (errors, 2)):
        os.dup2(descriptor, target)
    status = 1
    try:
        main(settings)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve()
