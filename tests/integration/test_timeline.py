"""Servers that do not say on which timeline they are: by what each is recognised then, and what is
said where that is not known."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import ConfigError, CoordinationConfig, Job, SchemaError, StoreUnavailable
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.operations.doctor import examine
from jobsync_async.postgres.store import Store
from tests import refusals
from tests.clusters import cluster
from tests.hands import hand
from tests.poolers import pgbouncer
from tests.refusals import AURORA, FILE, POSITION, SYSTEM, be_aurora, refuse

TOKENS = 60
READERS = ("pg_control_system()", "pg_current_wal_lsn()", "pg_walfile_name(pg_lsn)")


@contextmanager
def superuser(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as admin:
        yield admin


def recorded(dsn: str) -> str:
    with superuser(dsn) as admin:
        row = admin.execute("SELECT server_identity FROM sync_cluster").fetchone()
    assert row is not None
    return str(row[0])


@pytest.fixture
def settings(dsn, make_config):
    """Makes configurations of a small, quick cluster, in a database whose cluster's row is yet to be
    made."""
    with superuser(dsn) as admin:
        admin.execute("DELETE FROM sync_cluster")
    quick = {"heartbeat_interval_sec": 0.3, "heartbeat_timeout_sec": 1.5}
    return lambda **others: make_config(**{"total_tokens": TOKENS, **quick, **others})


@pytest.fixture
def aurora(dsn) -> None:
    with superuser(dsn) as admin:
        be_aurora(admin)


@pytest.mark.parametrize("wal_level", AURORA)
@pytest.mark.parametrize("notify", [True, False])
async def test_a_cluster_works_on_a_server_that_refuses_its_timeline_and_says_so(
    dsn, settings, caplog, notify, wal_level
):
    with superuser(dsn) as admin:
        be_aurora(admin, wal_level)
    async with cluster(settings(notify=notify, poll_interval_sec=0.1)) as jobs:
        await jobs.start("a", "b")
        assert await jobs.even() == {"a": 30, "b": 30}
    said = [
        r.message for r in caplog.records if "profile shared-storage (Aurora 17.4)" in r.message
    ]
    assert len(said) == 2
    assert "Not recognised: commits that were lost" in said[0]
    identity = recorded(dsn).split("/")
    assert (identity[0], len(identity)) == ("shared-storage", 4)


async def test_a_server_that_says_it_is_told_by_its_timeline(config, admin, caplog):
    async with Job("a", config):
        ((identity,),) = await (
            await admin.execute("SELECT server_identity FROM sync_cluster")
        ).fetchall()
    assert identity.split("/")[1] == "00000001"
    assert "timeline" not in caplog.text


async def test_a_server_that_only_refuses_as_aurora_does_is_taken_for_it(dsn, settings):
    with superuser(dsn) as admin:
        refuse(admin, *AURORA["wal_level=replica"])
    async with Job("a", settings()) as job:
        assert len(job.my_tokens) == TOKENS


@pytest.mark.parametrize("function", [POSITION, FILE, SYSTEM], ids=lambda f: f.signature)
async def test_an_unknown_server_is_refused_at_once_with_the_function_and_the_remedy(
    dsn, settings, function
):
    with superuser(dsn) as admin:
        refuse(admin, function)
    with pytest.raises(ConfigError) as refused:
        await Job("a", settings()).start()
    said = str(refused.value)
    for part in (function.signature, "is switched off here", "server_profile", "'start-time'"):
        assert part in said
    assert "not available" not in said
    async with Job("a", settings(server_profile="shared-storage")) as job:
        assert len(job.my_tokens) == TOKENS


async def test_a_failover_on_shared_storage_stops_nobody_and_begins_nothing():
    with EmbeddedPostgres() as server:
        with superuser(server.dsn) as admin:
            be_aurora(admin)
        times = {"heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": 8}
        config = CoordinationConfig(dsn=server.dsn, total_tokens=TOKENS, **times)
        async with cluster(config) as jobs:
            await jobs.start("a", "b")
            await jobs.even()
            held = {name: job.my_tokens for name, job in jobs.jobs.items()}
            identities = {job._worker.identity for job in jobs.jobs.values()}
            # Another instance on the same storage: no session survives, and no commit is lost.
            await anyio.to_thread.run_sync(server.stop, "immediate")
            await anyio.to_thread.run_sync(server.start)
            for job in jobs.jobs.values():
                seen = job.metrics.heartbeats
                with anyio.fail_after(10):
                    while job.metrics.heartbeats == seen:
                        assert job.am_i_healthy()
                        await asyncio.sleep(0.02)
            assert {name: job.my_tokens for name, job in jobs.jobs.items()} == held
            assert {job._worker.identity for job in jobs.jobs.values()} == identities
        with superuser(server.dsn) as admin:
            assert admin.execute("SELECT generation FROM sync_cluster").fetchone() == (1,)


async def test_by_start_time_each_start_of_the_server_counts_as_a_failover():
    with EmbeddedPostgres() as server:
        with superuser(server.dsn) as admin:
            refuse(admin, POSITION)
        config = CoordinationConfig(
            dsn=server.dsn,
            total_tokens=TOKENS,
            server_profile="start-time",
            heartbeat_interval_sec=0.3,
            heartbeat_timeout_sec=1.5,
        )
        async with cluster(config) as jobs:
            await jobs.start("a", "b")
            await jobs.even()
            before = recorded(server.dsn)
            epochs = max(
                job._worker.ownership.epoch(t) for job in jobs.jobs.values() for t in job.my_tokens
            )
            await anyio.to_thread.run_sync(server.stop, "immediate")
            await anyio.to_thread.run_sync(server.start)
            up_at = time.monotonic()
            with anyio.fail_after(20):
                while recorded(server.dsn) == before:
                    await asyncio.sleep(0.02)
            assert time.monotonic() - up_at > 1.2, "the leases of before were waited for"
            await jobs.even()
            assert all(
                job._worker.ownership.epoch(t) > epochs
                for job in jobs.jobs.values()
                for t in job.my_tokens
            )
