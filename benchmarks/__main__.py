"""``python -m benchmarks [--quick] [--json FILE]``: prints what was measured beside what it may be at most."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from benchmarks import cost, distribution, reaction
from benchmarks.results import Result, save
from jobsync_async.embedded import EmbeddedPostgres

# As a real server is run, so that a commit waits for the disk.
SAFE = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB", "max_wal_size": "4GB"}


async def measure(rounds: int, steady_sec: float) -> list[Result]:
    results: list[Result] = []

    def add(measured: list[Result]) -> None:
        for result in measured:
            print(result.line(), flush=True)
        results.extend(measured)

    with EmbeddedPostgres(SAFE) as postgres:
        add(await reaction.measure(postgres.dsn, rounds))
        add(await distribution.measure(postgres.dsn, rounds))
        add(cost.memory(postgres.dsn, min(rounds, 3)))
    with EmbeddedPostgres({**SAFE, **cost.SETTINGS}) as postgres:
        add(await cost.measure(postgres, steady_sec))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter observation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    results = asyncio.run(measure(*((3, 30) if options.quick else (10, 120))))
    if options.json:
        save(results, options.json)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
