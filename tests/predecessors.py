"""Real workers of jobsync 1.3.14, in an environment of their own.

As a program, in that environment: one worker, ``predecessors.py NAME APPNAME TASKS FILE``. It works
on the tasks that it owns, again and again, and writes when it begins and ends each, until SIGTERM.
The server is in libpq's environment variables.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VERSION = "1.3.14"
WORK_SEC = 0.03


class Marks:
    """Who works on what from when to when, in one file of all processes: a line is written by one
    call."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()

    def mark(self, what: str, name: str, task: int) -> None:
        self._file.write(f"{time.monotonic()} {what} {name} {task}\n".encode())


def environment(folder: Path) -> Path:
    """Its interpreter; skips the test where jobsync cannot be installed."""
    import pytest  # which there is none of in that environment

    python = folder / "bin" / "python"
    # jobsync needs 3.11
    version = f"{max(sys.version_info[:2], (3, 11))[0]}.{max(sys.version_info[:2], (3, 11))[1]}"
    install = ["uv", "pip", "install", "--quiet", "--python", str(python), f"jobsync=={VERSION}"]
    for command in (["uv", "venv", "--quiet", "--python", version, str(folder)], install):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=90)
        except (OSError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            pytest.skip(
                f"jobsync {VERSION} cannot be installed by uv: {told.strip().splitlines()[-1]}"
            )
    return python


def overlaps(path: Path) -> list[str]:
    """Where two worked on one task at once."""
    at_work: dict[str, set[str]] = {}
    found = []
    lines = (line.split() for line in path.read_text("ascii").splitlines())
    for _, what, name, task in sorted(lines, key=lambda line: float(line[0])):
        workers = at_work.setdefault(task, set())
        if what == "end":
            workers.discard(name)
            continue
        if workers:
            found.append(f"{name} and {', '.join(workers)} on {task}")
        workers.add(name)
    return found


def main(name: str, appname: str, tasks: str, path: str) -> None:
    import jobsync  # in the environment of its own

    config = jobsync.CoordinationConfig(
        host=os.environ["PGHOST"],
        port=int(os.environ["PGPORT"]),
        dbname=os.environ["PGDATABASE"],
        user=os.environ["PGUSER"],
        password=os.environ["PGPASSWORD"],
        appname=appname,
        token_refresh_initial_interval_sec=1,
        rebalance_check_interval_sec=2,
    )
    told_to_end: list[Any] = []
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.append(True))
    marks = Marks(Path(path))
    with jobsync.Job(name, config, wait_on_enter=4) as job:
        print("in", flush=True)
        while not told_to_end:
            for task in range(int(tasks)):
                if not told_to_end and job.can_claim_task(task):
                    marks.mark("begin", name, task)
                    time.sleep(WORK_SEC)
                    marks.mark("end", name, task)
            time.sleep(0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])
