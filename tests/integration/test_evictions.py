"""Putting a worker out that does not listen: never two owners, whoever leads, dies, or comes
back."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import anyio
import psycopg
import pytest

from jobsync_async import CoordinationError, Job, OwnershipLost
from jobsync_async.postgres.store import Store
from jobsync_async.testing import Cluster
from tests.clusters import cluster
from tests.handling import owned_by
from tests.hands import hand
from tests.integration.test_versions import old_row
from tests.waiting import until

TOTAL = 120
WAITING = "SELECT FROM pg_locks WHERE NOT granted"


async def rows(admin, query: str):
    return await (await admin.execute(query)).fetchall()


@pytest.fixture
async def operator(quick):
    """The statements of somebody who steers."""
    store = None

    async def opened():
        nonlocal store
        store = store or await Store.open(quick, "operator")
        return store

    yield opened
    if store is not None:
        await store.close()


async def test_a_worker_that_listens_stops_at_once_and_others_have_its_tokens(
    quick_jobs, operator, admin
):
    a, b, c = await quick_jobs.start("a", "b", "c")
    await quick_jobs.even()
    steering = (await operator()).steering
    held = asyncio.Event()

    async def hold() -> None:
        async with b.claim(owned_by(b)[0]):
            held.set()
            await asyncio.sleep(60)

    holding = asyncio.create_task(hold())
    await held.wait()
    began = time.monotonic()
    done = await steering.evict("b", "anna", "stuck on invoice-7")
    assert (done.changed, done.by, done.reason, done.older) == (
        True,
        "anna",
        "stuck on invoice-7",
        False,
    )
    assert done.row.startswith("b (evicted, ")
    del quick_jobs.jobs["b"]
    await until(lambda: len(a.my_tokens | c.my_tokens) == TOTAL)
    took = time.monotonic() - began
    print(f"others had its tokens after {took:.3f} s")
    assert took < 1.2, "it was not waited for the end of its lease"
    with pytest.raises(OwnershipLost):
        await holding
    assert not b.my_tokens
    with pytest.raises(
        CoordinationError, match=r"evicted by anna.*stuck on invoice-7.*evict b --allow"
    ):
        await b.stop()
    with pytest.raises(CoordinationError, match="jobsync-async evict b --allow"):
        await quick_jobs.start("b")
    quick_jobs.jobs.pop("b", None)
    assert await steering.allow("b", "anna") and not await steering.allow("b", "anna")
    await quick_jobs.start("b")
    assert await quick_jobs.even() == {"a": 40, "b": 40, "c": 40}


async def test_a_worker_that_is_cut_off_and_evicted_acts_until_its_lease_ends_and_not_longer(
    quick, operator, admin
):
    """Neither does it act any longer, nor has anybody its tokens before; also if it led, and if the
    next leader dies meanwhile."""
    async with Cluster(quick) as jobs:  # which looks for two owners at every turn
        a, _, c = [(await jobs.start(name))[0] for name in ("a", "b", "c")]
        await jobs.even()
        assert a.am_i_leader()
        steering = (await operator()).steering
        with jobs.partition("a"):
            began = time.monotonic()
            done = await steering.evict("a", "anna")
            assert len(a.my_tokens) == 40, "it does not know"
            ((leader, term),) = await rows(admin, "SELECT leader, term FROM sync_cluster")
            assert (leader, term) == ("b", 2)
            await jobs.crash("b")
            assert await rows(admin, f"SELECT name FROM sync_node WHERE name = '{done.row}'")
            await until(lambda: not a.my_tokens)
            lost = time.monotonic() - began
            await until(lambda: len(c.my_tokens) == TOTAL, 15)
            print(f"lost after {lost:.2f} s, taken after {time.monotonic() - began:.2f} s")
            assert lost <= quick.lease_sec + 0.3
        del jobs.jobs["a"]
        await until(lambda: a.failure)
        with pytest.raises(CoordinationError, match="evicted by anna"):
            await a.stop()


async def test_a_handler_that_ignores_its_end_keeps_others_waiting_for_its_lease_alone(
    quick_jobs, quick, operator, admin
):
    a, b = await quick_jobs.start("a", "b")
    await quick_jobs.even()
    over, entered = asyncio.Event(), asyncio.Event()

    async def never_ends() -> None:
        async with b.claim(owned_by(b)[0]):
            entered.set()
            while not over.is_set():
                with suppress(asyncio.CancelledError):
                    await over.wait()

    stubborn = asyncio.ensure_future(never_ends())
    try:
        await entered.wait()
        quick_jobs.watched = False  # the work goes on, as after any loss of a lease
        began = time.monotonic()
        await (await operator()).steering.evict("b", "anna")
        del quick_jobs.jobs["b"]
        await until(lambda: len(a.my_tokens) == TOTAL)
        took = time.monotonic() - began
        print(f"others had its tokens after {took:.2f} s")
        assert took > quick.heartbeat_timeout_sec * 0.8
        assert await rows(admin, "SELECT name FROM sync_node") == [("a",)]
    finally:
        over.set()
    with pytest.raises(OwnershipLost):
        await stubborn
    with pytest.raises(CoordinationError, match="evicted by anna"):
        await b.stop()


async def test_of_a_join_and_an_eviction_that_wait_for_the_lock_the_later_one_sees_the_earlier(
    quick, operator, admin, dsn
):
    steering = (await operator()).steering
    async with Job("a", quick), hand(quick, "b") as b:
        for eviction_first in (True, False):
            async with await psycopg.AsyncConnection.connect(dsn) as other:
                await other.execute("SELECT FROM sync_cluster FOR UPDATE")
                acts = [
                    lambda: steering.evict("b", "anna"),
                    b.join,
                ]
                waiting = []
                for number, act in enumerate(acts if eviction_first else reversed(acts), 1):
                    waiting.append(asyncio.ensure_future(act()))
                    with anyio.fail_after(5):
                        while len(await rows(admin, WAITING)) < number:
                            await asyncio.sleep(0.005)
                await other.commit()
                ends = await asyncio.gather(*waiting, return_exceptions=True)
            names = [name for (name,) in await rows(admin, "SELECT name FROM sync_node")]
            assert "b" not in names
            if eviction_first:
                assert isinstance(ends[1], CoordinationError) and ends[0].row is None
                assert await steering.allow("b", "anna")
            else:
                assert ends[0] is None and ends[1].row in names
                assert not await b.beat()


async def test_heartbeat_and_eviction_come_one_after_the_other_and_the_second_sees_the_first(
    quick, operator, admin
):
    async with Job("a", quick), hand(quick, "b") as b:
        assert await b.join() is None
        ((beat,),) = await rows(admin, "SELECT beat FROM sync_node WHERE name = 'b'")
        assert await b.beat()
        done = await (await operator()).steering.evict("b", "anna")
        assert not await b.beat()
        found = "SELECT name, beat, state, incarnation FROM sync_node WHERE name <> 'a'"
        assert await rows(admin, found) == [(done.row, beat + 1, "draining", b.me.incarnation)]
        assert not (await (await operator()).steering.evict("b", "berta")).changed
        ((kind, by, reason),) = await rows(
            admin, "SELECT kind, by, reason FROM sync_history WHERE kind = 'evicted'"
        )
        assert (kind, by, reason) == ("evicted", "anna", None)


async def test_a_name_may_be_evicted_before_it_comes_and_the_only_worker_too(quick, operator):
    steering = (await operator()).steering
    done = await steering.evict("a b", "anna")
    assert done.changed and done.row is None
    with pytest.raises(CoordinationError, match="evict 'a b' --allow"):
        await Job("a b", quick).start()
    assert await steering.allow("a b", "anna")
    async with cluster(quick) as jobs:
        (alone,) = await jobs.start("a b")
        assert (await steering.evict("a b", "anna")).changed
        await until(lambda: alone.failure is not None)
        del jobs.jobs["a b"]
        with pytest.raises(CoordinationError, match="evicted"):
            await alone.stop()
        (other,) = await jobs.start("c")
        await until(lambda: len(other.my_tokens) == TOTAL)


async def test_a_worker_of_0_1_0_is_told_apart_for_it_knows_no_eviction(quick, operator, admin):
    async with Job("a", quick):
        await old_row(admin, "old")
        done = await (await operator()).steering.evict("old", "anna")
        assert done.older and done.row.startswith("old (evicted")
        await admin.execute("DELETE FROM sync_node WHERE name LIKE 'old%%'")
