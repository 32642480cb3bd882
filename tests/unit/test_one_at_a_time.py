"""One worker works on one id once at a time.

Each runs on plain asyncio, with eager tasks, on uvloop where it is installed, and inside anyio
scopes.
"""

from __future__ import annotations

import asyncio

import pytest

from jobsync_async import Job, NotOwner, UsageError
from tests.handling import lose


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
