"""How soon all agree after a worker came or went, with the default settings; and whether two ever owned one token."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from benchmarks.results import Result

TOTAL = 10_000


class Watched:
    """Worker processes, and what they tell."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._readers: dict[str, asyncio.Task[None]] = {}
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.owned: dict[str, int] = {}
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Event()

    async def start(self, name: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.worker", name, self._dsn, str(TOTAL)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1_000_000,
        )
        self.processes[name] = process
        self._readers[name] = asyncio.ensure_future(self._read(name, process))

    async def _read(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            told = json.loads(line)
            self.lines.append((name, told))
            if "owned" in told:
                self.owned[name] = told["owned"]
            if "left" in told:
                self.owned.pop(name, None)
            self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def even(self, workers: int) -> bool:
        counts = list(self.owned.values())
        return len(counts) == workers and sum(counts) == TOTAL and max(counts) - min(counts) <= 1

    def moment(self, name: str, what: str) -> float:
        """When a worker last told of this."""
        return float(next(told["t"] for who, told in reversed(self.lines) if who == name and what in told))

    def last_change(self) -> float:
        """When the last worker told of a change that gave it tokens."""
        return max(float(told["t"]) for _, told in self.lines if told.get("come"))

    async def end(self, name: str) -> None:
        process = self.processes.pop(name)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        await process.wait()
        await self._readers.pop(name)

    def seconds_with_two_owners(self) -> float:
        """Of all tokens together."""
        held: dict[int, list[tuple[float, float]]] = {}
        since: dict[tuple[str, int], float] = {}
        for name, told in sorted(self.lines, key=lambda entry: entry[1]["t"]):
            gone = told.get("gone", ()) if "left" not in told else [t for who, t in since if who == name]
            for token in gone:
                if (name, token) in since:
                    held.setdefault(token, []).append((since.pop((name, token)), told["t"]))
            for token in told.get("come", ()):
                since[name, token] = told["t"]
        for (_, token), begun in since.items():
            held.setdefault(token, []).append((begun, float("inf")))
        spans = (sorted(spans) for spans in held.values())
        return sum(max(0.0, a[1] - b[0]) for span in spans for a, b in pairwise(span))


async def measure(dsn: str, rounds: int) -> list[Result]:
    """Three workers, a fourth one comes and goes; the time from its joining or leaving until all agree."""
    watched = Watched(dsn)
    joins, leaves = [], []
    for name in ("a", "b", "c"):
        await watched.start(name)
    await watched.until(lambda: watched.even(3))
    for number in range(rounds):
        name = f"d{number}"
        await watched.start(name)
        await watched.until(lambda: watched.even(4))
        joins.append(watched.last_change() - watched.moment(name, "joining"))
        await watched.end(name)
        await watched.until(lambda: watched.even(3))
        leaves.append(watched.last_change() - watched.moment(name, "leaving"))
    for name in list(watched.processes):
        await watched.end(name)
    return [
        Result("a worker joins until all agree, 3 to 4", "s", joins, 0.25),
        Result("graceful leave until every token is owned again, 4 to 3", "s", leaves, 0.1),
        Result("two owners of a token during join and leave", "s, all tokens", [watched.seconds_with_two_owners()], 0),
    ]
