"""Where PostgreSQL is changes, or there is no room left: names are looked up at each connect, what
leads to the old server is left, and a server that is full is waited for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from jobsync_async import CoordinationConfig, Job, StoreUnavailable
from jobsync_async.embedded import EmbeddedPostgres
from tests.clusters import cluster
from tests.handling import nothing
from tests.products import middleman
from tests.standbys import Standby

TOKENS = 60
NAME = "database.test"
TIMES = {"total_tokens": TOKENS, "heartbeat_interval_sec": 0.3, "heartbeat_timeout_sec": 1.5}
OURS = "application_name LIKE 'jobsync_async%'"
COUNT = f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}"
END_ALL = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {OURS}"


@pytest.fixture
def name_leads_to(monkeypatch) -> Callable[[str], None]:
    """Lets the name lead to an address from now on."""
    leads = ["127.0.0.1"]
    real = socket.getaddrinfo

    def getaddrinfo(host, *others, **options):
        return real(leads[0] if host == NAME else host, *others, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return lambda address: leads.__setitem__(0, address)


@pytest.fixture
def primary() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as server:
        yield server


def run(dsn: str, query: str):
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchone() if cursor.description else None


async def until(true: Callable[[], bool], seconds: float = 10) -> None:
    with anyio.fail_after(seconds):
        while not true():
            await asyncio.sleep(0.01)


async def test_after_a_failover_by_changed_dns_all_work_there_and_nothing_leads_to_the_old_server(
    primary, name_leads_to
):
    """It is up, and read-only, as when what promotes another fences it."""
    dsn = make_conninfo(primary.dsn, host=NAME)
    with Standby(primary, "127.0.0.2") as standby:
        async with cluster(CoordinationConfig(dsn=dsn, **TIMES)) as jobs:
            await jobs.start("a", "b")
            await jobs.even()
            await jobs["a"].owner_of("x")  # one more connection, which is idle from now on
            run(primary.dsn, "ALTER SYSTEM SET default_transaction_read_only = on")
            run(primary.dsn, "SELECT pg_reload_conf()")
            await anyio.to_thread.run_sync(standby.promote)
            name_leads_to("127.0.0.2")
            await until(lambda: not any(jobs.counts().values()))
            await jobs.even()
            await jobs["a"].owner_of("x")
            await until(lambda: run(primary.dsn, COUNT) == (0,))
            (there,) = run(standby.dsn, COUNT)
            assert there >= 4


async def test_a_call_that_met_a_read_only_server_leaves_no_connection_there_for_the_next(primary):
    async with Job("a", CoordinationConfig(dsn=primary.dsn, **TIMES), wait_on_enter=20) as job:
        await job.register_lock("x", ["%"])
        calls = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '% calls%'"
        assert run(primary.dsn, calls) == (1,)
        run(primary.dsn, "ALTER SYSTEM SET default_transaction_read_only = on")
        run(primary.dsn, "SELECT pg_reload_conf()")
        with anyio.fail_after(10), pytest.raises(StoreUnavailable, match="accepts no writes"):
            while True:
                await job.register_lock("x", ["%"])
        with anyio.fail_after(2):
            while run(primary.dsn, calls) != (0,):
                await asyncio.sleep(0.01)


@pytest.mark.needs("names")
async def test_a_worker_connects_again_while_all_threads_of_the_users_code_are_blocked(
    dsn_with, direct_dsn
):
    """asyncio looks names up in these threads."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    go_on = threading.Event()
    config = CoordinationConfig(dsn=dsn_with(host="localhost"), **TIMES)
    async with Job("a", config, wait_on_enter=20) as job:
        blocked = loop.run_in_executor(None, go_on.wait)
        try:
            beats = job.metrics.heartbeats
            assert run(direct_dsn, END_ALL) >= (2,)
            await until(lambda: job.metrics.heartbeats > beats + 1, 5)
        finally:
            go_on.set()
            await blocked
        assert job.metrics.lease_losses == 0 and len(job.my_tokens) == TOKENS


@pytest.mark.needs("fresh sessions")
async def test_a_server_without_a_free_connection_is_named_and_workers_that_have_theirs_go_on(
    admin, dsn_with, caplog
):
    """`max_connections`, the limit of a role, and that of a database say it alike."""
    role = "jobsync_test_crowd"
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    await admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    config = CoordinationConfig(dsn=dsn_with(user=role, password="x"), **TIMES)
    try:
        async with Job("a", config, wait_on_enter=20) as job:
            async with cluster(config) as jobs:
                await jobs.start("b")
            await admin.execute(f"ALTER ROLE {role} CONNECTION LIMIT 2")
            with pytest.raises(
                StoreUnavailable, match=r"too many connections.*raise max_connections.*keeps 2"
            ) as refused:
                await Job("c", config).start()
            assert "do host, port" not in str(refused.value)
            lost = job.metrics.lease_losses
            batch = asyncio.ensure_future(job.run_batch(range(3), nothing))
            with pytest.raises(StoreUnavailable, match="raise max_connections"):
                await job.owner_of("x")
            await admin.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
            assert len((await batch).completed_here) == 3
            assert job.metrics.lease_losses == lost == 0
    finally:
        await admin.execute(f"DROP OWNED BY {role}")
        await admin.execute(f"DROP ROLE {role}")


@pytest.fixture
def idle_are_cut(direct_dsn) -> Iterator[str]:
    """The DSN through a time-out on the way, which no worker sees before it."""
    with middleman.running(direct_dsn, mode="session", idle_sec=0.5) as through:
        yield through


@pytest.mark.needs("plain connections")
@pytest.mark.needs("sessions")
async def test_what_users_call_finds_no_connection_that_was_cut_while_it_was_idle(
    dsn, direct_dsn, idle_are_cut
):
    patient = {"heartbeat_interval_sec": 5, "heartbeat_timeout_sec": 15}
    config = CoordinationConfig(dsn=idle_are_cut, **{**TIMES, **patient})
    async with Job("a", config, wait_on_enter=20) as job:
        for _ in range(2):
            await job.owner_of("x")
            await job.register_lock("x", ["%"])
            await job.drain()
            await until(lambda: run(direct_dsn, COUNT) == (0,))


@pytest.mark.needs("plain connections")
async def test_a_start_that_waits_for_its_name_is_not_ended_because_its_listener_was_cut(
    quick, idle_are_cut
):
    """The LISTEN connection is idle meanwhile."""
    from_here = replace(quick, dsn=idle_are_cut, heartbeat_interval_sec=0.2)
    async with cluster(quick) as jobs:
        await jobs.start("a")
        await jobs.crash("a")
        async with Job("a", from_here, wait_on_enter=20) as job:
            assert len(job.my_tokens) == from_here.total_tokens
