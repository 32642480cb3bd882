"""The page: how soon a change is seen in an open browser, what ten viewers of five hundred workers
cost while nothing happens, and how much the first visit loads.

The workers are rows whose heartbeats go on; what works through them is measured elsewhere. The page
is served by a process of its own. Nine viewers are streams, the tenth is a browser.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from math import ceil
from pathlib import Path
from typing import Any

import httpx
import psycopg

from benchmarks.browsers import CHROMIUM, MISSING, browser, until
from benchmarks.results import Result
from benchmarks.sides import LeftOut
from jobsync_async import CoordinationConfig, Job
from jobsync_async.embedded import EmbeddedPostgres

LOGGED = {"log_statement": "all", "log_line_prefix": "%a|"}
WORKERS, VIEWERS, TOTAL = 500, 10, 10_000
LIVE = "document.getElementById('live').textContent === 'live'"
_TICK = os.sysconf("SC_CLK_TCK")

# When a row is there as `mark` says, the browser's clock tells; it is the same as ours.
WATCH = """() => {
  window.seen = {};
  window.long = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.long.push(entry.duration);
  }).observe({ type: "longtask" });
  new MutationObserver(() => {
    for (const cell of document.querySelectorAll("tr.draining td:nth-child(5)"))
      window.seen[cell.textContent] ??= Date.now() / 1000;
  }).observe(document.body, { subtree: true, childList: true });
}"""


async def crowd(dsn: str, workers: int = WORKERS, total: int = TOTAL) -> None:
    """Tables with so many workers that live, and share all tokens."""
    async with Job("first", CoordinationConfig(dsn=dsn, total_tokens=total)):
        pass
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(
            """INSERT INTO sync_node (name, incarnation, joined, host, pid, timeout_sec,
                   interval_sec, library, layout, runs, said_by, address)
               SELECT format('worker-%%s.pool-%%s.eu.example.com', lpad(i::text, 4, '0'), i %% 7),
                      id, 1000 + i, 'host-' || i %% 40, 1000 + i, 15, 3.75, '0.2.0', 2, '[]', id,
                      '10.0.0.' || i %% 250 || ':8080'
               FROM (SELECT i, md5(i::text)::uuid AS id FROM generate_series(1, %s) i) w""",
            [workers],
        )
        await connection.execute(  # scattered, as after some time
            """UPDATE sync_token t SET node = n.name, incarnation = n.incarnation
               FROM sync_node n
               WHERE n.joined = 1001 + abs(hashint4(t.token_id)::bigint) %% %s""",
            [workers],
        )
        await connection.execute(
            """UPDATE sync_cluster c SET leader = n.name, leader_incarnation = n.incarnation,
                   last_joined = 1000 + %s, term = 1, version = version + 1
               FROM sync_node n WHERE n.joined = 1001""",
            [workers],
        )


async def beat(dsn: str, besides: int = 0) -> None:
    """Heartbeats of all workers, besides one, each as often as it does that, in portions."""
    async with await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, application_name="beats"
    ) as connection:
        for turn in range(1_000_000):
            await connection.execute(
                "UPDATE sync_node SET beat = beat + 1, last_heartbeat = clock_timestamp() "
                "WHERE joined %% 4 = %s AND joined <> %s",
                [turn % 4, besides],
            )
            await asyncio.sleep(3.75 / 4)


CHANGE = """
    WITH changed AS (
        UPDATE sync_node SET state = %s, weight = %s WHERE joined = %s
    ), versioned AS (
        UPDATE sync_cluster SET version = version + 1, announced = version + 1
        RETURNING version, channel
    )
    SELECT pg_notify(channel, version::text) FROM versioned
"""


@asynccontextmanager
async def served(dsn: str) -> AsyncIterator[tuple[str, int]]:
    """The page in a process of its own: its address and its number."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobsync_async", "web", "--port", "0", "--dsn", dsn,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip(), process.pid
    finally:
        process.terminate()
        await process.wait()


