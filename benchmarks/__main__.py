"""``python -m benchmarks [--quick] [--json FILE] [--plots FOLDER] [CASE ...]``: this library beside
its peers and its goals.

It needs only Python and a package index: peers are installed into environments of their own, and
PostgreSQL is the embedded one. The sides take turns on the same server, workers are processes, and
every figure is a median with its range.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import (
    batches,
    bloat,
    compared,
    growth,
    handoff,
    limits,
    page,
    peers,
    reaction,
    scale,
    start,
)
from benchmarks.results import HEAD, Result, save
from benchmarks.sides import LeftOut, Side, both
from jobsync_async.embedded import EmbeddedPostgres

# As a real server is run, so that a commit waits for the disk.
SAFE = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "max_connections": "1500",
}

CASES: dict[str, Callable[[EmbeddedPostgres, Sequence[Side], bool], list[Result]]] = {
    "reaction": lambda server, sides, quick: asyncio.run(
        reaction.measure(server.dsn, sides, quick)
    ),
    "zookeeper": lambda server, sides, quick: asyncio.run(
        peers.zookeeper(server.dsn, sides, quick)
    ),
    "kafka": lambda server, sides, quick: asyncio.run(peers.kafka(server.dsn, sides, quick)),
    "distribution": lambda server, sides, quick: compared.distribution(server.dsn, sides, quick),
    "plan": lambda server, sides, quick: compared.plans(server.dsn, sides, quick),
    "calls": lambda server, sides, quick: compared.calls(server.dsn, sides, quick),
    "rows": lambda server, sides, quick: compared.rows(server.dsn, sides, quick),
    "memory": lambda server, sides, quick: compared.memory(server.dsn, sides, quick),
    "batch": batches.measure,
    "start": start.measure,
    "limits": lambda server, _, quick: asyncio.run(limits.measure(server.dsn, quick)),
    "scale": lambda server, sides, quick: asyncio.run(scale.measure(server, sides[0], quick)),
    "growth": lambda server, _, quick: [
        *handoff.measure(server.dsn, quick),
        *asyncio.run(growth.measure(server.dsn, quick)),
    ],
    "bloat": lambda server, _, quick: asyncio.run(bloat.measure(server.dsn, quick)),
    "steady": compared.steady,
    "page": lambda server, _, quick: page.measure(server, quick),
}

SLOW_PEERS = {"zookeeper", "kafka"}  # also in a quick run when they are named
WITH = {
    "steady": compared.LOGGED,
    "start": start.COUNTED,
    "scale": scale.COUNTED,
    "bloat": bloat.HURRIED,
    "page": page.LOGGED,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer rounds, a shorter look, and no peer that takes minutes",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="write each case's results there as CASE.json, and draw what is there (`python -m "
        "benchmarks.plots FOLDER` draws "
        "alone); needs the dependency group `bench`",
    )
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        choices=[[], *CASES],
        help=f"some of: {', '.join(CASES)}",
    )
    options = parser.parse_args()
    if options.plots:
        from benchmarks.plots import draw  # before anything is measured: it may not be installed
    sides = both()
    results: list[Result] = []
    print(HEAD)
    for name in options.cases or [
        name for name in CASES if not (options.quick and name in SLOW_PEERS)
    ]:
        started = time.monotonic()
        try:
            with EmbeddedPostgres({**SAFE, **WITH.get(name, {})}) as server:
                measured = CASES[name](server, sides, options.quick)
        except LeftOut as reason:
            print(f"{name} is left out: {reason}", flush=True)
            continue
        for result in measured:
            print(result.line(), flush=True)
        print(f"({name}: {time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
        results.extend(measured)
        if options.plots:
            options.plots.mkdir(parents=True, exist_ok=True)
            save(measured, options.plots / f"{name}.json")
    if options.json:
        save(results, options.json)
    if options.plots:
        draw(options.plots)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
