"""Rows that are left over in single tables, or missing in one, end nobody: history and leftovers
stop no rebalance.

A cluster ran, and then some of its tables were emptied by hand, or restored alone.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import anyio
import psycopg
import pytest

from jobsync_async import CoordinationConfig, Job, Observer
from jobsync_async.postgres.store import Store
from tests.clusters import cluster
from tests.handling import nothing

TABLES = ("cluster", "node", "token", "lock", "claim", "audit", "rebalance", "history")
QUICK = {"heartbeat_interval_sec": 0.3, "heartbeat_timeout_sec": 1.5}


async def use(config: CoordinationConfig) -> None:
    """A cluster that has changed hands several times, and left something in every table."""
    async with cluster(config) as jobs:
        a, b = await jobs.start("a", "b")
        await jobs.even()
        await a.register_lock("pinned", ["a", "%"], "left over")
        await asyncio.gather(*(job.run_batch(range(10), nothing) for job in (a, b)))
        await jobs.start("c")
        await jobs.even()
        await jobs.stop("b")
        await jobs.settled()


async def works(config: CoordinationConfig) -> None:
    """Two workers share everything, one more comes, one goes; operators see all of it."""
    async with cluster(config) as jobs:
        total = config.total_tokens
        await jobs.start("d", wait_on_enter=10)
        assert await jobs.settled() == {"d": total}
        await jobs.start("e", wait_on_enter=10)
        counts = await jobs.settled()
        with anyio.fail_after(10):
            while not min(counts.values()):
                counts = await jobs.settled()
        assert max(counts.values()) - min(counts.values()) <= 1
        await asyncio.gather(*(job.run_batch(["x", "y"], nothing) for job in jobs.jobs.values()))
        await jobs["d"].register_lock("another", ["d", "%"])
        async with Observer(config) as seen:
            status = await seen.status()
            assert (status["unowned"], status["total_tokens"]) == (0, total)
            assert sum(node["tokens"] for node in status["nodes"]) == total
        await jobs.stop("d")
        assert await jobs.settled() == {"e": total}
        assert jobs["e"]._engine.failure is None


@pytest.mark.parametrize(
    ("kept", "total"),
    [*((kept, 60) for kept in TABLES), ("token", 25), ("token", 120), ("lock", 25)],
)
async def test_rows_that_are_left_over_in_one_table_end_nobody(make_config, admin, kept, total):
    await use(make_config(total_tokens=60, **QUICK))
    await admin.execute(f"TRUNCATE {', '.join(f'sync_{name}' for name in TABLES if name != kept)}")
    await works(make_config(total_tokens=total, **QUICK))


@pytest.mark.parametrize("emptied", TABLES)
async def test_rows_that_are_missing_in_one_table_end_nobody(make_config, admin, emptied):
    config = make_config(total_tokens=60, **QUICK)
    await use(config)
    await admin.execute(f"TRUNCATE sync_{emptied}")
    await works(config)


@pytest.mark.parametrize("emptied", ["cluster", "node", "rebalance"])
async def test_a_table_that_is_emptied_under_running_workers_ends_nobody(
    make_config, admin, emptied
):
    config = make_config(total_tokens=60, **QUICK)
    async with cluster(config) as jobs:
        a, b = await jobs.start("a", "b")
        await jobs.even()
        jobs.watched = False  # by hand, it declares dead who lives
        await admin.execute(f"DELETE FROM sync_{emptied}")
        await asyncio.gather(
            *(job.register_lock(f"x{n}", ["%"]) for n, job in enumerate((a, b))),
            return_exceptions=True,
        )
        with anyio.fail_after(20):
            while sum(jobs.counts().values()) != 60 or await not_given(admin):
                await asyncio.sleep(0.05)
        assert [job._engine.failure for job in (a, b)] == [None, None]
    await works(config)


async def not_given(admin) -> int:
    """Tokens that have no live owner by the tables."""
    owned = (
        "SELECT count(*) FROM sync_token JOIN sync_node USING (incarnation) WHERE next_node IS NULL"
    )
    ((count,),) = await (await admin.execute(owned)).fetchall()
    return 60 - count


async def test_a_cluster_row_that_is_made_again_begins_above_all_that_is_left(make_config, admin):
    config = make_config(total_tokens=60, **QUICK)
    await use(config)
    tables = (
        "SELECT max(epoch), max(version), (SELECT max(version) FROM sync_rebalance) FROM sync_token"
    )
    epoch, version, rebalance = await (await admin.execute(tables)).fetchone()
    await admin.execute(
        "INSERT INTO sync_node (name, incarnation, joined) VALUES ('nobody', gen_random_uuid(), 77)"
    )
    await admin.execute("TRUNCATE sync_cluster")
    store = await Store.open(config, "first")
    await store.close()
    row = "SELECT generation, version, last_joined FROM sync_cluster"
    generation, begun, joined = await (await admin.execute(row)).fetchone()
    assert generation > epoch >> 32
    assert begun >= max(version, rebalance)
    assert joined == 77


async def test_a_history_of_the_same_versions_stops_no_rebalance_and_stays(make_config, admin):
    config = make_config(total_tokens=60, **QUICK)
    async with Job("a", config):
        rows = (
            "(version, reason, leader, term, nodes_before, nodes_after, tokens_moved, duration_ms)"
        )
        await admin.execute(
            f"INSERT INTO sync_rebalance {rows} SELECT v, 'before', 'x', 1, 0, 0, 0, 0 FROM "
            "generate_series(3, 60) v"
        )
        async with Job("b", config, wait_on_enter=10) as b:
            with anyio.fail_after(10):
                while len(b.my_tokens) != 30:
                    await asyncio.sleep(0.01)
    ((count,),) = await (
        await admin.execute("SELECT count(*) FROM sync_rebalance WHERE reason = 'before'")
    ).fetchall()
    assert count == 58


async def test_rows_of_nobody_and_of_tokens_that_there_are_not_are_passed_over(make_config, admin):
    config = make_config(total_tokens=60, **QUICK)
    await use(config)
    nobody = uuid4()
    await admin.execute(
        "INSERT INTO sync_token (token_id, node, incarnation, epoch, version) "
        "SELECT n, 'gone', %s, 5::bigint << 32, 1000000 FROM generate_series(60, 99) n",
        [nobody],
    )
    await admin.execute(
        "INSERT INTO sync_node (name, incarnation, joined) VALUES ('gone', %s, 0)", [nobody]
    )
    await works(config)


async def test_a_cluster_row_that_is_lost_while_an_observer_looks_is_waited_for(make_config, admin):
    config = make_config(total_tokens=60, **QUICK)
    async with Job("a", config) as a, Observer(config) as seen:
        await admin.execute("DELETE FROM sync_cluster")
        with anyio.fail_after(20):
            while not await _there(admin) or len(a.my_tokens) != 60 or not seen.connected:
                await asyncio.sleep(0.02)
        assert (await seen.status())["unowned"] == 0


async def _there(admin: psycopg.AsyncConnection) -> bool:
    return (
        await (await admin.execute("SELECT server_identity FROM sync_cluster")).fetchone()
        is not None
    )
