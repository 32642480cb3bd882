"""What is read and what is acknowledged: a worker's tokens, one statement at a time, or two that
meet at a lock."""

from __future__ import annotations

import asyncio
import datetime as dt

import psycopg
import pytest

from jobsync_async import StoreUnavailable
from jobsync_async.core.ownership import Ownership
from jobsync_async.core.rows import Work
from jobsync_async.core.runs import Begun, Run
from tests.hands import Hand, blocked, rows
from tests.integration.interleavings.conftest import TOKENS, two_with_a_handoff

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
    assert ownership.apply(stale, 0.0) is None, (
        "a reading from before the acknowledgement brings nothing back"
    )
    assert ownership.owned.isdisjoint(released)


async def test_a_reading_from_before_the_first_distribution_is_continued_with_its_tokens(join):
    a = await join("a")
    ownership = Ownership(a.me.incarnation)
    assert not ownership.apply(await a.read(-1), 0.0)
    await a.lead()
    change = ownership.apply(await a.read(ownership.version), 0.0)
    assert change is not None and change.assigned == set(range(TOKENS))
    assert not ownership.apply(await a.read(ownership.version), 0.0), "they are shown once"
    reading = await a.store.leading.read(a.state.version, a.state.pin_version)
    assert [(group.node, list(group.token_ids)) for group in reading.groups] == [
        ("a", list(range(TOKENS)))
    ]


async def test_rows_that_are_made_again_by_a_later_distribution_are_read_as_changed(
    join, admin, config
):
    a = await join("a")
    await a.lead()
    since = (await a.read()).version
    await admin.execute("DELETE FROM sync_token WHERE token_id < 2")
    anew = Hand(a.store, a.feed, config, "a")
    anew.me = a.me
    assert await anew.lead() is not None
    assert {row.token_id for row in (await a.read(since)).mine} == {0, 1}


async def test_rows_that_were_made_by_hand_are_found_when_all_is_read_anew(join, admin, config):
    a = await join("a")
    a.state.update(await a.store.leading.read(a.state.version, a.state.pin_version))
    await admin.execute("INSERT INTO sync_token (token_id, epoch, version) VALUES (3, 8, 0)")
    with pytest.raises(StoreUnavailable, match="read anew"):
        await a.lead()
    assert list(await rows(admin)) == [3], "all or nothing"
    anew = Hand(a.store, a.feed, config, "a")
    anew.me = a.me
    assert await anew.lead() is not None
    assert await a.mine() == dict.fromkeys(range(TOKENS), ((1 << 32) + 1, False))


# 2 -- An acknowledgement to a receiver that is just being expired


async def test_an_acknowledgement_to_a_receiver_that_was_expired_gives_the_token_to_nobody(
    join, admin, config
):
    a, b = await two_with_a_handoff(join)
    before = await rows(admin)
    beat = await b.last_beat()
    async with admin.transaction():
        await admin.execute("UPDATE sync_cluster SET version = version + 1")
        await admin.execute("DELETE FROM sync_node WHERE name = 'b' AND beat = %s", [beat.beat])
        acknowledging = asyncio.ensure_future(a.acknowledge())
        async with await psycopg.AsyncConnection.connect(
            config.conninfo("test"), autocommit=True
        ) as other:
            await blocked(other, "FOR UPDATE")
    handed_on = await acknowledging
    assert len(handed_on) == TOKENS // 2
    after = await rows(admin)
    for token in handed_on:
        assert after[token] == (None, before[token][1] + 1, None)


async def test_a_draining_receiver_gets_nothing(join, admin, config):
    a, b = await two_with_a_handoff(join)
    await b.store.membership.set_state("b", "draining")
    handed_on = await a.acknowledge()
    assert {(await rows(admin))[token][0] for token in handed_on} == {None}


async def test_a_token_of_an_owner_without_a_row_is_free_to_the_next_plan(join, admin, config):
    a, b = await two_with_a_handoff(join)
    await a.acknowledge()
    await admin.execute("DELETE FROM sync_node WHERE name = 'b'")
    outcome = await a.lead()
    assert outcome is not None
    assert {owner for owner, _, _ in (await rows(admin)).values()} == {"a"}


# 5 -- A claim that begins as a revocation arrives: see tests/unit/test_ownership.py and
# test_claims.py too


