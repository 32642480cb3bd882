"""A paused cluster: everybody keeps its tokens and goes on, nothing new starts, and all know it."""

from __future__ import annotations

import asyncio
import time
from unittest import mock

import anyio
import pytest

from jobsync_async import ConfigError, CoordinationError, Job, NotOwner, Observer
from jobsync_async.postgres.work import WorkStore
from jobsync_async.tasks import rebalance
from tests.clusters import cluster
from tests.handling import nothing, owned_by
from tests.integration.test_versions import old_row
from tests.waiting import until


@pytest.fixture
def config(make_config):
    return make_config(total_tokens=120, hash_function="modulo")


async def all_rows(admin, query: str):
    return await (await admin.execute(query)).fetchall()


async def test_all_read_at_once_what_cannot_wait_however_many_they_are(jobs, monkeypatch):
    """As with thousands of workers, whose readings of what names nobody are spread over long."""
    names = [f"w{n}" for n in range(8)]
    await jobs.start(*names)
    await jobs.even()
    monkeypatch.setattr(rebalance, "_READ_EACH_SEC", 60.0)
    spread = next(job for job in reversed(jobs.jobs.values()) if not job.am_i_leader())
    await spread.drain()  # everybody has read since, and so knows how long to wait
    await spread.undrain()
    first = jobs["w0"]
    for act, holds in ((first.pause("slow warehouse", by="anna"), True), (first.resume(), False)):
        began = time.monotonic()
        assert await act
        with anyio.fail_after(5):
            for job in jobs.jobs.values():
                while (job.paused is not None) != holds:
                    await asyncio.sleep(0.001)
        took = time.monotonic() - began
        print(f"{len(names)} workers knew after {1000 * took:.1f} ms")
        assert took < 1


async def test_one_pause_holds_at_a_time_and_says_by_whom_since_when_and_why(jobs, admin):
    a, b = await jobs.start("a", "b")
    assert a.paused is None and not await a.resume()
    version = a.token_version
    assert await a.pause("slow warehouse", by="anna")
    assert a.token_version > version, "it takes a version"
    await until(lambda: b.paused)
    assert b.paused == a.paused
    assert (a.paused.reason, a.paused.by) == ("slow warehouse", "anna")
    ((now,),) = await all_rows(admin, "SELECT now()")
    assert 0 <= (now - a.paused.since).total_seconds() < 10
    version = a.token_version
    assert not await b.pause("another reason")
    assert b.paused.by == "anna" and a.token_version == version, "nothing was written"
    assert await b.resume() and b.paused is None
    assert not await b.resume(by="anna")
    for wrong in ({"reason": ""}, {"by": 7}):
        with pytest.raises(ConfigError):
            await a.pause(**wrong)
    told = await all_rows(
        admin, "SELECT kind, by, reason FROM sync_history WHERE kind ~ 'e[dp]$' ORDER BY id"
    )
    assert [row for row in told if row[0] in ("paused", "resumed")] == [
        ("paused", "anna", "slow warehouse"),
        ("resumed", "b", None),
    ]


async def test_claims_raise_or_wait_and_what_runs_goes_on(jobs):
    a, b = await jobs.start("a", "b")
    await jobs.even()
    mine, other, third = owned_by(a, 3)
    async with a.claim(mine) as claim:
        await b.pause("slow warehouse", by="anna")
        await until(lambda: a.paused)
        assert claim.valid
        assert await a.add_task(mine) and await a.write_audit() == 1, "that has begun before"
        await a.set_claim(mine)
        with pytest.raises(
            CoordinationError, match=r"paused by anna since .*: slow warehouse"
        ) as no:
            async with a.claim(other):
                pytest.fail("it begins")
        assert not isinstance(no.value, NotOwner)
        with pytest.raises(CoordinationError, match="paused by anna"):
            await a.set_claim([mine, other])
        assert not await a.add_task(other) and await a.add_tasks([mine, other]) == []
        with pytest.raises(NotOwner):
            async with a.claim(owned_by_number(b)):
                pytest.fail("it is not here")
    assert not a.can_claim_task(other) and not a.owns(other) and a.filter_owned([other]) == []
    assert a.am_i_healthy() and len(a.my_tokens) == 60 and a.metrics.paused == 1
    with pytest.raises(ConfigError, match="if_paused"):
        a.claim(other, if_paused="never")
    entered = asyncio.Event()

    async def wait(task: int) -> None:
        async with a.claim(task, if_paused="wait"):
            entered.set()

    waiting, in_vain = (asyncio.create_task(wait(task)) for task in (other, third))
    patterns = asyncio.create_task(a.register_lock(third, "b"))
    with pytest.raises(NotOwner):
        await in_vain  # its token went meanwhile
    await patterns
    assert not entered.is_set()
    await b.resume()
    with anyio.fail_after(5):
        await waiting
    assert entered.is_set() and a.can_claim_task(other) and a.metrics.paused == 0


