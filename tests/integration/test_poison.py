"""An id that ends its process is set aside, after as many workers as `attempts` says, and no other
id with it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
import time
from pathlib import Path

import anyio
import psycopg
import pytest

from jobsync_async import Job
from tests.integration.test_commands import Commands

IDS = ["poison", *map(str, range(20))]
REASON = "its workers ended 2 times while it was at work; `jobsync-async release` releases it"

WORKER = """
import asyncio, json, os, signal, sys
from jobsync_async import CoordinationConfig, Job

async def main():
    dsn, name, ids, log, options = sys.argv[1:]
    times = dict(heartbeat_interval_sec=0.3, heartbeat_timeout_sec=1.5)
    config = CoordinationConfig(dsn=dsn, total_tokens=120, **times)
    open_here = set()
    async def handle(claim):
        open_here.add(claim.task_id)
        if claim.task_id == "poison":
            await asyncio.sleep(0.2)
            with open(log, "a") as file:
                print(json.dumps(sorted(open_here - {"poison"})), file=file)
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep({"first": 1, "second": 0.4}.get(name, 0.05))
        open_here.remove(claim.task_id)
    async with Job(name, config, wait_on_enter=20) as job:
        result = await job.run_batch(json.loads(ids), handle, **json.loads(options))
    print(json.dumps(dict(result.failed)))

asyncio.run(main())
"""


class Workers:
    """Processes that work on the ids, one after the other."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = dsn
        self._log = folder / "log"

    async def run(self, worker: str, **options: object) -> dict[str, str] | None:
        """What failed in a batch there; None when the process was killed."""
        arguments = (
            self._dsn,
            worker,
            json.dumps(IDS),
            str(self._log),
            json.dumps({"attempts": 2, **options}),
        )
        with anyio.fail_after(60):
            done = await anyio.run_process(
                [sys.executable, "-c", WORKER, *arguments], check=False, stderr=None
            )
        assert done.returncode in (0, -9)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def beside(self) -> list[list[str]]:
        """What was open in the process at each end."""
        return [json.loads(line) for line in self._log.read_text("utf-8").splitlines()]


@pytest.fixture
def workers(dsn, tmp_path) -> Workers:
    return Workers(dsn, tmp_path)


async def completed(admin) -> int:
    ((count,),) = await (await admin.execute("SELECT count(*) FROM sync_audit")).fetchall()
    return count


async def test_an_id_that_ends_its_process_is_set_aside_and_no_other_id_with_it(workers, admin):
    assert await workers.run("first") is None
    assert await workers.run("second") is None
    assert await workers.run("third") == {"poison": REASON}
    beside = workers.beside()
    assert len(beside) == 2
    assert beside[0], "others were open beside it"
    assert beside[1] == [], "then it ran alone"
    assert await completed(admin) == 20
    for aside in ("sync_set_aside", "sync_claim WHERE set_aside_at IS NOT NULL"):
        cursor = await admin.execute(f"SELECT task_id, owners_lost FROM {aside}")
        assert await cursor.fetchall() == [("poison", 2)]


async def test_what_is_set_aside_stays_so_on_other_dates_too_until_it_is_released(
    workers, quick, dsn
):
    commands = Commands(dsn)
    today, later = "2026-11-23", dt.date(2026, 11, 24)
    calls = []

    async def handle(claim) -> None:
        calls.append(claim.task_id)

    for name in ("first", "second"):
        assert await workers.run(name) is None
    async with Job("anna", quick) as job:
        result = await job.run_batch(IDS, handle, attempts=2)
        assert result.failed == {"poison": REASON}
        assert (await job.run_batch(IDS, handle, attempts=2)).failed == result.failed
        assert (await job.run_batch(IDS, handle, date=later)).failed == result.failed
        assert "poison" not in calls
        told = await commands.json("explain", "poison")
        assert (told["owners_lost"], told["set_aside_on"], told["error"]) == (
            2,
            str(result.date),
            REASON,
        )
        assert (await commands.json("explain", "poison", "--date", str(later)))[
            "set_aside_on"
        ] == str(result.date)

        await commands("release", status=2)
        await commands("release", "poison", "--all", status=2)
        for other in (["poison", "--date", today], ["poison", "--batch", "other"], ["1"]):
            assert await commands.json("release", *other, status=1) == {"released": []}
        released = {"task_id": "poison", "batch": None, "date": str(result.date)}
        assert await commands.json("release", "poison") == {"released": [released]}
        await commands("release", "--all", status=1)
        again = await job.run_batch(IDS, handle, attempts=2)
        assert (again.completed_here, again.failed) == ({"poison"}, {})