@pytest.mark.parametrize(
    ("tokens", "all_or_none"), [(range(5), True), (range(5), False), ([2], True)]
)
async def test_a_claim_that_waited_for_a_row_which_changed_its_owner_is_not_recorded(
    join, admin, config, tokens, all_or_none
):
    a = await join("a")
    await a.lead()
    mine = await a.mine()
    works = [Work(str(token), token, mine[token][0]) for token in tokens]
    run = Run(dt.date(2026, 1, 2))
    async with await psycopg.AsyncConnection.connect(config.dsn) as other:
        # as every change of owner begins
        changed = "SELECT token_id FROM sync_token WHERE token_id = 2 FOR UPDATE"
        await other.execute(
            f"UPDATE sync_token SET epoch = epoch + 1 WHERE token_id IN ({changed})".encode()
        )
        claiming = asyncio.ensure_future(
            a.store.work.record_claims(a.me, run, works, all_or_none=all_or_none)
        )
        await blocked(admin, "sync_claim")
        await other.commit()
    kept = {work.task_id for work in works if work.token_id != 2}
    assert await claiming == dict.fromkeys(kept, True)
    written = {
        task for (task,) in await (await admin.execute("SELECT task_id FROM sync_claim")).fetchall()
    }
    assert written == (set() if all_or_none else kept)


async def test_a_completion_that_waited_for_a_row_which_changed_its_owner_is_not_recorded(
    join, admin, config
):
    a = await join("a")
    await a.lead()
    mine = await a.mine()
    works = [Work(str(token), token, mine[token][0]) for token in range(5)]
    run = Run(dt.date(2026, 1, 2))
    async with await psycopg.AsyncConnection.connect(config.dsn) as other:
        # as every change of owner begins
        changed = "SELECT token_id FROM sync_token WHERE token_id = 2 FOR UPDATE"
        await other.execute(
            f"UPDATE sync_token SET epoch = epoch + 1 WHERE token_id IN ({changed})".encode()
        )
        completing = asyncio.ensure_future(a.store.work.record_completions(a.me, run, works))
        await blocked(admin, "sync_audit")
        await other.commit()
    kept = {work.task_id for work in works if work.token_id != 2}
    assert await completing == dict.fromkeys(kept, True)
    assert {
        task for (task,) in await (await admin.execute("SELECT task_id FROM sync_audit")).fetchall()
    } == kept


async def test_a_failure_is_recorded_only_under_the_epoch_of_the_claim_that_failed(join, admin):
    a = await join("a")
    await a.lead()
    epoch = (await a.mine())[2][0]
    run = Run(dt.date(2026, 1, 2))
    before = Work("2", 2, epoch)
    assert await a.store.work.record_claims(a.me, run, [before]) == {"2": True}
    # It went, and came back.
    await admin.execute("UPDATE sync_token SET epoch = epoch + 1 WHERE token_id = 2")
    now = Work("2", 2, epoch + 1)
    assert await a.store.work.record_claims(a.me, run, [now]) == {"2": True}
    assert await a.store.work.end_claims(a.me, run, [(before, "of the claim before")]) == 0
    assert await a.store.work.read_progress(run, ["2"]) == {}
    assert await a.store.work.end_claims(a.me, run, [(now, "of this claim")]) == 1
    assert (await a.store.work.read_progress(run, ["2"]))["2"].error == "of this claim"


async def test_a_beginning_that_waited_for_a_row_which_changed_its_owner_is_not_recorded(
    join, admin, config
):
    a = await join("a")
    await a.lead()
    mine = await a.mine()
    works = [Work(str(token), token, mine[token][0]) for token in range(5)]
    run = Run(dt.date(2026, 1, 2), "b")
    async with await psycopg.AsyncConnection.connect(config.dsn) as other:
        # as every change of owner begins
        changed = "SELECT token_id FROM sync_token WHERE token_id = 2 FOR UPDATE"
        await other.execute(
            f"UPDATE sync_token SET epoch = epoch + 1 WHERE token_id IN ({changed})".encode()
        )
        beginning = asyncio.ensure_future(
            a.store.work.begin_tasks(a.me, run, works, lost_limit=2, most_lost=0)
        )
        await blocked(admin, "sync_claim")
        await other.commit()
    kept = {work.task_id for work in works if work.token_id != 2}
    assert {text: begun.begun for text, begun in (await beginning).items()} == dict.fromkeys(
        kept, True
    )
    written = {
        task
        for (task,) in await (
            await admin.execute("SELECT task_id FROM sync_claim WHERE open")
        ).fetchall()
    }
    assert written == kept


async def test_a_task_that_was_set_aside_since_the_batch_resumed_is_not_begun_on_any_date(
    join, admin
):
    a = await join("a")
    await a.lead()
    mine = await a.mine()
    run, works = (
        Run(dt.date(2026, 1, 2)),
        [Work(str(token), token, mine[token][0]) for token in (1, 2)],
    )
    await admin.execute(
        "INSERT INTO sync_set_aside (task_key, task_id, date, owners_lost, reason) VALUES (%s, "
        "'2', '2025-12-31', 3, 'why')",
        [run.key("2")],
    )
    begun = await a.store.work.begin_tasks(a.me, run, works, lost_limit=3, most_lost=1)
    assert begun == {"1": Begun(True), "2": Begun(False, set_aside="why")}
    assert await (await admin.execute("SELECT task_id FROM sync_claim")).fetchall() == [("1",)]


