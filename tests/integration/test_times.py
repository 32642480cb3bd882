"""Workers whose times differ: what a row says of them, the bound on timeouts, and who may join."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import psycopg
import pytest

from jobsync_async import ConfigError, CoordinationConfig, Job
from jobsync_async.core.lease import Times, lease_sec
from jobsync_async.core.rows import Announcement
from jobsync_async.core.server_history import UNSAID_TIMEOUT_SEC, OldLeasesWait
from jobsync_async.host.clock import lease_clock
from jobsync_async.tasks.heartbeat import agree
from jobsync_async.tasks.worker import Worker
from tests.clusters import cluster
from tests.hands import Hand, blocked, hand
from tests.integration.test_commands import Commands

QUICK, SLOW = Times(1.5, 0.4), Times(6, 2)


def settings(config: CoordinationConfig, times: Times) -> CoordinationConfig:
    return replace(
        config, heartbeat_timeout_sec=times.timeout_sec, heartbeat_interval_sec=times.interval_sec
    )


@pytest.fixture
def slow(config) -> CoordinationConfig:
    return settings(config, SLOW)


@pytest.fixture
def hasty(config) -> CoordinationConfig:
    return settings(config, QUICK)


async def bound_of(admin) -> tuple[float | None, float | None]:
    return await (
        await admin.execute("SELECT longest_wait, longest_allowed FROM sync_cluster")
    ).fetchone()


async def seen_by(watcher: Hand) -> dict[str, Times]:
    """What each way to read beats shows of everybody's times."""
    answer = await watcher.beat()
    look = await watcher.store.membership.read_beats()
    assert answer is not None and look is not None
    reading = await watcher.store.leading.read(-1, -1)
    shown = {beat.name: times for beat, times in answer.beats.items()}
    assert {beat.name: times for beat, times in look.items()} == shown
    assert {member.name: member.times for member in reading.members} == shown
    return shown


async def test_a_row_says_its_workers_own_times_and_every_reading_of_beats_brings_them(slow, hasty):
    async with hand(slow, "a") as a, hand(hasty, "b") as b:
        await a.join()
        await b.join()
        assert await seen_by(a) == await seen_by(b) == {"a": SLOW, "b": QUICK}
        for worker, times in ((a, SLOW), (b, QUICK)):
            answer = await worker.beat()
            assert answer is not None
            assert (answer.timeout_sec, answer.longest_wait) == (
                times.timeout_sec,
                SLOW.timeout_sec,
            )
        async with hand(slow, "b") as heir:
            refusal = await heir.join()
            assert refusal is not None and refusal.times == QUICK, (
                "whoever waits for the name waits for its holder's timeout"
            )
            assert await heir.join(replace=await b.last_beat()) is None
        assert await seen_by(a) == {"a": SLOW, "b": SLOW}


async def test_what_an_older_library_leaves_in_a_row_says_nothing_and_counts_as_the_bound(
    slow, hasty, admin
):
    worst = Times(SLOW.timeout_sec, lease_sec(SLOW.timeout_sec) / 2)
    async with hand(slow, "a") as a, hand(hasty, "b") as b:
        await a.join()
        await b.join()
        # As 0.1.0 takes over a name: it knows no columns of times.
        await admin.execute(
            "UPDATE sync_node SET incarnation = %s, beat = beat + 1 WHERE name = 'b'", [UUID(int=7)]
        )
        assert await seen_by(a) == {"a": SLOW, "b": worst}
        async with hand(hasty, "b") as heir:
            refusal = await heir.join()
            assert refusal is not None and refusal.times == worst
        await admin.execute(
            "INSERT INTO sync_node (name, incarnation, joined) VALUES ('c', gen_random_uuid(), 9)"
        )
        assert (await seen_by(a))["c"] == worst


async def test_the_first_worker_sets_the_bound_and_a_longer_timeout_is_refused_with_both_values_and_the_command(  # noqa: E501
    hasty, slow, admin
):
    async with hand(hasty, "a") as a, hand(slow, "b") as b:
        await a.join()
        assert await bound_of(admin) == (1.5, 1.5)
        version = await (await admin.execute("SELECT version FROM sync_cluster")).fetchone()
        with pytest.raises(
            ConfigError,
            match=r"heartbeat_timeout_sec is 6 here.*allows 1\.5.*jobsync-async bound 6",
        ):
            await b.join()
        assert (
            await (await admin.execute("SELECT version FROM sync_cluster")).fetchone() == version
        ), "it leaves nothing behind"
    job = Job("b", coordination_config=slow)
    with pytest.raises(ConfigError, match=r"1\.5"):
        await job.start()


