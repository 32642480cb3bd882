"""A claim that is lost, beside every other way in which a task is cancelled: whose cancellation it was is never mistaken.

Each runs on plain asyncio, with eager tasks, on uvloop where it is installed, and inside anyio scopes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from jobsync_async import Job, NotOwner, OwnershipLost, UsageError
from jobsync_async.host.interruption import Interruption

COUNTED = sys.version_info >= (3, 11)
needs_counts = pytest.mark.skipif(not COUNTED, reason="Python 3.10 does not count cancellations")


def plainly(main: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(main())


def with_eager_tasks(main: Callable[[], Awaitable[Any]]) -> None:
    if sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")

    async def eagerly() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await main()

    asyncio.run(eagerly())


def on_uvloop(main: Callable[[], Awaitable[Any]]) -> None:
    uvloop = pytest.importorskip("uvloop")
    anyio.run(main, backend_options={"loop_factory": uvloop.new_event_loop})


def inside_anyio_scopes(main: Callable[[], Awaitable[Any]]) -> None:
    async def scoped() -> None:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope(shield=True):
                group.start_soon(main)
                await anyio.lowlevel.checkpoint()

    anyio.run(scoped)


@pytest.fixture(params=[plainly, with_eager_tasks, on_uvloop, inside_anyio_scopes])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], None]:
    return request.param


def lose(job: Job) -> None:
    """All tokens are lost, as when the lease ends."""
    worker = job._worker
    worker.publish(worker.ownership.forget(), why="lost by the test")


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
            await asyncio.sleep(0.15)  # past the time of a second cancellation: none comes after the end

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
                    asyncio.get_running_loop().call_later(0.01 if first == "lost" else 0.03, lose, job)
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
            asyncio.get_running_loop().call_later(0.01, lose, job)
            with pytest.raises(OwnershipLost):
                async with job.claim("x"):
                    while True:
                        await to_thread.run_sync(time.sleep, 0.05)
                        steps.append("a thread has returned")
                        with anyio.CancelScope(shield=True):
                            await asyncio.sleep(0.01)
                            steps.append("as has what was shielded")
            assert steps in (["a thread has returned"], ["a thread has returned", "as has what was shielded"])

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
        waited = [at - lost_at for at in times]  # not from one to the next: the first may be delivered late
        assert all(wait >= least for wait, least in zip(waited, (0, 0.09, 0.29, 0.69), strict=True)), waited

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


# -- one at a time


def test_one_worker_works_on_one_id_once_at_a_time_in_the_order_of_coming(run):
    async def main() -> None:
        inside = 0
        order = []

        async def work(job: Job, number: int) -> None:
            nonlocal inside
            async with job.claim("x"):
                inside += 1
                assert inside == 1
                order.append(number)
                await asyncio.sleep(0.005)
                inside -= 1

        async with Job("a") as job:
            await asyncio.gather(*(work(job, number) for number in range(5)))
        assert order == [0, 1, 2, 3, 4]

    run(main)


def test_who_waits_for_a_turn_may_be_cancelled_and_hears_when_the_token_goes(run):
    async def main() -> None:
        async def work(job: Job) -> None:
            async with job.claim("x"):
                pytest.fail("must not be entered")

        async with Job("a") as job:
            holding = job._hold("x")
            await holding.enter()
            cancelled, refused = asyncio.create_task(work(job)), asyncio.create_task(work(job))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            await asyncio.sleep(0.01)
            assert cancelled.cancelled()
            assert not refused.done()
            lose(job)
            with pytest.raises(NotOwner):
                await refused
            holding.leave()

    run(main)


def test_whoever_would_wait_for_itself_is_told_so(run):
    async def main() -> None:
        async with Job("a") as job, job.claim("x"):

            async def again() -> None:
                async with job.claim("x"):
                    pass

            with pytest.raises(UsageError, match="wait for itself"):
                await again()
            with pytest.raises(UsageError, match="wait for itself"):
                await asyncio.create_task(again())
            with pytest.raises(UsageError, match="wait for itself"):
                await job.run_batch(["x"], lambda claim: None)

    run(main)


def test_a_scope_is_entered_once(run):
    async def main() -> None:
        async with Job("a") as job:
            scope = job.claim("x")
            async with scope:
                pass
            with pytest.raises(UsageError, match="once"):
                async with scope:
                    pass
            async with job.claim("x"):
                pass

    run(main)
