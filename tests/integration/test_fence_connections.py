"""On which connections a fence can be set; and who is named as the owner of what is not ours."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import psycopg
import pytest

from jobsync_async import Job, NotOwner, OwnershipLost, UsageError


async def connect(dsn: str, **options) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(dsn, **options)


class Foreign:
    """Another driver's connection."""

    async def execute(self, query, params=None):
        raise AssertionError("it was used")


@pytest.mark.parametrize("clustered", [True, False], ids=["in a cluster", "standalone"])
async def test_a_foreign_or_synchronous_connection_is_refused_and_fence_sql_named(
    config, dsn, clustered
):
    async with Job("a", config if clustered else None) as job, job.claim("x") as claim:
        with psycopg.connect(dsn) as synchronous, sqlite3.connect(":memory:") as lite:
            for connection in (synchronous, lite, Foreign(), None, dsn):
                with pytest.raises(UsageError, match=r"Claim\.fence_sql\(\)"):
                    await job.fence(connection, claim)
        lite.close()


@pytest.mark.parametrize("clustered", [True, False], ids=["in a cluster", "standalone"])
async def test_a_closed_connection_and_a_failed_transaction_are_refused(config, dsn, clustered):
    async with Job("a", config if clustered else None) as job, job.claim("x") as claim:
        connection = await connect(dsn)
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("SELECT 1 / 0")
        with pytest.raises(UsageError, match="failed"):
            await job.fence(connection, claim)
        await connection.rollback()
        await job.fence(connection, claim)
        await connection.close()
        with pytest.raises(UsageError, match="closed"):
            await job.fence(connection, claim)
        async with await connect(dsn, autocommit=True) as connection:
            with pytest.raises(UsageError, match="inside a transaction"):
                await job.fence(connection, claim)


async def test_a_connection_that_is_bound_to_another_event_loop_is_refused(config, dsn):
    made: list[psycopg.AsyncConnection] = []

    async def use() -> None:
        connection = await connect(dsn)
        made.append(connection)
        async with connection.lock:  # two tasks at a time bind it to the loop
            waiting = asyncio.create_task(connection.execute("SELECT 1"))
            await asyncio.sleep(0.01)
        await waiting

    thread = threading.Thread(target=lambda: asyncio.run(use()))
    thread.start()
    await asyncio.to_thread(thread.join)
    async with Job("a", config) as job, job.claim("x") as claim:
        with pytest.raises(UsageError, match="another event loop"):
            await job.fence(made[0], claim)
    await made[0].close()


async def test_standalone_fences_without_a_table(dsn):
    async with Job("a") as job, job.claim("x") as claim:
        async with await connect(dsn) as connection, connection.transaction():
            await job.fence(connection, claim)
            query, params = claim.fence_sql()
            assert await (await connection.execute(query.encode(), params)).fetchone() == (
                claim.epoch,
            )
        assert claim.fence_sql("numeric") == ("SELECT CAST($1 AS bigint) AS epoch", (claim.epoch,))
    async with await connect(dsn) as connection:
        with pytest.raises(OwnershipLost):
            await job.fence(connection, claim)


async def test_who_owns_a_task_that_is_not_ours_is_named_where_the_tables_are_asked(jobs):
    a, b = await jobs.start("a", "b")
    await jobs.even()
    theirs = next(n for n in range(1000) if b.owns(n))
    for call in (a.add_task(theirs), a.add_tasks([theirs]), a.set_claim(theirs)):
        with pytest.raises(NotOwner) as caught:
            await call
        assert (caught.value.owner, caught.value.task_id) == ("b", theirs)


async def test_a_task_that_is_on_its_way_out_is_still_this_workers(jobs):
    a, _ = await jobs.start("a", "b")
    mine = next(n for n in range(1000) if a.owns(n))
    other = next(n for n in range(1000, 10_000) if a.task_to_token(n) == a.task_to_token(mine))
    async with a.claim(mine):
        draining = asyncio.create_task(a.drain())
        while a.my_tokens:
            await asyncio.sleep(0.005)
        with pytest.raises(NotOwner) as caught:
            async with a.claim(other):
                pytest.fail("entered")
        assert caught.value.owner == "a"
    await draining
