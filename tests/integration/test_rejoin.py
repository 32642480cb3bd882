"""Whatever happened to PostgreSQL or to the way there, workers come back by themselves, and
soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import psycopg
import pytest

from jobsync_async import CoordinationConfig
from jobsync_async.embedded import EmbeddedPostgres
from tests.clusters import Cluster, cluster

TOKENS = 120
LEASE_SEC = 1.6
AGREED_WITHIN_SEC = 1.0


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedPostgres]:
    """A server that the test may stop."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
async def admin(own) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(own.dsn, autocommit=True) as connection:
        yield connection


def settings(own: EmbeddedPostgres, **others) -> CoordinationConfig:
    times = {"heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": 2}
    return CoordinationConfig(**{"dsn": own.dsn, "total_tokens": TOKENS, **times, **others})


@pytest.fixture
async def jobs(own) -> AsyncIterator[Cluster]:
    async with cluster(settings(own)) as made:
        await made.start("a", "b", "c")
        await made.even()
        yield made


def grants(jobs: Cluster) -> dict[str, dict[int, int]]:
    """What each worker holds. A token that was lost and came back has another grant."""
    return {name: dict(job._worker.ownership.grants) for name, job in jobs.jobs.items()}


async def agree(jobs: Cluster) -> None:
    """Wait until each has heard from the server again: a heartbeat and a reading of its own."""
    workers = [job._worker for job in jobs.jobs.values()]
    beats = [worker.metrics.heartbeats for worker in workers]
    with anyio.fail_after(20):
        while not (
            len(jobs.owners()) == TOKENS
            and all(
                worker.metrics.heartbeats > beat
                for worker, beat in zip(workers, beats, strict=True)
            )
            and all(
                (connection := job._engine.store._heartbeat_link._connection) is not None
                and not connection.closed
                for job in jobs.jobs.values()
            )
        ):
            await asyncio.sleep(0.002)


async def in_thread(call: Callable[..., object], *arguments) -> None:
    await anyio.to_thread.run_sync(call, *arguments)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_the_server_within_the_lease_moves_no_token(own, jobs, mode):
    before = grants(jobs)
    await in_thread(own.stop, mode)
    await in_thread(own.start)
    back_at = time.monotonic()
    await agree(jobs)
    took = time.monotonic() - back_at
    print(f"{mode}: agreed {took:.2f} s after it was back")
    assert took < AGREED_WITHIN_SEC
    assert grants(jobs) == before
    assert all(job.metrics.rejoins == job.metrics.lease_losses == 0 for job in jobs.jobs.values())


async def test_an_outage_longer_than_the_lease_stops_everybody_in_time_and_ends_within_a_second(
    own, jobs
):
    held = {name: job.my_tokens for name, job in jobs.jobs.items()}
    await in_thread(own.stop)
    away_at = time.monotonic()
    with anyio.fail_after(LEASE_SEC + 1):
        while jobs.owners():
            await asyncio.sleep(0.002)
    assert time.monotonic() - away_at < LEASE_SEC + 0.1
    await asyncio.sleep(LEASE_SEC)  # the backoff has grown by now
    await in_thread(own.start)
    back_at = time.monotonic()
    await jobs.settled()
    took = time.monotonic() - back_at
    print(f"owned again {took:.2f} s after it was back")
    assert took < AGREED_WITHIN_SEC
    assert {name: job.my_tokens for name, job in jobs.jobs.items()} == held, "no token moved"
    assert all(job.metrics.rejoins == 0 for job in jobs.jobs.values())


@pytest.mark.needs("sessions")
async def test_every_session_terminated_moves_no_token(own, jobs, admin):
    before = grants(jobs)
    others = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
    terminate = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}".encode()
    listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%listener%'"
    for rounds in range(1, 4):
        await jobs["a"].owner_of("x")  # leaves a connection idle in the pool
        with anyio.fail_after(5):
            while await (await admin.execute(listening)).fetchone() != (len(jobs.jobs),):
                await asyncio.sleep(0.01)
        await admin.execute(terminate)
        back_at = time.monotonic()
        await agree(jobs)
        assert time.monotonic() - back_at < AGREED_WITHIN_SEC
        with anyio.fail_after(5):
            while jobs["a"].metrics.listener_reconnects < rounds:
                await asyncio.sleep(0.01)
        await jobs["a"].owner_of("x")  # and no broken one is handed out
    assert grants(jobs) == before


@pytest.mark.needs("sessions")
async def test_the_listeners_sessions_terminated_miss_no_change(own, jobs, admin):
    before = grants(jobs)
    terminate = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name "
        "LIKE '%listener%'"
    )
    assert await (await admin.execute(terminate)).fetchone() == (3,)
    back_at = time.monotonic()
    await jobs.start("d")
    await jobs.even()
    assert time.monotonic() - back_at < AGREED_WITHIN_SEC + 0.5
    assert all(set(grants(jobs)[name].items()) <= set(before[name].items()) for name in before), (
        "what stayed was never lost"
    )
    assert all(
        job.metrics.listener_reconnects == 1 for name, job in jobs.jobs.items() if name != "d"
    )


async def test_a_server_that_is_read_only_for_a_while_is_an_outage(own, jobs, admin):
    held = {name: job.my_tokens for name, job in jobs.jobs.items()}
    try:
        await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_reload_conf()")
        with anyio.fail_after(LEASE_SEC + 1):
            while jobs.owners():
                await asyncio.sleep(0.002)
    finally:
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await admin.execute("SELECT pg_reload_conf()")
    back_at = time.monotonic()
    await jobs.settled()
    assert time.monotonic() - back_at < AGREED_WITHIN_SEC
    assert {name: job.my_tokens for name, job in jobs.jobs.items()} == held, "no token moved"


async def test_a_worker_whose_row_was_deleted_joins_again(own, jobs, admin):
    # a row deleted by hand declares a worker dead that lives: until its next heartbeat there are
    # two owners
    jobs.watched = False
    await admin.execute("DELETE FROM sync_node WHERE name = 'b'")
    await has_rejoined(jobs, "b")
    await jobs.even()
    jobs.watched = True
    assert (await jobs.even()).keys() == {"a", "b", "c"}


async def test_a_worker_that_was_cut_off_for_long_joins_again(own, jobs):
    """Its connections are refused for longer than the timeout; the others replace it; then it comes
    back."""
    store = jobs["b"]._engine.store
    connectors = (store._heartbeat_link._connector, store._others)
    way = store._others._conninfo
    for connector in connectors:
        connector._conninfo = lambda purpose: "host=127.0.0.1 port=1"
    store._heartbeat_link.renew()
    jobs["b"]._engine.worker.beat_wanted.set()
    with anyio.fail_after(10):
        while len(jobs["a"].my_tokens) + len(jobs["c"].my_tokens) < TOKENS:
            await asyncio.sleep(0.002)
    assert not jobs["b"].my_tokens and not jobs["b"].am_i_healthy()
    for connector in connectors:
        connector._conninfo = way
    back_at = time.monotonic()
    await has_rejoined(jobs, "b")
    await jobs.even()
    assert time.monotonic() - back_at < AGREED_WITHIN_SEC + 0.5
    assert jobs["b"].am_i_healthy()


async def has_rejoined(jobs: Cluster, name: str) -> None:
    with anyio.fail_after(5):
        while jobs[name].metrics.rejoins == 0:
            await asyncio.sleep(0.002)