def owned_by_number(job: Job) -> int:
    """A task of the job's, also while the cluster is paused."""
    return next(n for n in range(10_000) if job.task_to_token(n) in job.my_tokens)


async def test_readers_of_changes_hear_of_no_pause_and_may_write_back_what_is_revoked(jobs):
    (a,) = await jobs.start("a")
    async with a.token_changes() as changes:
        assert len((await anext(changes)).assigned) == 120
        await a.pause()
        starting = asyncio.ensure_future(jobs.start("b"))
        change = await asyncio.wait_for(anext(changes), 5)
        assert len(change.revoked) == 60
        async with a.claim(min(change.revoked)) as claim:
            assert claim.leaving == "revoked"
        following = asyncio.ensure_future(anext(changes))
        (b,) = await starting
        assert b.paused is not None, "it starts paused"
        await a.resume()
        following.cancel()
        await asyncio.wait([following])


async def test_run_owned_starts_nothing_while_paused_and_all_of_it_afterwards(jobs):
    running, ids = set(), [0, 1]

    async def handle(claim) -> None:
        running.add(claim.task_id)
        try:
            await asyncio.sleep(60)
        finally:
            running.discard(claim.task_id)

    (a,) = await jobs.start("a")
    owned = asyncio.ensure_future(a.run_owned(lambda: list(ids), handle, refresh_sec=0.02))
    await until(lambda: running == {0, 1})
    await a.pause()
    ids[:] = [1, 2, 3]
    await until(lambda: running == {1})  # what is not wanted ends, what runs goes on
    await asyncio.sleep(0.1)
    assert running == {1}
    await a.resume()
    await until(lambda: running == {1, 2, 3})
    owned.cancel()
    await asyncio.wait([owned])


async def test_run_batch_begins_nothing_lets_go_of_what_waits_and_goes_on(jobs, admin, caplog):
    """Handlers that run go on, and what has failed is not called again meanwhile."""
    caplog.set_level("INFO")
    at_work, calls, go_on = set(), [], asyncio.Event()

    async def handle(claim) -> None:
        calls.append(claim.task_id)
        at_work.add(claim.task_id)
        await go_on.wait()
        if calls.count(claim.task_id) == 1 and claim.task_id == min(first):
            raise ValueError("the warehouse is down")

    (a,) = await jobs.start("a")
    batch = asyncio.ensure_future(a.run_batch(range(100), handle, concurrency=4, name="nightly"))
    opened = (
        "SELECT count(*) FROM sync_claim c WHERE open "
        "AND NOT EXISTS (SELECT FROM sync_audit a WHERE a.task_key = c.task_key)"
    )
    with anyio.fail_after(10):
        while (await all_rows(admin, opened))[0][0] < 8 or len(at_work) < 4:  # four wait
            await asyncio.sleep(0.01)
    first = set(at_work)
    await a.pause("slow warehouse", by="anna")
    with anyio.fail_after(5):
        while await all_rows(admin, opened) != [(4,)]:
            await asyncio.sleep(0.01)
    go_on.set()
    with anyio.fail_after(5):
        while await all_rows(admin, opened) != [(0,)]:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)  # longer than the first wait between two calls
    assert set(calls) == first and len(calls) == 4
    said = [r.message for r in caplog.records if "nightly" in r.message and "waits" in r.message]
    (line,) = said
    assert "paused by anna" in line and "slow warehouse" in line
    assert not batch.done()
    await a.resume()
    with anyio.fail_after(10):
        result = await batch
    assert result.completed_here == set(range(100)) and not result.failed
    assert await all_rows(admin, "SELECT FROM sync_claim WHERE owners_lost > 0") == []


