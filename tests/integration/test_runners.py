"""Workers say what they run; ids whose tokens are at a worker that does not run what they are for
are told of."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import subprocess
import sys
from typing import Any

import anyio
import pytest

from jobsync_async import Job
from jobsync_async.core import serving
from jobsync_async.postgres.tokens import TokenFeed
from jobsync_async.tasks import runners
from tests.handling import nothing
from tests.integration.test_versions import old_row
from tests.waiting import until

IDS = [f"S{n}" for n in range(40)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(serving, "GRACE_SEC", 0.4)
    monkeypatch.setattr(runners, "_SETTLE_SEC", 0.1)


async def forever(claim) -> None:
    await anyio.sleep_forever()


async def said(admin, name: str) -> Any:
    rows = await (
        await admin.execute("SELECT runs FROM sync_node WHERE name = %s", [name])
    ).fetchall()
    return rows[0][0] if rows else None


async def until_said(admin, name: str, runs: list[dict[str, Any]]) -> None:
    with anyio.fail_after(10):
        while await said(admin, name) != runs:
            await asyncio.sleep(0.01)


def told(caplog, level: int, word: str) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno == level and r.name.endswith("runners") and word in r.getMessage()
    ]


async def test_the_row_says_what_a_worker_runs_and_says_it_again_after_a_rejoin(quick_jobs, admin):
    (anna,) = await quick_jobs.start("anna", date=dt.date(2026, 1, 5))
    assert await said(admin, "anna") == []
    feed = {"kind": "owned", "name": "feed", "date": None}
    batch = {"kind": "batch", "name": None, "date": "2026-01-05"}
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: anna.run_owned(IDS, forever, name="feed"))
        await until_said(admin, "anna", [feed])
        group.start_soon(lambda: anna.run_batch(["b"], forever))
        await until_said(admin, "anna", [batch, feed])
        await admin.execute("DELETE FROM sync_node WHERE name = 'anna'")
        await until(lambda: anna.metrics.rejoins == 1)
        await until_said(admin, "anna", [batch, feed])
        group.cancel_scope.cancel()
    await until_said(admin, "anna", [])


async def test_ids_at_a_worker_that_does_not_run_them_are_told_of_with_its_name_once_and_when_it_ends(  # noqa: E501
    jobs, admin, caplog
):
    old, new = await jobs.start("old-release", "new-release")
    await jobs.even()
    unserved = sum(old.owns(task) for task in IDS)
    async with anyio.create_task_group() as group:
        group.start_soon(new.run_owned, IDS, forever)
        await until(lambda: told(caplog, logging.WARNING, "old-release"))
        (line,) = told(caplog, logging.WARNING, "old-release")
        assert f"{unserved} ids of run_owned 'default' are on tokens of old-release" in line
        assert new.metrics.ids_unserved == unserved
        assert old.metrics.ids_unserved == 0
        status = await new.get_coordination_status()
        assert status["unserved"] == [
            {
                "runner": "run_owned 'default'",
                "node": "old-release",
                "tokens": 60,
                "run_by": ["new-release"],
            }
        ]
        shown = await command("status", dsn=new._worker.config.dsn)
        assert "not run by everybody" in shown
        theirs = next(task for task in IDS if old.owns(task))
        explained = json.loads(
            await command("explain", theirs, "--json", dsn=new._worker.config.dsn)
        )
        assert explained["runs"] == []
        assert (
            "old-release does not run run_owned 'default', as new-release does" in explained["why"]
        )
        group.start_soon(old.run_owned, IDS, forever)
        await until(lambda: told(caplog, logging.INFO, "old-release"))
        assert new.metrics.ids_unserved == 0
        group.cancel_scope.cancel()
    assert len(told(caplog, logging.WARNING, "")) == 1


async def command(*arguments: str, dsn: str) -> str:
    line = [sys.executable, "-m", "jobsync_async", *arguments, "--dsn", dsn]
    done = await asyncio.to_thread(
        subprocess.run, line, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_batch_tells_which_workers_own_open_ids_and_do_not_run_it(jobs, caplog):
    idle, busy = await jobs.start("idle", "busy")
    await jobs.even()
    async with anyio.create_task_group() as group:
        group.start_soon(busy.run_batch, IDS, nothing)
        await until(lambda: busy._worker.runners.unserved)
        (one,) = busy._worker.runners.unserved
        assert (one.node, one.runner.kind, one.ids) == (
            "idle",
            "batch",
            sum(idle.owns(task) for task in IDS),
        )
        await idle.run_batch(IDS, nothing)
    await until(lambda: not busy._worker.runners.unserved)


async def test_nothing_is_said_of_workers_of_0_1_0_which_do_not_tell_but_explain_says_that(
    jobs, admin, caplog, monkeypatch
):
    """Also of one that took a dead worker's row over, whose list it left as it was."""
    answers: list[list[serving.Idler]] = []
    read = TokenFeed.read_idlers

    async def noting(self: TokenFeed, *arguments: Any) -> list[serving.Idler]:
        answers.append(await read(self, *arguments))
        return answers[-1]

    monkeypatch.setattr(TokenFeed, "read_idlers", noting)
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    await old_row(admin)
    await old_row(admin, "namesake")
    await admin.execute(
        "UPDATE sync_node SET runs = '[]', said_by = gen_random_uuid() WHERE name = 'namesake'"
    )
    await admin.execute(
        "UPDATE sync_token SET incarnation = n.incarnation, node = n.name FROM sync_node n "
        "WHERE n.name = CASE WHEN token_id % 2 = 0 THEN 'old' ELSE 'namesake' END AND token_id < 20"
    )
    async with anyio.create_task_group() as group:
        for job in (anna, berta):
            group.start_soon(job.run_owned, IDS, forever)
        await until(lambda: answers and answers[-1] == [])
        status = await anna.get_coordination_status()
        assert status["unserved"] == []
        theirs = [
            next(str(n) for n in range(10_000) if anna.task_to_token(str(n)) == token)
            for token in (0, 1)
        ]
        for task, name in zip(theirs, ("old", "namesake"), strict=True):
            explained = json.loads(
                await command("explain", task, "--json", dsn=anna._worker.config.dsn)
            )
            assert explained["runs"] is None
            assert f"{name} does not tell what it runs" in explained["why"]
        group.cancel_scope.cancel()


