"""The history tells the truth: a row for each change of membership and of the leader, exactly if
the change was committed, and old rows go by age."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from psycopg.rows import dict_row

from jobsync_async import Job
from jobsync_async.errors import ConfigError
from jobsync_async.operations.history import history, leadership
from jobsync_async.postgres.statement_context import ServerChanged
from jobsync_async.tasks import forgetting
from tests.hands import Hand, hand
from tests.mortals import mortals


@pytest.fixture
async def workers(config):
    """Makes workers by hand that have joined."""
    async with AsyncExitStack() as stack:

        async def make(*names: str) -> list[Hand]:
            made = [await stack.enter_async_context(hand(config, name)) for name in names]
            for each in made:
                assert await each.join() is None
            return made

        yield make


async def told(admin, *kinds: str) -> list[dict[str, Any]]:
    """Rows of the history, the oldest first."""
    cursor = admin.cursor(row_factory=dict_row)
    await cursor.execute(
        "SELECT * FROM sync_history WHERE cardinality(%(kinds)s::text[]) = 0 "
        "OR kind = ANY(%(kinds)s) ORDER BY id",
        {"kinds": list(kinds)},
    )
    return await cursor.fetchall()


async def short(admin, *kinds: str) -> list[tuple[str, str | None, str | None]]:
    return [(row["kind"], row["node"], row["by"]) for row in await told(admin, *kinds)]


async def version(admin) -> int:
    ((now,),) = await (await admin.execute("SELECT version FROM sync_cluster")).fetchall()
    return now


# == each change has its row =======================================================================


async def test_who_joins_and_leaves_is_told_with_its_start_its_place_and_who_leads(config, admin):
    async with Job("anna", config) as anna:
        start = anna._engine.worker.identity.incarnation
    joined, led, left = await told(admin)
    assert [row["kind"] for row in (joined, led, left)] == ["joined", "took over", "left"]
    assert joined["details"]["pid"] == anna._engine.worker.announcement.pid
    assert joined["details"].keys() == {"host", "pid", "library", "weight", "state"}
    assert {row["incarnation"] for row in (joined, led, left)} == {start}
    assert (joined["version"], led["version"], led["term"]) == (1, 1, 1)
    assert left["version"] == await version(admin)
    assert (led["reason"], left["reason"], left["silent_sec"]) == ("nobody led", None, None)


async def test_a_worker_that_is_ended_by_an_error_says_so_when_it_leaves(config, admin):
    job = Job("anna", config)
    await job.start()
    job._engine._fail(ValueError("such"))
    with pytest.raises(ValueError, match="such"):
        await job.stop()
    (left,) = await told(admin, "left")
    assert left["reason"] == "its job ended with ValueError"


async def test_a_crash_is_told_as_a_death_with_who_saw_it_and_the_rebalance_names_it(config, admin):
    async with mortals(config) as workers, Job("here", config) as here:
        await workers.start("gone")
        workers.kill("gone")
        with anyio.fail_after(10):
            while len(here.my_tokens) < config.total_tokens:
                await asyncio.sleep(0.005)
        (died,) = await told(admin, "died")
        assert (died["node"], died["by"], died["reason"]) == (
            "gone",
            "here",
            "its process has ended",
        )
        assert 0 <= died["silent_sec"] < 10
        query = "SELECT reason, causes FROM sync_rebalance ORDER BY version DESC LIMIT 1"
        assert await (await admin.execute(query)).fetchall() == [("gone died", [died["id"]])]
        assert not await told(admin, "left", "expired")
        assert here.metrics.rebalances_by_reason["died"] == 1


async def test_a_silent_worker_is_told_as_expired_with_its_silence_and_the_leaders_own_end_too(
    workers, admin
):
    a, b, c = await workers("a", "b", "c")
    await a.lead()
    await admin.execute(
        "UPDATE sync_node SET last_heartbeat = now() - interval '20 s' WHERE name IN ('a', 'c')"
    )
    term = (await b.read()).term
    (silent,) = [beat for beat in (await b.beat()).beats if beat.name == "a"]
    assert await b.store.leading.take_over(b.me, term, [silent]) == term + 1
    expired, led = (await told(admin))[-2:]
    assert (expired["kind"], expired["node"], expired["by"]) == ("expired", "a", "b")
    assert 19 < expired["silent_sec"] < 60
    assert (led["kind"], led["node"], led["term"], led["version"]) == (
        "took over",
        "b",
        term + 1,
        expired["version"],
    )
    assert led["details"] == {"before": "a", "incarnation_before": str(a.me.incarnation)}
    assert led["reason"] == "in place of a"
    (silent,) = [beat for beat in (await b.beat()).beats if beat.name == "c"]
    outcome = await b.lead(expire=[silent])
    assert outcome is not None
    last = (await told(admin))[-1]
    assert (last["kind"], last["node"], last["version"]) == ("expired", "c", outcome.version)
    assert outcome.distribution.causes == (expired["id"], led["id"], last["id"])
    assert outcome.distribution.reason == "first look; a, c expired"


async def test_a_start_in_the_place_of_a_dead_one_says_which_it_replaced(workers, admin, config):
    (a,) = await workers("a")
    old = await a.last_beat()
    async with hand(config, "a") as again:
        assert await again.join(replace=old) is None
        (joined, led) = (await told(admin))[-2:]
        assert (joined["kind"], joined["incarnation"]) == ("joined", again.me.incarnation)
        assert joined["details"]["replaced"] == str(a.me.incarnation)
        assert "started again" in joined["reason"] and joined["silent_sec"] is not None
        assert (led["kind"], led["node"], led["incarnation"]) == (
            "took over",
            "a",
            again.me.incarnation,
        )
        ended = [(one["term"], one["ended"]) for one in (await leadership(again.store))["terms"]]
        assert ended == [(2, None), (1, "restarted")]


async def test_who_drained_a_worker_and_why_is_told_once(workers, admin):
    a, b = await workers("a", "b")
    for _ in range(2):
        await a.store.membership.set_state("b", "draining", by="ada", reason="for the night")
    await b.store.membership.set_state("b", "active", b.me.incarnation)
    rows = await told(admin, "drained", "undrained")
    assert [(row["kind"], row["node"], row["by"], row["reason"]) for row in rows] == [
        ("drained", "b", "ada", "for the night"),
        ("undrained", "b", "b", None),
    ]
    assert {row["incarnation"] for row in rows} == {b.me.incarnation}


async def test_a_generation_is_told_with_the_workers_that_had_to_join_anew(workers, admin):
    a, _ = await workers("a", "b")
    failover = a.store.failover
    assert await failover.condemn(await failover.read_server(), None)
    seen = await failover.read_server()
    assert await failover.begin(seen, None, -1, 15)
    assert not await failover.begin(seen, None, -1, 15)
    ((kind, _, by), *_), (row,) = await short(admin, "generation"), await told(admin, "generation")
    assert (kind, by, row["version"]) == ("generation", "a", await version(admin))
    assert row["details"]["workers"] == ["a", "b"]
    assert "copy, or older" in row["reason"]


@pytest.mark.needs("sessions")
async def test_a_worker_whose_session_ended_is_told_as_dead(make_config, admin):
    config = make_config(total_tokens=120, failover="session")
    async with hand(config, "a") as a, hand(config, "b") as b:
        for each in (a, b):
            assert await each.join() is None
            await each.beat()
        reading = await a.store.sessions.read()
        gone = [session for session in reading.sessions if session.beat.name == "b"]
        await b.store.close()
        with anyio.fail_after(5):
            while not await a.store.sessions.expire(reading.watcher, gone):
                await asyncio.sleep(0.01)
        (died,) = await told(admin, "died")
        assert (died["node"], died["by"], died["reason"]) == ("b", "a", "its session has ended")


# == and nothing else has ==========================================================================


async def test_what_was_not_committed_is_not_told(workers, admin, config, make_config):
    a, b = await workers("a", "b")
    await a.lead()
    before = await told(admin)
    term = (await a.read()).term
    silent = await a.last_beat()
    stale = silent._replace(beat=silent.beat - 1)
    leading = b.store.leading
    assert await leading.rebalance(b.me, term, [silent], -1, -1, lambda reading: None) is None
    assert await leading.take_over(b.me, term, [stale]) is None
    assert await leading.take_over(b.me, term + 1, [silent]) is None
    async with hand(config, "a") as other:
        assert await other.join() is not None
        assert await other.join(replace=stale) is not None
        await other.store.membership.leave(other.me)
    async with hand(make_config(total_tokens=120, heartbeat_timeout_sec=60), "late") as late:
        with pytest.raises(ConfigError):
            await late.join()
    await admin.execute("UPDATE sync_cluster SET server_identity = '1/00000001/1/1'")
    with pytest.raises(ServerChanged):
        await a.store.membership.leave(a.me)
    assert await told(admin) == before


async def test_who_leaves_twice_is_told_of_once(workers, admin):
    (a,) = await workers("a")
    for _ in range(2):
        await a.store.membership.leave(a.me)
    assert await short(admin, "left") == [("left", "a", "a")]


async def test_many_that_join_at_once_have_a_row_each_and_one_rebalance_names_them(workers, admin):
    (a,) = await workers("a")
    await a.lead()
    made = await workers(*(f"w{n:02}" for n in range(20)))
    outcome = await a.lead()
    joined = await told(admin, "joined")
    assert [row["incarnation"] for row in joined[1:]] == [each.me.incarnation for each in made]
    assert list(outcome.distribution.causes) == [row["id"] for row in joined[1:]]


# == who led =======================================================================================


async def test_who_led_from_when_to_when_and_how_it_ended(workers, admin, config):
    a, b, c = await workers("a", "b", "c")
    await a.store.membership.leave(a.me)
    term = (await b.read()).term
    (silent,) = [beat for beat in (await c.beat()).beats if beat.name == "b"]
    assert await c.store.leading.take_over(c.me, term, [silent]) == 3
    shown = await leadership(c.store)
    assert (shown["leader"], shown["term"], shown["present"]) == ("c", 3, True)
    assert shown["since"] == shown["terms"][0]["since"]
    assert [(one["term"], one["node"], one["ended"]) for one in shown["terms"]] == [
        (3, "c", None),
        (2, "b", "expired"),
        (1, "a", "left"),
    ]
    ends = [one["until"] for one in shown["terms"]]
    assert ends == [None, shown["terms"][0]["since"], shown["terms"][1]["since"]]
    await c.store.membership.leave(c.me)
    shown = await leadership(a.store)
    assert (shown["present"], shown["terms"][0]["ended"]) == (False, "left")
    assert shown["terms"][0]["until"] is not None, "though nobody came after it"


async def test_a_leader_of_0_1_0_wrote_no_row_and_is_told_of_all_the_same(workers, admin):
    a, b = await workers("a", "b")
    # as its statements do
    await admin.execute("DELETE FROM sync_node WHERE name = 'a'")
    await admin.execute(
        "UPDATE sync_cluster SET leader = 'b', leader_incarnation = %s, term = term + 1",
        [b.me.incarnation],
    )
    shown = await leadership(b.store)
    assert (shown["leader"], shown["since"], shown["present"]) == ("b", None, True)
    assert [(one["term"], one["until"], one["ended"]) for one in shown["terms"]] == [
        (2, None, None),
        (1, None, None),
    ]
    outcome = await b.lead()
    assert outcome.distribution.reason == "first look; b joined"


# == old rows ======================================================================================


async def age(admin, days: float) -> None:
    for table in ("history", "rebalance"):
        await admin.execute(
            f"UPDATE sync_{table} SET at = at - make_interval(secs => %s)", [days * 86_400]
        )


async def test_old_rows_go_in_portions_and_the_last_of_each_stay(workers, admin):
    a, b, c = await workers("a", "b", "c")
    await a.lead()
    await c.store.membership.leave(c.me)
    await a.lead()
    await age(admin, 2)
    await b.store.membership.set_state("b", "draining")
    forget = a.store.forgetting.forget
    assert await forget(10, days=2.5) == (0, 0)
    assert await a.store.history.count_before(await tomorrow(admin)) == (5, 1)
    assert [await forget(2, days=1) for _ in range(4)] == [(2, 1), (2, 0), (0, 0), (0, 0)]
    assert await short(admin) == [("took over", "a", "a"), ("drained", "b", "b")]
    shown = await history(a.store)
    assert [one["reason"] for one in shown["rebalances"]] == ["c left"]


async def tomorrow(admin):
    ((date,),) = await (await admin.execute("SELECT current_date + 1")).fetchall()
    return date


async def test_the_leader_forgets_what_is_older_than_it_is_to_keep(make_config, admin, monkeypatch):
    for name in ("_TURN_SEC", "_LOOK_SEC", "_NEXT_PORTION_SEC"):
        monkeypatch.setattr(forgetting, name, 0.02)
    monkeypatch.setattr(forgetting, "_MOST_ROWS", 2)
    async with Job("a", make_config(total_tokens=120, keep_history_days=1)):
        async with Job("b", make_config(total_tokens=120), wait_on_enter=10):
            pass
        await age(admin, 3)
        with anyio.fail_after(10):
            while len(await told(admin)) > 1:
                await asyncio.sleep(0.01)
        assert await short(admin) == [("took over", "a", "a")]