async def test_what_is_being_begun_when_the_pause_comes_is_let_go_of(jobs, admin, monkeypatch):
    begin, asked, answer = WorkStore.begin_tasks, asyncio.Event(), asyncio.Event()

    async def held_up(self, *args, **options):
        begun = await begin(self, *args, **options)
        asked.set()
        await answer.wait()
        return begun

    monkeypatch.setattr(WorkStore, "begin_tasks", held_up)
    handle = mock.AsyncMock()
    (a,) = await jobs.start("a")
    batch = asyncio.ensure_future(a.run_batch(range(20), handle))
    await asked.wait()
    await a.pause()
    answer.set()
    with anyio.fail_after(5):
        while await all_rows(admin, "SELECT FROM sync_claim WHERE open") != []:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert not handle.called
    await a.resume()
    with anyio.fail_after(10):
        assert len((await batch).completed_here) == 20


async def test_a_pause_outlasts_all_workers_an_outage_and_a_new_generation(
    quick_jobs, quick, admin
):
    (a,) = await quick_jobs.start("a")
    await a.pause("for the night", by="anna")
    await quick_jobs.stop("a")
    b, c = await quick_jobs.start("b", "c")
    assert b.paused is not None and c.paused == b.paused and len(b.my_tokens | c.my_tokens) > 0
    assert not b.can_claim_task(owned_by_number(b))
    ((before,),) = await all_rows(admin, "SELECT generation FROM sync_cluster")
    await admin.execute("UPDATE sync_cluster SET server_identity = 'another'")  # as if restored
    with anyio.fail_after(20):
        while (await all_rows(admin, "SELECT generation FROM sync_cluster"))[0][0] == before:
            await asyncio.sleep(0.02)
        await until(lambda: len(b.my_tokens | c.my_tokens) == 120, 15)
    assert b.paused is not None and b.paused.reason == "for the night"
    assert await b.resume()
    await until(lambda: c.paused is None)


async def test_workers_that_poll_know_of_it_by_the_clock(make_config):
    config = make_config(total_tokens=20, notify=False, poll_interval_sec=0.1)
    async with cluster(config) as jobs:
        a, b = await jobs.start("a", "b")
        await a.pause()
        await until(lambda: b.paused, 2)
        await b.resume()
        await until(lambda: not a.paused, 2)


async def test_whoever_looks_sees_it_with_the_workers_that_know_none(jobs, config, admin):
    (a,) = await jobs.start("a")
    async with Observer(config) as seen:
        assert (await seen.status())["paused"] is None
        changes = seen.changes()
        await anext(changes)
        await a.pause("slow warehouse")
        await old_row(admin)
        await asyncio.wait_for(anext(changes), 5)
        for status in (await seen.status(), await a.get_coordination_status()):
            assert (status["paused"]["by"], status["paused"]["reason"]) == ("a", "slow warehouse")
            assert any("1 workers of 0.1.0 know no pause" in one for one in status["warnings"])
        await a.resume()
        await admin.execute("DELETE FROM sync_node WHERE name = 'old'")


async def test_alone_a_job_pauses_itself():
    async with Job("a") as job:
        assert await job.pause("slow warehouse") and not await job.pause()
        assert not job.owns("x")
        with pytest.raises(CoordinationError, match="paused by a since"):
            async with job.claim("x"):
                pytest.fail("it begins")
        await job.drain()
        await job.undrain()
        assert job.paused is not None
        batch = asyncio.ensure_future(job.run_batch(range(10), nothing))
        await asyncio.sleep(0.05)
        assert not batch.done()
        assert await job.resume()
        with anyio.fail_after(5):
            assert len((await batch).completed_here) == 10