# 6, 10 -- Slow readers, withdrawn revocations


async def test_a_token_that_came_and_went_is_shown_to_nobody_and_held_up_by_nobody(join):
    a, b = await two_with_a_handoff(join)
    ownership = Ownership(b.me.incarnation)
    reader = ownership.reader()
    ownership.apply(await b.read(-1), 0.0)
    assert reader.next_change() is not None  # nothing yet
    going = [token for token, (_, revoking) in (await a.mine()).items() if revoking]
    await a.acknowledge()
    ownership.apply(await b.read(ownership.version), 0.0)
    await b.store.membership.set_state("b", "draining")
    await a.lead()
    ownership.apply(await b.read(ownership.version), 0.0)
    assert {token for token, _ in ownership.releasable()} == set(going)
    assert reader.next_change() is None


async def test_a_withdrawn_revocation_is_announced_as_assigned_again(join):
    a, b = await two_with_a_handoff(join)
    ownership = Ownership(a.me.incarnation)
    reader = ownership.reader()
    ownership.apply(await a.read(-1), 0.0)
    first = reader.next_change()
    assert first is not None and len(first.assigned) == TOKENS // 2, (
        "what is to go already is not shown"
    )
    going = set(ownership.revoking)
    epochs = {token: ownership.epoch(token) for token in going}
    await b.store.membership.leave(b.me)
    await a.lead()
    ownership.apply(await a.read(ownership.version), 0.0)
    again = reader.next_change()
    assert again is not None and again.assigned == going
    assert {token: ownership.epoch(token) for token in going} == epochs, (
        "it stayed ours all the time"
    )


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


async def test_an_acknowledgement_tells_under_which_version_it_handed_on(join):
    a, b = await two_with_a_handoff(join)
    await a.acknowledge()
    assert {row.version for row in (await b.read(-1)).mine} == {a.feed.written}


# 7 -- A lost answer to an acknowledgement


async def test_acknowledging_twice_because_the_answer_was_lost_does_nothing(join):
    a, b = await two_with_a_handoff(join)
    answers = [(row.token_id, row.version) for row in (await a.read()).mine if row.revoking]
    assert len(await a.feed.acknowledge(a.me, answers)) == TOKENS // 2
    before = await b.mine()
    assert await a.feed.acknowledge(a.me, answers) == []
    assert await b.mine() == before


# 9 -- A fence on a token that is handed on


async def test_a_fence_on_one_token_holds_up_no_other_acknowledgement(join, admin):
    a, b = await two_with_a_handoff(join)
    going = sorted(token for token, (_, revoking) in (await a.mine()).items() if revoking)
    async with admin.transaction():
        await admin.execute("SELECT FROM sync_token WHERE token_id = %s FOR KEY SHARE", [going[0]])
        assert sorted(await a.acknowledge()) == going[1:]
    assert await a.acknowledge() == [going[0]]


async def test_a_fence_that_a_revocation_passed_still_holds_up_the_handing_on(join, admin):
    a = await join("a")
    await a.lead()
    await join("b")
    async with admin.transaction():
        await admin.execute("SELECT FROM sync_token FOR KEY SHARE")
        outcome = await a.lead()
        assert outcome is not None and outcome.skipped == 0
        going = [row.token_id for row in (await a.read()).mine if row.revoking]
        assert len(going) == TOKENS // 2
        assert await a.acknowledge() == []
    assert sorted(await a.acknowledge()) == sorted(going)


async def test_a_fence_that_comes_while_a_revocation_is_under_way_does_not_wait_and_holds_up_the_handing_on(  # noqa: E501
    join, admin, dsn
):
    a = await join("a")
    await a.lead()
    await join("b")
    async with await psycopg.AsyncConnection.connect(dsn) as user:
        async with admin.transaction():  # the leader's statement, not committed yet
            revoked = await admin.execute(
                "UPDATE sync_token SET next_node = 'b', version = 3 WHERE token_id = 0"
            )
            assert revoked.rowcount == 1
            await user.execute("SET lock_timeout = '1s'")
            query = "SELECT FROM sync_token WHERE token_id = 0 AND incarnation = %s FOR KEY SHARE"
            fenced = await user.execute(query, [a.me.incarnation])
            assert fenced.rowcount == 1
        assert await a.acknowledge() == []
    assert await a.acknowledge() == [0]