@pytest.mark.parametrize("name", ["free", "taken"])
async def test_the_statement_that_makes_the_row_refuses_a_worker_above_a_bound_that_was_lowered_meanwhile(  # noqa: E501
    slow, hasty, admin, name
):
    async with hand(slow, "a") as a, hand(hasty, "taken") as holder, hand(slow, name) as late:
        await a.join()
        await holder.join()
        seen = await holder.last_beat() if name == "taken" else None
        async with admin.transaction():
            await admin.execute("UPDATE sync_cluster SET longest_wait = 4, longest_allowed = 4")
            joining = asyncio.ensure_future(late.join(replace=seen))
            async with await psycopg.AsyncConnection.connect(
                slow.conninfo("test"), autocommit=True
            ) as other:
                await blocked(other, "last_joined + 1")
        with pytest.raises(ConfigError, match="allows 4"):
            await joining
        assert (await seen_by(a)) == {"a": SLOW, "taken": QUICK}


async def test_where_an_older_library_has_joined_before_the_bound_is_no_lower_than_its_default_timeout(  # noqa: E501
    hasty, admin
):
    async with hand(hasty, "a") as a:
        await admin.execute(
            "UPDATE sync_cluster SET last_joined = 1, longest_wait = NULL, longest_allowed = NULL"
        )
        await a.join()
    assert await bound_of(admin) == (UNSAID_TIMEOUT_SEC, UNSAID_TIMEOUT_SEC)


async def test_a_new_generation_is_begun_only_after_the_wait_of_the_bound_and_keeps_it(
    hasty, slow, admin
):
    async with hand(slow, "a") as a, hand(hasty, "b") as b:
        await a.join()
        await admin.execute(
            "UPDATE sync_cluster SET server_identity = 'elsewhere', longest_wait = 3, "
            "longest_allowed = 3"
        )
        seen = await b.store.failover.read_server()
        assert seen.longest_wait == 3
        worker = Worker(hasty, "b", Announcement(), lease_clock)
        started = lease_clock()
        await agree(worker, b.store.failover)
        assert 3 <= lease_clock() - started < 4.5
        assert await bound_of(admin) == (3, 3)
        await admin.execute(
            "UPDATE sync_cluster SET server_identity = 'elsewhere', longest_wait = 2"
        )
        seen = await b.store.failover.read_server()
        await admin.execute("UPDATE sync_cluster SET longest_wait = 5")
        assert not await b.store.failover.begin(seen, None, -1, 2), "it waited for another bound"
        waiting = OldLeasesWait(hasty.heartbeat_timeout_sec, 7)
        waiting.observe(seen := await b.store.failover.read_server(), 0)
        assert await b.store.failover.begin(seen, None, -1, waiting.wait_sec)
        assert await bound_of(admin) == (7, 3), (
            "what is allowed is an operator's word, given when the replicas know"
        )


async def test_a_cluster_that_lost_its_row_has_the_bound_that_its_workers_know(slow, hasty, admin):
    async with cluster(slow) as jobs:
        await jobs.start("a")
        await admin.execute("TRUNCATE sync_cluster, sync_node, sync_token")
        worker = jobs["a"]._worker
        while not (worker.history and worker.history.generation > 1 and worker.ownership.grants):
            await worker.changed()
    assert await bound_of(admin) == (6, 6)


@pytest.mark.parametrize(("column", "other"), [("total_tokens", 100), ("hash_function", "md5")])
async def test_a_running_worker_does_not_join_a_cluster_of_other_settings_that_was_put_in_its_place(
    hasty, admin, column, other
):
    job = Job("a", coordination_config=hasty)
    await job.start()
    await admin.execute(
        f"UPDATE sync_cluster SET {column} = %s, server_identity = 'elsewhere'".encode(), [other]
    )
    worker = job._worker
    assert await worker.until(lambda: job._engine.failure, 10)
    with pytest.raises(ConfigError, match=f"{column} is .* here and {other!r} in the cluster"):
        await job.stop()


