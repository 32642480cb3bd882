"""What a server refuses for a while is an outage: it is waited for, and the job goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import psycopg
import pytest

from jobsync_async import CoordinationConfig, Job, Observer, SchemaError, StoreUnavailable
from jobsync_async.testing import Cluster
from tests.clusters import cluster
from tests.handling import nothing

TOKENS = 60
ROLE = "jobsync_test_moods"
GIVE = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}"
TAKE = f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {ROLE}"


@pytest.fixture
async def restricted(admin, dsn_with) -> AsyncIterator[CoordinationConfig]:
    """The configuration of workers that have what is granted to them."""
    await admin.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'x'")
    await admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    await admin.execute(GIVE)
    try:
        yield CoordinationConfig(
            dsn=dsn_with(user=ROLE, password="x"),
            total_tokens=TOKENS,
            heartbeat_interval_sec=0.3,
            heartbeat_timeout_sec=2,
        )
    finally:
        await admin.execute(f"DROP OWNED BY {ROLE}")
        await admin.execute(f"DROP ROLE {ROLE}")


@pytest.fixture
async def jobs(restricted) -> AsyncIterator[Cluster]:
    async with cluster(restricted) as made:
        await made.start("a", "b")
        assert await made.even() == {"a": 30, "b": 30}
        yield made


async def until_failed(jobs: Cluster, times: int) -> None:
    failed = {name: job.metrics.heartbeats_failed + times for name, job in jobs.jobs.items()}
    with anyio.fail_after(10):
        while any(job.metrics.heartbeats_failed < failed[name] for name, job in jobs.jobs.items()):
            await asyncio.sleep(0.01)


async def goes_on(jobs: Cluster) -> None:
    assert await jobs.even() == {"a": 30, "b": 30}
    assert [job._engine.failure for job in jobs.jobs.values()] == [None, None]
    await jobs.start("c")
    assert await jobs.even() == {"a": 20, "b": 20, "c": 20}


async def test_rights_that_are_gone_for_a_moment_cost_nothing(jobs, admin, caplog):
    await admin.execute(TAKE)
    await until_failed(jobs, 1)
    await admin.execute(GIVE)
    assert jobs.counts() == {"a": 30, "b": 30}
    await goes_on(jobs)
    assert jobs["a"].metrics.rejoins == jobs["a"].metrics.lease_losses == 0
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("permission denied" in text and "grant the rights" in text for text in warned)


async def test_rights_that_are_gone_for_longer_than_a_lease_are_waited_for(jobs, admin):
    await admin.execute(TAKE)
    with anyio.fail_after(10):
        while any(jobs.counts().values()):
            await asyncio.sleep(0.01)
    await until_failed(jobs, 1)
    await admin.execute(GIVE)
    await goes_on(jobs)


@pytest.mark.parametrize(
    "table", ["cluster", "node", "token", "lock", "claim", "audit", "rebalance"]
)
async def test_rights_on_one_table_that_are_gone_for_a_moment_end_nobody(jobs, admin, table):
    await admin.execute(f"REVOKE ALL ON sync_{table} FROM {ROLE}")
    batch = asyncio.gather(*(job.run_batch(range(20), nothing) for job in jobs.jobs.values()))
    # Something for all tasks to do.
    await admin.execute("UPDATE sync_node SET state = 'draining' WHERE name = 'b'")
    await admin.execute(
        "UPDATE sync_cluster SET version = version + 1, announced = version + 1, pin_version = "
        "version + 1"
    )
    await admin.execute("SELECT pg_notify('sync_changes', version::text) FROM sync_cluster")
    if table in ("cluster", "node"):
        await until_failed(jobs, 2)
    else:
        with anyio.fail_after(10):
            beats = jobs["a"].metrics.heartbeats
            while jobs["a"].metrics.heartbeats < beats + 3:
                await asyncio.sleep(0.01)
    await admin.execute(GIVE)
    results = await batch
    assert sum(len(result.completed_here) for result in results) == 20
    await admin.execute("UPDATE sync_node SET state = 'active'")
    await admin.execute("UPDATE sync_cluster SET version = version + 1, announced = version + 1")
    await admin.execute("SELECT pg_notify('sync_changes', version::text) FROM sync_cluster")
    await goes_on(jobs)


CHANGED = """
WITH changed AS (
    UPDATE sync_cluster SET version = version + 1, announced = version + 1 RETURNING version
)
SELECT pg_notify('sync_changes', version::text) FROM changed
"""


@pytest.mark.parametrize(
    ("away", "back"),
    [
        (
            "ALTER TABLE public.sync_node RENAME TO elsewhere",
            "ALTER TABLE public.elsewhere RENAME TO sync_node",
        ),
        (
            "ALTER TABLE public.sync_token SET SCHEMA other",
            "ALTER TABLE other.sync_token SET SCHEMA public",
        ),
        ("ALTER SCHEMA public RENAME TO elsewhere", "ALTER SCHEMA elsewhere RENAME TO public"),
    ],
)
async def test_what_is_renamed_away_and_back_ends_nobody(jobs, admin, away, back, restricted):
    await admin.execute("CREATE SCHEMA other")
    async with Observer(restricted) as cluster_seen:
        await admin.execute(away)
        try:
            with anyio.fail_after(10):
                while (
                    jobs["a"].metrics.heartbeats_failed + jobs["a"].metrics.listener_reconnects < 1
                ):
                    await asyncio.sleep(0.01)
                    if "sync_token" in away:  # heartbeats do not read it
                        await admin.execute(CHANGED)
        finally:
            await admin.execute(back)
        await goes_on(jobs)
        assert (await cluster_seen.status())["unowned"] == 0


async def test_a_batch_tells_of_rights_that_do_not_come_back(jobs, admin):
    await admin.execute(f"REVOKE ALL ON sync_audit FROM {ROLE}")
    with anyio.fail_after(20), pytest.raises(SchemaError, match="sync_audit"):
        await jobs["a"].run_batch(range(5), nothing)
    assert jobs["a"]._engine.failure is None


@pytest.mark.parametrize("table", ["cluster", "node", "token", "rebalance"])
async def test_a_start_without_rights_is_refused_at_once(restricted, admin, table):
    await admin.execute(f"REVOKE ALL ON sync_{table} FROM {ROLE}")
    with (
        anyio.fail_after(10),
        pytest.raises(SchemaError, match=f"permission denied for table sync_{table}"),
    ):
        await Job("late", restricted, wait_on_enter=60).start()


@pytest.mark.parametrize("table", ["cluster", "node", "token", "claim"])
async def test_row_level_security_is_named_instead_of_hiding_rows(restricted, admin, table):
    async with Job("before", restricted):
        pass
    await admin.execute(f"ALTER TABLE sync_{table} ENABLE ROW LEVEL SECURITY")
    with (
        anyio.fail_after(10),
        pytest.raises(SchemaError, match=f"row-level security.*sync_{table}.*BYPASSRLS"),
    ):
        async with Job("late", restricted, wait_on_enter=60) as job:
            await job.add_task("x")
    await admin.execute(f"ALTER ROLE {ROLE} BYPASSRLS")
    async with Job("late", restricted, wait_on_enter=10) as job:
        await job.add_task("x")


async def test_a_role_that_acts_as_another_works_and_reports_the_dead(
    jobs, admin, dsn_with, restricted
):
    """`ALTER ROLE … SET role`: such a session may not end those of its own login."""
    login = "jobsync_test_moods_login"
    await admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'x' NOINHERIT IN ROLE {ROLE}")
    await admin.execute(f"ALTER ROLE {login} SET role = {ROLE}")
    try:
        config = replace(restricted, dsn=dsn_with(user=login, password="x"))
        async with Job("c", config, wait_on_enter=10) as job:
            deaths = job._engine.store.deaths
            assert await deaths.end_sessions([job._engine.store.tag])
            assert job.am_i_healthy()
    finally:
        await admin.execute(f"DROP ROLE {login}")


@pytest.mark.parametrize("ended_by", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_a_session_or_statement_that_is_ended_is_begun_anew(jobs, admin, dsn, ended_by):
    waiting = "datname = current_database() AND wait_event_type = 'Lock'"
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute("SELECT FROM sync_cluster FOR UPDATE")
        change = asyncio.ensure_future(jobs["a"].register_lock("x", ["%"]))
        with anyio.fail_after(10):
            while not (
                await (
                    await admin.execute(
                        f"SELECT {ended_by}(pid) FROM pg_stat_activity WHERE {waiting}".encode()
                    )
                ).fetchall()
            ):
                await asyncio.sleep(0.01)
        await asyncio.wait([change])
    assert isinstance(change.exception(), StoreUnavailable)
    await goes_on(jobs)
