"""`watch` on a terminal, as an operator sees it: what is wrong first, whatever the size."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from jobsync_async import Job
from jobsync_async.testing import Cluster
from tests.clusters import cluster
from tests.integration.test_stuck_handoffs import Stubborn
from tests.panes import Pane
from tests.waiting import until

WATCH = [sys.executable, "-m", "jobsync_async", "watch", "--every", "0.2", "--dsn"]
NAMES = [
    f"ingest-eu-central-1{zone}-deployment-7f9c6d5b8-{pod}"
    for zone in "ab"
    for pod in ("x2k4p", "9qz7m", "h5tvw", "b8n3r", "k6jdl", "v4c2s", "m7f9g", "t3wxq", "p5r8z", "d2hn6")
]
DEAD, STUCK, DRAINED, LEADER = NAMES[7], NAMES[12], NAMES[16], NAMES[0]


@asynccontextmanager
async def trouble(make_config, admin) -> AsyncIterator[Cluster]:
    """Twenty workers with long names: one dead, one stuck, one drained; a pin that nobody matches,
    and a batch with failures."""
    config = make_config(
        total_tokens=1000,
        heartbeat_interval_sec=5,
        heartbeat_timeout_sec=120,
        handoff_timeout_sec=0.2,
    )

    async def failing(claim) -> None:
        if claim.task_id % 10 == 3:
            raise ValueError("no such file")

    async with cluster(config) as jobs:
        await jobs.start(LEADER)
        await jobs.start(*NAMES[1:])
        await jobs.even()
        await asyncio.gather(
            *(
                job.run_batch(range(50), failing, name="nightly", attempts=1)
                for job in jobs.jobs.values()
            )
        )
        await jobs[DRAINED].drain()
        stuck = jobs[STUCK]
        task = next(f"invoice-{n}" for n in range(10_000) if stuck.owns(f"invoice-{n}"))
        stubborn = Stubborn(stuck, task)
        await stubborn.begun.wait()
        await jobs[LEADER].register_lock(task, LEADER)
        await jobs[LEADER].register_lock("model-7", "gpu-%")
        await until(lambda: stuck.metrics.handoffs_overdue)
        await jobs.crash(DEAD)
        await admin.execute(
            "UPDATE sync_node SET last_heartbeat = now() - interval '110 seconds' WHERE name = %s",
            [DEAD],
        )
        try:
            yield jobs
        finally:
            await stubborn.end()


async def test_the_screen_shows_first_what_is_wrong(make_config, admin, dsn):
    async with trouble(make_config, admin):
        import time
        t = time.time()
        async with Pane([*WATCH, dsn]) as pane:
            await pane.shows(lambda lines: "q ends" in lines[-1])
            print("SHOWN", time.time() - t)
            print("\n".join(pane.lines))
            pane.press("q")
            print(await pane.ended(), pane.restored)
            print("ENDED", time.time() - t)
        print("CLOSED", time.time() - t)
    print("STOPPED", time.time() - t)
    assert 0
