"""How a batch tells of its progress."""

from __future__ import annotations

import asyncio
import io
import sys
from itertools import pairwise

import anyio
import pytest
from rich.console import Console

from jobsync_async import Job, UsageError
from jobsync_async.progress import BatchProgress, RichProgress

IDS = [f"id-{number}" for number in range(40)]


def counts(told: BatchProgress) -> tuple[int, int, int, int]:
    return told.completed_here, told.completed_elsewhere, told.failed, told.remaining


async def test_it_tells_the_start_the_way_and_the_end_and_no_more_often_than_people_can_follow(
    jobs,
):
    anna, berta = await jobs.start("anna", "berta")
    told: list[BatchProgress] = []

    async def tell(progress: BatchProgress) -> None:
        told.append(progress)

    async def handle(claim) -> None:
        await asyncio.sleep(0.05)
        if claim.task_id == "id-7":
            raise ZeroDivisionError

    with anyio.fail_after(20):
        result, _ = await asyncio.gather(
            anna.run_batch(IDS, handle, concurrency=2, attempts=1, progress=tell),
            berta.run_batch(IDS, handle, concurrency=2, attempts=1),
        )
    assert counts(told[0]) == (0, 0, 0, 40)
    assert counts(told[-1]) == (len(result.completed_here), len(result.completed_elsewhere), 1, 0)
    assert len(told) > 3
    assert all(later.seconds - sooner.seconds >= 0.19 for sooner, later in pairwise(told[:-1]))
    assert all(
        later.remaining <= sooner.remaining and later != sooner for sooner, later in pairwise(told)
    )


async def test_a_batch_that_is_done_already_is_told_once():
    told: list[BatchProgress] = []
    async with Job("anna") as job:
        await job.run_batch([], lambda claim: asyncio.sleep(0), progress=told.append)
    assert [counts(progress) for progress in told] == [(0, 0, 0, 0)]


async def test_what_the_callback_raises_ends_the_batch():
    def tell(progress: BatchProgress) -> None:
        raise ZeroDivisionError

    async with Job("anna") as job:
        with pytest.raises(ZeroDivisionError):
            await job.run_batch(IDS, lambda claim: asyncio.sleep(1), progress=tell)


@pytest.mark.parametrize("terminal", [True, False], ids=["on a terminal", "in a pipe"])
async def test_the_ready_made_display_ends_with_what_was_done(terminal):
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=terminal, width=120, color_system=None)
    async with Job("anna") as job:
        with RichProgress("[in]voices", console=console) as progress:
            await job.run_batch(IDS, lambda claim: asyncio.sleep(0), progress=progress)
    last = [line for line in seen.getvalue().splitlines() if "[in]voices" in line][-1]
    assert "40 here, 0 elsewhere" in last
    assert ("40/40" if terminal else "40 of 40") in last
    assert ("\x1b" in seen.getvalue()) == terminal


async def test_the_display_says_how_to_use_it(monkeypatch):
    shown = RichProgress()
    with pytest.raises(UsageError, match=r"`with RichProgress\(…\) as progress:`"):
        shown(BatchProgress(1, 0, 0, 0, 0.0))
    monkeypatch.setitem(sys.modules, "rich.console", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"pip install 'jobsync-async\[cli\]'"):
        RichProgress()
