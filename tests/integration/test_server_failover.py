"""PostgreSQL itself is failed over, restored or replaced: nobody acts on what may be lost, and no
epoch comes twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext

import anyio
import psycopg
import pytest

from jobsync_async import CoordinationConfig, Job, OwnershipLost, StoreUnavailable
from jobsync_async.core.rows import Announcement
from jobsync_async.core.server_history import AdoptedHistory
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.host.clock import lease_clock
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.statement_context import ServerChanged
from jobsync_async.tasks.heartbeat import agree
from jobsync_async.tasks.worker import Worker
from tests.clusters import Cluster, cluster
from tests.hands import Hand, hand
from tests.standbys import Standby, both

TIMEOUT_SEC = 1.5
TOKENS = 120


@pytest.fixture
def primary() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
def standby(primary) -> Iterator[Standby]:
    with Standby(primary) as server:
        yield server


def settings(dsn: str, **others) -> CoordinationConfig:
    times = {"heartbeat_interval_sec": 0.3, "heartbeat_timeout_sec": TIMEOUT_SEC}
    return CoordinationConfig(**{"dsn": dsn, "total_tokens": TOKENS, **times, **others})


class Epochs:
    """Every epoch that every incarnation was seen to hold a token under: no two may share one."""

    def __init__(self, jobs: Cluster) -> None:
        self._jobs = jobs
        self.holders: dict[tuple[int, int], object] = {}

    def look(self) -> None:
        for job in self._jobs.jobs.values():
            worker = job._worker
            for token in job.my_tokens:
                held = (token, worker.ownership.epoch(token))
                holder = self.holders.setdefault(held, worker.identity)
                assert holder == worker.identity, (
                    f"{held} was {holder}'s and is {worker.identity}'s"
                )

    @property
    def highest(self) -> int:
        self.look()
        return max(epoch for _, epoch in self.holders)

    async def watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0.001)


@asynccontextmanager
async def watched(config: CoordinationConfig) -> AsyncIterator[tuple[Cluster, Epochs]]:
    """A cluster in which no epoch may come twice."""
    async with cluster(config) as jobs, anyio.create_task_group() as group:
        epochs = Epochs(jobs)
        group.start_soon(epochs.watch)
        yield jobs, epochs
        group.cancel_scope.cancel()


async def cut_off(primary: EmbeddedPostgres, standby: Standby) -> None:
    """Let the standby have everything up to now, and nothing after it."""
    async with await psycopg.AsyncConnection.connect(primary.dsn, autocommit=True) as source:
        (here,) = await (await source.execute("SELECT pg_current_wal_lsn()")).fetchone()
        async with await psycopg.AsyncConnection.connect(standby.dsn, autocommit=True) as target:
            caught_up = "SELECT pg_last_wal_replay_lsn() >= %s"
            await until_true(target, caught_up, [here])
            await target.execute("ALTER SYSTEM SET primary_conninfo = ''")
            await target.execute("SELECT pg_reload_conf()")
            await until_true(source, "SELECT count(*) = 0 FROM pg_stat_replication")


async def until_true(connection, query: str, values=None) -> None:
    with anyio.fail_after(20):
        while not (await (await connection.execute(query, values)).fetchone())[0]:
            await asyncio.sleep(0.01)


async def value(dsn: str, query: str):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        return (await (await connection.execute(query)).fetchone())[0]


async def test_after_a_failover_to_a_lagging_standby_no_epoch_comes_twice_and_everything_is_owned_again(  # noqa: E501
    primary, standby
):
    async with watched(settings(both(primary.dsn, standby))) as (jobs, epochs):
        await jobs.start("a", "b")
        await jobs.even()
        await cut_off(primary, standby)
        await jobs.start("c")  # what follows from it is lost
        await jobs.even()
        token = min(jobs["c"].my_tokens)
        lost_epoch = jobs["c"]._worker.ownership.epoch(token)
        fences = [
            (str(job._worker.identity.incarnation), t, job._worker.ownership.epoch(t))
            for job in jobs.jobs.values()
            for t in job.my_tokens
        ]
        lost = epochs.highest
        primary.stop("immediate")
        stopped_at = time.monotonic()
        await anyio.to_thread.run_sync(standby.promote)
        promoted_at = time.monotonic()
        assert (
            await value(standby.dsn, f"SELECT epoch FROM sync_token WHERE token_id = {token}")
            < lost_epoch
        ), "it lags"
        with anyio.fail_after(TIMEOUT_SEC):
            while jobs.owners():
                await asyncio.sleep(0.002)
        dropped_at = time.monotonic()
        await jobs.even()
        took = time.monotonic() - promoted_at
        print(
            f"dropped {dropped_at - stopped_at:.2f} s after the stop, all owned {took:.2f} s "
            "after the promotion"
        )
        assert time.monotonic() - dropped_at > TIMEOUT_SEC * 0.5
        assert TIMEOUT_SEC < took < TIMEOUT_SEC + 1.5
        generation = await value(standby.dsn, "SELECT generation FROM sync_cluster")
        assert generation > 1
        assert (
            await value(standby.dsn, "SELECT min(epoch) FROM sync_token") > generation << 32 > lost
        )
        assert set((await jobs.even()).values()) == {TOKENS // 3}
        async with await psycopg.AsyncConnection.connect(standby.dsn) as connection:
            old = (
                "SELECT count(*) FROM sync_token WHERE (incarnation::text, token_id, epoch) = "
                "(%s, %s, %s)"
            )
            for fence in fences:
                assert await (await connection.execute(old, fence)).fetchone() == (0,), (
                    "a fence of before holds"
                )


async def test_nobody_owns_anything_before_every_lease_of_before_is_over(primary, standby):
    """A worker that is cut off when the server fails over keeps its lease; the others must wait for
    it."""
    async with watched(settings(both(primary.dsn, standby))) as (jobs, _):
        await jobs.start("a", "b")
        await jobs.even()
        await cut_off(primary, standby)
        deaf = jobs["b"]._engine
        primary.stop("immediate")
        # It never gets there.
        deaf.store._heartbeat_link._connector._conninfo = lambda purpose: "host=127.0.0.1 port=1"
        deaf.store._others._conninfo = lambda purpose: "host=127.0.0.1 port=1"
        held_until = deaf.worker.lease.deadline
        await anyio.to_thread.run_sync(standby.promote)
        while jobs["b"].my_tokens:
            await asyncio.sleep(0.002)
        assert deaf.worker.clock() >= held_until - 0.01, "it holds on for the whole of its lease"
        await jobs.settled()
        assert jobs.counts() == {"a": TOKENS, "b": 0}


@pytest.fixture
def config(make_config) -> CoordinationConfig:
    return settings(make_config().dsn)


async def test_no_statement_acts_on_a_server_that_the_cluster_was_not_begun_on(config, admin):
    async with hand(config, "a") as a, hand(config, "b") as b, hand(config, "c") as c:
        await a.join()
        await a.lead()
        await b.join()
        await a.lead()
        going = [(row.token_id, row.version) for row in (await a.read()).mine if row.revoking]
        seen = await a.last_beat()
        term = (await a.read()).term
        await admin.execute("UPDATE sync_cluster SET server_identity = '1/00000001/1/1'")
        before = await (
            await admin.execute(
                "SELECT c::text, (SELECT sum(beat) FROM sync_node) FROM sync_cluster c"
            )
        ).fetchone()
        assert going
        assert await a.beat() is None
        for act in (
            a.read,
            lambda: a.feed.acknowledge(a.me, going),
            c.join,
            lambda: b.store.leading.take_over(b.me, term, [seen]),
            lambda: a.store.leading.read(-1, -1),
            lambda: a.store.pins.clear(None),
            lambda: a.store.membership.set_state("a", "draining"),
            lambda: a.store.membership.leave(a.me),
        ):
            with pytest.raises(ServerChanged):
                await act()
        assert (
            await a.store.leading.rebalance(a.me, term, [seen], -1, -1, lambda reading: None)
            is None
        )
        after = await (
            await admin.execute(
                "SELECT c::text, (SELECT sum(beat) FROM sync_node) FROM sync_cluster c"
            )
        ).fetchone()
        assert after == before


@pytest.mark.needs("sessions")
async def test_no_statement_acts_on_another_history_than_the_adopted_one(config):
    async with hand(config, "a") as a:
        await a.join()
        reading = await a.store.failover.read_server()
        history = reading.adoptable(None, -1)
        for other in (
            history._replace(generation=history.generation + 1),
            history._replace(server=history.server + "1"),
        ):
            a.store.failover.adopt(other)
            assert await a.beat() is None
            with pytest.raises(ServerChanged):
                await a.read()
        a.feed = await a.store.listen() if a.feed._connection.closed else a.feed
        a.store.failover.adopt(history)
        assert await a.beat() is not None


@pytest.mark.needs("sessions")
async def test_a_connection_that_leads_to_another_server_is_noticed_when_it_is_opened(config):
    async with hand(config, "a") as a:
        told = []
        a.store.failover.on_change(lambda: told.append(True))
        a.store.failover.adopt(AdoptedHistory("1/00000001/1/1", 1))
        with pytest.raises(StoreUnavailable):  # the listener
            await a.store.listen()
        assert len(told) == 1
        with pytest.raises(ServerChanged):  # the leader's link
            await a.store.leading.read(-1, -1)
        assert len(told) == 2
        assert await a.beat() is None  # the heartbeats' link
        assert len(told) == 3
        with pytest.raises(StoreUnavailable):  # the pool
            await a.store.status.nodes()
        assert len(told) >= 4


async def test_a_heartbeat_does_not_count_on_a_cluster_that_is_older_than_what_was_seen(config):
    async with hand(config, "a") as a:
        await a.join()
        version = (await a.read()).version
        assert (
            await a.store.membership.heartbeat(a.me, watch_all=False, version=version) is not None
        )
        assert (
            await a.store.membership.heartbeat(a.me, watch_all=False, version=version + 1) is None
        )


async def test_a_new_generation_is_begun_once_and_only_over_what_was_seen(config, admin):
    async with hand(config, "a") as a, hand(config, "b") as b:
        await a.join()
        await a.lead()
        await admin.execute(
            "UPDATE sync_cluster SET server_identity = 'elsewhere', version = version + 100"
        )
        seen = await a.store.failover.read_server()
        assert seen.adoptable(None, -1) is None
        assert not await b.store.failover.begin(on_another(seen), None, -1, TIMEOUT_SEC)
        assert await a.store.failover.begin(
            seen, AdoptedHistory("elsewhere", 10**9), 1_000_000, TIMEOUT_SEC
        )
        assert not await b.store.failover.begin(seen, None, -1, TIMEOUT_SEC)
        now = await a.store.failover.read_server()
        assert now.generation > 10**9, "by more than a random jump"
        assert (
            now.version > 1_000_000
            and now.adoptable(AdoptedHistory("elsewhere", 10**9), 5) is not None
        )
        assert await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone() == (0,)
        freed = await (
            await admin.execute(
                "SELECT count(*), min(epoch) FROM sync_token WHERE incarnation IS NULL"
            )
        ).fetchone()
        assert freed == (TOKENS, now.generation << 32)


async def test_nobody_makes_a_row_unfit_that_was_begun_elsewhere(config, admin):
    async with hand(config, "a") as a:
        await admin.execute("UPDATE sync_cluster SET server_identity = 'elsewhere'")
        assert not await a.store.failover.condemn(await a.store.failover.read_server(), None)
        rows = await admin.execute("SELECT server_identity FROM sync_cluster")
        assert await rows.fetchone() == ("elsewhere",)


async def test_no_generation_is_begun_over_a_row_that_looks_the_same_but_went_on(config, admin):
    async with hand(config, "a") as a, hand(config, "b") as b:
        await a.join()
        await admin.execute("UPDATE sync_cluster SET server_identity = NULL")
        seen = await a.store.failover.read_server()
        assert await b.store.failover.begin(seen, None, -1, seen.longest_wait)
        await admin.execute("UPDATE sync_cluster SET server_identity = NULL")
        now = await a.store.failover.read_server()
        assert now == seen._replace(generation=now.generation, version=now.version)
        assert not await a.store.failover.begin(seen, None, -1, TIMEOUT_SEC)
        assert await a.store.failover.begin(now, None, -1, TIMEOUT_SEC)


@pytest.mark.parametrize("ahead", ["generation", "version"])
async def test_whoever_knows_more_than_the_cluster_lets_no_lease_be_extended_while_it_waits_to_begin_anew(  # noqa: E501
    config, ahead
):
    async with hand(config, "a") as a, hand(config, "b") as b:
        await a.join()
        reading = await b.store.failover.read_server()
        worker = Worker(config, "b", Announcement(), lease_clock)
        worker.history = known = AdoptedHistory(
            reading.actual, reading.generation + (7 if ahead == "generation" else 0)
        )
        worker.seen = reading.version + 1000
        beats: list[float] = []

        async def beat() -> None:
            while True:
                sent_at = lease_clock()
                if await a.beat() is not None:
                    beats.append(sent_at)
                await asyncio.sleep(0.01)

        async with anyio.create_task_group() as group:
            group.start_soon(beat)
            with anyio.fail_after(3 * TIMEOUT_SEC):
                while not beats:
                    await asyncio.sleep(0.01)
                await agree(worker, b.store.failover)
            group.cancel_scope.cancel()
        assert lease_clock() - max(beats) > TIMEOUT_SEC, "every lease of before was over"
        now = await b.store.failover.read_server()
        assert worker.history == AdoptedHistory(now.actual, now.generation)
        assert now.generation > known.generation
        assert now.version > reading.version + 1000


def on_another(seen):
    """What somebody saw on another server."""
    return seen._replace(actual=f"{seen.actual}0")


async def test_a_token_that_a_fence_locks_while_a_generation_begins_gets_an_epoch_of_the_new_one(
    config, admin, dsn
):
    async with hand(config, "a") as a, hand(config, "b") as b:
        await a.join()
        await a.lead()
        async with await psycopg.AsyncConnection.connect(dsn) as user:
            await user.execute("SELECT FROM sync_token WHERE token_id = 3 FOR KEY SHARE")
            await admin.execute("UPDATE sync_cluster SET server_identity = 'elsewhere'")
            assert await a.store.failover.begin(
                await a.store.failover.read_server(), None, -1, TIMEOUT_SEC
            )
        generation = (await a.store.failover.read_server()).generation
        assert await (
            await admin.execute("SELECT epoch FROM sync_token WHERE token_id = 3")
        ).fetchone() == ((1 << 32) + 1,)
        await b.join()
        await b.lead()
        assert await (await admin.execute("SELECT min(epoch) FROM sync_token")).fetchone() == (
            (generation << 32) + 1,
        )


async def test_a_copy_of_the_database_is_begun_anew(config, dsn_with, admin, server):
    async with cluster(config) as jobs:
        await jobs.start("a")
    (name,) = await (await admin.execute("SELECT current_database()")).fetchone()
    await admin.close()
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as maker:
        kept = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        await maker.execute(kept, [name])  # by a pooler
        await maker.execute(f'CREATE DATABASE "{name}_copy" TEMPLATE "{name}"'.encode())
        try:
            copy = settings(dsn_with(dbname=f"{name}_copy"))
            started = time.monotonic()
            async with cluster(copy) as jobs:
                await jobs.start("a")
                assert time.monotonic() - started >= TIMEOUT_SEC
                assert jobs.counts() == {"a": TOKENS}
                assert await value(copy.dsn, "SELECT generation FROM sync_cluster") > 1
        finally:
            await maker.execute(f'DROP DATABASE "{name}_copy" WITH (FORCE)'.encode())


@pytest.mark.parametrize(
    "loss",
    [
        "UPDATE sync_cluster SET version = 1",
        "UPDATE sync_cluster SET server_identity = NULL",
        "UPDATE sync_cluster SET generation = 0",
        "DELETE FROM sync_cluster; DELETE FROM sync_node; DELETE FROM sync_token",
    ],
    ids=["older", "unknown", "an earlier generation", "empty"],
)
async def test_running_workers_begin_anew_on_a_database_that_has_lost_commits(config, admin, loss):
    async with watched(config) as (jobs, epochs):
        await jobs.start("a", "b")
        await jobs.even()
        before = epochs.highest
        await admin.execute(loss.encode())
        with anyio.fail_after(TIMEOUT_SEC):
            while jobs.owners():
                await asyncio.sleep(0.002)
        assert await jobs.even() == {"a": TOKENS // 2, "b": TOKENS // 2}
        (least,) = await (await admin.execute("SELECT min(epoch) FROM sync_token")).fetchone()
        assert least >> 32 > before >> 32, "a new generation"
        assert all(isinstance(job, Job) and job.am_i_healthy() for job in jobs.jobs.values())


@pytest.mark.parametrize("attributes", ["read-write", "any"])
async def test_a_dsn_that_leads_to_a_standby_is_refused_with_the_remedy(standby, attributes):
    config = settings(f"{standby.dsn}?target_session_attrs={attributes}")
    with pytest.raises(StoreUnavailable, match=r"a standby.*connect to the primary") as refused:
        await Job("a", config).start()
    assert "not available" not in str(refused.value)


async def test_what_changed_nothing_may_have_led_elsewhere_so_the_next_try_is_by_a_fresh_connection(
    dsn,
):
    """Two servers that take writes may stand beside each other, and no session to either ends."""

    async def by(a: Hand) -> int:
        return await a.store.failover._changes.run(pid)

    async def pid(connection: Connection) -> int:
        return connection.info.backend_pid

    async with hand(settings(dsn), "a") as a:
        await a.join()
        seen, first = await a.store.failover.read_server(), await by(a)
        assert await by(a) == first
        others = seen._replace(generation=seen.generation + 1)
        assert not await a.store.failover.begin(others, None, -1, TIMEOUT_SEC)
        second = await by(a)
        assert second != first
        assert not await a.store.failover.condemn(others, None)
        third = await by(a)
        assert third not in (first, second)
        assert await a.store.failover.condemn(seen, None)
        assert await by(a) == third


async def test_a_server_on_which_no_commit_ends_is_left_for_the_one_that_took_its_place(
    primary, standby
):
    """It is named first, takes connections, and says that it takes writes."""
    async with watched(settings(both(primary.dsn, standby))) as (jobs, _):
        (a,) = await jobs.start("a")
        await cut_off(primary, standby)
        await anyio.to_thread.run_sync(standby.promote)
        async with await psycopg.AsyncConnection.connect(primary.dsn, autocommit=True) as left:
            await left.execute("ALTER SYSTEM SET synchronous_standby_names = 'gone'")
            await left.execute("SELECT pg_reload_conf()")
        with anyio.fail_after(10 * TIMEOUT_SEC):
            while await value(standby.dsn, "SELECT generation FROM sync_cluster") == 1:
                await asyncio.sleep(0.02)
            await jobs.even()
        assert a.am_i_healthy()
        async with a.claim("x") as claim:
            for server, refused in ((primary, True), (standby, False)):
                async with await psycopg.AsyncConnection.connect(server.dsn) as connection:
                    told = pytest.raises(OwnershipLost, match="left in a failover, close it")
                    with told if refused else nullcontext():
                        await a.fence(connection, claim)
