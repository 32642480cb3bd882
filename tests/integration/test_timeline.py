"""Servers that do not say on which timeline they are: by what each is recognised then, and what is
said where that is not known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import ConfigError, CoordinationConfig, Job, SchemaError, StoreUnavailable
from jobsync_async.cli.init import _clone as clone_into
from jobsync_async.core.rows import Announcement
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.host.clock import lease_clock
from jobsync_async.operations.doctor import examine
from jobsync_async.operations.judgements import Check
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.recognition import named_refusals
from jobsync_async.postgres.sql import Queries
from jobsync_async.tasks.heartbeat import agree
from jobsync_async.tasks.worker import Worker
from tests import products
from tests.clusters import cluster
from tests.hands import hand
from tests.poolers import pgbouncer
from tests.refusals import AURORA, FILE, POSITION, SYSTEM, allow_again, be_aurora, refuse

pytestmark = pytest.mark.needs("timeline")

TOKENS = 60
CALM = {"heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": 8}
"""For what is not about a lease that ends."""


@contextmanager
def superuser(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(products.direct(dsn), autocommit=True) as admin:
        yield admin


def recorded(dsn: str) -> str:
    with superuser(dsn) as admin:
        row = admin.execute("SELECT server_identity FROM sync_cluster").fetchone()
    assert row is not None
    return str(row[0])


@pytest.fixture
def settings(dsn, make_config):
    """Makes configurations of a small, quick cluster, whose row is yet to be made."""
    with superuser(dsn) as admin:
        admin.execute("DELETE FROM sync_cluster")
    quick = {"heartbeat_interval_sec": 0.3, "heartbeat_timeout_sec": 1.5}
    return lambda **others: make_config(**{"total_tokens": TOKENS, **quick, **others})


@pytest.mark.parametrize("wal_level", AURORA)
@pytest.mark.parametrize("notify", products.NOTIFY_OR_NOT)
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
        times = CALM
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


# == one identity for all ==========================================================================


@pytest.fixture
def poor(dsn) -> Iterator[str]:
    """The DSN of a role that may do everything with the tables, and may call what everybody may."""
    with superuser(dsn) as admin, role(admin) as name:
        yield make_conninfo(**{**conninfo_to_dict(dsn), "user": name, "password": "x"})


@contextmanager
def role(admin: psycopg.Connection[Any]) -> Iterator[str]:
    name = f"jobsync_test_poor_{uuid4().hex[:6]}"
    admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'".encode())
    try:
        for kind in ("TABLES", "SEQUENCES"):
            admin.execute(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {name}".encode())
        yield name
    finally:
        admin.execute(f"DROP OWNED BY {name}".encode())
        admin.execute(f"DROP ROLE {name}".encode())


@pytest.mark.needs("superuser")
@pytest.mark.parametrize("function", ["pg_control_system()", "pg_walfile_name(pg_lsn)"])
async def test_a_role_without_the_rights_of_the_others_is_refused_and_harms_nobody(
    dsn, poor, settings, function
):
    with superuser(dsn) as admin:
        admin.execute(f"REVOKE EXECUTE ON FUNCTION pg_catalog.{function} FROM PUBLIC".encode())
    async with cluster(settings(**CALM)) as jobs:
        await jobs.start("a")
        held, identity = jobs["a"].my_tokens, recorded(dsn)
        with pytest.raises(SchemaError) as refused:
            await Job("b", settings(**CALM, dsn=poor)).start()
        assert f"GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO" in str(refused.value)
        with pytest.raises((ConfigError, SchemaError)):
            await Job("b", settings(**CALM, dsn=poor, server_profile="start-time")).start()
        assert (jobs["a"].my_tokens, recorded(dsn)) == (held, identity)
        with superuser(dsn) as admin:
            admin.execute(f"GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO PUBLIC".encode())
        jobs.config = settings(**CALM, dsn=poor)
        await jobs.start("b")
        assert await jobs.even() == {"a": 30, "b": 30}
        assert recorded(dsn) == identity


async def test_roles_of_different_rights_make_one_identity_whoever_begins(
    dsn, poor, settings, caplog
):
    """The one that may ask for less has begun: the other asks for no more."""
    with superuser(dsn) as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    async with cluster(settings(**CALM, dsn=poor, server_profile="shared-storage")) as jobs:
        await jobs.start("a")
        assert "does not say its system identifier (permission denied" in caplog.text
        jobs.config = settings(**CALM)
        await jobs.start("b")
        assert await jobs.even() == {"a": 30, "b": 30}
        seen = {name: job.metrics.heartbeats for name, job in jobs.jobs.items()}
        with anyio.fail_after(5):
            while any(job.metrics.heartbeats < seen[name] + 2 for name, job in jobs.jobs.items()):
                await asyncio.sleep(0.02)
        assert all(job.metrics.rejoins == 0 for job in jobs.jobs.values())
        assert recorded(dsn).startswith("shared-storage/-/")


async def test_a_worker_takes_what_the_cluster_was_begun_with_and_another_setting_is_refused(
    dsn, settings
):
    async with cluster(settings(server_profile="shared-storage")) as jobs:
        await jobs.start("a")
        jobs.config = settings()
        await jobs.start("b")
        assert await jobs.even() == {"a": 30, "b": 30}
        with pytest.raises(ConfigError, match="'start-time' here and 'shared-storage' in the run"):
            await Job("c", settings(server_profile="start-time")).start()
    with superuser(dsn) as admin:  # workers of 0.1.0 look at that when they start
        assert admin.execute("SELECT schema_version FROM sync_cluster").fetchone() == (2,)


async def test_a_setting_is_refused_on_a_cluster_that_was_begun_without_it(settings):
    async with Job("a", settings()) as job:
        with pytest.raises(ConfigError, match="init --clone --server-profile shared-storage"):
            await Job("b", settings(server_profile="shared-storage")).start()
        assert job.am_i_healthy()


async def test_another_row_by_other_readings_ends_a_worker_instead_of_a_fight(dsn, settings):
    async with hand(settings(), "a") as a:
        await a.join()
        identity = recorded(dsn)
        system, _, *place = identity.split("/")
        with superuser(dsn) as admin:
            admin.execute(
                "UPDATE sync_cluster SET server_identity = %s",
                ["/".join(["shared-storage", system, *place])],
            )
        worker = Worker(settings(), "a", Announcement(), lease_clock)
        with pytest.raises(ConfigError, match=r"'shared-storage'.*start the worker again"):
            await agree(worker, a.store.failover)
        assert recorded(dsn).startswith("shared-storage"), "nothing was begun over it"


# == a server that changes =========================================================================


async def test_what_the_server_refuses_by_now_is_condemned_waited_for_and_begun_anew(dsn, settings):
    async with Job("a", settings()):
        pass
    before = recorded(dsn)
    with superuser(dsn) as admin:
        be_aurora(admin)
    began = time.monotonic()
    async with Job("a", settings()) as job:
        assert time.monotonic() - began > 1.5, "whoever has asked before may act until then"
        assert len(job.my_tokens) == TOKENS
    system, _, *place = before.split("/")
    assert recorded(dsn) == "/".join(["shared-storage", system, *place])
    with superuser(dsn) as admin:
        query = "SELECT reason FROM sync_history WHERE kind = 'generation'"
        assert admin.execute(query).fetchall() == [
            ("the server refuses what it was recognised by before",)
        ]


@pytest.mark.needs("sessions")
async def test_whoever_has_asked_before_the_server_refused_acts_no_more_while_others_wait(
    dsn, settings
):
    async with hand(settings(), "a") as a:
        await a.join()
        assert await a.beat() is not None
        with superuser(dsn) as admin:
            be_aurora(admin)
        assert await a.beat() is not None, "its connection knows the answer from before"
        async with hand(settings(), "b") as b, anyio.create_task_group() as group:
            worker = Worker(settings(), "b", Announcement(), lease_clock)
            group.start_soon(agree, worker, b.store.failover)
            with anyio.fail_after(5):
                while recorded(dsn) != "None":
                    await asyncio.sleep(0.01)
            assert await a.beat() is None
            assert worker.history is None
            group.cancel_scope.cancel()


@pytest.mark.parametrize(
    "pooled",
    [
        pytest.param(False, marks=pytest.mark.needs("sessions")),
        pytest.param(True, marks=pytest.mark.needs("plain connections")),
    ],
    ids=["direct", "pooler"],
)
async def test_a_function_that_is_refused_meanwhile_is_named_and_never_told_as_not_available(
    dsn, settings, caplog, pooled
):
    through = pgbouncer(dsn, "transaction", size=4) if pooled else nullcontext(dsn)
    with through as reached:
        config = settings(dsn=reached, notify=not pooled, poll_interval_sec=0.2)
        async with cluster(config) as jobs:
            await jobs.start("a")
            with superuser(dsn) as admin:
                refuse(admin, POSITION)
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            with anyio.fail_after(10):
                while "pg_current_wal_lsn() is switched off here" not in caplog.text:
                    await asyncio.sleep(0.02)
                while jobs["a"].my_tokens:
                    await asyncio.sleep(0.02)
            (said,) = {
                record.message.partition("ago: ")[2].partition("; the profile was")[0]
                for record in caplog.records
                if "an outage began" in record.message and "switched off" in record.message
            }
            assert said.startswith("this server refuses what it was recognised by so far")
            assert "start the worker again" in said
            assert not any(
                "not available" in r.message and "switched off" in r.message for r in caplog.records
            )
            with superuser(dsn) as admin:
                allow_again(admin, POSITION)
            assert await jobs.even() == {"a": TOKENS}


async def test_what_is_refused_no_more_when_it_is_asked_for_is_tried_again(dsn):
    queries = Queries("public", "sync_")
    async with await Connection.connect(dsn, autocommit=True) as connection:
        for error in (errors.FeatureNotSupported, errors.ObjectNotInPrerequisiteState):
            with pytest.raises(StoreUnavailable, match="a moment later nothing was"):
                async with named_refusals(connection, queries):
                    raise error("pg_current_wal_lsn() is switched off here")
        with pytest.raises(errors.UndefinedFunction):
            async with named_refusals(connection, queries):
                raise errors.UndefinedFunction("another")


# == for operators =================================================================================


async def failover_check(config: CoordinationConfig) -> Check:
    (check,) = [check for check in await examine(config) if check.name == "failover"]
    return check


async def test_the_doctor_says_what_a_failover_does_and_what_is_not_recognised(dsn, settings):
    check = await failover_check(settings())
    assert check.status == "ok"
    assert "profile timeline: recognised by system identifier, timeline, database" in check.found
    assert "not recognised: a copy of the storage" in check.found
    check = await failover_check(settings(server_profile="shared-storage"))
    assert check.status == "warn"
    assert "nothing shows that its storage is shared" in check.advice
    with superuser(dsn) as admin:
        be_aurora(admin)
    check = await failover_check(settings())
    assert check.status == "ok"
    assert "profile shared-storage (Aurora 17.4)" in check.found
    assert "another region" in check.found


async def test_the_doctor_fails_where_no_worker_would_start(dsn, settings):
    with superuser(dsn) as admin:
        refuse(admin, POSITION)
    check = await failover_check(settings())
    assert check.status == "fail"
    assert "server_profile" in check.found
    check = await failover_check(settings(server_profile="start-time"))
    assert check.status == "ok"
    assert "after each restart" in check.found


async def test_init_clone_changes_the_profile_of_a_cluster(dsn, settings):
    async with Job("a", settings()):
        pass
    # The command itself, whose own timeout would be waited for.
    assert await clone_into(settings(), "start-time", as_json=True) == 0
    assert recorded(dsn).startswith("start-time/")
    async with Job("a", settings()) as job:
        assert len(job.my_tokens) == TOKENS
