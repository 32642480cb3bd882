"""Calls of a job from other event loops, from threads, and before its name is bound."""

from __future__ import annotations

import asyncio
import re
import threading

import anyio
import pytest

from jobsync_async import Job, UsageError
from tests.integration.test_life import names

# -- the name before it is bound -------------------------------------------------------------------


@pytest.mark.parametrize("clustered", [True, False], ids=["in a cluster", "standalone"])
async def test_on_rebalance_that_uses_the_name_before_it_is_bound_is_told_what_to_write(
    config, admin, clustered
):
    seen = []

    def on_rebalance() -> None:
        seen.append(len(job.my_tokens))

    with pytest.raises(
        UsageError, match=r"write `job = Job\(…\)` first, and then `async with job:`"
    ):
        async with Job(
            "worker-01", config if clustered else None, on_rebalance=on_rebalance
        ) as job:
            pytest.fail("entered")
    job = Job("worker-01", config if clustered else None, on_rebalance=on_rebalance)
    async with job:
        assert seen == [120 if clustered else 10_000]
    assert await names(admin) == []


# -- from elsewhere --------------------------------------------------------------------------------


def in_a_thread(function) -> list[BaseException]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except Exception as error:  # whatever it is: the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return raised


@pytest.mark.parametrize("clustered", [True, False], ids=["in a cluster", "standalone"])
async def test_calls_from_another_event_loop_are_refused_at_once_and_name_both(config, clustered):
    async with Job("a", config if clustered else None) as job:
        changes, scope = job.token_changes(), job.claim("x")
        async with job.claim("y") as claim:
            here = repr(asyncio.get_running_loop())
            calls = [
                job.stop,
                job.drain,
                job.undrain,
                changes.__anext__,
                scope.__aenter__,
                job.write_audit,
                job.list_locks,
                job.get_active_nodes,
                job.get_coordination_status,
                lambda: job.owner_of("x"),
                lambda: job.add_task("x"),
                lambda: job.fence(None, claim),
                lambda: job.run_batch(["x"], print),
                lambda: job.run_owned(["x"], print),
                lambda: asyncio.sleep(0, job.claim("x")),
                lambda: asyncio.sleep(0, job.token_changes()),
            ]
            for call in calls:

                async def main(call=call) -> None:
                    await call()

                (error,) = in_a_thread(lambda main=main: asyncio.run(main()))
                assert isinstance(error, UsageError), (call, error)
                assert (
                    here in str(error)
                    and len(re.findall("<_.*?EventLoop|<uvloop", str(error))) == 2
                ), error
        for call in (lambda: job.claim("x"), job.token_changes):
            (error,) = in_a_thread(call)
            assert isinstance(error, UsageError) and "run_coroutine_threadsafe" in str(error)
        assert job.owns("x")


async def test_a_thread_may_call_through_the_loop(config):
    async with Job("a", config) as job:
        loop = asyncio.get_running_loop()

        def call() -> str:
            return asyncio.run_coroutine_threadsafe(job.owner_of("x"), loop).result(5).node

        assert await asyncio.to_thread(call) == "a"
        assert (
            await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(job.owner_of, "x").node)
            == "a"
        )


def test_a_job_whose_event_loop_was_closed_can_be_started_on_another():
    job = Job("a")

    async def start() -> None:
        await job.start()
        assert job.owns("x")

    asyncio.run(start())
    asyncio.run(start())

    async def use() -> None:
        async with job:
            assert job.owns("x")

    asyncio.run(use())
    assert repr(job) == "<Job 'a' stopped>"
