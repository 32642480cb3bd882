"""What an hour of heartbeats does to the table of workers: as many of the same statements, as fast
as they go, by several sessions at a time.

An hour passes in about a minute, and so does what the server does by the clock: autovacuum looks
every second instead of every minute, and is otherwise as it comes. No commit waits for the disk.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg

from benchmarks.results import Result
from jobsync_async import CoordinationConfig
from jobsync_async.core.rows import Announcement, Identity
from jobsync_async.postgres.store import Store

HURRIED = {"autovacuum_naptime": "1s"}
_HOUR = 720
_SESSIONS = 4
_SIZES = """SELECT pg_relation_size(relid), pg_indexes_size(relid),
                   n_tup_upd, n_tup_hot_upd, n_dead_tup, autovacuum_count
FROM pg_stat_all_tables WHERE relid = %s::regclass"""


@dataclass
class Hour:
    """KiB before, at most (looked at all the time) and after; shares of 100; how often autovacuum
    came."""

    heap: tuple[float, float, float]
    indexes: tuple[float, float, float]
    hot: float
    dead: float
    vacuums: float


async def hour(dsn: str, workers: int, beats: int, fill: int | None) -> Hour:
    """So many heartbeats of each worker. `fill`: another fill factor of the table than the
    schema's."""
    store = await Store.open(
        CoordinationConfig(dsn=dsn, appname=f"beats{workers}_{fill or ''}_"), "benchmark"
    )
    table = store.queries.table("node")
    try:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            if fill is not None:
                await connection.execute(f"ALTER TABLE {table} SET (fillfactor = {fill})".encode())
            everybody = [Identity(f"worker-{number}.example", uuid4()) for number in range(workers)]
            for one in everybody:
                await store.membership.join(
                    one,
                    Announcement(
                        host="worker.example", boot_id=str(uuid4()), address="10.0.0.1:80"
                    ),
                )

            async def look() -> Any:
                cursor = await connection.execute(_SIZES.encode(), [table])
                return await cursor.fetchone()

            seen = [await look()]
            beating = asyncio.gather(
                *(_beat(dsn, store, everybody[n::_SESSIONS], beats) for n in range(_SESSIONS))
            )
            while not beating.done():
                seen.append(await look())
                await asyncio.wait([beating], timeout=0.2)
            await beating
            await connection.execute("SELECT pg_stat_force_next_flush()")
            seen.append(await look())
    finally:
        await store.close()
    first, last = seen[0], seen[-1]
    updates = last[2] - first[2]
    assert updates == workers * beats, f"{updates} updates were counted"

    def sizes(column: int) -> tuple[float, float, float]:
        kib = [row[column] / 1024 for row in seen]
        return kib[0], max(kib), kib[-1]

    return Hour(
        sizes(0), sizes(1), 100 * (last[3] - first[3]) / updates, last[4], last[5] - first[5]
    )


async def _beat(dsn: str, store: Store, names: list[Identity], beats: int) -> None:
    """One session of several: the heartbeats of some workers in turn, without waiting for each
    answer."""
    heartbeat = store.queries["heartbeat"]
    values = {
        "watch_all": False,
        "version": -1,
        "here": None,
        "adopted_server": None,
        "adopted_generation": None,
    }
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SET synchronous_commit = off")
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute("SET search_path = pg_catalog")
        for _ in range(beats):
            async with connection.pipeline() as pipeline:
                for one in names:
                    await connection.execute(heartbeat, {**values, **one._asdict()}, prepare=True)
                    await pipeline.sync()


async def measure(dsn: str, quick: bool) -> list[Result]:
    """The schema's own fill factor, and others beside it."""
    workers, beats = (50, _HOUR // 10) if quick else (500, _HOUR)
    results = []
    for fill, number in (
        ((None, beats),) if quick else ((None, beats), (100, beats // 4), (70, beats // 4))
    ):
        seen = await hour(dsn, workers, number, fill)
        of = f"{workers} workers, {number} beats{'' if fill is None else f', fill factor {fill}'}: "
        ours = fill is None
        results += [
            Result(of + "node table, before", "KiB", [seen.heap[0]]),
            Result(
                of + "node table, at most",
                "KiB",
                [seen.heap[1]],
                1.5 * seen.heap[0] if ours else None,
            ),
            Result(of + "its indexes, before", "KiB", [seen.indexes[0]]),
            Result(
                of + "its indexes, at most",
                "KiB",
                [seen.indexes[1]],
                1.5 * seen.indexes[0] if ours else None,
            ),
            Result(
                of + "updates that touched no index",
                "%",
                [seen.hot],
                95 if ours else None,
                more=True,
            ),
            Result(of + "dead rows in the end", "", [seen.dead]),
            Result(of + "times autovacuum came", "", [seen.vacuums]),
        ]
    return results
