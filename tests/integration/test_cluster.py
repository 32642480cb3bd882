"""Joining, leading, sharing, leaving and dying, with jobs on one event loop and real PostgreSQL."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from jobsync_async import ClusterNotFormed, ConfigError, Job, NodeNameTaken, StoreUnavailable
from jobsync_async.postgres.leader import Leading
from tests.clusters import cluster


async def test_the_first_worker_owns_everything_and_leads(config):
    async with Job("a", config) as job:
        assert job.my_tokens == frozenset(range(120))
        assert job.am_i_leader() and job.am_i_healthy()
        assert job.owns("anything") and job.can_claim_task(17)
        assert job.filter_owned(range(5)) == [0, 1, 2, 3, 4]
    assert not job.am_i_healthy() and not job.my_tokens


async def test_tokens_are_shared_evenly_and_the_oldest_leads(jobs):
    for name in "abc":
        await jobs.start(name)
    assert await jobs.even() == {"a": 40, "b": 40, "c": 40}
    assert [name for name in "abc" if jobs[name].am_i_leader()] == ["a"]


async def test_a_joiner_has_its_tokens_when_start_returns(jobs):
    await jobs.start("a")
    await jobs.start("b")
    assert jobs.counts() == {"a": 60, "b": 60}


async def test_a_leader_hands_on_by_its_plan_what_nobody_uses_there(jobs, admin):
    await jobs.start("a")
    await jobs.start("b")
    cursor = await admin.execute(
        "SELECT count(*) FROM sync_token JOIN sync_rebalance USING (version) WHERE node = 'b'"
    )
    assert await cursor.fetchone() == (60,)
    assert jobs["a"].metrics.handoffs == 60


async def test_of_a_plan_that_is_given_up_half_way_nothing_is_lost(jobs, admin, monkeypatch):
    finish, failed = Leading._finish, []

    async def fail_once(self, *args):
        if not failed:
            failed.append(self)
            raise StoreUnavailable("the disk is full, for once")
        await finish(self, *args)

    await jobs.start("a")
    monkeypatch.setattr(Leading, "_finish", fail_once)
    await jobs.start("b")
    assert await jobs.even() == {"a": 60, "b": 60}
    assert failed
    cursor = await admin.execute("SELECT count(*) FROM sync_token WHERE next_node IS NOT NULL")
    assert await cursor.fetchone() == (0,)


def plans_fail(monkeypatch) -> tuple[asyncio.Event, asyncio.Event]:
    """From now on, plans fail half way: set when one has, and to be set when they are not to any
    more."""
    finish, failed, free = Leading._finish, asyncio.Event(), asyncio.Event()

    async def fail(self, *args):
        if not free.is_set():
            failed.set()
            raise StoreUnavailable("the disk is full")
        await finish(self, *args)

    monkeypatch.setattr(Leading, "_finish", fail)
    return failed, free


async def test_what_a_plan_did_not_give_away_after_all_is_its_owners_again(config, monkeypatch):
    async with Job("a", config) as a:
        failed, free = plans_fail(monkeypatch)
        joining = asyncio.ensure_future(Job("b", config).start())
        with anyio.fail_after(10):
            await failed.wait()
            joining.cancel()
            await asyncio.wait([joining])
            free.set()
            while len(a.my_tokens) < 120:
                await asyncio.sleep(0.01)


async def test_what_stays_after_all_is_had_at_once_where_the_next_plan_changes_nothing(
    jobs, monkeypatch
):
    """The next plan is announced to nobody, and the next heartbeat is seconds away."""
    (a,) = await jobs.start("a")
    (b,) = await jobs.start("b")
    task = next(task for task in range(10_000) if a.owns(task))
    failed, free = plans_fail(monkeypatch)
    pinned_sec = 0.5
    await b.register_lock(str(task), "b", expires_in_days=pinned_sec / 86_400)
    with anyio.fail_after(10):
        await failed.wait()
        assert not a.owns(task)
        await asyncio.sleep(pinned_sec)  # the pin is over
        free.set()
        before = a.metrics.heartbeats
        while not a.owns(task):
            await asyncio.sleep(0.01)
    assert a.metrics.heartbeats == before


async def test_twenty_workers_start_at_once_on_an_empty_database(jobs):
    await jobs.start(*(f"worker-{i}" for i in range(20)))
    assert set((await jobs.even()).values()) == {6}
    assert sum(job.am_i_leader() for job in jobs.jobs.values()) == 1


async def test_joins_that_come_together_are_few_rebalances(jobs, admin):
    await jobs.start("a")
    await jobs.start(*(f"b{i}" for i in range(10)))
    await jobs.even()
    cursor = await admin.execute("SELECT count(*) FROM sync_rebalance")
    assert (await cursor.fetchone())[0] <= 1 + 5


async def test_shares_follow_the_weights(jobs):
    await jobs.start("light")
    await jobs.start("heavy", weight=2)
    with anyio.fail_after(5):
        while jobs.counts() != {"light": 40, "heavy": 80}:
            await asyncio.sleep(0.01)


async def test_a_leaver_hands_everything_on_at_once(jobs):
    await jobs.start("a")
    await jobs.start("b")
    await jobs.start("c")
    await jobs.even()
    for name in ("c", "a"):
        await jobs.stop(name)
        await jobs.settled(2)
    assert jobs.counts() == {"b": 120}
    assert jobs["b"].am_i_leader()


async def test_moves_are_as_few_as_can_be(jobs):
    await jobs.start("a")
    await jobs.start("b")
    await jobs.start("c")
    before = {name: jobs[name].my_tokens for name in "abc"}
    await jobs.start("d")
    await jobs.even()
    assert all(jobs[name].my_tokens < before[name] for name in "abc")
    assert jobs["a"].metrics.tokens_moved == 120 + 60 + 40 + 30


async def test_a_dead_worker_is_expired_and_a_dead_leader_replaced(quick_jobs):
    await quick_jobs.start("a")
    await quick_jobs.start("b")
    await quick_jobs.start("c")
    await quick_jobs.even()
    await quick_jobs.crash("c")
    assert await quick_jobs.settled(5) == {"a": 60, "b": 60}
    await quick_jobs.crash("a")
    assert await quick_jobs.settled(5) == {"b": 120}
    assert quick_jobs["b"].am_i_leader()


async def test_the_leader_and_the_next_in_age_die_at_once(quick_jobs):
    for name in "abcd":
        await quick_jobs.start(name)
    await quick_jobs.even()
    await asyncio.gather(quick_jobs.crash("a"), quick_jobs.crash("b"))
    assert await quick_jobs.settled(8) == {"c": 60, "d": 60}


async def test_nothing_is_expired_before_the_timeout(quick_jobs):
    await quick_jobs.start("a")
    await quick_jobs.start("b")
    await quick_jobs.even()
    died_at = time.monotonic()
    await quick_jobs.crash("b")
    await quick_jobs.settled(5)
    # The last heartbeat was up to an interval before the death; its lease ends 1.2 s after it was
    # sent.
    assert time.monotonic() - died_at >= 1.5 - 0.3


async def test_a_worker_whose_row_was_deleted_joins_anew_by_itself(quick_jobs, admin):
    """Who deletes a row says that its worker is dead. If it is not, two own its tokens until its
    next heartbeat."""
    await quick_jobs.start("a")
    await quick_jobs.start("b")
    await quick_jobs.even()
    incarnation = quick_jobs["b"]._worker.identity.incarnation
    quick_jobs.watched = False
    await admin.execute("DELETE FROM sync_node WHERE name = 'b'")
    with anyio.fail_after(5):
        while quick_jobs["b"]._worker.identity.incarnation == incarnation:
            await asyncio.sleep(0.01)
    quick_jobs.watched = True
    assert await quick_jobs.even() == {"a": 60, "b": 60}
    assert quick_jobs["b"].metrics.rejoins == 1


async def test_all_workers_join_anew_when_all_rows_were_deleted(quick_jobs, admin):
    await quick_jobs.start("a", "b", "c")
    await quick_jobs.even()
    quick_jobs.watched = False
    await admin.execute("DELETE FROM sync_node")
    with anyio.fail_after(8):
        while any(job.metrics.rejoins == 0 for job in quick_jobs.jobs.values()):
            await asyncio.sleep(0.01)
    quick_jobs.watched = True
    assert set((await quick_jobs.even()).values()) == {40}


async def test_a_name_in_use_is_refused_when_its_holder_lives(quick_jobs, quick):
    await quick_jobs.start("a")
    with pytest.raises(NodeNameTaken) as caught:
        await Job("a", quick).start()
    assert caught.value.node == "a"
    assert await quick_jobs.settled() == {"a": 120}


async def test_a_restart_under_the_same_name_moves_nothing(quick_jobs, admin):
    await quick_jobs.start("a")
    await quick_jobs.start("b")
    await quick_jobs.even()
    before = quick_jobs["b"].my_tokens
    quick_jobs[
        "a"
    ]._worker.watch.timeout_sec = (
        60  # so that the new b comes before the leader expires the old one
    )
    await quick_jobs.crash("b")
    await quick_jobs.start("b")
    assert quick_jobs["b"].my_tokens == before
    epochs = await (
        await admin.execute("SELECT DISTINCT epoch & 4294967295 FROM sync_token WHERE node = 'b'")
    ).fetchall()
    assert all(epoch >= 2 for (epoch,) in epochs), (
        "the old incarnation's fences must not hold any more"
    )


async def test_a_forming_cluster_waits_for_its_minimum(make_config):
    async with cluster(make_config(total_tokens=60, minimum_nodes=2)) as jobs:
        starting = asyncio.ensure_future(jobs.start("a"))
        await asyncio.sleep(0.3)
        assert not starting.done()
        await jobs.start("b")
        await starting
        assert await jobs.even() == {"a": 30, "b": 30}
        await jobs.stop("a")
        assert await jobs.settled() == {"b": 60}, "a cluster that has formed goes on with fewer"


async def test_a_cluster_that_does_not_form_says_so_and_leaves_nothing_behind(make_config, admin):
    config = make_config(minimum_nodes=3)
    with pytest.raises(ClusterNotFormed) as caught:
        await Job("a", config, wait_on_enter=0.3).start()
    assert (caught.value.live_nodes, caught.value.minimum_nodes) == (1, 3)
    assert (await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone()) == (0,)


async def test_settings_that_disagree_with_the_cluster_are_refused(jobs, make_config):
    await jobs.start("a")
    for changed in ({"total_tokens": 121}, {"total_tokens": 120, "hash_function": "md5"}):
        with pytest.raises(ConfigError) as caught:
            await Job("b", make_config(**{"total_tokens": 120, **changed})).start()
        message = str(caught.value)
        assert ("120" in message and "121" in message) or (
            "md5" in message and "double_sha256" in message
        )
    assert await jobs.settled() == {"a": 120}


async def test_drain_hands_everything_on_and_undrain_takes_it_back(jobs):
    await jobs.start("a")
    await jobs.start("b")
    await jobs.even()
    await jobs["a"].drain()
    assert await jobs.settled() == {"a": 0, "b": 120}
    assert jobs["a"].am_i_leader() and jobs["a"].am_i_healthy(), (
        "it stays in the cluster, and leads it"
    )
    await jobs["a"].undrain()
    assert await jobs.even() == {"a": 60, "b": 60}


async def test_a_worker_that_is_expired_while_it_is_drained_joins_anew_without_tokens(
    quick_jobs, admin
):
    await quick_jobs.start("a", "b")
    quick_jobs.watched = False  # a deletion by hand leaves two owners until the next heartbeat
    await admin.execute("DELETE FROM sync_node WHERE name = 'a'")
    with anyio.fail_after(10):
        await quick_jobs["a"].drain()  # there is no row to say so in
    await admin.execute("DELETE FROM sync_node WHERE name = 'a'")
    with anyio.fail_after(10):
        while quick_jobs["a"].metrics.rejoins < 2:
            await quick_jobs["a"]._worker.changed()
        while (await owned_by(admin, "b")) < 120 or not quick_jobs["a"]._worker.ownership.known:
            await asyncio.sleep(0.01)
    assert [(n.name, n.state) for n in await quick_jobs["b"].get_active_nodes()] == [
        ("b", "active"),
        ("a", "draining"),
    ]
    assert quick_jobs.counts() == {"a": 0, "b": 120}


async def test_a_worker_that_is_undrained_while_it_joins_anew_takes_tokens_again(quick_jobs, admin):
    await quick_jobs.start("a", "b")
    await quick_jobs["a"].drain()
    quick_jobs.watched = False
    await admin.execute("DELETE FROM sync_node WHERE name = 'a'")
    with anyio.fail_after(10):
        await quick_jobs[
            "a"
        ].undrain()  # there is no row to say so in, neither now nor right after it begins anew
    assert quick_jobs["a"].metrics.rejoins == 1
    assert await quick_jobs.even() == {"a": 60, "b": 60}


async def owned_by(admin, name: str) -> int:
    cursor = await admin.execute("SELECT count(*) FROM sync_token WHERE node = %s", [name])
    return (await cursor.fetchone())[0]


async def test_the_last_worker_can_be_drained(jobs):
    await jobs.start("a")
    await jobs["a"].drain()
    assert jobs.counts() == {"a": 0}
    await jobs["a"].undrain()
    assert await jobs.settled() == {"a": 120}


async def test_start_and_stop_in_different_tasks(config):
    job = Job("a", config)
    await asyncio.create_task(job.start())
    assert len(job.my_tokens) == 120
    await asyncio.create_task(job.stop())
    await job.stop()
    assert not job.my_tokens


@pytest.fixture
async def a_job(config):
    async with Job("fixture", config) as job:
        yield job


async def test_a_job_works_as_a_fixture(a_job):
    assert len(a_job.my_tokens) == 120


async def test_a_start_that_is_cancelled_leaves_nothing_behind(make_config, admin):
    config = make_config(minimum_nodes=2)
    job = Job("a", config)
    starting = asyncio.create_task(job.start())
    with anyio.fail_after(5):
        while job._engine._supervisor is None:
            await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert (await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone()) == (0,)


async def test_an_error_in_the_body_passes_and_the_job_leaves(config, admin):
    with pytest.raises(ZeroDivisionError):
        async with Job("a", config):
            raise ZeroDivisionError
    assert (await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone()) == (0,)


async def test_cancelling_the_body_passes_and_the_job_leaves(config, admin):
    inside = asyncio.Event()

    async def body() -> None:
        async with Job("a", config):
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone()) == (0,)


async def test_what_ends_the_job_interrupts_the_body_and_reaches_the_user_as_itself(quick, admin):
    async def taken_over() -> None:
        async with Job("a", quick) as job:
            # Another incarnation of the name that is alive: the job is expired, and cannot join
            # again.
            await admin.execute("UPDATE sync_node SET incarnation = gen_random_uuid()")
            beating = asyncio.create_task(beat())
            try:
                await asyncio.sleep(60)
            finally:
                beating.cancel()
                assert not job.my_tokens

    async def beat() -> None:
        while True:
            await admin.execute("UPDATE sync_node SET beat = beat + 1")
            await asyncio.sleep(0.05)

    with anyio.fail_after(10), pytest.raises(NodeNameTaken):
        await taken_over()
    task = asyncio.current_task()
    assert not hasattr(task, "cancelling") or task.cancelling() == 0


async def test_standalone_owns_everything_without_a_database():
    async with Job("alone") as job:
        assert len(job.my_tokens) == 10_000
        assert job.can_claim_task("x") and job.am_i_healthy()
        assert await job.get_active_nodes() == []
        assert (await job.owner_of("x")).node == "alone"
        await job.add_tasks(["x", "y"])
        assert await job.write_audit() == 2
        assert [row["task_id"] for row in await job.get_audit()] == ["x", "y"]
        result = await job.run_batch(["x", "z"], _nothing)
        assert (result.completed_here, result.completed_elsewhere) == ({"z"}, {"x"})
        await job.drain()
        assert not job.my_tokens


async def _nothing(claim) -> None:
    """A handler that succeeds."""
