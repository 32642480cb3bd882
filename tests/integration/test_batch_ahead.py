"""Pieces of a batch that are begun ahead of their handlers hold up nothing and nobody; and the end
of a batch is told, not waited for."""

from __future__ import annotations

import asyncio
from unittest import mock

import anyio
import pytest

from jobsync_async import Job
from jobsync_async.core.hashing import task_key
from jobsync_async.postgres.work import WorkStore
from jobsync_async.work import others, pieces
from tests.handling import nothing
from tests.waiting import until

TOTAL = 120


@pytest.fixture
def config(make_config):
    return make_config(total_tokens=TOTAL, hash_function="modulo")


async def rows(admin, query: str):
    return await (await admin.execute(query)).fetchall()


async def test_what_waits_for_its_handler_goes_at_once_when_its_token_is_to_go(jobs, admin):
    """Only the token on which a handler is at work waits for it."""
    at_work, go_on = set(), asyncio.Event()

    async def handle(claim) -> None:
        at_work.add(claim.token_id)
        await go_on.wait()

    (anna,) = await jobs.start("anna")
    first = asyncio.ensure_future(anna.run_batch(range(TOTAL), handle, concurrency=10))
    with anyio.fail_after(10):
        while len(await rows(admin, "SELECT FROM sync_claim WHERE open")) < 20:  # ten wait
            await asyncio.sleep(0.01)
        (berta,) = await jobs.start("berta")
        kept = frozenset(at_work)
        while len(anna.my_tokens | kept) > TOTAL // 2 + len(kept) or len(berta.my_tokens) < 50:
            await asyncio.sleep(0.01)
    assert at_work == kept, "the ten handlers are still at work"
    second = asyncio.ensure_future(berta.run_batch(range(TOTAL), handle, concurrency=10))
    go_on.set()
    with anyio.fail_after(20):
        results = [await first, await second]
    assert results[0].completed_here | results[1].completed_here == set(range(TOTAL))
    assert await rows(admin, "SELECT task_id FROM sync_claim WHERE owners_lost > 0") == []


async def test_a_handler_may_claim_an_id_that_waits_behind_it(config):
    async def handle(claim) -> None:
        if claim.task_id == 1:
            for other in range(20):
                if other != 1:
                    async with job.claim(other) as one:
                        assert one.valid

    async with Job("anna", config) as job:
        with anyio.fail_after(20):
            result = await job.run_batch(range(20), handle, concurrency=1)
    assert result.completed_here == set(range(20))


async def test_a_batch_that_is_cut_off_leaves_nothing_at_work_in_the_tables(config, admin):
    begun = asyncio.Event()

    async def handle(claim) -> None:
        begun.set()
        await asyncio.sleep(60)

    async with Job("anna", config) as job:
        running = asyncio.ensure_future(job.run_batch(range(TOTAL), handle, concurrency=3))
        await begun.wait()
        with anyio.fail_after(10):
            while len(await rows(admin, "SELECT FROM sync_claim WHERE open")) < 6:
                await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await rows(admin, "SELECT task_id FROM sync_claim WHERE open") == []
        assert job._worker.metrics.claims_active == 0
        result = await job.run_batch(range(TOTAL), lambda claim: None)
        assert len(result.completed_here) == TOTAL


async def test_what_was_done_is_recorded_also_when_the_batch_is_cut_off_right_then(config, admin):
    done = []

    async def handle(claim) -> None:
        done.append(claim.task_id)
        if len(done) == 5:
            running.cancel()

    async with Job("anna", config) as job:
        running = asyncio.ensure_future(job.run_batch(range(TOTAL), handle, concurrency=1))
        with pytest.raises(asyncio.CancelledError):
            await running
        recorded = {int(task) for (task,) in await rows(admin, "SELECT task_id FROM sync_audit")}
        assert recorded >= set(done[:4])


async def test_what_is_done_is_recorded_at_once_when_somebody_waits_for_it(jobs, monkeypatch):
    """Where completions are otherwise recorded together, after a long time."""
    monkeypatch.setattr(pieces, "_PACE_SEC", 600.0)
    ready, go_on = asyncio.Event(), asyncio.Event()

    async def handle(claim) -> None:
        if claim.task_id == 0:
            ready.set()
            await go_on.wait()

    (anna,) = await jobs.start("anna")
    with anyio.fail_after(20):
        assert len((await anna.run_batch(range(9), nothing, name="its end")).completed_here) == 9
        running = asyncio.ensure_future(anna.run_batch(range(TOTAL), handle))
        await ready.wait()
        async with anna.claim(TOTAL - 1) as claim:  # done, by the batch
            assert claim.valid
        (berta,) = await jobs.start("berta")
        while len(berta.my_tokens) < TOTAL // 2 - 1:
            await asyncio.sleep(0.01)
        assert not running.done()
        go_on.set()
        assert (await running).completed_here >= {0, TOTAL - 1}


