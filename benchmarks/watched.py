"""Worker processes that tell of every change of what they own, and what follows from what they
told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

TOTAL = 10_000
_MOST_SEC = 200


class Watched:
    """Worker processes, and what they tell. Those that live at the end of its block are killed.

    Args:
        command: what starts a worker, its name being added. total: how many tokens there are to
            own.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], total: int = TOTAL
    ) -> None:
        self._command = command
        self._environment = environment
        self._total = total
        self._readers: dict[str, asyncio.Task[None]] = {}
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.owned: dict[str, int] = {}
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> Watched:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.wait() for process in self.processes.values()))
        for reader in self._readers.values():
            reader.cancel()

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
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_MOST_SEC):
            while not condition():
                for name, reader in self._readers.items():
                    if reader.done():
                        reader.result()
                        raise RuntimeError(
                            f"worker {name} has ended unasked; what it said is above"
                        )
                self._news.clear()
                await self._news.wait()

    async def even(self, workers: int) -> None:
        """Until so many workers own all tokens, one more than others at most."""
        await self.until(lambda: self._is_even(workers))

    def _is_even(self, workers: int) -> bool:
        counts = list(self.owned.values())
        return (
            len(counts) == workers and sum(counts) == self._total and max(counts) - min(counts) <= 1
        )

    def moment(self, name: str, what: str) -> float:
        """When a worker last told of this."""
        return float(
            next(told["t"] for who, told in reversed(self.lines) if who == name and what in told)
        )

    def last_change(self) -> float:
        """When a worker last told of a change: one that lets go later than another takes still has
        to learn of it."""
        return max(
            float(told["t"]) for _, told in self.lines if told.get("come") or told.get("gone")
        )

    async def end(self, name: str) -> None:
        process = self.processes[name]
        assert process.stdin is not None
        process.stdin.write(b"\n")
        await self._gone(name)

    async def kill(self, name: str) -> float:
        """End a worker by SIGKILL; when."""
        at = time.monotonic()
        self.processes[name].kill()
        await self._gone(name)
        self.owned.pop(name, None)
        self.lines.append((name, {"t": at, "left": True}))
        return at

    async def _gone(self, name: str) -> None:
        async with asyncio.timeout(_MOST_SEC):
            await self.processes[name].wait()
            await self._readers[name]
        del self.processes[name], self._readers[name]


Span = tuple[float, float]


def holdings(lines: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[int, list[Span]]:
    """From when to when somebody owned each token, in order of beginning; what has not ended ends
    at infinity."""
    held: dict[int, list[Span]] = {}
    since: dict[tuple[str, int], float] = {}
    for name, told in sorted(lines, key=lambda entry: entry[1]["t"]):
        gone = (
            told.get("gone", ())
            if "left" not in told
            else [token for who, token in since if who == name]
        )
        for token in gone:
            if (name, token) in since:
                held.setdefault(token, []).append((since.pop((name, token)), told["t"]))
        for token in told.get("come", ()):
            since[name, token] = told["t"]
    for (_, token), begun in since.items():
        held.setdefault(token, []).append((begun, float("inf")))
    return {token: sorted(spans) for token, spans in held.items()}


def doubled(held: Mapping[int, Sequence[Span]]) -> Iterator[Span]:
    """From when to when a token had two owners; each time of each token."""
    for spans in held.values():
        latest = float("-inf")
        for begun, ended in spans:
            if begun < latest:
                yield begun, min(latest, ended)
            latest = max(latest, ended)


def orphaned(held: Mapping[int, Sequence[Span]]) -> Iterator[Span]:
    """From when to when a token that had had an owner had none; each time of each token."""
    for spans in held.values():
        for before, after in pairwise(spans):
            if before[1] < after[0]:
                yield before[1], after[0]


@dataclass
class Took:
    """By kind of event, one value for each time that it happened, in seconds.

    Attributes:
        reaction: from when it began until all tokens were owned again and evenly.
        unowned: the longest that a token had no owner meanwhile. shared: the longest that one had
            two.
        shared_in_all: seconds with two owners, of all tokens together, from first to last.
    """

    reaction: dict[str, list[float]] = field(default_factory=dict)
    unowned: dict[str, list[float]] = field(default_factory=dict)
    shared: dict[str, list[float]] = field(default_factory=dict)
    shared_in_all: float = 0.0


async def events(
    watched: Watched,
    rounds: int,
    victims: Sequence[str],
    *,
    one_by_one: bool = True,
    calm_sec: float = 0.0,
) -> Took:
    """Three workers; a fourth comes and leaves, `rounds` times; then for each of `victims` a fourth
    comes, and one is killed: the oldest, where it says ``"leader"``, else the youngest. The last
    are left to the end of the block of `watched`.

    Args:
        one_by_one: the three start in order, so that the first is the oldest, and is alone for a
            moment: event ``"first"``.
        calm_sec: for how long nothing happens before each is killed.
    """
    spells: list[tuple[str, float, float]] = []
    alive = ["a", "b", "c"]  # the oldest first
    for number, name in enumerate(alive, start=1):
        await watched.start(name)
        if one_by_one:
            # awaited in this very turn
            await watched.until(lambda: len(watched.owned) >= number)  # noqa: B023
        if one_by_one and number == 1:
            await watched.even(1)
            spells.append(("first", watched.moment(name, "joining"), watched.last_change()))
    await watched.even(3)
    for number in range(rounds):
        name = f"d{number}"
        await watched.start(name)
        await watched.even(4)
        spells.append(("join", watched.moment(name, "joining"), watched.last_change()))
        await watched.end(name)
        await watched.even(3)
        spells.append(("leave", watched.moment(name, "leaving"), watched.last_change()))
    for number, victim in enumerate(victims):
        name = f"e{number}"
        await watched.start(name)
        await watched.even(4)
        alive.append(name)
        await asyncio.sleep(calm_sec)
        at = await watched.kill(alive.pop(0 if victim == "leader" else -1))
        await watched.even(3)
        spells.append((victim, at, watched.last_change()))
    return _taken(spells, watched.lines)


def _taken(
    spells: Sequence[tuple[str, float, float]], lines: Sequence[tuple[str, Mapping[str, Any]]]
) -> Took:
    held = holdings(lines)
    shared, without = list(doubled(held)), list(orphaned(held))

    def longest(spans: Sequence[Span], begun: float, ended: float) -> float:
        """Of those that ended in this time."""
        return max((span[1] - span[0] for span in spans if begun <= span[1] <= ended), default=0.0)

    took = Took(shared_in_all=sum(ended - begun for begun, ended in shared))
    for event, begun, ended in spells:
        took.reaction.setdefault(event, []).append(ended - begun)
        took.unowned.setdefault(event, []).append(longest(without, begun, ended))
        took.shared.setdefault(event, []).append(longest(shared, begun, ended))
    return took
