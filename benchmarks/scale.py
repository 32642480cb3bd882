"""Many workers: how soon a join, a leave, a death and a burst of joins are absorbed, and what many cost while nothing happens.

The workers are in a few processes, many Jobs to each; the one that joins, leaves or is killed has a process of its own. All of
them share this machine's cores with the server, so the times hold the work of all workers together, which in use is spread.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.results import Result
from benchmarks.sides import Side, server
from jobsync_async.embedded import EmbeddedPostgres

_PROCESSES = 4
_BURST = 50
_MOST_SEC = 300
COUNTED = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.max": "10000"}


class Process:
    """One process of Jobs, and what it told last."""

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
                self.owned, self.told_at = told["owned"], told["t"]
            for what in ("joining", "leaving"):
                if what in told:
                    self.moments.setdefault(f"{what} {told[what]}", told["t"])
            self._news.set()
        await self.child.wait()
        self._news.set()

    def order(self, what: str, names: Sequence[str], at_once: int = 3) -> None:
        """Let it do something; it goes on while others are told."""
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps({what: names, "at_once": at_once}).encode() + b"\n")

    async def kill(self) -> float:
        """End it by SIGKILL; when."""
        at = time.monotonic()
        self.child.kill()
        await self.child.wait()
        await self._reading
        self.owned = {}
        return at

    async def end(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        await self.child.wait()
        await self._reading


class Crowd:
    """All processes of one cluster."""

    def __init__(self, postgres: EmbeddedPostgres, side: Side, appname: str, total: int, workers: int) -> None:
        self.appname = appname
        self._environment = {**side.environment, **server(postgres.dsn)}
        self._command = [side.python, "-m", "benchmarks.crowd_worker", appname, str(total), str(workers)]
        self._total = total
        self._news = asyncio.Event()
        self.processes: list[Process] = []

    async def process(self) -> Process:
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
        await self._until(lambda: self._is_even(workers))
        return max(process.told_at for process in self.processes)

    def _is_even(self, workers: int) -> bool:
        counts = [count for process in self.processes for count in process.owned.values()]
        return len(counts) == workers and sum(counts) == self._total and max(counts) - min(counts) <= 1

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_MOST_SEC):
            while not condition():
                if any((process.child.returncode or 0) > 0 for process in self.processes):
                    raise RuntimeError("a process of the crowd has failed; what it said is above")
                self._news.clear()
                await self._news.wait()

    async def end(self) -> None:
        await asyncio.gather(*(process.end() for process in self.processes if process.child.returncode is None))


async def crowd(postgres: EmbeddedPostgres, side: Side, workers: int, total: int, idle_sec: int) -> dict[str, float]:
    """Seconds for each event, and the costs."""
    many = Crowd(postgres, side, f"scale{workers}_{total}_", total, workers)
    took: dict[str, float] = {}
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as connection:

        async def number(query: str) -> float:
            row = await (await connection.execute(query)).fetchone()
            assert row is not None
            return float(row[0])

        await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        homes = [await many.process() for _ in range(min(_PROCESSES, workers))]
        started = time.monotonic()
        for index, home in enumerate(homes):
            home.order("start", [f"w{n}" for n in range(index, workers, len(homes))])
        took["start"] = await many.even(workers) - started
        await asyncio.sleep(12)  # until what starting needed is closed again, and has been counted
        took["connections"] = await number("SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()")
        calls = "SELECT sum(calls) FROM pg_stat_statements"
        before, used = await number(calls), cpu_sec(postgres)
        await asyncio.sleep(idle_sec)
        took["statements"] = (await number(calls) - before - 1) * 60 / idle_sec / workers
        took["idle_cpu"] = (cpu_sec(postgres) - used) * 1000 / idle_sec

        late = await many.process()
        used = cpu_sec(postgres)
        late.order("start", ["late"])
        took["join"] = await many.even(workers + 1) - late.moments["joining late"]
        took["join_cpu"] = cpu_sec(postgres) - used
        late.order("stop", ["late"])
        took["leave"] = await many.even(workers) - late.moments["leaving late"]
        late.order("start", ["doomed"])
        await many.even(workers + 1)
        await asyncio.sleep(1)
        at = await late.kill()
        took["death"] = await many.even(workers) - at

        counted = f"SELECT count(*) FROM {many.appname}rebalance"
        rebalances = await number(counted)
        bursts = [await many.process() for _ in range(_PROCESSES)]
        for index, burst in enumerate(bursts):
            burst.order("start", [f"burst{n}" for n in range(index, _BURST, len(bursts))], at_once=_BURST)
        used = cpu_sec(postgres)
        try:
            took["burst"] = await many.even(workers + _BURST) - min(min(burst.moments.values()) for burst in bursts)
        except (RuntimeError, TimeoutError) as error:  # a start gave up: shown as it is, as a burst that takes for ever
            print(f"{workers} workers: not all of {_BURST} joined: {error}", file=sys.stderr)
            took["burst"] = float("inf")
        took["rebalances"] = await number(counted) - rebalances
        took["burst_cpu"] = cpu_sec(postgres) - used
    await many.end()
    return took


def cpu_sec(postgres: EmbeddedPostgres) -> float:
    """Processor seconds of the server so far: of its process, of those that have ended, and of those that it has."""
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
    return ticks / 100


async def heartbeats(dsn: str, workers: int, beats: int) -> dict[str, float]:
    """The table of so many workers before and after so many heartbeats of each."""
    from uuid import uuid4

    from jobsync_async import CoordinationConfig
    from jobsync_async.core.rows import Announcement, Identity
    from jobsync_async.postgres.store import Store

    store = await Store.open(CoordinationConfig(dsn=dsn, appname=f"beats{workers}_"), "benchmark")
    table = f"beats{workers}_node"
    try:
        everybody = [Identity(f"w{number}", uuid4()) for number in range(workers)]
        for one in everybody:
            await store.membership.join(one, Announcement())
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:

            async def sizes() -> Any:
                cursor = await connection.execute(
                    "SELECT pg_relation_size(relid), pg_indexes_size(relid), n_tup_upd, n_tup_hot_upd FROM pg_stat_all_tables "
                    "WHERE relname = %s",
                    [table],
                )
                return await cursor.fetchone()

            await connection.execute("SET synchronous_commit = off")
            before = await sizes()
            for _ in range(beats):
                async with connection.pipeline():
                    for one in everybody:
                        await connection.execute(
                            f"UPDATE {table} SET beat = beat + 1, last_heartbeat = clock_timestamp() "
                            "WHERE name = %s AND incarnation = %s",
                            one,
                        )
            await connection.execute("SELECT pg_stat_force_next_flush()")
            after = await sizes()
    finally:
        await store.close()
    return {
        "before": before[0] / 1024,
        "after": after[0] / 1024,
        "hot": 100 * (after[3] - before[3]) / max(1, after[2] - before[2]),
        "updates": after[2] - before[2],
    }


async def measure(postgres: EmbeddedPostgres, side: Side, quick: bool) -> list[Result]:
    """Each number of workers in turn; nothing is interleaved, for there is no peer."""
    results = []
    sizes = [(2, 10_000), (10, 10_000), (50, 10_000)]
    if not quick:
        sizes += [(200, 10_000), (500, 10_000), (50, 100_000), (50, 1_000_000)]
    for workers, total in sizes:
        took = await crowd(postgres, side, workers, total, 10 if quick else 30)
        known = total == 10_000
        of = f"{workers} workers, {total:,} tokens: "
        results += [
            Result(of + "all start at once", "s", [took["start"]]),
            Result(of + "one more joins", "s", [took["join"]]),
            Result(of + "it leaves", "s", [took["leave"]]),
            Result(of + "one is killed", "s", [took["death"]], 1 if known else None),
            Result(of + f"{_BURST} more join at once", "s", [took["burst"]]),
            Result(of + f"rebalances for these {_BURST}", "", [took["rebalances"]], 5),
            Result(of + "statements each", "/min", [took["statements"]], 13),
            Result(of + "connections each", "", [took["connections"] / workers], 2.1),
            Result(of + "server, nothing happens", "ms/s", [took["idle_cpu"]]),
            Result(of + "server, for that join", "CPU s", [took["join_cpu"]]),
        ]
        for result in results[-10:]:
            print(result.line(), file=sys.stderr, flush=True)
    for workers, beats in ((50, 60),) if quick else ((50, 720), (500, 720)):
        table = await heartbeats(postgres.dsn, workers, beats)
        of = f"{workers} workers, {beats} beats: "
        results += [
            Result(of + "node table before", "KiB", [table["before"]]),
            Result(of + "node table after", "KiB", [table["after"]]),
            Result(of + "updates that touched no index", "%", [table["hot"]], 95, more=True),
        ]
    return results
