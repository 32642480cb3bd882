"""Many workers in a few processes, and what they tell of themselves (`crowd_worker`)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.sides import Side, server
from jobsync_async.embedded import EmbeddedPostgres

_MOST_SEC = 240
_TICKS = 100


class Process:
    """One process of Jobs, and what it told last.

    Attributes:
        owned: tokens of each of its Jobs. told_at: when that changed. moments: when something was
            begun or done.
    """

    def __init__(self, child: asyncio.subprocess.Process, news: asyncio.Event) -> None:
        self.child = child
        self.owned: dict[str, int] = {}
        self.told_at = 0.0
        self.moments: dict[str, float] = {}
        self._news = news
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.child.stdout is not None
        async for line in self.child.stdout:
            told = json.loads(line)
            if "owned" in told:
                self.owned.update(told["owned"])
                for name in told["gone"]:
                    del self.owned[name]
                self.told_at = told["t"]
            for what in ("joining", "joined", "leaving"):
                if what in told:
                    self.moments[f"{what} {told[what]}"] = told["t"]
            self._news.set()
        await self.child.wait()
        self._news.set()

    def order(self, what: str, names: Sequence[str], at_once: int = 3) -> None:
        """Let it do something; it goes on while others are told."""
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps({what: names, "at_once": at_once}).encode() + b"\n")

    @property
    def cpu_sec(self) -> float:
        """Processor seconds that it has used."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / _TICKS

    async def kill(self) -> float:
        """End it by SIGKILL; when."""
        at = time.monotonic()
        self.child.kill()
        await self.child.wait()
        await self._reading
        self.owned = {}
        return at

    async def end(self) -> None:
        """Let all its Jobs leave, and end."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        await self.child.wait()
        await self._reading


class Crowd:
    """All processes of one cluster, which has `total` tokens."""

    def __init__(
        self, postgres: EmbeddedPostgres, side: Side, appname: str, total: int, workers: int
    ) -> None:
        self.appname = appname
        self._environment = {**side.environment, **server(postgres.dsn)}
        self._command = [
            side.python,
            "-m",
            "benchmarks.crowd_worker",
            appname,
            str(total),
            str(workers),
        ]
        self.total = total
        self._news = asyncio.Event()
        self.processes: list[Process] = []

    async def process(self) -> Process:
        """One more process, without Jobs yet."""
        child = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1_000_000,
        )
        self.processes.append(Process(child, self._news))
        return self.processes[-1]

    async def even(self, workers: int) -> float:
        """Wait until so many workers own all tokens evenly; when the last of them came to."""
        await self.until(lambda: self._is_even(workers))
        return max(process.told_at for process in self.processes)

    def _is_even(self, workers: int) -> bool:
        counts = [count for process in self.processes for count in process.owned.values()]
        return (
            len(counts) == workers and sum(counts) == self.total and max(counts) - min(counts) <= 1
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what processes tell. Raises RuntimeError when one of them fails."""
        async with asyncio.timeout(_MOST_SEC):
            while not condition():
                if any((process.child.returncode or 0) > 0 for process in self.processes):
                    raise RuntimeError("a process of the crowd has failed; what it said is above")
                self._news.clear()
                await self._news.wait()

    async def end(self) -> None:
        """End all processes at once: nobody asks how they leave."""
        await asyncio.gather(
            *(process.kill() for process in self.processes if process.child.returncode is None)
        )


def server_cpu_sec(postgres: EmbeddedPostgres) -> float:
    """Processor seconds of the server so far: of its process, of those that have ended, and of
    those that it has."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if int(entry.name) == postgres.pid:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == postgres.pid:
                ticks += sum(map(int, fields[11:13]))
    return ticks / _TICKS
