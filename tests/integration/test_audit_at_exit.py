"""What was added is written as complete when the block ends in order, as in jobsync."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter

import psycopg
import pytest

from jobsync_async import Job, StoreUnavailable
from jobsync_async.testing import Cluster

DAY = dt.date(2026, 1, 2)


async def audited(config) -> list[str]:
    async with await psycopg.AsyncConnection.connect(config.dsn) as connection:
        cursor = await connection.execute(
            "SELECT task_id FROM sync_audit WHERE date = %s ORDER BY task_id", [DAY]
        )
        return [task for (task,) in await cursor.fetchall()]


async def test_tasks_that_were_added_are_written_when_the_block_ends_in_order(config):
    async with Job("anna", config, date=DAY) as job:
        for item in range(5):
            if job.can_claim_task(item):
                await job.add_task(item)
    assert await audited(config) == ["0", "1", "2", "3", "4"]


async def test_what_was_added_is_not_written_when_the_body_raises_or_is_cancelled(config):
    with pytest.raises(ZeroDivisionError):
        async with Job("anna", config, date=DAY) as job:
            await job.add_task("x")
            raise ZeroDivisionError

    async def cancelled() -> None:
        async with Job("anna", config, date=DAY) as job:
            await job.add_task("y")
            asyncio.current_task().cancel()
            await asyncio.sleep(10)

    await asyncio.wait([asyncio.ensure_future(cancelled())])
    assert await audited(config) == []


async def test_stop_does_not_write_what_was_added_for_it_cannot_tell_that_it_was_done(config):
    job = Job("anna", config, date=DAY)
    await job.start()
    await job.add_task("x")
    await job.stop()
    assert await audited(config) == []


async def test_what_cannot_be_written_in_the_end_is_logged_and_raised_and_the_worker_has_left(
    config, admin, caplog
):
    await admin.execute("ALTER TABLE sync_audit ADD CONSTRAINT never CHECK (false)")
    with pytest.raises(psycopg.errors.CheckViolation):
        async with Job("anna", config, date=DAY) as job:
            await job.add_task("x")
    await admin.execute("ALTER TABLE sync_audit DROP CONSTRAINT never")
    for failure in (None, ZeroDivisionError):
        with pytest.raises(failure or StoreUnavailable):
            async with Job("anna", config, date=DAY) as job:
                await job.add_task("x")
                if failure:
                    raise failure
                records = job._engine.work

                async def refuse(*_: object) -> int:
                    raise StoreUnavailable("away")

                records.write_audit = refuse
        assert await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone() == (0,)
    told = [
        record
        for record in caplog.records
        if "are not written as complete: away" in record.getMessage()
    ]
    assert [record.levelname for record in told] == ["WARNING"]


async def test_a_cancellation_while_it_is_written_still_lets_the_worker_leave(config, admin):
    await admin.execute(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM "
        "pg_sleep(0.3); RETURN new; END'"
    )
    await admin.execute(
        "CREATE TRIGGER slowly BEFORE INSERT ON sync_audit FOR EACH ROW EXECUTE FUNCTION slowly()"
    )

    async def work() -> None:
        async with Job("anna", config, date=DAY) as job:
            await job.add_task("x")

    working = asyncio.ensure_future(work())
    while (
        await (
            await admin.execute("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        ).fetchone()
        is None
    ):
        await asyncio.sleep(0.005)
    working.cancel()
    await asyncio.wait([working])
    assert working.cancelled()
    assert await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone() == (0,)
    assert await audited(config) == ["x"], "a statement that is under way is not cut off"


async def test_add_task_tells_whether_it_may_begin(config):
    for standalone in (False, True):
        async with Job("anna", None if standalone else config, date=DAY) as job:
            assert await job.add_task("x") is True
            assert await job.add_task("x") is True, "begun is not complete"
            await job.write_audit()
            assert await job.add_task("x") is False
            assert await job.add_tasks(["x", "y", 7]) == ["y", 7]
            assert await job.write_audit() == 2


async def test_a_task_that_was_added_keeps_its_token_here_until_it_is_written(jobs):
    (anna,) = await jobs.start("anna")
    await anna.add_tasks(range(100))
    held = {anna.task_to_token(task) for task in range(100)}
    (berta,) = await jobs.start("berta")
    assert not held & berta.my_tokens, (
        "the first half of a rebalance is over, and none of these went"
    )
    await anna.write_audit()
    await jobs.even()
    assert held & berta.my_tokens
    assert await berta.add_tasks(task for task in range(100) if berta.owns(task)) == []


async def test_the_loop_of_jobsync_works_no_task_twice_whenever_another_worker_starts(config):
    done = Counter[int]()
    halfway = asyncio.Event()

    async def worker(name: str) -> None:
        async with Job(name, config) as job:
            for task in range(200):
                if job.can_claim_task(task) and await job.add_task(task):
                    await asyncio.sleep(0.001)  # the work
                    done[task] += 1
                if task == 100:
                    halfway.set()

    first = asyncio.create_task(worker("anna"))
    await halfway.wait()
    await worker("berta")
    await first
    assert done == dict.fromkeys(range(200), 1)


async def test_a_token_waits_for_an_added_task_no_longer_than_the_handoff_timeout(
    make_config, caplog
):
    config = make_config(total_tokens=2, hash_function="modulo", handoff_timeout_sec=0.3)
    async with Cluster(config) as jobs:
        (anna,) = await jobs.start("anna")
        await anna.add_tasks([0, 1])
        (berta,) = await jobs.start("berta")
        await jobs.even()
        (task,) = (task for task in (0, 1) if berta.owns(task))
        assert f"task '{task}' was added and is not written as complete" in caplog.text
        assert await berta.add_task(task)
        assert await anna.write_audit() == 2
