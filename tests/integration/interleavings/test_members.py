"""Who is a member: joins, heartbeats, names and expiry, one statement at a time, or two that meet
at a lock."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import psycopg
import pytest

from jobsync_async import StoreUnavailable
from jobsync_async.core.rows import Announcement, Identity
from jobsync_async.postgres.statement_context import ServerChanged
from tests.hands import blocked, hand, rows
from tests.integration.interleavings.conftest import TOKENS, two_with_a_handoff

# 3 -- A heartbeat in flight while the leader expires its sender


async def test_a_heartbeat_that_comes_first_keeps_its_sender_alive(join, admin):
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    await b.beat()
    outcome = await a.lead(expire=[seen])
    assert outcome is None or outcome.expired == []
    assert await b.beat() is not None


async def test_an_expiry_waits_for_a_heartbeat_under_way_and_then_expires_nothing(
    join, admin, config
):
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    async with admin.transaction():  # the heartbeat's statement, its commit under way
        await admin.execute("UPDATE sync_node SET beat = beat + 1 WHERE name = 'b'")
        expiring = asyncio.ensure_future(a.lead(expire=[seen]))
        async with await psycopg.AsyncConnection.connect(
            config.conninfo("test"), autocommit=True
        ) as other:
            await blocked(other, "DELETE FROM")
    outcome = await expiring
    assert outcome is None or outcome.expired == []
    assert await b.beat() is not None


async def test_a_heartbeat_that_comes_second_finds_no_row(join, admin, config):
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    async with admin.transaction():  # the leader's transaction, its commit under way
        await admin.execute("DELETE FROM sync_node WHERE name = 'b' AND beat = %s", [seen.beat])
        beating = asyncio.ensure_future(b.beat())
        async with await psycopg.AsyncConnection.connect(
            config.conninfo("test"), autocommit=True
        ) as other:
            await blocked(other, "beat = beat + 1")
    assert await beating is None


async def test_an_expiry_does_not_take_a_new_start_of_a_worker_for_the_one_that_was_watched(
    join, config
):
    """Its beats begin anew, and so come to the number at which the old one was seen."""
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    await b.store.membership.leave(b.me)
    async with hand(config, "b") as again:
        await again.join()
        now = await again.last_beat()
        while now.beat < seen.beat:
            now = await again.last_beat()
        assert (now.name, now.beat) == (seen.name, seen.beat)
        outcome = await a.lead(expire=[seen])
        assert outcome is None or outcome.expired == []
        assert await again.beat() is not None


# 4 -- The old incarnation after its name was taken over


async def test_the_old_incarnation_can_do_nothing_after_its_name_was_taken_over(
    join, config, admin
):
    a, b = await two_with_a_handoff(join)
    await a.acknowledge()
    old = {row.token_id: row for row in (await b.read()).mine}
    seen = await b.last_beat()
    async with hand(config, "b") as heir:
        assert await heir.join(replace=seen) is None
        inherited = {row.token_id: row for row in (await heir.read()).mine}
        assert inherited.keys() == old.keys(), "a restart moves nothing"
        assert all(inherited[token].epoch == old[token].epoch + 1 for token in old)
        assert await b.beat() is None
        assert (
            await b.feed.acknowledge(b.me, [(token, row.version) for token, row in old.items()])
            == []
        )
        fenced = await admin.execute(
            "SELECT FROM sync_token WHERE incarnation = %s AND epoch = ANY(%s)",
            [b.me.incarnation, [row.epoch for row in old.values()]],
        )
        assert fenced.rowcount == 0


async def test_a_name_whose_beat_moved_is_not_taken_over(join, config):
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    await b.beat()
    async with hand(config, "b") as heir:
        assert await heir.join(replace=seen) is not None
    assert await b.beat() is not None


async def test_a_token_that_a_fence_locks_is_inherited_when_the_lock_is_gone(join, config, admin):
    a, b = await two_with_a_handoff(join)
    await a.acknowledge()
    locked, *_ = await b.mine()
    epoch = (await b.mine())[locked][0]
    seen = await b.last_beat()
    async with hand(config, "b") as heir:
        async with admin.transaction():
            await admin.execute(
                "SELECT FROM sync_token WHERE token_id = %s FOR KEY SHARE", [locked]
            )
            assert await heir.join(replace=seen) is None
            assert locked not in await heir.mine()
            outcome = await a.lead()
            assert outcome is not None and outcome.skipped == 1
        await a.lead()
        assert (await heir.mine())[locked][0] == epoch + 1


async def test_an_old_incarnation_that_drains_does_not_drain_the_one_that_has_its_name(
    join, config
):
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    async with hand(config, "b") as heir:
        assert await heir.join(replace=seen) is None
        assert not await b.store.membership.set_state("b", "draining", b.me.incarnation)
        assert (await heir.read()).state == "active"
        assert await heir.store.membership.set_state("b", "draining", heir.me.incarnation)
        assert (await heir.read()).state == "draining"


async def test_an_old_incarnation_that_leaves_does_not_take_the_one_that_has_its_name_with_it(
    join, config
):
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    async with hand(config, "b") as heir:
        assert await heir.join(replace=seen) is None
        held = await heir.mine()
        await b.store.membership.leave(b.me)
        assert await heir.beat() is not None
        assert await heir.mine() == held


# 7 -- A lost answer to a join


async def test_joining_twice_because_the_answer_was_lost_makes_one_row(join, admin):
    a = await join("a")
    assert await a.join() is None
    assert (
        await (
            await admin.execute("SELECT count(*), max(last_joined) FROM sync_node, sync_cluster")
        ).fetchone()
    ) == (1, 1)


# Not among the ten: bounds


async def test_a_statement_that_waits_for_a_lock_ends_in_time(join, admin, make_config):
    config = make_config(
        total_tokens=TOKENS,
        hash_function="modulo",
        heartbeat_interval_sec=0.4,
        heartbeat_timeout_sec=1,
    )
    async with hand(config, "a") as a:
        await a.join()
        async with admin.transaction():
            await admin.execute("SELECT FROM sync_node WHERE name = 'a' FOR UPDATE")
            with pytest.raises(StoreUnavailable):
                await a.beat()
        assert await a.beat() is not None


async def test_a_refused_join_leaves_nothing_behind(join, config, admin):
    a = await join("a")
    version = await (await admin.execute("SELECT version FROM sync_cluster")).fetchone()
    async with hand(config, "a") as other:
        assert await other.join() is not None
    assert await (await admin.execute("SELECT version FROM sync_cluster")).fetchone() == version
    assert await a.beat() is not None


# A join is one message, and so is an acknowledgement


async def test_of_two_joins_under_one_name_that_wait_for_the_lock_one_is_refused(config, admin):
    async with hand(config, "a") as first, hand(config, "a") as second:
        async with admin.transaction():
            await admin.execute("UPDATE sync_cluster SET version = version + 1")
            joining = [asyncio.ensure_future(worker.join()) for worker in (first, second)]
            async with await psycopg.AsyncConnection.connect(
                config.conninfo("test"), autocommit=True
            ) as other:
                await blocked(other, "last_joined + 1", 2)
        refusals = [refusal for refusal in await asyncio.gather(*joining) if refusal is not None]
        (name, incarnation) = await (
            await admin.execute("SELECT name, incarnation FROM sync_node")
        ).fetchone()
        (leader,) = await (
            await admin.execute("SELECT leader_incarnation FROM sync_cluster")
        ).fetchone()
    assert [refusal.beat.incarnation for refusal in refusals] == [incarnation]
    assert (name, leader) == ("a", incarnation)


async def test_a_join_and_an_acknowledgement_that_wait_for_the_lock_do_nothing_once_the_cluster_was_begun_anew(  # noqa: E501
    join, config, admin
):
    a, b = await two_with_a_handoff(join)
    for worker in (a, b):
        reading = await worker.store.failover.read_server()
        history = reading.adoptable(None, -1)
        assert history is not None
        worker.store.failover.adopt(history)
    going = [(row.token_id, row.version) for row in (await a.read()).mine if row.revoking]
    before = await rows(admin)
    async with admin.transaction():
        await admin.execute("UPDATE sync_cluster SET generation = generation + 1")
        waiting = [
            a.feed.acknowledge(a.me, going),
            b.store.membership.join(Identity("late", uuid4()), Announcement()),
        ]
        trying = [asyncio.ensure_future(one) for one in waiting]
        async with await psycopg.AsyncConnection.connect(
            config.conninfo("test"), autocommit=True
        ) as other:
            await blocked(other, "sync_cluster", 2)
    outcomes = await asyncio.gather(*trying, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ServerChanged, ServerChanged]
    assert await rows(admin) == before
    (names, last_joined) = await (
        await admin.execute(
            "SELECT array_agg(name ORDER BY name), max(last_joined) FROM sync_node, sync_cluster"
        )
    ).fetchone()
    assert (names, last_joined) == (["a", "b"], 2)
