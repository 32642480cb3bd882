"""How soon every token is owned again after a worker came, left or was killed, with the default settings of each side; and
whether two ever owned one token."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.results import Result
from benchmarks.sides import Side, server

TOTAL = 10_000


class Watched:
    """Worker processes, and what they tell."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._readers: dict[str, asyncio.Task[None]] = {}
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.owned: dict[str, int] = {}
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Event()

    async def start(self, name: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            name,
            env=self._environment,
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
        async with asyncio.timeout(200):
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

    async def kill(self, name: str) -> float:
        """End a worker by SIGKILL; when."""
        process = self.processes.pop(name)
        at = time.monotonic()
        process.kill()
        await process.wait()
        await self._readers.pop(name)
        self.owned.pop(name, None)
        self.lines.append((name, {"t": at, "left": True}))
        return at

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


async def events(watched: Watched, rounds: int, kills: int) -> dict[str, list[float]]:
    """Three workers; a fourth comes and leaves, then followers and leaders are killed. Seconds until all agree."""
    took: dict[str, list[float]] = {"join": [], "leave": [], "follower": [], "leader": []}
    alive = ["a", "b", "c"]  # the oldest first
    for name in alive:
        await watched.start(name)
        await watched.until(lambda: len(watched.owned) > alive.index(name))  # noqa: B023 - awaited in this very turn
    await watched.until(lambda: watched.even(3))
    for number in range(rounds):
        name = f"d{number}"
        await watched.start(name)
        await watched.until(lambda: watched.even(4))
        took["join"].append(watched.last_change() - watched.moment(name, "joining"))
        await watched.end(name)
        await watched.until(lambda: watched.even(3))
        took["leave"].append(watched.last_change() - watched.moment(name, "leaving"))
    for number in range(kills):
        for victim in ("follower", "leader"):
            name = f"{victim}{number}"
            await watched.start(name)
            await watched.until(lambda: watched.even(4))
            alive.append(name)
            at = await watched.kill(alive.pop(0 if victim == "leader" else 1))
            await watched.until(lambda: watched.even(3))
            took[victim].append(watched.last_change() - at)
    for name in list(watched.processes):
        await watched.end(name)
    return took


async def measure(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    """Ours, several rounds; theirs, which takes minutes for each round, only in a whole run."""
    ours_side, theirs_side = sides
    where = server(dsn)
    command = [ours_side.python, "-m", "benchmarks.own_worker"]
    ours = Watched(command, {**ours_side.environment, **where})
    took = await events(ours, 3 if quick else 10, 0 if quick else 2)
    theirs: dict[str, list[float]] = {}
    doubled: list[float] = []
    if not quick:
        watched = Watched(theirs_side.command("worker"), {**theirs_side.environment, **where})
        theirs = await events(watched, 2, 1)
        doubled = [watched.seconds_with_two_owners()]
    titles = {
        "join": ("a worker joins, 3 to 4", 0.25),
        "leave": ("graceful leave, 4 to 3", 0.1),
        "follower": ("a follower is killed, 4 to 3", 16.0),
        "leader": ("the leader is killed, 4 to 3", 16.0),
    }
    kills = {"follower", "leader"}
    return [
        *(
            Result(title, "s", took[event], goal, theirs.get(event, ()), times=None if event in kills else 50)
            for event, (title, goal) in titles.items()
            if took[event]
        ),
        Result("two owners of a token, all tokens together", "s", [ours.seconds_with_two_owners()], 0, doubled),
    ]
