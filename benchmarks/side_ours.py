"""What is measured of this library, by the same measure as ``side_jobsync.py``:
``side_ours.py WHAT APPNAME ...``."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable
from typing import Any
from uuid import uuid4

import psycopg
from side_common import WAL_BYTES, asked_per_second, rss, run, task_ids, tell

BARE = rss()

# the memory before it is the measure
from jobsync_async import CoordinationConfig, Job, Task  # noqa: E402


async def wal(connection: psycopg.AsyncConnection) -> float:
    row = await (await connection.execute(WAL_BYTES)).fetchone()
    assert row is not None
    return float(row[0]) / 2**20


async def distribution(appname: str, total: str) -> dict[str, float]:
    """Milliseconds of the first distribution on 6 workers, of a 7th that joins, and of its death;
    and the latter's WAL."""
    from jobsync_async.core.distribution import Distribution
    from jobsync_async.core.hashing import token_hasher
    from jobsync_async.core.leader_state import LeaderState, Reading
    from jobsync_async.core.rows import Announcement, Identity
    from jobsync_async.postgres.store import Store

    config = CoordinationConfig(total_tokens=int(total), appname=appname)
    store = await Store.open(config, "benchmark")
    state = LeaderState(
        config.total_tokens, token_hasher(config.total_tokens, config.hash_function)
    )
    workers = [Identity(f"w{number}", uuid4()) for number in range(7)]

    def decide(reading: Reading) -> Distribution | None:
        state.update(reading)
        return state.distribute()

    took: dict[str, float] = {}
    try:
        for worker in workers[:6]:
            await store.membership.join(worker, Announcement())
        async with await psycopg.AsyncConnection.connect("", autocommit=True) as connection:
            for event in ("first", "join", "death"):
                # What changed before, a leader has read by the time of the event: it looks before
                # it distributes.
                state.update(await store.leading.read(state.version, state.pin_version))
                if event == "join":
                    await store.membership.join(workers[6], Announcement())
                if event == "death":
                    feed = await store.listen()
                    for worker in workers[:6]:
                        rows = [
                            row
                            for row in (await feed.read_changes(worker, -1)).mine
                            if row.revoking
                        ]
                        await feed.acknowledge(
                            worker, [(row.token_id, row.version) for row in rows]
                        )
                    await feed.close()
                    state.update(await store.leading.read(state.version, state.pin_version))
                    await connection.execute(f"DELETE FROM {appname}node WHERE name = 'w6'")
                    await connection.execute("CHECKPOINT")
                before = await wal(connection)
                started = time.perf_counter()
                outcome = await store.leading.rebalance(
                    workers[0], 1, (), state.version, state.pin_version, decide
                )
                took[event] = (time.perf_counter() - started) * 1000
                took["wal"] = await wal(connection) - before
                assert outcome is not None
                assert outcome.wrote
                assert outcome.distribution is not None
                took["moved"] = outcome.distribution.moved
    finally:
        await store.close()
    return took


async def plan(_: str, pinned: str) -> float:
    """Milliseconds to plan anew for 50 workers when a 51st is gone."""
    from jobsync_async.core.assignment import PlanNode
    from jobsync_async.core.assignment import plan as make

    nodes = [PlanNode(f"w{number}", 1.0) for number in range(50)]
    current: list[str | None] = [f"w{token % 51}" for token in range(10_000)]
    pins = {token: (f"w{token % 50}",) for token in range(int(pinned))}
    started = time.perf_counter()
    make(nodes, current, pins)
    return (time.perf_counter() - started) * 1000


async def claiming(appname: str, hash_function: str) -> float:
    async with Job("w0", CoordinationConfig(appname=appname, hash_function=hash_function)) as job:
        return asked_per_second(job)


async def filtering(appname: str) -> float:
    """Ids per second through filter_owned, owning everything."""
    async with Job("w0", CoordinationConfig(appname=appname)) as job:
        ids = task_ids()
        started = time.perf_counter()
        assert len(list(job.filter_owned(ids))) == len(ids)
        return len(ids) / (time.perf_counter() - started)


async def rows(appname: str) -> dict[str, float]:
    """Rows per second: single claims, claims, completions and pins in bulk."""
    rates: dict[str, float] = {}

    async def timed(name: str, count: int, call: Awaitable[Any]) -> None:
        started = time.perf_counter()
        await call
        rates[name] = count / (time.perf_counter() - started)

    async with Job("w0", CoordinationConfig(appname=appname)) as job:

        async def one_by_one() -> None:
            for number in range(500):
                await job.add_task(Task(f"s{number}"))

        await timed("single", 500, one_by_one())
        await job.write_audit()
        many = [Task(f"m{number}") for number in range(10_000)]
        await timed("claims", len(many), job.set_claim(many))
        await job.add_tasks(many)
        await timed("audit", len(many), job.write_audit())
        pins = [(f"p{number}", "w0", "benchmark") for number in range(10_000)]
        await timed("pins", len(pins), job.register_locks_bulk(pins))
    return rates


async def memory(appname: str) -> list[float]:
    """MiB of the first running Job over `import psycopg`, and of each of ten further ones."""
    config = CoordinationConfig(appname=appname)
    jobs = [Job("w0", config)]
    await jobs[0].start()
    await asyncio.sleep(1)
    first = rss()
    for number in range(1, 11):
        jobs.append(Job(f"w{number}", config))
        await jobs[-1].start()
    await asyncio.sleep(1)
    further = (rss() - first) / 10
    await asyncio.gather(*(job.stop() for job in jobs))
    return [first - BARE, further]


async def hold(appname: str, name: str) -> None:
    """Be a worker until standard input ends."""
    async with Job(
        name, CoordinationConfig(appname=appname), lock_provider=lambda _: tell(joining=True)
    ):
        tell(ready=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def worker(appname: str, total: str, name: str) -> None:
    """Tell of every change of its tokens; leave when a line comes. The stream is asked for its next
    item, and so a token let go, when what came has been told."""
    logging.disable(logging.CRITICAL)
    config = CoordinationConfig(appname=appname, total_tokens=int(total))
    # The provider is called when it is connected and about to join.
    job = Job(name, config, lock_provider=lambda _: tell(joining=True))

    async def follow() -> None:
        async for change in job.token_changes():
            tell(
                owned=len(change.owned),
                come=sorted(change.assigned),
                gone=sorted(change.revoked | change.lost),
            )

    await job.start()
    following = asyncio.ensure_future(follow())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    tell(leaving=True)
    await job.stop()
    await following
    tell(left=True)


async def worker_elsewhere(appname: str, total: str, name: str) -> None:
    """A worker that takes itself to be alone on its host, so that nobody sees its death before its
    lease is over."""
    from jobsync_async.host import process

    process._boot_id = lambda: f"the host of {name}"
    await worker(appname, total, name)


if __name__ == "__main__":
    run(globals())