async def test_who_runs_nothing_asks_nothing(quick_jobs, monkeypatch):
    async def asked(*_: object) -> None:
        raise AssertionError("a worker that runs nothing sent a statement about it")

    for name in ("announce_runs", "read_idlers", "tokens_of"):
        monkeypatch.setattr(TokenFeed, name, asked)
    await quick_jobs.start("anna", "berta")
    await quick_jobs.even()
    await quick_jobs.stop("berta")


async def test_a_hundred_thousand_ids_are_one_line_in_the_row_and_no_statement_names_them(
    jobs, admin, monkeypatch
):
    sent: list[int] = []
    fetch = TokenFeed._fetch

    async def noting(self: TokenFeed, name: str, values: dict[str, Any]) -> list[Any]:
        sent.append(len(str(values)))
        return await fetch(self, name, values)

    monkeypatch.setattr(TokenFeed, "_fetch", noting)
    _, anna = await jobs.start("idle", "anna")
    await jobs.even()
    async with anyio.create_task_group() as group:
        group.start_soon(
            anna.run_owned,
            [f"{n}" for n in range(100_000) if anna.task_to_token(str(n)) not in anna.my_tokens],
            forever,
        )
        await until(lambda: anna.metrics.ids_unserved > 40_000)
        group.cancel_scope.cancel()
    assert max(sent) < 500


@pytest.mark.parametrize("way", ["weight", "appname"])
async def test_both_ways_to_have_workers_of_different_kinds_serve_every_id(make_config, way):
    """As docs/how-to/kinds-of-workers.md has them."""
    config = make_config(total_tokens=120, appname="feed_")
    web = (
        Job("web", config, weight=0) if way == "weight" else Job("web", make_config(appname="web_"))
    )
    run: set[object] = set()

    async def handle(claim) -> None:
        run.add(claim.task_id)
        await anyio.sleep_forever()

    async with Job("feed", config) as feed, web, anyio.create_task_group() as group:
        group.start_soon(feed.run_owned, IDS, handle)
        await until(lambda: run == set(IDS))
        group.cancel_scope.cancel()
