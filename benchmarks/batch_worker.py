"""One worker process of `batches.py`: says that it is ready, waits for the word, works, and tells
what it did. Moments are those of the machine's clock, which all processes share."""

from __future__ import annotations

import asyncio
import gc
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
_LOOK_SEC = 0.002


async def ours(settings: dict[str, Any]) -> dict[str, float]:
    """A part of a batch, after a small one of the same process if `warm`. At the worker `stays_at`
    no handler ends. With `says`, it tells when its
    share is done."""
    from jobsync_async import CoordinationConfig, Job

    last, seconds = 0.0, settings["handler_ms"] / 1000
    done, share = 0, -1

    async def handle(claim: Any) -> None:
        nonlocal last, done
        if settings["stays_at"] == settings["number"]:
            await asyncio.Event().wait()
        if seconds:
            await asyncio.sleep(seconds)
        last = time.time()
        done += 1
        if done == share:
            holds.over = True  # what it takes itself does not count
            print("share done", flush=True)

    holds = Holds()
    config = CoordinationConfig(appname=settings["appname"])
    async with Job(f"w{settings['number']}", config) as job:
        while not await _even(job, settings["workers"]):  # noqa: ASYNC110 - others join
            await asyncio.sleep(0.05)
        if settings["warm"]:
            await job.run_batch(range(400), nothing, name="warms up")
        ids = [f"id-{number}" for number in range(settings["ids"])]
        if settings["says"]:
            share = len(job.filter_owned(ids))
        gc.collect()  # what is left of the start is not the batch's
        before = _memory("VmRSS")
        await _word()
        watcher = asyncio.ensure_future(holds.watch())
        result = await job.run_batch(
            ids, handle, name=settings["name"], concurrency=settings["concurrency"]
        )
        returned = time.time()
        watcher.cancel()
        told = {
            "done": len(result.completed_here),
            "last": last,
            "returned": returned,
            "held": holds.longest,
            "memory": _memory("VmHWM") - before,
        }
        print(json.dumps(told), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    return told


async def nothing(claim: Any) -> None:
    """A handler."""


class Holds:
    """How long the event loop was held at a time, at most: seconds of this process's work. What
    the machine did meanwhile for others does not count."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.over = False

    async def watch(self) -> None:
        before, worked = time.monotonic(), time.thread_time()
        while not self.over:
            await asyncio.sleep(_LOOK_SEC)
            now, works = time.monotonic(), time.thread_time()
            self.longest = max(self.longest, min(now - before - _LOOK_SEC, works - worked))
            before, worked = now, works


def _memory(field: str) -> float:
    """MiB of memory, as Linux tells."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


async def _even(job: Any, workers: int) -> bool:
    return len(job.my_tokens) == 10_000 // workers and len(await job.get_active_nodes()) == workers


async def by_hand(settings: dict[str, Any]) -> None:
    """A loop that takes jobs from a table until none is left."""
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


async def bare(settings: dict[str, Any]) -> None:
    """The handlers of a worker and nothing else: tasks that sleep as often."""

    async def slot() -> None:
        for _ in range(settings["ids"] // settings["concurrency"]):
            await asyncio.sleep(settings["handler_ms"] / 1000)

    await _word()
    await asyncio.gather(*(slot() for _ in range(settings["concurrency"])))
    now = time.time()
    print(json.dumps({"done": settings["ids"], "last": now, "returned": now}), flush=True)


async def _word() -> None:
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run({"ours": ours, "bare": bare}.get(given["way"], by_hand)(given))
