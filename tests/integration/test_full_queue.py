"""The server's queue of notifications is full: nothing can be announced, and everything goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from jobsync_async import CoordinationConfig
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.testing import Cluster
from tests.clusters import cluster

TOKENS = 60
SAID = "queue of notifications is full"


@pytest.fixture(scope="module")
def small_queue() -> Iterator[str]:
    """A server whose queue of notifications is soon full."""
    with EmbeddedPostgres({"max_notify_queue_pages": "64"}) as postgres:
        yield postgres.dsn


@pytest.fixture
async def here(small_queue) -> AsyncIterator[str]:
    name = f"queue_{uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(small_queue, autocommit=True) as admin:
        await admin.execute(f"CREATE DATABASE {name}")
        yield make_conninfo(small_queue, dbname=name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=[True, False], ids=["push", "poll"])
async def jobs(request, here) -> AsyncIterator[Cluster]:
    config = CoordinationConfig(
        dsn=here,
        total_tokens=TOKENS,
        heartbeat_interval_sec=0.3,
        heartbeat_timeout_sec=1.5,
        notify=request.param,
        poll_interval_sec=0.1,
    )
    async with cluster(config) as made:
        yield made


@asynccontextmanager
async def full_queue(dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """While somebody listens and stays in a transaction; that session."""
    async with await psycopg.AsyncConnection.connect(dsn) as laggard:
        await laggard.execute("LISTEN anything")
        await laggard.commit()
        await laggard.execute("SELECT")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as speaker:
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                while True:
                    await speaker.execute(
                        "SELECT pg_notify('anything', repeat('x', 7000) || i) FROM "
                        "generate_series(1, 20) i"
                    )
        yield laggard
        await laggard.close()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
        with anyio.fail_after(5):  # its session takes a moment to end
            while (await (await other.execute("SELECT pg_notification_queue_usage()")).fetchone())[
                0
            ] > 0.1:
                await asyncio.sleep(0.01)


async def announced(dsn: str) -> tuple[int, int]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (
            await connection.execute("SELECT version, announced FROM sync_cluster")
        ).fetchone()
        return row[0], row[1]


async def test_workers_join_hand_on_pin_leave_and_replace_the_dead_while_nothing_can_be_announced(
    jobs, here, caplog
):
    await jobs.start("a", "b")
    await jobs.even()
    async with full_queue(here):
        _, before = await announced(here)
        await jobs.start("c")
        assert await jobs.even() == {"a": 20, "b": 20, "c": 20}
        a, c = jobs["a"], jobs["c"]
        theirs = next(n for n in range(1000) if c.owns(n))
        await a.register_lock(theirs, ["a"])
        with anyio.fail_after(10):
            while not a.owns(theirs):
                await asyncio.sleep(0.01)
        await a.clear_all_locks()
        await jobs.stop("b")
        await jobs.settled()
        await jobs.crash("a")  # it led
        assert await jobs.settled() == {"c": TOKENS}
        await jobs.start("a")  # the name of one that was expired
        assert await jobs.even() == {"a": 30, "c": 30}
        await jobs["a"].drain()
        assert await jobs.settled() == {"a": 0, "c": TOKENS}
        version, after = await announced(here)
        assert after == before < version
        assert c.metrics.listener_reconnects == 0, "nobody takes for missed what nobody announced"
    said = [record for record in caplog.records if SAID in record.message]
    assert {record.levelname for record in said} == {"WARNING"}
    assert len(said) <= 4, "each worker says it once"


async def test_announcements_begin_again_by_themselves_when_there_is_room(jobs, here, caplog):
    a, b = await jobs.start("a", "b")
    await jobs.even()
    async with full_queue(here) as laggard:
        await a.register_lock("x", ["a"])
        await jobs.settled()
        assert SAID in caplog.text
        await laggard.close()
        with anyio.fail_after(10):
            while not a._engine.store.context.announces:
                await asyncio.sleep(0.01)
    await a.register_lock("y", ["a"])
    version, told = await announced(here)
    assert told == version
    assert b.metrics.rejoins == 0


async def test_a_worker_that_starts_while_nothing_can_be_announced_is_not_taken_for_one_behind_a_pooler(  # noqa: E501
    here,
):
    config = CoordinationConfig(
        dsn=here, total_tokens=TOKENS, heartbeat_interval_sec=0.3, heartbeat_timeout_sec=1.5
    )
    async with cluster(config) as jobs, full_queue(here):
        await jobs.start("a")
        assert await jobs.settled() == {"a": TOKENS}


async def test_a_generation_begins_while_nothing_can_be_announced(jobs, here):
    await jobs.start("a", "b")
    await jobs.even()
    async with full_queue(here):
        async with await psycopg.AsyncConnection.connect(here, autocommit=True) as admin:
            await admin.execute("UPDATE sync_cluster SET server_identity = '1/00000001/1/1'")
        with anyio.fail_after(3):
            while jobs.owners():
                await asyncio.sleep(0.002)
        assert await jobs.even() == {"a": 30, "b": 30}
