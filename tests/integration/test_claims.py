"""Claims, the fence, and what is written down about tasks."""

from __future__ import annotations

import asyncio
import datetime as dt
from contextlib import suppress

import anyio
import psycopg
import pytest

from jobsync_async import Claim, Job, NotOwner, OwnershipLost, Task, UsageError
from tests.handling import owned_by


async def connect(config) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(config.conninfo("test"))


async def test_a_claim_tells_what_is_claimed(config):
    async with Job("a", config) as job, job.claim(Task("x", name="label")) as claim:
        assert (claim.task_id, claim.token_id) == ("x", job.task_to_token("x"))
        assert claim.valid and claim.epoch == (await job.owner_of("x")).epoch
    assert not claim.valid


async def test_a_claim_on_what_others_own_is_refused(jobs):
    a, b = await jobs.start("a", "b")
    await jobs.even()
    (theirs,) = owned_by(b)
    with pytest.raises(NotOwner) as caught:
        async with a.claim(theirs):
            pytest.fail("must not be entered")
    assert (caught.value.task_id, caught.value.token_id) == (theirs, a.task_to_token(theirs))


async def test_entering_a_claim_does_not_suspend_between_the_check_and_the_registration(config):
    async with Job("a", config) as job:
        scope = job.claim("x")
        # The coroutine ends at its first step: nothing else can run in between.
        with pytest.raises(StopIteration):
            scope.__aenter__().send(None)
        assert [*job._worker.ownership.users_of([job.task_to_token("x")])]
        await scope.__aexit__(None, None, None)


async def test_a_token_in_use_is_handed_on_when_its_claim_ends_and_not_before(jobs):
    (a,) = await jobs.start("a")
    may_end = asyncio.Event()
    claims: list[Claim] = []

    async def work(task: int) -> None:
        async with a.claim(task) as claim:
            claims.append(claim)
            await may_end.wait()

    async with anyio.create_task_group() as group:
        for task in range(40):
            group.start_soon(work, task)
        while len(claims) < 40:
            await asyncio.sleep(0)
        (b,) = await jobs.start("b")
        with anyio.fail_after(5):
            while len(b.my_tokens) + len(a.my_tokens) < 120 - len(a._worker.ownership.busy()):
                await asyncio.sleep(0.01)
        waiting = set(a._worker.ownership.busy())
        assert waiting and waiting <= {claim.token_id for claim in claims}
        assert not waiting & a.my_tokens, "nothing new may start on them"
        assert not waiting & b.my_tokens
        assert all(claim.valid for claim in claims), "work under way may be finished"
        may_end.set()
    assert await jobs.even() == {"a": 60, "b": 60}
    assert waiting <= b.my_tokens


async def test_work_that_outlasts_the_handoff_timeout_is_cancelled_as_lost(make_config):
    config = make_config(total_tokens=2, hash_function="modulo", handoff_timeout_sec=0.3)
    ended = []

    async def work(job: Job, task: int) -> None:
        try:
            async with job.claim(task):
                await asyncio.sleep(60)
        except OwnershipLost as error:
            ended.append(error.token_id)

    async with Job("a", config) as a, anyio.create_task_group() as group:
        group.start_soon(work, a, 0)
        group.start_soon(work, a, 1)
        await asyncio.sleep(0)
        async with Job("b", config) as b:
            with anyio.fail_after(5):
                while len(b.my_tokens) != 1:
                    await asyncio.sleep(0.01)
            assert set(ended) == set(b.my_tokens)
            group.cancel_scope.cancel()


async def test_a_claim_is_cancelled_when_the_worker_is_expired(config, admin):
    async with Job("a", config) as job:
        with pytest.raises(OwnershipLost):
            async with job.claim("x") as claim:
                await admin.execute("DELETE FROM sync_node")
                await asyncio.sleep(60)
        assert not claim.valid
        with anyio.fail_after(5):
            while not job.owns("x"):
                await asyncio.sleep(0.01)


async def test_an_error_of_the_body_is_not_replaced(config, admin):
    async with Job("a", config) as job:
        with pytest.raises(ZeroDivisionError):
            async with job.claim("x"):
                raise ZeroDivisionError


# -- the fence


