"""PgQueuer, in its own environment: ``install``, ``enqueue COUNT``, and ``worker``, which says that
it is ready, waits for the word, and works until its queue is empty."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import asyncpg
from pgqueuer import AsyncpgDriver, PgQueuer
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode
from side_common import run

_AT_A_TIME = 10_000


async def install() -> None:
    connection = await asyncpg.connect()
    await Queries(AsyncpgDriver(connection)).install()
    await connection.close()


async def enqueue(count: str) -> None:
    connection = await asyncpg.connect()
    queries = Queries(AsyncpgDriver(connection))
    await queries.clear_queue()
    for first in range(0, int(count), _AT_A_TIME):
        some = min(_AT_A_TIME, int(count) - first)
        payloads = [f"id-{number}".encode() for number in range(first, first + some)]
        await queries.enqueue(["work"] * some, payloads, [0] * some)
    await connection.execute("ANALYZE")
    await connection.close()


async def worker() -> None:
    """With its own default settings, by the faster of its two drivers."""
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect()))
    done, last = 0, 0.0

    @queue.entrypoint("work")
    async def work(job: Job) -> None:
        nonlocal done, last
        done += 1
        last = time.time()

    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await queue.run(mode=QueueExecutionMode.drain)
    print(json.dumps({"done": done, "last": last, "returned": time.time()}), flush=True)


if __name__ == "__main__":
    run(globals())
