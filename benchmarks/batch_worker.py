"""One worker process of `batches.py`: says that it is ready, waits for the word, works, and tells
what it did. Moments are those of the machine's clock, which all processes share."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import psycopg

_TAKE = """
    SELECT id FROM job WHERE state = 'new' ORDER BY id FOR UPDATE SKIP LOCKED LIMIT {most}
"""
_TAKE_AND_DO = """
    UPDATE job SET state = 'done' WHERE id IN (
        SELECT id FROM job WHERE state = 'new' ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 100)
    RETURNING id
"""


async def ours(settings: dict[str, Any]) -> dict[str, float]:
    from jobsync_async import CoordinationConfig, Job

    last, held, seconds = 0.0, 0.0, settings["handler_ms"] / 1000

    async def handle(claim: Any) -> None:
        nonlocal last
        if seconds:
            await asyncio.sleep(seconds)
        last = time.time()

    async def watch() -> None:
        nonlocal held
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.002)
            held = max(held, time.monotonic() - before - 0.002)
            before = time.monotonic()

    config = CoordinationConfig(appname=settings["appname"])
    async with Job(f"w{settings['number']}", config) as job:
        while not await _even(job, settings["workers"]):  # noqa: ASYNC110 - others join
            await asyncio.sleep(0.05)
        await _word()
        ids = [f"id-{number}" for number in range(settings["ids"])]
        watcher = asyncio.ensure_future(watch())
        result = await job.run_batch(ids, handle, concurrency=settings["concurrency"])
        returned = time.time()
        watcher.cancel()
        done = len(result.completed_here)
        told = {"done": done, "last": last, "returned": returned, "held": held}
        print(json.dumps(told), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    return told


async def _even(job: Any, workers: int) -> bool:
    return len(job.my_tokens) == 10_000 // workers and len(await job.get_active_nodes()) == workers


async def by_hand(settings: dict[str, Any]) -> None:
    async with await psycopg.AsyncConnection.connect("", autocommit=True) as connection:
        await _word()
        done, way = 0, settings["way"]
        most = 1 if way == "each" else 100
        while True:
            if way == "batched":
                rows = await (await connection.execute(_TAKE_AND_DO)).fetchall()
            else:
                async with connection.transaction():
                    rows = await (await connection.execute(_TAKE.format(most=most))).fetchall()
                    for row in rows:
                        await connection.execute("UPDATE job SET state = 'done' WHERE id = %s", row)
            done += len(rows)
            if not rows:
                break
        now = time.time()
        print(json.dumps({"done": done, "last": now, "returned": now}), flush=True)


async def _word() -> None:
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(ours(given) if given["way"] == "ours" else by_hand(given))
