"""What asks without I/O may be asked from any thread, at any moment, and is right."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from jobsync_async import Job
from jobsync_async.core.ownership import Ownership
from jobsync_async.core.rows import Snapshot, TokenRow


@pytest.fixture(autouse=True)
def free_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@contextmanager
def threads(*asks: Callable[[], object]) -> Iterator[None]:
    """Ask again and again, each in a thread of its own, while the block runs; raises what one of
    them raised."""
    over = threading.Event()
    raised: list[BaseException] = []

    def run(ask: Callable[[], object]) -> None:
        try:
            while not over.is_set():
                ask()
        except BaseException as error:
            raised.append(error)

    started = [threading.Thread(target=run, args=(ask,)) for ask in asks]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in started:
            thread.join()
    if raised:
        raise raised[0]


async def test_the_local_questions_are_right_in_threads_while_tokens_come_and_go(quick):
    job = Job("a", quick)
    async with job:
        everything = frozenset(range(120))
        kept = [task for task in range(1000) if job.task_to_token(task) < 60]

        def ask() -> None:
            assert job.my_tokens <= everything
            assert all(job.task_to_token(task) < 60 for task in job.filter_owned(kept))
            assert job.owns(kept[0]) in (True, False) and job.can_claim_task(kept[0]) in (
                True,
                False,
            )
            assert job.lease_remaining_sec >= 0 and job.token_version >= 0 and repr(job)
            assert job.am_i_healthy() in (True, False) and job.am_i_leader() in (True, False)
            assert repr(job.metrics)

        with threads(ask, ask, ask):
            for _ in range(8):
                async with Job("b", quick):
                    pass
                await job.drain()
                await job.undrain()
        while len(job.my_tokens) < 120:
            await asyncio.sleep(0.01)


async def test_no_thread_leaves_an_old_answer_behind(config):
    """What one thread makes while another changes it must not be kept as the answer of
    afterwards."""
    me = uuid4()
    ownership: Ownership[str] = Ownership(me)
    version = 0

    def read(tokens: range, others: range) -> None:
        nonlocal version
        rows = [TokenRow(token, 1, version + 1, False) for token in tokens]
        ownership.apply(
            Snapshot(
                me, ownership.version, version + 1, 1, None, "active", True, rows, list(others)
            ),
            now=0,
        )
        version += 1

    read(range(1000), range(0))
    with threads(*[lambda: len(ownership.owned)] * 3):
        for _ in range(1500):
            read(range(0), range(500))
            assert len(ownership.owned) == 500
            read(range(500), range(0))
            assert len(ownership.owned) == 1000


async def test_a_token_that_stays_is_owned_at_every_moment(config):
    """While other tokens come and go, and while its own row is read again."""
    me = uuid4()
    ownership: Ownership[str] = Ownership(me)

    def read(tokens: list[int], others: list[int], version: int) -> None:
        rows = [TokenRow(token, 1, version, False) for token in tokens]
        ownership.apply(
            Snapshot(me, ownership.version, version, 1, None, "active", True, rows, others), now=0
        )

    read(list(range(200)), [], 1)

    def ask() -> None:
        assert all(token in ownership.grants for token in range(100))
        assert ownership.owned.issuperset(range(100))

    with threads(ask, ask, ask):
        for version in range(2, 2000):
            read(list(range(100)), list(range(100, 200)), version)
            read(list(range(200)), [], version)


async def test_a_reader_that_the_garbage_collector_finds_in_a_thread_wakes_the_loop(jobs):
    (a,) = await jobs.start("a")
    kept = [a.token_changes()]
    await kept[0].__anext__()
    starting = asyncio.ensure_future(jobs.start("b"))
    while not a._worker.ownership.busy():
        await asyncio.sleep(0.005)
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    await asyncio.wait_for(starting, 5)
    assert jobs.counts() == {"a": 60, "b": 60}
