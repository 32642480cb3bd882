"""Takes pictures of the page, in Chromium, of a cluster in which a few things are wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
from benchmarks.browsers import CHROMIUM, MISSING, browser, until
from benchmarks.page import LIVE, beat, crowd, served

from jobsync_async import Claim, CoordinationConfig, Job, Observer
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.observer import store_of

WIDE, PHONE = {"width": 1000, "height": 760}, {"width": 360, "height": 720}
# The name of the picture, the page, the window, light or dark.
PICTURES = (
    ("overview", "", WIDE, "light"),
    ("phone", "", PHONE, "dark"),
    ("task", "task?id=invoice-7", {**WIDE, "height": 620}, "light"),
    ("batch", "batch?batch=invoices", {**WIDE, "height": 560}, "light"),
    ("history", "history", {**WIDE, "height": 420}, "dark"),
)


def draw(folder: Path) -> list[Path]:
    """Write the pictures into a folder; their files."""
    if CHROMIUM is None:
        raise SystemExit(MISSING)
    with EmbeddedPostgres() as server:
        return asyncio.run(_draw(server.dsn, folder))


async def _draw(dsn: str, folder: Path) -> list[Path]:
    made = []
    async with troubled(dsn), served(dsn) as (url, _), browser() as chromium:
        for name, path, window, scheme in PICTURES:
            context = await chromium.new_context(
                viewport=window, color_scheme=scheme, timezone_id="UTC"
            )
            page = await context.new_page()
            await page.goto(url + path)
            if await page.query_selector("#live"):
                await until(page, LIVE)
            if opened := await page.query_selector(
                "main > section details, li:has(.moved) details"
            ):
                await opened.evaluate("(element) => { element.open = true; }")
            to = folder / f"page-{name}.png"
            await page.screenshot(path=to)
            await context.close()
            made.append(to)
    return made


@asynccontextmanager
async def troubled(dsn: str) -> AsyncIterator[None]:
    """Twenty workers: one is stuck, one is silent, one is drained, a pin matches nobody, and a
    batch has failures."""

    async def handle(claim: Claim[str]) -> None:
        number = int(claim.task_id.rpartition("-")[2])
        if number % 40 == 7:
            raise ConnectionError("payment gateway: 503 Service Unavailable")
        if number % 90 == 8:
            raise ValueError("customer has no address")

    config = CoordinationConfig(dsn=dsn)
    logging.disable(logging.WARNING)  # of the failures, which are meant
    async with Job("first", config) as job:
        ids = [f"invoice-{number}" for number in range(400)]
        await job.run_batch(ids, handle, name="invoices", attempts=1)
        async with Job("second", config), Observer(config) as cluster:
            for state, why in (("draining", "a new kernel"), ("active", None)):
                store = store_of(cluster)
                await store.membership.set_state("second", state, reason=why, by="ada")
                await asyncio.sleep(0.5)
    await crowd(dsn, 20)
    beats = asyncio.create_task(beat(dsn, besides=1012))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for statement in _TROUBLES:
            await connection.execute(statement)
    await asyncio.sleep(1)
    try:
        yield
    finally:
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)


_TROUBLES: tuple[Any, ...] = (
    "UPDATE sync_node SET last_heartbeat = now() - interval '14 seconds' WHERE joined = 1012",
    "UPDATE sync_node SET created_on = now() - joined % 7 * interval '5 hours'",
    "UPDATE sync_node SET state = 'draining' WHERE joined = 1017",
    """UPDATE sync_token t SET node = n.name, incarnation = n.incarnation
       FROM sync_node n WHERE n.joined = 1001 AND t.node LIKE 'worker-0017%'""",
    """INSERT INTO sync_lock (task_key, task_id, token_id, node_patterns, created_by, reason)
       VALUES ('\\x01', 'model-large', 7, '["gpu-%"]', 'ops', 'needs 80 GB')""",
    "UPDATE sync_token SET node = NULL, incarnation = NULL WHERE token_id = 7",
    """UPDATE sync_token SET next_node = 'worker-0003.pool-3.eu.example.com',
       revoked_at = now() - interval '93 seconds'
       WHERE token_id = (SELECT min(token_id) FROM sync_token WHERE node LIKE 'worker-0009%')""",
    """UPDATE sync_node SET stuck = jsonb_build_array(jsonb_build_object('token_id',
           (SELECT min(token_id) FROM sync_token WHERE node LIKE 'worker-0009%'),
           'task_id', 'invoice-4711'))
       WHERE joined = 1009""",
)
