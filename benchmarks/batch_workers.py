"""Worker processes of a batch that begin at one moment, and what the machine's processes take."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.sides import Side, server

_WORKER = Path(__file__).with_name("batch_worker.py")
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


class Took(NamedTuple):
    """What a batch took.

    Attributes:
        sec: from the word until the last worker has returned. after_last_ms: the same from the last
            completion. held_ms: the longest hold of an event loop. memory_mib: the most of a
            worker, over what it had before, its list of ids with it.
    """

    sec: float
    after_last_ms: float
    held_ms: float
    memory_mib: float


class Workers:
    """The processes of one batch, as its only users of a server."""

    def __init__(self, dsn: str, side: Side) -> None:
        self._dsn = dsn
        self._side = side
        self._processes: list[subprocess.Popen[str]] = []

    def begin(self, appname: str, workers: int, ids: int, **more: Any) -> None:
        """Workers of this library, which share the tokens, and wait for the word."""
        for number in range(workers):
            settings = {
                "way": "ours", "appname": appname, "ids": ids, "workers": workers, "name": "b",
                "handler_ms": 0.0, "concurrency": 8, "stays_at": None, "says": False, "warm": True,
                "number": number, **more,
            }  # fmt: skip
            self._start([self._side.python, str(_WORKER), json.dumps(settings)])
        self._expect("ready")

    def begin_loops(self, way: str, workers: int, **more: Any) -> None:
        """Loops that take jobs from a table; or, "bare", handlers alone."""
        command = [self._side.python, str(_WORKER), json.dumps({"way": way, **more})]
        for _ in range(workers):
            self._start(command)
        self._expect("ready")

    def begin_peers(self, peer: Side, workers: int) -> None:
        """Workers of another library."""
        for _ in range(workers):
            self._start(peer.command("worker"), peer)
        self._expect("ready")

    def _start(self, command: list[str], side: Side | None = None) -> None:
        environment = (side or self._side).environment
        self._processes.append(
            subprocess.Popen(
                command,
                env={**environment, **server(self._dsn)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    def _expect(self, what: str) -> None:
        for process in self._processes:
            assert _line(process) == what

    def go(self) -> float:
        """Give the word; its moment."""
        began = time.time()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return began

    def run(self, ids: int) -> Took:
        """Give the word, and wait until all are done. So many must be done."""
        began = self.go()
        told = [json.loads(_line(process)) for process in self._processes]
        done = sum(one["done"] for one in told)
        if done != ids:
            raise RuntimeError(f"{done} of {ids} were done")
        returned = max(one["returned"] for one in told)
        return Took(
            returned - began,
            1000 * (returned - max(one["last"] for one in told)),
            1000 * max(one.get("held", 0) for one in told),
            max(one.get("memory", 0) for one in told),
        )

    def until_share_is_done(self) -> int:
        """Until the first of them has done what it owns; its process id."""
        assert _line(self._processes[0]) == "share done"
        return self._processes[0].pid

    def end(self) -> None:
        """They leave, or are killed when they are in the midst of it."""
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError("a worker has ended before it was done")
    return line


@contextmanager
def workers(dsn: str, side: Side) -> Iterator[Workers]:
    """Room for workers, which are gone afterwards."""
    room = Workers(dsn, side)
    try:
        yield room
    finally:
        room.end()


def cpu_ms_per_sec(*trees: int, seconds: int) -> list[float]:
    """What processes with all their children take: milliseconds of CPU a second, in the mean."""
    before = _cpu_ms(trees)
    time.sleep(seconds)
    return [(_cpu_ms(trees) - before) / seconds]


def _cpu_ms(trees: tuple[int, ...]) -> float:
    """With what children took that have ended."""
    total, family = 0, set(trees)
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        stats[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in stats.items() if parent in family} - family
        family |= more
        grown = bool(more)
    total = sum(stats[pid][1] for pid in family if pid in stats)
    return total * _TICK_MS