async def test_a_fence_that_holds_lets_the_work_commit(config, admin):
    await admin.execute("CREATE TABLE result (task text)")
    async with (
        Job("a", config) as job,
        await connect(config) as connection,
        job.claim("x") as claim,
    ):
        async with connection.transaction():
            await job.fence(connection, claim)
            await connection.execute("INSERT INTO result VALUES ('x')")
    assert (await (await admin.execute("SELECT * FROM result")).fetchall()) == [("x",)]


async def test_a_fence_that_does_not_hold_rolls_the_work_back(config, admin):
    await admin.execute("CREATE TABLE result (task text)")
    async with Job("a", config) as job, await connect(config) as connection:
        with pytest.raises(OwnershipLost):
            async with job.claim("x") as claim:
                await admin.execute("UPDATE sync_token SET epoch = epoch + 1")
                async with connection.transaction():
                    await connection.execute("INSERT INTO result VALUES ('x')")
                    await job.fence(connection, claim)
        assert job.metrics.fences_rejected == 1
    assert (await (await admin.execute("SELECT * FROM result")).fetchall()) == []


async def test_nobody_gets_a_token_while_a_fence_locks_it(quick_jobs, quick, admin):
    """The owner dies with a fenced transaction open: the others take its other tokens, and this one
    after the commit."""
    a, b = await quick_jobs.start("a", "b")
    await quick_jobs.even()
    (task,) = owned_by(b)
    token = b.task_to_token(task)
    async with await connect(quick) as connection:
        fenced = asyncio.Event()

        async def work() -> None:
            async with b.claim(task) as claim:
                await b.fence(connection, claim)
                fenced.set()
                await asyncio.sleep(60)

        working = asyncio.ensure_future(work())
        await fenced.wait()
        await quick_jobs.crash("b")
        with pytest.raises(OwnershipLost):
            await working
        await quick_jobs.settled(6, unowned=1)
        assert token not in a.my_tokens
        await connection.commit()
    assert await quick_jobs.settled(5) == {"a": 120}


async def test_a_token_that_is_fenced_at_every_moment_goes_to_its_new_owner(quick_jobs, quick):
    """Each transaction ends when the next one has its fence, until none can begin any more."""
    a, b = await quick_jobs.start("a", "b")
    await quick_jobs.even()
    (task,) = owned_by(a)

    async def transaction(fenced: asyncio.Future[None], may_end: asyncio.Event) -> None:
        try:
            async with a.claim(task) as claim, await connect(quick) as connection:
                await a.fence(connection, claim)
                fenced.set_result(None)
                await may_end.wait()
        except NotOwner as error:
            fenced.set_exception(error)

    one_before = asyncio.Event()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(a.register_lock, task, "b")
            with pytest.raises(NotOwner):
                while True:
                    fenced, may_end = asyncio.get_running_loop().create_future(), asyncio.Event()
                    group.start_soon(transaction, fenced, may_end)
                    await fenced
                    one_before.set()
                    one_before = may_end
            one_before.set()
    await quick_jobs.settled(5)
    assert b.task_to_token(task) in b.my_tokens


async def test_what_is_fenced_at_every_moment_without_a_claim_leaves_its_leader_too(
    quick_jobs, quick
):
    """A leader gives away by its plan what nobody uses there. A fence may lock it all the same."""
    (a,) = await quick_jobs.start("a")
    (b,) = await quick_jobs.start("b")
    assert a.am_i_leader()
    (task,) = owned_by(a)
    plans = a.metrics.rebalances
    fenced = asyncio.Event()

    async def transaction() -> None:
        """Begun where the token is owned. The next one begins before this one ends."""
        async with await connect(quick) as connection:
            with suppress(NotOwner):
                await a.fence(connection, task)
                fenced.set()
                await asyncio.sleep(0.5)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(transaction)
            await fenced.wait()
            group.start_soon(a.register_lock, task, "b")
            while not b.owns(task):
                if a.owns(task):
                    group.start_soon(transaction)
                await asyncio.sleep(0.05)
    assert a.metrics.rebalances <= plans + 2, "it does not go to and fro"


