"""A claim that is lost, beside every other way in which a task is cancelled: whose cancellation it
was is never mistaken.

Each runs on plain asyncio, with eager tasks, on uvloop where it is installed, and inside anyio
scopes.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from typing import Any
from weakref import ref

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from jobsync_async import Claim, Job, OwnershipLost
from jobsync_async.host.interruption import Interruption
from tests.handling import lose

COUNTED = sys.version_info >= (3, 11)
needs_counts = pytest.mark.skipif(not COUNTED, reason="Python 3.10 does not count cancellations")


async def soon(what: Callable[[], object]) -> None:
    for _ in range(3):
        await asyncio.sleep(0)
    what()


def cancellations(task: asyncio.Task[Any] | None = None) -> int:
    task = task or asyncio.current_task()
    return task.cancelling() if COUNTED else 0


def test_a_claim_that_is_lost_ends_its_body_and_leaves_no_trace(run):
    async def main() -> None:
        async with Job("a") as job:
            losing = asyncio.ensure_future(soon(lambda: lose(job)))
            with pytest.raises(OwnershipLost, match="lost by the test"):
                async with job.claim("x") as claim:
                    await asyncio.sleep(60)
            assert claim.leaving == "lost"
            assert cancellations() == 0
            await losing
            # Past the time of a second cancellation: none comes after the end.
            await asyncio.sleep(0.15)

    run(main)


def test_a_task_group_that_failed_before_changes_nothing(run):
    """On Python 3.11 and 3.12 it leaves the count of cancellations raised."""
    if not COUNTED:
        pytest.skip("asyncio.TaskGroup came with Python 3.11")

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError

    async def main() -> None:
        async with Job("a") as job:
            with pytest.raises(OwnershipLost):
                async with job.claim("x"):
                    try:
                        async with asyncio.TaskGroup() as group:
                            group.create_task(fail())
                    except Exception:  # the group that the task group raises
                        assert cancellations() == (1 if sys.version_info < (3, 13) else 0)
                    losing = asyncio.ensure_future(soon(lambda: lose(job)))
                    await asyncio.sleep(60)
            await losing

    run(main)


ORDERS = {
    "cancelled, then lost": ("cancel", "lose"),
    "lost, then cancelled": ("lose", "cancel"),
    "cancelled, lost in its cleanup": ("cancel", "wait", "lose"),
    "lost, cancelled in its cleanup": ("lose", "wait", "cancel"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_cancellation_by_somebody_else_is_never_swallowed(run, order):
    if not COUNTED and ORDERS[order] == ("lose", "cancel"):
        pytest.skip("Python 3.10 makes one cancellation of two that come at the same moment")

    async def main() -> None:
        async with Job("a") as job:
            entered = asyncio.Event()

            async def work() -> None:
                async with job.claim("x"):
                    entered.set()
                    try:
                        await asyncio.sleep(60)
                    finally:
                        await asyncio.sleep(0.03)

            task = asyncio.create_task(work())
            await entered.wait()
            await asyncio.sleep(0)
            for step in ORDERS[order]:
                if step == "cancel":
                    task.cancel()
                elif step == "lose":
                    lose(job)
                else:
                    await asyncio.sleep(0.01)
            await asyncio.wait([task])
            assert task.cancelled(), task

    run(main)


@needs_counts
@pytest.mark.parametrize("first", ["lost", "timeout"])
def test_a_timeout_of_asyncio_around_it_is_a_timeout(run, first):
    async def main() -> None:
        async with Job("a") as job:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02), job.claim("x"):
                    loop = asyncio.get_running_loop()
                    loop.call_later(0.01 if first == "lost" else 0.03, lose, job)
                    try:
                        await asyncio.sleep(60)
                    finally:
                        await asyncio.sleep(0.05)
            assert cancellations() == 0

    run(main)


@pytest.mark.parametrize("first", ["lost", "timeout"])
def test_an_anyio_timeout_around_it_catches_its_own(run, first):
    async def main() -> None:
        async with Job("a") as job:
            with anyio.move_on_after(0.02) as scope:
                async with job.claim("x"):
                    asyncio.get_running_loop().call_later(
                        0.01 if first == "lost" else 0.03, lose, job
                    )
                    try:
                        await anyio.sleep(60)
                    finally:
                        with anyio.CancelScope(shield=True):
                            await asyncio.sleep(0.05)
            assert scope.cancelled_caught
            assert cancellations() == 0

    run(main)


def test_an_anyio_timeout_inside_of_it_works_and_does_not_catch_the_loss(run):
    async def main() -> None:
        async with Job("a") as job:
            with pytest.raises(OwnershipLost):
                async with job.claim("x"):
                    with anyio.move_on_after(0.01) as scope:
                        await anyio.sleep(60)
                    assert scope.cancelled_caught
                    with anyio.move_on_after(30) as scope:
                        asyncio.get_running_loop().call_later(0.01, lose, job)
                        await anyio.sleep(60)
            assert not scope.cancelled_caught

    run(main)


@pytest.mark.parametrize("kind", ["anyio", "asyncio"])
def test_tasks_that_the_body_has_started_end_with_it(run, kind):
    if kind == "asyncio" and not COUNTED:
        pytest.skip("asyncio.TaskGroup came with Python 3.11")

    async def main() -> None:
        ended = []

        async def child(name: str) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(name)

        async with Job("a") as job:
            asyncio.get_running_loop().call_later(0.02, lose, job)
            with pytest.raises(OwnershipLost):
                async with job.claim("x"):
                    if kind == "anyio":
                        async with anyio.create_task_group() as group:
                            group.start_soon(child, "one")
                            group.start_soon(child, "two")
                    else:
                        async with asyncio.TaskGroup() as group:
                            group.create_task(child("one"))
                            group.create_task(child("two"))
            assert sorted(ended) == ["one", "two"]

    run(main)


def test_an_anyio_group_around_it_that_is_cancelled_ends_it(run):
    async def main() -> None:
        async with Job("a") as job:
            async with anyio.create_task_group() as group:

                async def work() -> None:
                    async with job.claim("x"):
                        await anyio.sleep(60)

                group.start_soon(work)
                await asyncio.sleep(0.01)
                group.cancel_scope.cancel()
            async with job.claim("x"):
                pass

    run(main)


def test_what_anyio_shields_is_not_cut_off_and_what_follows_is(run):
    async def main() -> None:
        steps = []
        async with Job("a") as job:
            loop = asyncio.get_running_loop()

            def lose_and_sleep() -> None:
                loop.call_soon_threadsafe(lose, job)
                time.sleep(0.05)

            with pytest.raises(OwnershipLost):
                async with job.claim("x"):
                    while True:
                        await to_thread.run_sync(lose_and_sleep)
                        steps.append("a thread has returned")
                        with anyio.CancelScope(shield=True):
                            await asyncio.sleep(0.01)
                            steps.append("as has what was shielded")
            assert steps in (
                ["a thread has returned"],
                ["a thread has returned", "as has what was shielded"],
            )

    run(main)


def test_a_body_that_swallows_its_cancellation_is_cancelled_again_after_growing_waits(run):
    async def main() -> None:
        times: list[float] = []

        async def stubborn(job: Job) -> None:
            async with job.claim("x"):
                while len(times) < 4:
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        times.append(time.monotonic())

        async with Job("a") as job:
            working = asyncio.create_task(stubborn(job))
            await asyncio.sleep(0.01)
            lost_at = time.monotonic()
            lose(job)
            with pytest.raises(OwnershipLost):
                await working
        # Not from one to the next: the first may be delivered late.
        waited = [at - lost_at for at in times]
        assert all(
            wait >= least for wait, least in zip(waited, (0, 0.09, 0.29, 0.69), strict=True)
        ), waited

    run(main)


def test_a_claim_that_its_own_body_loses_is_cancelled_at_the_next_await_that_is_not_shielded(run):
    async def main() -> None:
        async with Job("a") as job:
            with pytest.raises(OwnershipLost):
                async with job.claim("x"):
                    lose(job)
                    with anyio.CancelScope(shield=True):
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(60)
                    pytest.fail("must have been cancelled")

    run(main)


async def test_an_interruption_once_does_not_get_lost_in_what_the_body_awaits_that_is_cancelled():
    order = []

    async def body() -> None:
        try:
            await other
        except asyncio.CancelledError:
            order.append("the other's")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            order.append("ours")

    other = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(body())
    interruption = Interruption(task)
    await asyncio.sleep(0)
    other.cancel()
    interruption.once()
    await task
    assert order == ["the other's", "ours"]
    assert interruption.count == 1


def test_work_that_has_ended_leaves_nothing_for_the_collector(run):
    """What waits for it holds up the event loop for long, when there are many ids."""
    ended: list[ref[Claim]] = []

    async def handle(claim: Claim) -> None:
        ended.append(ref(claim))

    async def main() -> None:
        async with Job("a") as job:
            await job.run_batch(range(8), handle, name="loads what it needs")
            gc.collect()
            gc.disable()
            try:
                await job.run_batch(range(100), handle)
                for number in range(100):
                    async with job.claim(number) as claim:
                        ended.append(ref(claim))
                del claim
                # What was cancelled at the end of a batch may keep its last piece.
                assert sum(one() is not None for one in ended) <= 16
            finally:
                gc.enable()

    run(main)
