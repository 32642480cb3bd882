"""Clusters of one prefix in several schemas announce on channels of their own."""

from __future__ import annotations

import anyio
import pytest

from jobsync_async import CoordinationConfig, Job, Observer
from jobsync_async.postgres.cluster_row import channel_of
from tests.clusters import cluster

LONGEST = "a" * 44


async def channel_in(admin, table: str) -> str | None:
    ((channel,),) = await (await admin.execute(f"SELECT channel FROM {table}")).fetchall()
    return channel


async def two_beats(*jobs: Job) -> None:
    before = [job.metrics.heartbeats for job in jobs]
    with anyio.fail_after(10):
        while any(
            job.metrics.heartbeats < beats + 2 for job, beats in zip(jobs, before, strict=True)
        ):
            await anyio.sleep(0.01)


@pytest.mark.parametrize("schema", ["public", "s" * 63, "Ünï cödé", 'quo"te'])
def test_a_channel_is_told_apart_by_its_schema_and_is_never_cut(schema):
    channel = channel_of(schema, LONGEST)
    assert len(channel.encode()) <= 63
    assert channel.startswith(f"{LONGEST}changes")
    assert (channel == f"{LONGEST}changes") == (schema == "public")
    assert channel != channel_of("another", LONGEST)
    CoordinationConfig(appname=LONGEST, schema=schema)


async def test_what_is_announced_or_forged_for_another_schema_costs_nothing_here(dsn, admin):
    for schema in ("one", "two"):
        await admin.execute(f"CREATE SCHEMA {schema}")
    quick = {
        "dsn": dsn,
        "total_tokens": 60,
        "heartbeat_interval_sec": 0.3,
        "heartbeat_timeout_sec": 2,
    }
    async with cluster(CoordinationConfig(schema="two", **quick)) as jobs:
        a, b = await jobs.start("a", "b")
        await jobs.even()
        await two_beats(a, b)  # by then, what was announced here has been counted
        heard = (a.metrics.notifications, b.metrics.notifications)
        async with Job("busy", CoordinationConfig(schema="one", **quick)) as busy:
            for n in range(20):
                await busy.register_lock(f"x{n}", ["busy"])
            for channel in (await channel_in(admin, "one.sync_cluster"), "sync_changes"):
                await admin.execute("SELECT pg_notify(%s, '1000000')", [channel])
            await two_beats(a, b)
        assert (a.metrics.notifications, b.metrics.notifications) == heard
        assert await channel_in(admin, "one.sync_cluster") != await channel_in(
            admin, "two.sync_cluster"
        )


async def test_tables_of_0_1_0_go_on_with_their_channel_in_whatever_schema(dsn, admin):
    await admin.execute("CREATE SCHEMA old")
    config = CoordinationConfig(dsn=dsn, schema="old", total_tokens=60)
    async with Job("a", config):
        pass
    await admin.execute("UPDATE old.sync_cluster SET channel = NULL")  # as an expansion leaves it
    async with cluster(config) as jobs, Observer(config) as seen:
        await jobs.start("a", "b")
        await jobs.even()
        assert seen._follower._channel == "sync_changes"
        assert jobs["a"]._engine.store.context.channel == "sync_changes"
    assert await channel_in(admin, "old.sync_cluster") is None


async def test_a_cluster_row_that_is_restored_keeps_the_channel(dsn, admin):
    await admin.execute("CREATE SCHEMA one")
    config = CoordinationConfig(
        dsn=dsn,
        schema="one",
        total_tokens=60,
        heartbeat_interval_sec=0.3,
        heartbeat_timeout_sec=1.5,
    )
    async with cluster(config) as jobs:
        await jobs.start("a", "b")
        await jobs.even()
        before = await channel_in(admin, "one.sync_cluster")
        await admin.execute("DELETE FROM one.sync_cluster")
        with anyio.fail_after(10):
            while (
                jobs.owners()
                or not await (
                    await admin.execute("SELECT channel FROM one.sync_cluster")
                ).fetchall()
            ):
                await anyio.sleep(0.01)
        await jobs.even()
        assert await channel_in(admin, "one.sync_cluster") == before == channel_of("one", "sync_")
        assert jobs["a"].metrics.listener_reconnects <= 2, "what is announced is heard"
