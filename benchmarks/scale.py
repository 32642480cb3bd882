"""Many workers: how soon a join, a leave, a death and a burst of joins are absorbed, and what many
cost while nothing happens.

The workers are in a few processes, many Jobs to each; the leader has one of its own, and so has the
one that joins, leaves or is killed. All of them share this machine's cores with the server, so the
times hold the work of all workers together, which in use is spread.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import psycopg

from benchmarks.crowds import Crowd, Process, server_cpu_sec
from benchmarks.results import Result
from benchmarks.sides import Side
from jobsync_async import CoordinationConfig
from jobsync_async.core.heartbeat_schedule import SETTLING
from jobsync_async.embedded import EmbeddedPostgres

_PROCESSES = 4
_BURST = 50
_SETTLES_WITHIN_SEC = 10
# Between two events, so that one does not count as a part of the other.
_PAUSE_SEC, _QUICK_PAUSE_SEC = 2.5, 1.0
COUNTED = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.max": "10000"}
_SIZES = (
    (2, 10_000),
    (10, 10_000),
    (50, 10_000),
    (200, 10_000),
    (500, 10_000),
    (50, 100_000),
    (50, 1_000_000),
)
_QUICK_SIZES = ((10, 10_000),)


@dataclass
class Seen:
    """What was measured of one cluster: seconds, and what `crowd` says of the rest."""

    workers: int
    total: int
    start: float = 0.0
    connections: float = 0.0
    statements: float = 0.0
    idle_ms: float = 0.0
    leader_idle_ms: float = 0.0
    join: list[float] = field(default_factory=list)
    leave: list[float] = field(default_factory=list)
    death: list[float] = field(default_factory=list)
    join_cpu: list[float] = field(default_factory=list)
    leader_join_cpu: list[float] = field(default_factory=list)
    burst: float = 0.0
    burst_cpu: float = 0.0
    leader_burst_cpu: float = 0.0
    rebalances: float = 0.0

    def results(self) -> list[Result]:
        known = self.total == 10_000
        of = f"{self.workers} workers, {self.total:,} tokens: "
        return [
            Result(of + "all start at once", "s", [self.start]),
            Result(of + "one more joins", "s", self.join),
            Result(of + "it leaves", "s", self.leave),
            Result(of + "one is killed", "s", self.death, 1 if known else None),
            Result(of + f"{_BURST} more join at once", "s", [self.burst]),
            Result(of + f"rebalances for these {_BURST}", "", [self.rebalances], 5),
            # Two look once more.
            Result(of + "statements each", "/min", [self.statements], 13 + 24 / self.workers),
            Result(of + "connections each", "", [self.connections / self.workers], 2.1),
            Result(of + "server, nothing happens, each", "ms/s", [self.idle_ms / self.workers]),
            Result(of + "leader, nothing happens", "ms/s", [self.leader_idle_ms]),
            Result(of + "server, for that join", "CPU s", self.join_cpu),
            Result(of + "leader, for that join", "CPU s", self.leader_join_cpu),
            Result(of + f"server, for these {_BURST}", "CPU s", [self.burst_cpu]),
            Result(of + f"leader, for these {_BURST}", "CPU s", [self.leader_burst_cpu]),
        ]


class Measurement:
    """One cluster, from its start to its end."""

    def __init__(
        self,
        postgres: EmbeddedPostgres,
        side: Side,
        workers: int,
        total: int,
        pause_sec: float = _PAUSE_SEC,
    ) -> None:
        self._postgres = postgres
        self._pause_sec = pause_sec
        self._crowd = Crowd(postgres, side, f"scale{workers}_{total}_", total, workers)
        self._workers = workers
        self.seen = Seen(workers, total)
        self._number: Callable[[str], Awaitable[float]]
        self._leader: Process

    async def run(self, idle_sec: float, rounds: int) -> Seen:
        async with await psycopg.AsyncConnection.connect(
            self._postgres.dsn, autocommit=True
        ) as connection:

            async def number(query: str) -> float:
                row = await (await connection.execute(query.encode())).fetchone()
                assert row is not None
                return float(row[0] or 0)

            self._number = number
            try:
                await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
                await self._start()
                await self._idle(idle_sec)
                for _ in range(rounds):
                    await self._join_and_leave()
                    await self._join_and_die()
                await self._burst()
            finally:
                await self._crowd.end()
        return self.seen

    async def _start(self) -> None:
        crowd, workers = self._crowd, self._workers
        homes = [await crowd.process() for _ in range(min(_PROCESSES, workers))]
        self._leader = homes[0]
        started = time.monotonic()
        self._leader.order("start", ["w0"])
        await crowd.until(lambda: "joined w0" in self._leader.moments)
        others = homes[1:]
        for index, home in enumerate(others, 1):
            home.order("start", [f"w{n}" for n in range(index, workers, len(others))])
        self.seen.start = await crowd.even(workers) - started

    async def _idle(self, seconds: float) -> None:
        here = (
            "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client "
            "backend'"
        )
        connections = f"SELECT count(*) FROM pg_stat_activity WHERE {here}"
        for _ in range(_SETTLES_WITHIN_SEC * 10):  # until what starting needed is closed again
            if await self._number(connections) <= 2 * self._workers:
                break
            await asyncio.sleep(0.1)
        # Until nobody counts as new any more; meanwhile, what was not announced is read with the
        # next heartbeat.
        await asyncio.sleep(SETTLING * CoordinationConfig().heartbeat_interval_sec)
        self.seen.connections = await self._number(connections)
        calls = (
            f"SELECT sum(calls) FROM pg_stat_statements WHERE query LIKE '%{self._crowd.appname}%'"
        )
        before, used, led = (
            await self._number(calls),
            server_cpu_sec(self._postgres),
            self._leader.cpu_sec,
        )
        await asyncio.sleep(seconds)
        self.seen.idle_ms = (server_cpu_sec(self._postgres) - used) * 1000 / seconds
        self.seen.leader_idle_ms = (self._leader.cpu_sec - led) * 1000 / seconds
        self.seen.statements = (await self._number(calls) - before) * 60 / seconds / self._workers

    async def _join_and_leave(self) -> None:
        crowd, workers, seen = self._crowd, self._workers, self.seen
        one = await crowd.process()
        await asyncio.sleep(self._pause_sec)
        used, led = server_cpu_sec(self._postgres), self._leader.cpu_sec
        one.order("start", ["late"])
        at = await crowd.even(workers + 1)
        seen.join.append(at - one.moments["joining late"])
        await asyncio.sleep(1)  # until all have heard of it
        seen.join_cpu.append(server_cpu_sec(self._postgres) - used)
        seen.leader_join_cpu.append(self._leader.cpu_sec - led)
        one.order("stop", ["late"])
        at = await crowd.even(workers)
        seen.leave.append(at - one.moments["leaving late"])
        await one.end()

    async def _join_and_die(self) -> None:
        crowd, workers = self._crowd, self._workers
        one = await crowd.process()
        one.order("start", ["doomed"])
        await crowd.even(workers + 1)
        await asyncio.sleep(self._pause_sec)
        at = await one.kill()
        self.seen.death.append(await crowd.even(workers) - at)

    async def _burst(self) -> None:
        crowd, seen = self._crowd, self.seen
        counted = f"SELECT count(*) FROM {crowd.appname}rebalance"
        bursts = [await crowd.process() for _ in range(_PROCESSES)]
        await asyncio.sleep(self._pause_sec)
        rebalances, used, led = (
            await self._number(counted),
            server_cpu_sec(self._postgres),
            self._leader.cpu_sec,
        )
        for index, burst in enumerate(bursts):
            burst.order(
                "start", [f"burst{n}" for n in range(index, _BURST, len(bursts))], at_once=_BURST
            )
        try:
            at = await crowd.even(self._workers + _BURST)
            seen.burst = at - min(min(burst.moments.values()) for burst in bursts)
        except (RuntimeError, TimeoutError) as error:
            # A start gave up: shown as it is, as a burst that takes for ever.
            print(f"{self._workers} workers: not all of {_BURST} joined: {error}", file=sys.stderr)
            seen.burst = float("inf")
        seen.rebalances = await self._number(counted) - rebalances
        seen.burst_cpu = server_cpu_sec(self._postgres) - used
        seen.leader_burst_cpu = self._leader.cpu_sec - led


async def measure(postgres: EmbeddedPostgres, side: Side, quick: bool) -> list[Result]:
    """Each number of workers in turn; nothing is interleaved, for there is no peer."""
    results: list[Result] = []
    statements: dict[int, float] = {}
    for workers, total in _QUICK_SIZES if quick else _SIZES:
        idle_sec = 10 if total == 10_000 and not quick else 5  # in whole heartbeat intervals
        pause_sec = _QUICK_PAUSE_SEC if quick else _PAUSE_SEC
        seen = await Measurement(postgres, side, workers, total, pause_sec).run(
            idle_sec, 1 if quick else 2
        )
        results += seen.results()
        if total == 10_000:
            statements[workers] = seen.statements
        for result in seen.results():
            print(result.line(), file=sys.stderr, flush=True)
    if len(statements) > 1:
        few, many = min(statements), max(statements)
        ratio = statements[many] / statements[few]
        results.append(Result(f"statements each, {many} workers over {few}", "x", [ratio], 1.1))
    return results
