"""Whom an announcement names, and that those who are not named miss nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import anyio
import psycopg
import pytest

from jobsync_async import CoordinationConfig
from jobsync_async.postgres import tokens
from jobsync_async.postgres.cluster_version import MOST_NAMED, concerned
from tests.hands import Hand, hand

TOKENS = 12

Heard = Callable[[], "anyio.abc.ObjectReceiveStream[str]"]


@pytest.fixture
def config(make_config) -> CoordinationConfig:
    return make_config(total_tokens=TOKENS, hash_function="modulo")


@pytest.fixture
async def join(config) -> AsyncIterator[Callable[[str], object]]:
    async with AsyncExitStack() as stack:

        async def make(name: str) -> Hand:
            worker = await stack.enter_async_context(hand(config, name))
            assert await worker.join() is None
            return worker

        yield make


@pytest.fixture
async def heard(config, dsn) -> AsyncIterator[Callable[[], object]]:
    """The payloads that came since it was asked last."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(f"LISTEN {config.channel}".encode())

        async def payloads() -> list[str]:
            # Whatever was committed before has arrived before the answer.
            await connection.execute("SELECT")
            return [notify.payload async for notify in connection.notifies(timeout=0)]

        yield payloads


async def age(worker: Hand) -> int:
    await worker.read()
    found = worker.feed.age
    assert found is not None
    return found


@pytest.mark.needs("sessions")
async def test_a_join_and_the_first_distribution_name_nobody(join, heard):
    a = await join("a")
    assert await heard() == ["1"]
    await a.lead()
    assert await heard() == ["2"]


@pytest.mark.needs("sessions")
async def test_a_rebalance_names_who_gives_and_who_gets_and_the_last_hand_off_who_has_all(
    join, heard
):
    a = await join("a")
    await a.lead()
    b = await join("b")
    await a.lead()
    await a.acknowledge()
    await heard()
    c = await join("c")
    await a.lead()  # of six tokens each, two go to c
    ages = [await age(worker) for worker in (a, b, c)]
    assert await heard() == ["6", f"7 {ages[0]} {ages[1]} {ages[2]}"]
    assert len(await a.acknowledge()) == 2
    assert await heard() == [], "not all has come"
    assert (await c.read()).coming
    assert len(await b.acknowledge()) == 2
    assert await heard() == [f"9 {ages[2]}"]
    assert (await c.read()).version == 9
    assert not (await c.read()).coming


@pytest.mark.needs("sessions")
async def test_a_death_by_the_clock_names_nobody_and_one_that_was_reported_the_receivers(
    join, heard, admin
):
    a, b, c = [await join(name) for name in "abc"]
    await a.lead()
    last = await c.last_beat()
    await heard()
    await a.lead(expire=[last])
    assert await heard() == ["5"]
    await admin.execute("DELETE FROM sync_node WHERE name = 'b'")
    await a.lead()
    assert await heard() == [f"6 {await age(a)}"]
    assert b.me.name == "b"


@pytest.mark.needs("sessions")
async def test_a_token_that_nobody_receives_is_announced_to_all(join, heard):
    a = await join("a")
    await a.lead()
    b = await join("b")
    await a.lead()
    await b.store.membership.set_state("b", "draining")
    await heard()
    assert len(await a.acknowledge()) == TOKENS // 2
    assert await heard() == ["6"]


async def test_an_acknowledgement_that_hands_nothing_on_leaves_no_trace(join, heard, admin):
    a = await join("a")
    await a.lead()
    await join("b")
    await a.lead()
    await heard()
    async with admin.transaction():
        await admin.execute("SELECT FROM sync_token FOR KEY SHARE")
        assert await a.acknowledge() == []
    assert await heard() == []
    assert (await a.read()).version == 4, "it has not changed anything either"
    assert len(await a.acknowledge()) == TOKENS // 2


@pytest.mark.needs("sessions")
async def test_more_receivers_than_can_be_named_are_not_named(join, heard, monkeypatch):
    monkeypatch.setattr(tokens, "MOST_NAMED", 1)
    a = await join("a")
    await a.lead()
    for name in "bc":
        await join(name)
    await a.lead()
    await heard()
    await a.acknowledge()
    assert await heard() == ["6"]


def test_who_is_concerned_is_named_in_order_and_never_more_than_a_payload_can_hold():
    assert concerned(None) == ""
    assert concerned([]) == " 0"
    assert concerned([7, 3, 7]) == " 3 7"
    assert concerned(range(MOST_NAMED + 1)) == ""
    assert len("9" * 18 + concerned(10**10 + n for n in range(MOST_NAMED))) < 8000


async def test_a_forged_announcement_that_names_others_does_not_hide_a_true_one(quick_jobs, admin):
    a, b = await quick_jobs.start("a", "b")
    (version,) = await (await admin.execute("SELECT version FROM sync_cluster")).fetchone()
    for worker in (a, b):
        assert worker.my_tokens
    await admin.execute("SELECT pg_notify('sync_changes', %s)", [f"{version + 1} 0"])
    await a.register_lock("x", "nobody")
    with anyio.fail_after(10):
        while a.owns("x") or b.owns("x"):
            await anyio.sleep(0.01)


async def test_who_is_not_named_reads_what_changed_when_its_next_heartbeat_tells(quick_jobs):
    jobs = await quick_jobs.start("a", "b", "c")
    versions = [job._worker.version for job in jobs]
    await jobs[0].register_lock("x", "nobody")
    with anyio.fail_after(10):
        while len({job._worker.version for job in jobs} | set(versions)) != len(set(versions)) + 1:
            await anyio.sleep(0.01)
    assert all(job.metrics.listener_reconnects == 0 for job in jobs)