async def test_a_named_batchs_set_aside_id_is_its_own(workers, quick, dsn):
    for name in ("first", "second"):
        assert await workers.run(name, name="nightly") is None
    async with Job("anna", quick) as job:

        async def handle(claim) -> None:
            """Does nothing."""

        assert (await job.run_batch(IDS, handle, name="nightly", attempts=2)).failed == {
            "poison": REASON
        }
        assert (await job.run_batch(IDS, handle)).failed == {}
        told = await Commands(dsn).json("explain", "poison")
        assert (told["owners_lost"], told["set_aside_at"], told["completed_by"]) == (
            0,
            None,
            "anna",
        )
        (nightly,) = told["batches"]
        assert (nightly["batch"], nightly["owners_lost"], nightly["completed_by"]) == (
            "nightly",
            2,
            None,
        )
        released = (await Commands(dsn).json("release", "--all", "--batch", "nightly"))["released"]
        assert [(one["task_id"], one["batch"]) for one in released] == [("poison", "nightly")]
        assert (await job.run_batch(IDS, handle, name="nightly")).failed == {}


async def open_claims(admin) -> list[tuple[bool, int]]:
    return await (await admin.execute("SELECT open, owners_lost FROM sync_claim")).fetchall()


async def begun(admin) -> None:
    with anyio.fail_after(10):
        while not await open_claims(admin):
            await asyncio.sleep(0.01)


async def test_a_batch_that_is_cancelled_counts_no_owner(jobs, admin):
    (anna,) = await jobs.start("anna")
    running = asyncio.ensure_future(anna.run_batch(["x"], lambda claim: anyio.sleep_forever()))
    await begun(admin)
    assert await open_claims(admin) == [(True, 0)]
    running.cancel()
    await asyncio.wait([running])
    assert await open_claims(admin) == [(False, 0)]


async def test_a_claim_that_cannot_be_ended_at_once_holds_up_nobody_for_long(jobs, admin, dsn):
    (anna,) = await jobs.start("anna")
    running = asyncio.ensure_future(anna.run_batch(["x"], lambda claim: anyio.sleep_forever()))
    await begun(admin)
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute("SELECT FROM sync_claim FOR UPDATE")
        running.cancel()
        since = time.monotonic()
        await asyncio.wait([running])
        assert time.monotonic() - since < 2, "the statement has three seconds"
        assert await open_claims(admin) == [(True, 0)]
    with anyio.fail_after(10):
        while await open_claims(admin) != [(False, 0)]:
            await asyncio.sleep(0.01)


async def test_a_handler_that_fails_counts_no_owner(jobs, admin):
    (anna,) = await jobs.start("anna")

    async def fail(claim) -> None:
        raise ValueError("as meant")

    assert (await anna.run_batch(["x"], fail, attempts=1)).failed == {"x": "ValueError: as meant"}
    assert await open_claims(admin) == [(False, 0)]


@pytest.mark.parametrize("how", ["stop", "drain"])
async def test_a_token_that_is_handed_on_while_its_task_is_cancelled_counts_no_owner(
    make_config, admin, how
):
    config = make_config(total_tokens=120, handoff_timeout_sec=0.2)
    async with Job("berta", config) as berta:
        anna = Job("anna", config, wait_on_enter=20)
        await anna.start()
        task = next(f"t{n}" for n in range(10_000) if anna.owns(f"t{n}"))
        running = asyncio.ensure_future(anna.run_batch([task], lambda claim: anyio.sleep_forever()))
        await begun(admin)
        leaving = asyncio.ensure_future(anna.stop() if how == "stop" else anna.drain())

        async def nothing(claim) -> None:
            """Does nothing."""

        with anyio.fail_after(20):
            result = await berta.run_batch([task], nothing)
            assert result.completed_here == {task}
            await leaving
            await asyncio.wait([running])
        assert await open_claims(admin) == [(True, 0)], "berta's, who completed it"
        await anna.stop()


async def test_a_worker_that_lost_its_lease_counts_as_one(quick_jobs, admin):
    (anna,) = await quick_jobs.start("anna")
    first = True

    async def handle(claim) -> None:
        nonlocal first
        if first:
            first = False
            await quick_jobs.expire("anna")

    with anyio.fail_after(20):
        assert (await anna.run_batch(["x"], handle)).completed_here == {"x"}
    assert await open_claims(admin) == [(True, 1)]


async def test_claims_of_0_1_0_count_nothing(quick_jobs, admin):
    (anna,) = await quick_jobs.start("anna")
    running = asyncio.ensure_future(anna.run_batch(["x"], lambda claim: anyio.sleep_forever()))
    await begun(admin)
    await admin.execute("UPDATE sync_claim SET open = NULL, incarnation = NULL")
    await quick_jobs.crash("anna")
    await asyncio.wait([running])
    (berta,) = await quick_jobs.start("berta")

    async def nothing(claim) -> None:
        """Does nothing."""

    with anyio.fail_after(20):
        await berta.run_batch(["x"], nothing)
    assert await open_claims(admin) == [(True, 0)]
