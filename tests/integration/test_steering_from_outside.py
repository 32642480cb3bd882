"""``jobsync-async pause``, ``resume`` and ``evict``: what they do, say and write down."""

from __future__ import annotations

import asyncio
import os

import anyio
import pytest

from jobsync_async import CoordinationError
from tests.integration.test_commands import STEERING, Commands
from tests.integration.test_versions import old_row
from tests.waiting import until


@pytest.fixture
def commands(dsn) -> Commands:
    return Commands(dsn)


async def test_a_cluster_is_paused_and_resumed_and_a_worker_evicted_and_allowed(
    commands, quick_jobs, admin
):
    a, b = await quick_jobs.start("a", "b")
    await quick_jobs.even()
    await old_row(admin)
    paused = await commands.json("pause", "--reason", "slow warehouse", "--by", "anna")
    assert paused == {
        "reason": "slow warehouse", "by": "anna", "since": paused["since"], "changed": True,
        "older_workers": ["old"],
    }  # fmt: skip
    await until(lambda: a.paused and b.paused)
    again = await commands("pause", "--reason", "another")
    assert "already paused by anna" in again.stdout and "slow warehouse" in again.stdout
    assert "1 workers of 0.1.0 know no pause and go on: old" in again.stderr
    shown = await commands("status", status=0)
    assert "by anna: slow warehouse; nothing new starts" in shown.stdout
    resumed = await commands.json("resume")
    assert resumed["was_paused"]["by"] == "anna"
    await until(lambda: not a.paused and not b.paused)
    assert not (await commands.json("resume"))["changed"]
    await admin.execute("DELETE FROM sync_node WHERE name = 'old'")

    evicted = await commands.json("evict", "b", "--reason", "does not let go", "--by", "anna")
    assert (evicted["tokens_left"], evicted["older"]) == (0, False) and evicted["tokens"] > 0
    assert evicted["row"].startswith("b (evicted, ") and evicted["seconds"] < 5
    await until(lambda: len(a.my_tokens) == 120)
    del quick_jobs.jobs["b"]
    with pytest.raises(CoordinationError, match="evicted by anna"):
        await b.stop()
    status = await commands.json("status")
    assert [(one["name"], one["by"]) for one in status["evicted"]] == [("b", "anna")]
    assert "no worker may join as b, evicted by anna" in (await commands("status")).stdout
    assert "was evicted already, by anna" in (await commands("evict", "b")).stdout
    assert (await commands.json("evict", "b", "--allow", shape="evict --allow"))["allowed"]
    await commands("evict", "b", "--allow", status=1)
    unknown = await commands("evict", "nobody", "--by", "anna")
    assert "no worker is named 'nobody'" in unknown.stderr
    told = await (
        await admin.execute(
            "SELECT kind, node, by FROM sync_history "
            "WHERE kind IN ('paused', 'resumed', 'evicted', 'allowed') ORDER BY id"
        )
    ).fetchall()
    typed = told[1][2]
    assert typed and typed != "anna" and (typed == os.environ.get("USER", typed))
    assert told == [
        ("paused", None, "anna"),
        ("resumed", None, typed),
        ("evicted", "b", "anna"),
        ("allowed", "b", typed),
        ("evicted", "nobody", "anna"),
    ]
    assert commands.seen == STEERING | {"status"}


async def test_where_nobody_is_left_to_take_the_tokens_it_says_so(commands, quick_jobs):
    (alone,) = await quick_jobs.start("alone")
    left, told = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with alone.claim(min(alone.my_tokens)):
            while not left.is_set():
                try:
                    await left.wait()
                except asyncio.CancelledError:
                    told.set()

    holding = asyncio.create_task(hold())
    await asyncio.sleep(0)
    try:
        ended = await commands("evict", "alone", status=1)
        await asyncio.wait_for(told.wait(), 10)
    finally:
        left.set()
    assert "no other worker is there that takes tokens" in ended.stdout
    await asyncio.wait([holding])
    assert isinstance(holding.exception(), CoordinationError)
    del quick_jobs.jobs["alone"]
    with anyio.fail_after(10):
        while alone._engine.failure is None:
            await asyncio.sleep(0.01)
    with pytest.raises(CoordinationError, match="evicted by"):
        await alone.stop()