# -- the command -----------------------------------------------------------------------------------


async def test_the_bound_is_shown_raised_when_every_replica_has_it_and_lowered_when_no_worker_is_above_it(  # noqa: E501
    hasty, slow, dsn, admin
):
    bound = Commands(dsn)
    async with hand(hasty, "a") as a, hand(slow, "b") as b:
        await a.join()
        shown = await bound.json("bound")
        assert (shown["longest_wait_sec"], shown["longest_allowed_sec"]) == (1.5, 1.5)

        await admin.execute(
            "SELECT pg_create_physical_replication_slot('standby_of_the_test', true)"
        )
        try:
            shown = await bound.json("bound", "6", "--wait", "0.1", status=1)
            assert (shown["longest_wait_sec"], shown["longest_allowed_sec"]) == (6, 1.5)
            assert ["standby_of_the_test" in replica for replica in shown["replicas_without"]] == [
                True
            ]
            with pytest.raises(ConfigError):
                await b.join()
        finally:
            await admin.execute("SELECT pg_drop_replication_slot('standby_of_the_test')")
        assert (await bound.json("bound", "6"))["longest_allowed_sec"] == 6
        assert await b.join() is None

        shown = await bound.json("bound", "4", status=1)
        assert (
            shown["workers_above"],
            shown["longest_wait_sec"],
            shown["longest_allowed_sec"],
        ) == (["b"], 6, 6)
        assert "b" in (await bound("bound", "4", status=1)).stderr
        await b.store.membership.leave(b.me)
        await admin.execute(
            "INSERT INTO sync_node (name, incarnation, joined) VALUES ('old', gen_random_uuid(), 9)"
        )
        assert (await bound.json("bound", "4", status=1))["workers_above"] == ["old"], (
            "it may have any timeout"
        )
        await admin.execute("DELETE FROM sync_node WHERE name = 'old'")
        assert (await bound.json("bound", "4"))["longest_wait_sec"] == 4
        assert await bound_of(admin) == (4, 4)
    for nonsense in ("0", "-1", "nan", "inf"):
        await bound("bound", "--", nonsense, status=2)


async def test_a_raise_that_was_not_finished_can_be_taken_back_and_is_not_allowed_by_another(
    hasty, dsn, admin
):
    bound = Commands(dsn)
    async with hand(hasty, "a") as a:
        await a.join()
        await admin.execute("UPDATE sync_cluster SET longest_wait = 60")
        shown = await bound.json("bound", "30", "--replicated")
        assert (shown["longest_wait_sec"], shown["longest_allowed_sec"]) == (30, 30)


# -- clusters --------------------------------------------------------------------------------------


async def test_a_cluster_of_mixed_times_is_calm_and_replaces_each_dead_worker_after_its_own_timeout(
    slow, hasty
):
    async with cluster(slow) as jobs:
        await jobs.start("a")
        for name, config in (("b", hasty), ("c", hasty), ("d", slow)):
            jobs.config = config
            await jobs.start(name)
        await jobs.even()
        first = {name: job._worker.identity for name, job in jobs.jobs.items()}
        await asyncio.sleep(4)  # longer than the short timeout: nobody is taken for dead
        assert {name: job._worker.identity for name, job in jobs.jobs.items()} == first
        died = lease_clock()
        await jobs.crash("b")
        await jobs.settled(10)
        assert (
            QUICK.timeout_sec - 2 * QUICK.interval_sec
            < lease_clock() - died
            < QUICK.timeout_sec + 1.5
        )
        died = lease_clock()
        await jobs.crash("d")
        await jobs.settled(15)
        assert (
            SLOW.timeout_sec - 2 * SLOW.interval_sec < lease_clock() - died < SLOW.timeout_sec + 2
        )


async def test_a_name_is_taken_over_after_its_holders_timeout_and_not_the_newcomers(slow, hasty):
    async with hand(slow, "a") as a:
        await a.join()
        await a.lead()
        died = lease_clock()
        async with cluster(hasty) as jobs:
            await jobs.start("a")
            assert SLOW.timeout_sec <= lease_clock() - died < SLOW.timeout_sec + 2
