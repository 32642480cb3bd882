"""``python -m benchmarks [--quick] [--json FILE] [CASE ...]``: this library beside jobsync, and beside its goals.

It needs only Python and a package index: jobsync is installed into an environment of its own, and PostgreSQL is the embedded
one. The sides take turns on the same server, workers are processes, and every figure is a median with its range.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import bloat, compared, growth, limits, reaction, scale
from benchmarks.results import HEAD, Result, save
from benchmarks.sides import Side, both
from jobsync_async.embedded import EmbeddedPostgres

# As a real server is run, so that a commit waits for the disk.
SAFE = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB", "max_wal_size": "4GB", "max_connections": "1500"}

CASES: dict[str, Callable[[EmbeddedPostgres, Sequence[Side], bool], list[Result]]] = {
    "reaction": lambda server, sides, quick: asyncio.run(reaction.measure(server.dsn, sides, quick)),
    "distribution": lambda server, sides, quick: compared.distribution(server.dsn, sides, quick),
    "plan": lambda server, sides, quick: compared.plans(server.dsn, sides, quick),
    "calls": lambda server, sides, quick: compared.calls(server.dsn, sides, quick),
    "rows": lambda server, sides, quick: compared.rows(server.dsn, sides, quick),
    "memory": lambda server, sides, quick: compared.memory(server.dsn, sides, quick),
    "limits": lambda server, _, quick: asyncio.run(limits.measure(server.dsn, quick)),
    "scale": lambda server, sides, quick: asyncio.run(scale.measure(server, sides[0], quick)),
    "growth": lambda server, _, quick: asyncio.run(growth.measure(server.dsn, quick)),
    "bloat": lambda server, _, quick: asyncio.run(bloat.measure(server.dsn, quick)),
    "steady": compared.steady,
}

WITH = {"steady": compared.LOGGED, "scale": scale.COUNTED, "bloat": bloat.HURRIED}


def folder() -> Path:
    """Where the peer's environment is kept from one run to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jobsync_async-benchmarks"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter observation, nothing that takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[[], *CASES], help=f"some of: {', '.join(CASES)}")
    options = parser.parse_args()
    cache = folder()
    cache.mkdir(parents=True, exist_ok=True)
    sides = both(cache)
    results: list[Result] = []
    print(HEAD)
    for name in options.cases or CASES:
        with EmbeddedPostgres({**SAFE, **WITH.get(name, {})}) as server:
            measured = CASES[name](server, sides, options.quick)
        for result in measured:
            print(result.line(), flush=True)
        results.extend(measured)
    if options.json:
        save(results, options.json)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