@pytest.mark.needs("sessions")
async def test_whoever_waits_for_others_hears_of_the_end(jobs, monkeypatch):
    """Where nobody looks by time."""
    for name in ("_FIRST_LOOK_SEC", "_MOST_LOOK_SEC"):
        monkeypatch.setattr(others, name, 600.0)
    go_on = asyncio.Event()

    async def handle(claim) -> None:
        if claim._worker.identity.name == "anna":
            await go_on.wait()

    pair = await jobs.start("anna", "berta")
    await jobs.even()
    running = [asyncio.ensure_future(job.run_batch(range(TOTAL), handle)) for job in pair]
    with anyio.fail_after(20):
        while not pair[1]._worker.metrics.claims or pair[1]._worker.metrics.claims_active:
            await asyncio.sleep(0.01)
        go_on.set()
        results = await asyncio.gather(*running)
    assert [len(result.completed_here) for result in results] == [TOTAL // 2] * 2
    assert [len(result.completed_elsewhere) for result in results] == [TOTAL // 2] * 2


async def test_an_id_that_its_owner_completes_by_hand_ends_the_batch_too(jobs):
    async def handle(claim) -> None:
        return

    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    running = asyncio.ensure_future(anna.run_batch(range(TOTAL), handle))
    theirs = berta.filter_owned(range(TOTAL))
    await berta.add_tasks(theirs)
    await berta.write_audit()
    with anyio.fail_after(20):
        result = await running
    assert result.completed_elsewhere == set(theirs)


async def test_workers_with_other_ids_under_one_name_do_not_take_their_count_for_theirs(jobs):
    """The one has ids that the other has not: it is done when they are."""
    slow = asyncio.Event()

    async def handle(claim) -> None:
        if claim.task_id >= TOTAL:
            await slow.wait()

    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    many = 2 * TOTAL
    more = asyncio.ensure_future(anna.run_batch(range(many), handle, name="b", concurrency=many))
    less = asyncio.ensure_future(berta.run_batch(range(TOTAL), handle, name="b"))
    with anyio.fail_after(30):
        assert (await less).failed == {}
        assert not more.done()
        slow.set()
        others = asyncio.ensure_future(berta.run_batch(range(many), handle, name="b"))
        result = await more
        await others
    assert result.completed_here | result.completed_elsewhere == set(range(many))


async def test_other_ids_under_one_name_are_never_counted_as_these_however_late_they_come(jobs):
    """Otherwise the batch would return while ids of it are open."""
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    mine, others = range(TOTAL), range(TOTAL, 3 * TOTAL)
    first = asyncio.ensure_future(anna.run_batch(mine, nothing, name="b"))
    with anyio.fail_after(30):
        await until(lambda: anna._worker.metrics.claims >= TOTAL // 2)
        second = asyncio.ensure_future(berta.run_batch(others, nothing, name="b"))
        third = asyncio.ensure_future(anna.run_batch(others, nothing, name="b"))
        done = await asyncio.gather(second, third)
        assert sum(len(result.completed_here) for result in done) == 2 * TOTAL
        await asyncio.sleep(0.5)  # for several looks
        assert not first.done(), "the ids of berta's tokens are open"
        await berta.run_batch(mine, nothing, name="b")
        assert len((await first).completed_here) == TOTAL // 2


async def test_what_was_given_up_and_is_completed_after_all_makes_nobody_return_early(jobs):
    """It was done with before: its completion stands for no other id."""
    broken, go_on, others_at_work = True, asyncio.Event(), asyncio.Event()

    async def handle(claim) -> None:
        if claim._worker.identity.name == "berta" and claim.task_id == last:
            others_at_work.set()
            await go_on.wait()
        if claim._worker.identity.name == "anna" and broken:
            raise ZeroDivisionError

    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    last = max(berta.filter_owned(range(TOTAL)))
    run = {"name": "b", "attempts": 1, "concurrency": TOTAL}
    first = asyncio.ensure_future(anna.run_batch(range(TOTAL), handle, **run))
    second = asyncio.ensure_future(berta.run_batch(range(TOTAL), handle, **run))
    with anyio.fail_after(30):
        await others_at_work.wait()
        await asyncio.sleep(1.5)  # anna looks once
        (carla,) = await jobs.start("carla")
        await until(lambda: len(carla.my_tokens) >= TOTAL // 3 - 1)
        third = asyncio.ensure_future(carla.run_batch(range(TOTAL), handle, **run))
        await until(lambda: carla._worker.metrics.claims >= 5)
        await asyncio.sleep(1.5)  # for several looks
        assert not first.done(), "an id is open"
        assert not second.done()
        go_on.set()
        await asyncio.gather(first, second, third)


async def test_after_a_suspension_a_batch_goes_on(config):
    """Its handlers notice by the clock that their claims are over, before anything else does."""
    async with Job("anna", config) as job:
        worker, suspended_sec, calls = job._worker, 0.0, []
        clock = worker.clock
        worker.clock = lambda: clock() + suspended_sec

        async def handle(claim) -> None:
            nonlocal suspended_sec
            calls.append(claim.task_id)
            if len(calls) == 20:
                suspended_sec = 10 * config.heartbeat_timeout_sec
                worker.beat_wanted.set()
            await asyncio.sleep(0)
            claim.check()

        with anyio.fail_after(20):
            result = await job.run_batch(range(TOTAL), handle)
    assert result.completed_here == set(range(TOTAL))


@pytest.mark.parametrize("name", [None, "nightly"])
async def test_a_batch_of_which_all_is_complete_is_known_without_a_look_at_its_ids(
    config, monkeypatch, name
):
    async with Job("anna", config) as job:
        first = await job.run_batch(range(TOTAL), nothing, name=name)
        looks = mock.AsyncMock()
        monkeypatch.setattr(WorkStore, "read_progress", looks)
        monkeypatch.setattr(WorkStore, "begin_batch", looks)
        seen = []
        again = await job.run_batch(range(TOTAL), nothing, name=name, progress=seen.append)
        assert again.completed_elsewhere == set(range(TOTAL))
        assert not again.completed_here
        assert again.date == first.date
        assert seen[-1].completed_elsewhere == TOTAL
        assert not looks.called


@pytest.mark.parametrize("name", [None, "nightly"])
async def test_what_was_taken_out_of_the_records_by_hand_is_done_again(config, admin, name):
    """Also where as many others were added."""
    async with Job("anna", config) as job:
        await job.run_batch(range(100), nothing, name=name)
        await admin.execute("DELETE FROM sync_audit WHERE task_id IN ('3', '7')")
        await admin.execute(
            "INSERT INTO sync_audit (date, task_key, task_id, token_id, node, epoch, batch) "
            "SELECT date, sha256(task_id::bytea || 'x'), task_id || 'x', token_id, node, epoch, "
            "batch FROM sync_audit LIMIT 2"
        )
        again = await job.run_batch(range(100), nothing, name=name)
        assert again.completed_here == {3, 7}
        assert again.completed_elsewhere == set(range(100)) - {3, 7}


async def test_an_id_that_is_set_aside_is_told_to_those_who_wait_for_it(jobs, admin):
    """Also who was in the batch before anybody found that."""
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    await admin.execute(
        "INSERT INTO sync_set_aside (task_key, task_id, date, owners_lost, reason) "
        "VALUES (%s, '0', now(), 3, 'of the test')",
        [task_key("0")],
    )
    owner, other = (anna, berta) if anna.owns(0) else (berta, anna)
    others = len(list(other.filter_owned(range(TOTAL))))
    with anyio.fail_after(20):
        waits = asyncio.ensure_future(other.run_batch(range(TOTAL), nothing))
        while len(await rows(admin, "SELECT FROM sync_audit")) < others:
            await anyio.sleep(0.01)
        results = [await owner.run_batch(range(TOTAL), nothing), await waits]
    assert [result.failed for result in results] == [{0: "of the test"}] * 2


async def test_what_failed_in_another_batch_is_tried_again_before_it_counts_as_failed(jobs):
    """Also where nothing was complete on that day, so that nothing was looked at."""
    ready = asyncio.Event()

    async def fail(claim) -> None:
        raise ValueError("of the test")

    async def handle(claim) -> None:
        await ready.wait()

    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    theirs, *_ = berta.filter_owned(range(TOTAL))
    failed = await berta.run_batch([theirs], fail, attempts=1)
    assert list(failed.failed) == [theirs]
    with anyio.fail_after(20):
        ids = range(TOTAL)
        running = [asyncio.ensure_future(job.run_batch(ids, handle)) for job in (anna, berta)]
        await anna._worker.until(lambda: anna._worker.batch_ends or running[0].done(), 0.5)
        assert not running[0].done()
        ready.set()
        results = await asyncio.gather(*running)
    assert [result.failed for result in results] == [{}, {}]


async def test_a_batch_with_a_name_looks_at_no_id_however_much_was_done_on_that_day(
    jobs, monkeypatch
):
    pair = await jobs.start("anna", "berta")
    await jobs.even()
    await asyncio.gather(*(job.run_batch(range(9), nothing) for job in pair))
    looks = mock.AsyncMock(return_value={})
    monkeypatch.setattr(WorkStore, "read_progress", looks)
    with anyio.fail_after(20):
        results = await asyncio.gather(
            *(job.run_batch(range(TOTAL), nothing, name="b") for job in pair)
        )
    assert sum(len(result.completed_here) for result in results) == TOTAL
    assert not looks.called
