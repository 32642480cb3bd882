"""Many workers: how long a join, a death and a burst of joins take to be absorbed, with many Jobs to a process.

The Jobs share one process and its event loop here, so the figures hold the work of all workers together, one after the other.
A death is told by the test: the row is deleted as the leader deletes that of a worker which is known dead.
"""

from __future__ import annotations

import asyncio
import time

import psycopg

from benchmarks.results import Result
from jobsync_async import CoordinationConfig, Job


class Crowd:
    """Jobs in this process, and what the tables say of them."""

    def __init__(self, dsn: str, workers: int) -> None:
        self.config = CoordinationConfig(dsn=dsn, appname=f"scale{workers}_", rebalance_delay_sec=0.1)
        self.jobs: dict[str, Job] = {}

    async def grow(self, names: list[str], at_once: int = 25) -> None:
        turn = asyncio.Semaphore(at_once)

        async def start(name: str) -> None:
            async with turn:
                self.jobs[name] = Job(name, self.config)
                await self.jobs[name].start()

        await asyncio.gather(*map(start, names))

    def agreed(self) -> bool:
        """Whether the workers together hold every token once, evenly."""
        counts = [len(job.my_tokens) for job in self.jobs.values()]
        return sum(counts) == self.config.total_tokens and max(counts) - min(counts) <= 1

    async def agree(self, most_sec: float = 120) -> float:
        """Wait until they do; when."""
        async with asyncio.timeout(most_sec):
            while not self.agreed():  # noqa: ASYNC110 - looked at from outside, as an operator would
                await asyncio.sleep(0.01)
        return time.perf_counter()


async def crowd(dsn: str, workers: int) -> dict[str, float]:
    """Seconds for one join, one death that is known, and 50 joins at once; and how many rebalances the latter took."""
    many = Crowd(dsn, workers)
    took: dict[str, float] = {}
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:

        async def rebalances() -> int:
            row = await (await connection.execute(f"SELECT count(*) FROM {many.config.appname}rebalance")).fetchone()
            assert row is not None
            return int(row[0])

        await many.grow([f"w{number}" for number in range(workers)])
        await many.agree()
        started = time.perf_counter()
        await many.grow(["late"])
        took["join"] = await many.agree() - started

        ended = many.jobs.pop("late")._engine._supervisor  # type: ignore[attr-defined]
        ended.cancel()  # without signing off, as a process that is killed
        await asyncio.wait([ended])
        started = time.perf_counter()
        async with connection.transaction():  # as the leader does it, once it knows
            row = await (
                await connection.execute(f"UPDATE {many.config.appname}cluster SET version = version + 1 RETURNING version")
            ).fetchone()
            assert row is not None
            await connection.execute(f"DELETE FROM {many.config.appname}node WHERE name = 'late'")
            await connection.execute(f"SELECT pg_notify('{many.config.channel}', '{row[0]}')")
        took["death"] = await many.agree() - started

        before = await rebalances()
        started = time.perf_counter()
        await many.grow([f"burst{number}" for number in range(50)], at_once=50)
        took["burst"] = await many.agree() - started
        took["rebalances"] = await rebalances() - before
    await asyncio.gather(*(job.stop() for job in many.jobs.values()))
    return took


async def measure(dsn: str, quick: bool) -> list[Result]:
    results = []
    for workers in (10, 50) if quick else (10, 50, 200, 500):
        took = await crowd(dsn, workers)
        results += [
            Result(f"{workers} workers: one more joins", "s", [took["join"]]),
            Result(f"{workers} workers: one is known dead", "s", [took["death"]], 1),
            Result(f"{workers} workers: 50 more join at once", "s", [took["burst"]]),
            Result(f"{workers} workers: rebalances for these 50", "", [took["rebalances"]], 5),
        ]
    return results
