"""The interleavings that must not bite, each forced by hand: one statement at a time, or two that meet at a lock."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import anyio
import psycopg
import pytest

from jobsync_async import CoordinationConfig, StoreUnavailable
from jobsync_async.core.ownership import Ownership
from jobsync_async.core.rows import Work
from tests.hands import Hand, hand

TOKENS = 12

Joined = Callable[..., "asyncio.Future[Hand]"]


@pytest.fixture
def config(make_config) -> CoordinationConfig:
    return make_config(total_tokens=TOKENS, hash_function="modulo", heartbeat_interval_sec=1, heartbeat_timeout_sec=5)


@pytest.fixture
async def join(config) -> AsyncIterator[Joined]:
    """Makes workers that have joined."""
    async with AsyncExitStack() as stack:

        async def make(name: str, **kwargs) -> Hand:
            worker = await stack.enter_async_context(hand(config, name))
            assert await worker.join(**kwargs) is None
            return worker

        yield make


async def two_with_a_handoff(join) -> tuple[Hand, Hand]:
    """a owns every token; half of them are to go to b."""
    a = await join("a")
    await a.lead()
    b = await join("b")
    await a.lead()
    going = [token for token, (_, revoking) in (await a.mine()).items() if revoking]
    assert len(going) == TOKENS // 2
    return a, b


async def rows(admin, config) -> dict[int, tuple]:
    cursor = await admin.execute("SELECT token_id, node, epoch, next_node FROM sync_token ORDER BY token_id")
    return {row[0]: row[1:] for row in await cursor.fetchall()}


async def blocked(admin, fragment: str) -> None:
    """Wait until a statement of this library waits for a lock."""
    query = """SELECT count(*) FROM pg_stat_activity
               WHERE wait_event_type = 'Lock' AND query LIKE %s AND datname = current_database()"""
    with anyio.fail_after(10):
        while (await (await admin.execute(query, [f"%{fragment}%"])).fetchone())[0] == 0:
            await asyncio.sleep(0.005)


# 1 -- A stale snapshot after an acknowledgement


async def test_a_reading_from_before_everything_was_lost_is_not_applied(join):
    a, _ = await two_with_a_handoff(join)
    ownership = Ownership(a.me.incarnation)
    stale = await a.read(-1)
    assert ownership.apply(stale, 0.0)
    delta = await a.read(ownership.version)
    ownership.forget()
    assert ownership.apply(delta, 0.0) is None
    assert not ownership.owned


async def test_a_reading_continues_exactly_what_is_known(join):
    a, b = await two_with_a_handoff(join)
    ownership = Ownership(a.me.incarnation)
    ownership.apply(await a.read(-1), 0.0)
    before = ownership.version
    stale = await a.read(before)
    released = await a.acknowledge()
    ownership.released(released)
    fresh = await a.read(ownership.version)
    assert ownership.apply(fresh, 0.0) is not None
    assert ownership.apply(stale, 0.0) is None, "a reading from before the acknowledgement brings nothing back"
    assert ownership.owned.isdisjoint(released)


async def test_a_reading_from_before_the_first_distribution_is_continued_with_its_tokens(join):
    a = await join("a")
    ownership = Ownership(a.me.incarnation)
    assert not ownership.apply(await a.read(-1), 0.0)
    await a.lead()
    change = ownership.apply(await a.read(ownership.version), 0.0)
    assert change is not None and change.assigned == set(range(TOKENS))
    assert not ownership.apply(await a.read(ownership.version), 0.0), "they are shown once"
    reading = await a.store.leading.read(a.board.version, a.board.pin_version)
    assert [(group.node, list(group.token_ids)) for group in reading.groups] == [("a", list(range(TOKENS)))]


async def test_rows_that_are_made_again_by_a_later_distribution_are_read_as_changed(join, admin, config):
    a = await join("a")
    await a.lead()
    since = (await a.read()).version
    await admin.execute("DELETE FROM sync_token WHERE token_id < 2")
    anew = Hand(a.store, a.feed, config, "a")
    anew.me = a.me
    assert await anew.lead() is not None
    assert {row.token_id for row in (await a.read(since)).mine} == {0, 1}


# 2 -- An acknowledgement to a receiver that is just being expired


async def test_an_acknowledgement_to_a_receiver_that_was_expired_gives_the_token_to_nobody(join, admin, config):
    a, b = await two_with_a_handoff(join)
    before = await rows(admin, config)
    beat = await b.last_beat()
    async with admin.transaction():
        await admin.execute("UPDATE sync_cluster SET version = version + 1")
        await admin.execute("DELETE FROM sync_node WHERE name = 'b' AND beat = %s", [beat.beat])
        acknowledging = asyncio.ensure_future(a.acknowledge())
        async with await psycopg.AsyncConnection.connect(config.conninfo("test"), autocommit=True) as other:
            await blocked(other, "version = version + 1")
    handed_on = await acknowledging
    assert len(handed_on) == TOKENS // 2
    after = await rows(admin, config)
    for token in handed_on:
        assert after[token] == (None, before[token][1] + 1, None)


async def test_a_draining_receiver_gets_nothing(join, admin, config):
    a, b = await two_with_a_handoff(join)
    await b.store.membership.set_state("b", "draining")
    handed_on = await a.acknowledge()
    assert {(await rows(admin, config))[token][0] for token in handed_on} == {None}


async def test_a_token_of_an_owner_without_a_row_is_free_to_the_next_plan(join, admin, config):
    a, b = await two_with_a_handoff(join)
    await a.acknowledge()
    await admin.execute("DELETE FROM sync_node WHERE name = 'b'")
    outcome = await a.lead()
    assert outcome is not None
    assert {owner for owner, _, _ in (await rows(admin, config)).values()} == {"a"}


# 3 -- A heartbeat in flight while the leader expires its sender


async def test_a_heartbeat_that_comes_first_keeps_its_sender_alive(join, admin):
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    await b.beat()
    outcome = await a.lead(expire=[seen])
    assert outcome is None or outcome.expired == []
    assert await b.beat() is not None


async def test_an_expiry_waits_for_a_heartbeat_under_way_and_then_expires_nothing(join, admin, config):
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    async with admin.transaction():  # the heartbeat's statement, its commit under way
        await admin.execute("UPDATE sync_node SET beat = beat + 1 WHERE name = 'b'")
        expiring = asyncio.ensure_future(a.lead(expire=[seen]))
        async with await psycopg.AsyncConnection.connect(config.conninfo("test"), autocommit=True) as other:
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
        async with await psycopg.AsyncConnection.connect(config.conninfo("test"), autocommit=True) as other:
            await blocked(other, "beat = beat + 1")
    assert await beating is None


# 4 -- The old incarnation after its name was taken over


async def test_the_old_incarnation_can_do_nothing_after_its_name_was_taken_over(join, config, admin):
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
        assert await b.feed.acknowledge(b.me, [(token, row.version) for token, row in old.items()]) == []
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
            await admin.execute("SELECT FROM sync_token WHERE token_id = %s FOR SHARE", [locked])
            assert await heir.join(replace=seen) is None
            assert locked not in await heir.mine()
            outcome = await a.lead()
            assert outcome is not None and outcome.skipped == 1
        await a.lead()
        assert (await heir.mine())[locked][0] == epoch + 1


# 5 -- A claim that begins as a revocation arrives: see tests/unit/test_ownership.py and test_claims.py too


@pytest.mark.parametrize(("tokens", "all_or_none"), [(range(5), True), (range(5), False), ([2], True)])
async def test_a_claim_that_waited_for_a_row_which_changed_its_owner_is_not_recorded(join, admin, config, tokens, all_or_none):
    a = await join("a")
    await a.lead()
    mine = await a.mine()
    works = [Work(str(token), token, mine[token][0]) for token in tokens]
    date = dt.date(2026, 1, 2)
    async with await psycopg.AsyncConnection.connect(config.dsn) as other:
        await other.execute("UPDATE sync_token SET epoch = epoch + 1 WHERE token_id = 2")
        claiming = asyncio.ensure_future(a.store.work.record_claims(a.me, date, works, all_or_none=all_or_none))
        await blocked(admin, "sync_claim")
        await other.commit()
    kept = {work.task_id for work in works if work.token_id != 2}
    assert await claiming == dict.fromkeys(kept, True)
    written = {task for (task,) in await (await admin.execute("SELECT task_id FROM sync_claim")).fetchall()}
    assert written == (set() if all_or_none else kept)


# 6, 10 -- slow readers, withdrawn revocations


async def test_a_token_that_came_and_went_is_shown_to_nobody_and_held_up_by_nobody(join):
    a, b = await two_with_a_handoff(join)
    ownership = Ownership(b.me.incarnation)
    reader = ownership.reader()
    ownership.apply(await b.read(-1), 0.0)
    assert reader.take() is not None  # nothing yet
    going = [token for token, (_, revoking) in (await a.mine()).items() if revoking]
    await a.acknowledge()
    ownership.apply(await b.read(ownership.version), 0.0)
    await b.store.membership.set_state("b", "draining")
    await a.lead()
    ownership.apply(await b.read(ownership.version), 0.0)
    assert {token for token, _ in ownership.releasable()} == set(going)
    assert reader.take() is None


async def test_a_withdrawn_revocation_is_announced_as_assigned_again(join):
    a, b = await two_with_a_handoff(join)
    ownership = Ownership(a.me.incarnation)
    reader = ownership.reader()
    ownership.apply(await a.read(-1), 0.0)
    first = reader.take()
    assert first is not None and len(first.assigned) == TOKENS // 2, "what is to go already is not shown"
    going = set(ownership.revoking)
    epochs = {token: ownership.epoch(token) for token in going}
    await b.store.membership.leave(b.me)
    await a.lead()
    ownership.apply(await a.read(ownership.version), 0.0)
    again = reader.take()
    assert again is not None and again.assigned == going
    assert {token: ownership.epoch(token) for token in going} == epochs, "it stayed ours all the time"


async def test_a_late_acknowledgement_does_not_answer_the_next_revocation(join):
    a, b = await two_with_a_handoff(join)
    late = [(row.token_id, row.version) for row in (await a.read()).mine if row.revoking]
    await b.store.membership.leave(b.me)
    await a.lead()  # withdrawn
    c = await join("c")
    await a.lead()  # revoked again
    assert await a.feed.acknowledge(a.me, late) == []
    assert len(await c.mine()) == 0
    assert len(await a.acknowledge()) == TOKENS // 2


# 7 -- A lost answer to a commit


async def test_joining_twice_because_the_answer_was_lost_makes_one_row(join, admin):
    a = await join("a")
    assert await a.join() is None
    assert (await (await admin.execute("SELECT count(*), max(last_joined) FROM sync_node, sync_cluster")).fetchone()) == (1, 1)


async def test_acknowledging_twice_because_the_answer_was_lost_does_nothing(join):
    a, b = await two_with_a_handoff(join)
    answers = [(row.token_id, row.version) for row in (await a.read()).mine if row.revoking]
    assert len(await a.feed.acknowledge(a.me, answers)) == TOKENS // 2
    before = await b.mine()
    assert await a.feed.acknowledge(a.me, answers) == []
    assert await b.mine() == before


async def test_a_leader_that_lost_the_answer_to_its_commit_finds_nothing_more_to_do(join, config):
    a, b = await two_with_a_handoff(join)
    anew = Hand(a.store, a.feed, config, "a")
    anew.me = a.me
    outcome = await anew.lead()
    assert outcome is not None and outcome.distribution is not None
    assert outcome.distribution.moved == 0


# 8 -- The leader leaves


async def test_when_the_leader_leaves_the_next_in_age_leads_and_the_old_term_writes_nothing(join, admin):
    a, b = await two_with_a_handoff(join)
    await join("c")
    old_term = (await a.read()).term
    await a.store.membership.leave(a.me)
    leader, term = await (await admin.execute("SELECT leader, term FROM sync_cluster")).fetchone()
    assert (leader, term) == ("b", old_term + 1)
    assert await a.store.leading.rebalance(a.me, old_term, (), -1, -1, lambda reading: None) is None
    await b.lead()
    assert {owner for owner, _, _ in (await rows(admin, None)).values()} == {"b", "c"}


async def test_a_stopped_leader_that_comes_back_writes_nothing(join):
    a, b = await two_with_a_handoff(join)
    old = (await a.read()).term
    seen = await a.last_beat()
    assert await b.store.leading.take_over(b.me, old, [seen]) == old + 1
    assert await b.store.leading.take_over(b.me, old, [seen]) is None, "of two that try, one leads"
    decided = []
    assert await a.store.leading.rebalance(a.me, old, (), -1, -1, decided.append) is None
    assert decided == []


async def test_a_leader_that_beats_is_not_replaced(join):
    a, b = await two_with_a_handoff(join)
    seen = await a.last_beat()
    await a.beat()
    assert await b.store.leading.take_over(b.me, (await b.read()).term, [seen]) is None
    assert await a.beat() is not None


async def test_what_a_leaver_still_owns_becomes_nobodys_under_a_new_epoch(join, admin, config):
    a, b = await two_with_a_handoff(join)
    await a.acknowledge()
    before = await rows(admin, config)
    theirs = set(await b.mine())
    await b.store.membership.leave(b.me)
    after = await rows(admin, config)
    assert all(after[token] == (None, before[token][1] + 1, None) for token in theirs)


# 9 -- Rows of an incarnation that is gone


async def test_a_dead_workers_token_moves_as_soon_as_no_fence_locks_it(join, admin, config):
    a, b = await two_with_a_handoff(join)
    await a.acknowledge()
    locked, *free = sorted(await b.mine())
    seen = await b.last_beat()
    async with admin.transaction():
        await admin.execute("SELECT FROM sync_token WHERE token_id = %s FOR SHARE", [locked])
        outcome = await a.lead(expire=[seen])
        assert outcome is not None and outcome.skipped == 1
        mine = await a.mine()
        assert set(free) <= mine.keys() and locked not in mine
    await a.lead()
    assert locked in await a.mine()


async def test_a_fence_on_one_token_holds_up_no_other_acknowledgement(join, admin):
    a, b = await two_with_a_handoff(join)
    going = sorted(token for token, (_, revoking) in (await a.mine()).items() if revoking)
    async with admin.transaction():
        await admin.execute("SELECT FROM sync_token WHERE token_id = %s FOR SHARE", [going[0]])
        assert sorted(await a.acknowledge()) == going[1:]
    assert await a.acknowledge() == [going[0]]


# Not among the ten: bounds


async def test_a_statement_that_waits_for_a_lock_ends_in_time(join, admin, make_config):
    config = make_config(total_tokens=TOKENS, hash_function="modulo", heartbeat_interval_sec=0.4, heartbeat_timeout_sec=1)
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


async def test_an_old_incarnation_that_drains_does_not_drain_the_one_that_has_its_name(join, config):
    a, b = await two_with_a_handoff(join)
    seen = await b.last_beat()
    async with hand(config, "b") as heir:
        assert await heir.join(replace=seen) is None
        assert not await b.store.membership.set_state("b", "draining", b.me.incarnation)
        assert (await heir.read()).state == "active"
        assert await heir.store.membership.set_state("b", "draining", heir.me.incarnation)
        assert (await heir.read()).state == "draining"
