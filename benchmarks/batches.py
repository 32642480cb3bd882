"""A batch of many ids, done by worker processes that begin at one moment, beside loops that people
write by hand over a table of jobs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.results import Result
from benchmarks.sides import Side, server

_WORKER = Path(__file__).with_name("batch_worker.py")
LOOPS = {
    "each": "a commit for each job",
    "hundred": "a commit for each hundred",
    "batched": "a hundred in one statement, which forgets a crash",
}


def measure(dsn: str, side: Side, quick: bool) -> list[Result]:
    """The table of the main job: 0 ms and 5 ms handlers, and growing numbers of ids."""
    results = []
    rounds, ids = (1, 20_000) if quick else (3, 20_000)
    took: dict[str, list[float]] = {}
    for number in range(rounds):
        for way in ("ours", *LOOPS):
            run = _run(dsn, side, way, workers=4, ids=ids, name=f"{way}_{number}_")
            took.setdefault(way, []).append(run["seconds"])
            if way == "ours":
                took.setdefault("end", []).append(1000 * run["after_last"])
    for way, title in LOOPS.items():
        times = 0.25 if way == "batched" else 1.0
        name = f"{ids:,} ids, 4 workers, 0 ms, beside {title}"
        results.append(Result(name, "s", took["ours"], None, took[way], times=times))
    most_ms = 50 + 20 * sorted(took["ours"])[rounds // 2]
    results.append(
        Result("after the last completion until all have returned", "ms", took["end"], most_ms)
    )
    for concurrency in (8,) if quick else (8, 64):
        for workers in (1,) if quick else (1, 4):
            count = 200 * concurrency * workers
            run = _run(
                dsn, side, "ours", workers=workers, ids=count, name=f"w{workers}_{concurrency}_",
                handler_ms=5, concurrency=concurrency,
            )  # fmt: skip
            ideal = count * 0.005 / concurrency / workers
            name = f"5 ms, {workers} workers with {concurrency} at once: part of the ideal"
            results.append(Result(name, "%", [100 * ideal / run["seconds"]], 85, more=True))
    sizes = (2_000, 20_000) if quick else (2_000, 20_000, 200_000, 1_000_000)
    for size in sizes:
        run = _run(dsn, side, "ours", workers=4, ids=size, name=f"n{size}_")
        name = f"{size:,} ids, 4 workers: time for each"
        results.append(Result(name, "us", [1e6 * run["seconds"] / size]))
    return results


def _run(
    dsn: str,
    side: Side,
    way: str,
    *,
    workers: int,
    ids: int,
    name: str,
    handler_ms: float = 0,
    concurrency: int = 8,
) -> dict[str, Any]:
    """Seconds from the word until the last worker has returned, and from the last completion."""
    settings = {
        "way": way,
        "appname": name,
        "ids": ids,
        "workers": workers,
        "handler_ms": handler_ms,
        "concurrency": concurrency,
    }
    if way != "ours":
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS job")
            connection.execute(
                "CREATE TABLE job (id bigint PRIMARY KEY, state text NOT NULL DEFAULT 'new')"
            )
            connection.execute("INSERT INTO job SELECT generate_series(1, %s)", [ids])
            connection.execute("CREATE INDEX ON job (id) WHERE state = 'new'")
    environment = {**os.environ, **side.environment, **server(dsn)}
    processes = [
        subprocess.Popen(
            [side.python, str(_WORKER), json.dumps({**settings, "number": number})],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(workers)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready"
        began = time.time()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [json.loads(process.stdout.readline()) for process in processes]  # type: ignore[union-attr]
        done = sum(one["done"] for one in told)
        if done != ids:
            raise RuntimeError(f"{way}: {done} of {ids} were done")
    finally:
        for process in processes:
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(60)
    returned = max(one["returned"] for one in told)
    return {
        "seconds": returned - began,
        "after_last": returned - max(one["last"] for one in told),
        "held": max(one.get("held", 0) for one in told),
    }


def cases(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    return measure(dsn, sides[0], quick)
