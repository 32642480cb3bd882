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
from tests.integration.test_command_line import Watching
from tests.integration.test_stuck_handoffs import Stubborn
from tests.panes import Pane
from tests.waiting import until

WATCH = [sys.executable, "-m", "jobsync_async", "watch", "--every", "0.2", "--dsn"]
NAMES = [
    f"ingest-eu-central-1{zone}-deployment-7f9c6d5b8-{pod}"
    for zone in "ab"
    for pod in (
        "x2k4p",
        "9qz7m",
        "h5tvw",
        "b8n3r",
        "k6jdl",
        "v4c2s",
        "m7f9g",
        "t3wxq",
        "p5r8z",
        "d2hn6",
    )
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


def at(lines: list[str], pattern: str) -> int:
    """The number of the first line that has it."""
    return next((n for n, line in enumerate(lines) if re.search(pattern, line)), len(lines))


@pytest.mark.needs("names")
async def test_the_screen_shows_first_what_is_wrong(make_config, admin, dsn):
    async with trouble(make_config, admin) as jobs, Pane([*WATCH, dsn]) as pane:
        lines = await pane.shows(lambda lines: "scroll, q ends" in lines[-1])
        assert lines[0].startswith("20 live workers, 1,000 tokens, 1 owned by nobody; led by inge")
        found = [
            at(lines, said)
            for said in (
                r"^✗ no worker matches 'gpu-%', the pin of task 'model-7'",
                r"^✗ ingest-eu-central-1b…\S+-h5tvw does not let go of task 'invoice-\d+'",
                r"^✗ ingest-eu-central-1a…\S+-t3wxq is silent for 1\d\d s and not connected;",
                r"^! 5 ids of 50 have failed in batch 'nightly' of ",
                r"^! ingest-eu-central-1b…\S+-m7f9g is drained and may be stopped",
                r"^worker +state +tokens",
                r"^ingest-eu-central-1a…\S+-t3wxq +silent",
                r"^ingest-eu-central-1b…\S+-h5tvw +stuck",
                r"^ingest-eu-central-1b…\S+-m7f9g +draining +0",
                r"^ingest-eu-central-1a…\S+-x2k4p +leads",
            )
        ]
        assert found == sorted(found) and found[-1] < 24, "\n".join(lines)
        assert found[0] == 1, "right under the head"

        pane.press("end")
        below = await pane.shows(lambda lines: re.search(r"lines \d+-(\d+) of \1$", lines[-1]))
        pane.press("up")
        await pane.shows(lambda lines: lines[2] == below[1])
        pane.press("page up")
        pane.press("home")
        again = await pane.shows(lambda lines: lines[1].startswith("✗ no worker matches"))
        shown = {re.split(r" {2}", line)[0] for line in [*again, *below] if "…" in line}
        assert {name[-5:] for name in NAMES[:10]} <= {name[-5:] for name in shown}
        assert len([name for name in shown if name.startswith("ingest-")]) >= 20

        pane.resize(130, 45)
        lines = await pane.shows(lambda lines: lines[-1] == "q ends")
        assert [name for name in NAMES if at(lines, f"^{name} ") == len(lines)] == []
        await jobs[LEADER].clear_locks_by_creator(LEADER)
        await pane.shows(lambda lines: at(lines, "gpu-%") == len(lines))
        pane.press("q")
        assert await pane.ended() == 0
        assert pane.restored


async def test_the_terminal_is_as_it_was_however_the_command_ends(config, dsn, admin):
    async def ends(pane: Pane) -> int:
        status = await pane.ended()
        assert pane.restored
        return status

    async with Job("anna", config):
        async with Pane([*WATCH, dsn]) as pane:
            await pane.shows(lambda lines: at(lines, "^anna +leads") < 24)
            pane.press("^Z")
            await until(lambda: stopped(pane.process.pid))
            await until(lambda: pane.restored)  # for the shell
            pane.process.send_signal(signal.SIGCONT)
            await until(lambda: not pane.restored)
            pane.press("^C")
            assert await ends(pane) == 0
        for number in (signal.SIGTERM, signal.SIGHUP):
            async with Pane([*WATCH, dsn]) as pane:
                await pane.shows(lambda lines: lines[-1] == "q ends")
                pane.process.send_signal(number)
                assert await ends(pane) == 0
        async with Pane([*WATCH, dsn]) as pane:
            await pane.shows(lambda lines: lines[-1] == "q ends")
            await admin.execute("ALTER TABLE sync_lock RENAME TO away")
            try:
                assert await ends(pane) == 1
            finally:
                await admin.execute("ALTER TABLE away RENAME TO sync_lock")
            assert "error: PostgreSQL refused" in "".join(pane.lines)


def stopped(pid: int) -> bool:
    return os.WIFSTOPPED(os.waitpid(pid, os.WNOHANG | os.WUNTRACED)[1])


async def test_a_terminal_that_goes_away_ends_it(config, dsn):
    async with Job("anna", config):
        pane = Pane([*WATCH, dsn])
        async with pane:
            await pane.shows(lambda lines: lines[-1] == "q ends")
            pane.hang_up()
            assert await pane.ended() == 0


async def test_what_is_wrong_is_a_line_in_a_pipe_when_it_begins_and_when_it_is_over(config, dsn):
    async with Job("anna", config) as job:
        await job.register_lock("model-7", "gpu-%")
        with Watching(dsn) as plain:
            await plain.until("wrong: no worker matches 'gpu-%', the pin of task 'model-7'")
            await job.clear_locks_by_creator("anna")
            await plain.until("over: no worker matches 'gpu-%'")
            await plain.end(lambda: plain.process.send_signal(signal.SIGTERM))