async def test_one_plan_revokes_what_a_fence_keeps_from_being_given_away(jobs, config, admin):
    (a,) = await jobs.start("a")
    (b,) = await jobs.start("b")
    assert a.am_i_leader()
    task, other = owned_by(a, 2)
    plans = "SELECT version FROM sync_rebalance ORDER BY version"
    async with await connect(config) as connection:
        await a.fence(connection, task)
        before = await (await admin.execute(plans)).fetchall()
        await a.register_locks_bulk([(str(one), "b", None) for one in (task, other)])
        with anyio.fail_after(10):
            while not b.owns(other):
                await asyncio.sleep(0.01)
        assert not a.owns(task) and not b.owns(task)
        await asyncio.sleep(0.5)  # tries to come back for it, if there were any
        assert len(await (await admin.execute(plans)).fetchall()) == len(before) + 1
        await a.fence(connection, task)
    with anyio.fail_after(10):
        while not b.owns(task):
            await asyncio.sleep(0.01)


async def test_a_fence_outside_a_transaction_is_a_mistake(config):
    async with (
        Job("a", config) as job,
        await connect(config) as connection,
        job.claim("x") as claim,
    ):
        await connection.set_autocommit(True)
        with pytest.raises(UsageError):
            await job.fence(connection, claim)


async def test_the_fence_can_be_sent_with_any_driver(config, admin):
    async with Job("a", config) as job:
        async with job.claim("x") as claim:
            query, values = claim.fence_sql()
            assert (await (await admin.execute(query, values)).fetchone()) == (claim.epoch,)
            numeric, values = claim.fence_sql(paramstyle="numeric")
            assert "$3" in numeric and "%" not in numeric and len(values) == 3
        await admin.execute("UPDATE sync_token SET epoch = epoch + 1")
        assert await (await admin.execute(query, values)).fetchone() is None


# -- records


async def test_a_task_is_completed_once_per_date_and_carries_its_epoch(config, admin):
    day = dt.date(2026, 1, 2)
    async with Job("a", config, date=day) as job:
        await job.add_tasks(range(5))
        await job.add_task("x")
        await job.add_task("x")
        assert await job.write_audit() == 6
        assert await job.write_audit() == 0
        await job.add_task("x")
        assert await job.write_audit() == 0, "it is complete already"
        audit = await job.get_audit()
        assert [row["task_id"] for row in audit if row["node"] == "a"] == sorted(
            ["0", "1", "2", "3", "4", "x"]
        )
        assert {row["date"] for row in audit} == {day}
        epochs = [(await job.owner_of(row["task_id"])).epoch for row in audit]
        assert [row["epoch"] for row in audit] == epochs
    async with Job("a", config, date=dt.datetime(2026, 1, 3, 12, 0, tzinfo=dt.timezone.utc)) as job:
        assert await job.get_audit() == []
        await job.add_task("x")
        assert await job.write_audit() == 1


async def test_claims_are_stored_in_one_round_trip(config, admin):
    async with Job("a", config) as job:
        await job.set_claim("one")
        await job.set_claim(Task("two"))
        await job.set_claim(str(i) for i in range(1000))
        cursor = await admin.execute(
            "SELECT count(*), min(node), count(DISTINCT epoch) FROM sync_claim"
        )
        assert await cursor.fetchone() == (1002, "a", 1)


async def test_nothing_is_recorded_when_one_of_the_tasks_is_not_ours(jobs, admin):
    a, b = await jobs.start("a", "b")
    await jobs.even()
    mine, theirs = owned_by(a), owned_by(b)
    with pytest.raises(NotOwner):
        await a.add_tasks(mine + theirs)
    await admin.execute(
        "UPDATE sync_token SET epoch = epoch + 1 WHERE token_id = %s", [a.task_to_token(mine[0])]
    )
    with pytest.raises(OwnershipLost):
        await a.set_claim(owned_by(a, 5))
    assert (await (await admin.execute("SELECT count(*) FROM sync_claim")).fetchone()) == (0,)
    assert await a.write_audit() == 0


async def test_ids_of_any_type_and_length(config, admin):
    ids = [
        0,
        -1,
        1.5,
        "",
        " ",
        "ü",
        "x" * 100_000,
        ("a", 1),
        None,
        dt.date(2026, 1, 1),
        b"bytes",
        "%",
        "'; DROP TABLE sync_node",
    ]
    async with Job("a", config) as job:
        await job.add_tasks(ids)
        assert await job.write_audit() == len(ids)
        assert {row["task_id"] for row in await job.get_audit()} == {str(i) for i in ids}
