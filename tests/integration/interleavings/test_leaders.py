"""Who leads, and what a leader does about those who are gone: one statement at a time."""

from __future__ import annotations

from tests.hands import Hand, rows
from tests.integration.interleavings.conftest import two_with_a_handoff

# 7 -- A lost answer to a distribution


async def test_a_leader_that_lost_the_answer_to_its_commit_finds_nothing_more_to_do(join, config):
    a, b = await two_with_a_handoff(join)
    anew = Hand(a.store, a.feed, config, "a")
    anew.me = a.me
    outcome = await anew.lead()
    assert outcome is not None and outcome.distribution is not None
    assert outcome.distribution.moved == 0


# 8 -- The leader leaves


async def test_when_the_leader_leaves_the_next_in_age_leads_and_the_old_term_writes_nothing(
    join, admin
):
    a, b = await two_with_a_handoff(join)
    await join("c")
    old_term = (await a.read()).term
    await a.store.membership.leave(a.me)
    leader, term = await (await admin.execute("SELECT leader, term FROM sync_cluster")).fetchone()
    assert (leader, term) == ("b", old_term + 1)
    assert await a.store.leading.rebalance(a.me, old_term, (), -1, -1, lambda reading: None) is None
    await b.lead()
    assert {owner for owner, _, _ in (await rows(admin)).values()} == {"b", "c"}


async def test_a_stopped_leader_that_comes_back_writes_nothing(join):
    a, b = await two_with_a_handoff(join)
    old = (await a.read()).term
    seen = await a.last_beat()
    assert await b.store.leading.take_over(b.me, old, [seen]) == old + 1
    assert await b.store.leading.take_over(b.me, old, [seen]) is None, "of two that try, one leads"
    decided = []
    assert await a.store.leading.rebalance(a.me, old, (), -1, -1, decided.append) is None
    assert decided == []


async def test_a_follower_that_knows_the_term_writes_nothing(join, admin):
    a, b = await two_with_a_handoff(join)
    before = await rows(admin)
    decided = []
    assert (
        await b.store.leading.rebalance(b.me, (await b.read()).term, (), -1, -1, decided.append)
        is None
    )
    assert (decided, await rows(admin)) == ([], before)


async def test_whoever_saw_another_term_does_not_take_over(join, admin):
    a, b = await two_with_a_handoff(join)
    term = (await b.read()).term
    await admin.execute("DELETE FROM sync_node WHERE name = 'a'")
    assert await b.store.leading.take_over(b.me, term - 1, []) is None
    assert await b.store.leading.take_over(b.me, term, []) == term + 1


async def test_a_leader_that_beats_is_not_replaced(join):
    a, b = await two_with_a_handoff(join)
    seen = await a.last_beat()
    await a.beat()
    assert await b.store.leading.take_over(b.me, (await b.read()).term, [seen]) is None
    assert await a.beat() is not None


async def test_what_a_leaver_still_owns_becomes_nobodys_under_a_new_epoch(join, admin, config):
    a, b = await two_with_a_handoff(join)
    await a.acknowledge()
    before = await rows(admin)
    theirs = set(await b.mine())
    await b.store.membership.leave(b.me)
    after = await rows(admin)
    assert all(after[token] == (None, before[token][1] + 1, None) for token in theirs)


# 9 -- Rows of an incarnation that is gone


async def test_a_dead_workers_token_moves_as_soon_as_no_fence_locks_it(join, admin, config):
    a, b = await two_with_a_handoff(join)
    await a.acknowledge()
    locked, *free = sorted(await b.mine())
    seen = await b.last_beat()
    async with admin.transaction():
        await admin.execute("SELECT FROM sync_token WHERE token_id = %s FOR KEY SHARE", [locked])
        outcome = await a.lead(expire=[seen])
        assert outcome is not None and outcome.skipped == 1
        mine = await a.mine()
        assert set(free) <= mine.keys() and locked not in mine
    await a.lead()
    assert locked in await a.mine()