def cpu_sec(pid: int) -> float:
    """What a process has used of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


async def stream(client: httpx.AsyncClient, url: str) -> None:
    """One viewer without a browser: it loads the page and reads what it is told."""
    with suppress(httpx.HTTPError):
        text = (await client.get(url)).text
        found = re.search(r'data-since="([\w.]+)"', text)
        assert found is not None
        address = f"{url}events?channel=overview&since={found[1]}"
        async with client.stream("GET", address, timeout=None) as answer:
            async for _ in answer.aiter_bytes():
                pass


def percentile(values: Sequence[float], part: float) -> float:
    """The value that so many of a hundred do not exceed."""
    return sorted(values)[min(len(values) - 1, ceil(part / 100 * len(values)) - 1)]


async def _measure(postgres: EmbeddedPostgres, quick: bool) -> list[Result]:
    dsn = postgres.dsn
    await crowd(dsn)
    async with AsyncExitStack() as stack:
        url, pid = await stack.enter_async_context(served(dsn))
        chromium = await stack.enter_async_context(browser())
        beats = asyncio.create_task(beat(dsn))
        client = await stack.enter_async_context(httpx.AsyncClient())
        viewers = [asyncio.create_task(stream(client, url)) for _ in range(VIEWERS - 1)]
        tab = await (await chromium.new_context()).new_page()
        loaded = await first_load(tab, url)
        await tab.evaluate(WATCH)
        await asyncio.sleep(3)
        idle = await _idle(postgres, pid, 10 if quick else 60)
        long = await tab.evaluate("window.long")
        seen = await _changes(dsn, tab, 30 if quick else 300)
        for task in (beats, *viewers):
            task.cancel()
        await asyncio.gather(beats, *viewers, return_exceptions=True)
    about = f"{WORKERS} workers, {VIEWERS} viewers"
    return [
        Result(f"page: a change is seen, p50, {about}", "ms", [percentile(seen, 50)]),
        Result(f"page: a change is seen, p99, {about}", "ms", [percentile(seen, 99)], 250),
        Result(f"page: its process while nothing happens, {about}", "% of core", [idle[0]], 1),
        Result(f"page: PostgreSQL for it meanwhile, {about}", "% of core", [idle[1]], 1),
        Result("page: statements meanwhile", "1/s", [idle[2]], 1),
        Result(f"page: first load, compressed, {WORKERS} workers", "KiB", [loaded[0]], 100),
        Result("page: requests of the first load", "", [loaded[1]], 5),
        Result(
            "page: longest task of the browser while nothing happens", "ms", [max(long, default=0)]
        ),
    ]


async def first_load(tab: Any, url: str) -> tuple[float, int]:
    """KiB over the wire, and requests, until the page is live."""
    session = await tab.context.new_cdp_session(tab)
    await session.send("Network.enable")
    sizes, requests = list[float](), list[str]()
    session.on("Network.loadingFinished", lambda told: sizes.append(told["encodedDataLength"]))
    session.on("Network.requestWillBeSent", lambda told: requests.append(told["request"]["url"]))
    await tab.goto(url)
    await until(tab, LIVE)
    loads = [address for address in requests if not address.startswith("data:")]
    return sum(sizes) / 1024, len(loads)


async def _idle(postgres: EmbeddedPostgres, pid: int, seconds: float) -> tuple[float, float, float]:
    """Per cent of a core in the page's process and in PostgreSQL for it, and statements a
    second."""

    async def backends() -> list[int]:
        rows = await connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%page%'"
        )
        return [pid for (pid,) in await rows.fetchall()]

    def statements() -> int:
        lines = postgres.log().splitlines()
        said = [line for line in lines if "statement: " in line or "execute " in line]
        return sum("page" in line.partition("|")[0] for line in said)

    async with await psycopg.AsyncConnection.connect(
        postgres.dsn, autocommit=True, application_name="counts"
    ) as connection:
        there = await backends()
        before = cpu_sec(pid), {one: cpu_sec(one) for one in there}, statements()
        began = time.monotonic()
        await asyncio.sleep(seconds)
        took = time.monotonic() - began
        used = cpu_sec(pid) - before[0]
        theirs = sum(cpu_sec(one) - before[1][one] for one in await backends() if one in before[1])
        asked = statements() - before[2]
    return 100 * used / took, 100 * theirs / took, asked / took


async def _changes(dsn: str, tab: Any, many: int) -> list[float]:
    """Milliseconds from the commit of a change until its row is in the browser, each."""
    chance, began = random.Random(7), dict[str, float]()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for number in range(many):
            mark = f"{number + 2}"
            worker = 1002 + number % (WORKERS - 1)
            await connection.execute(CHANGE, ["draining", number + 2, worker])
            began[mark] = time.time()
            await asyncio.sleep(chance.uniform(0.1, 0.6))
        await asyncio.sleep(1)
    seen = await tab.evaluate("window.seen")
    return [1000 * (seen.get(mark, float("inf")) - at) for mark, at in began.items()]


def measure(postgres: EmbeddedPostgres, quick: bool) -> list[Result]:
    if CHROMIUM is None:
        raise LeftOut(MISSING)
    return asyncio.run(_measure(postgres, quick))
