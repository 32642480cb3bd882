"""The command: many seeds on several processes, one seed with its transcript, or a day of joins,
leaves, kills and stops."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.faults import BY_SESSION, Profile
from tests.simulation.simulation import Report, run
from tests.simulation.soak import soak

_PER_CALL = 25


PROFILES = {"lease": Profile(), "session": BY_SESSION}


def some(seeds: Iterable[int], failover: str = "lease") -> list[Report]:
    """Run some seeds with the usual faults."""
    return [run(seed, PROFILES[failover]) for seed in seeds]


def replay(seed: int, failover: str = "lease") -> Report:
    """The same run again, with its transcript."""
    return run(seed, PROFILES[failover], transcript=True)


def many(first: int, count: int, jobs: int, failover: str = "lease") -> list[Report]:
    """Run seeds one after the other, or shared out over processes; those that failed."""
    started, failed, done = time.monotonic(), list[Report](), 0
    steps = commits = 0
    parts = [
        range(start, min(start + _PER_CALL, first + count))
        for start in range(first, first + count, _PER_CALL)
    ]
    work = partial(some, failover=failover)
    with ProcessPoolExecutor(jobs) as pool:
        for reports in pool.map(work, parts) if jobs > 1 else map(work, parts):
            done += len(reports)
            steps += sum(report.steps for report in reports)
            commits += sum(report.commits for report in reports)
            for report in reports:
                if report.failure is not None:
                    failed.append(report)
                    print(f"seed {report.seed}: {report.failure}", flush=True)
            if done % 500 < _PER_CALL:
                print(
                    f"{done} seeds, {len(failed)} failed, {time.monotonic() - started:.0f} s",
                    flush=True,
                )
    print(
        f"{done} seeds, {steps:,} steps, {commits:,} commits through the fence, {len(failed)} "
        "failed"
    )
    return failed


def main() -> None:
    """Exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many runs (default 200)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="on how many processes (default 1)")
    parser.add_argument("--seed", type=int, help="replay one seed, with its transcript")
    parser.add_argument("--hours", type=float, help="one long run of so many virtual hours instead")
    parser.add_argument(
        "--failover",
        choices=tuple(PROFILES),
        default="lease",
        help="what the workers are configured for",
    )
    options = parser.parse_args()
    if options.seed is not None:
        report = replay(options.seed, options.failover)
        print("\n".join(report.lines))
        print(f"seed {report.seed}: {report.failure or 'all promises were kept'}")
        sys.exit(report.failure is not None)
    if options.hours is not None:
        sys.exit(soak(options.first, options.hours, print) is not None)
    failed = many(options.first, options.seeds, options.jobs, options.failover)
    if failed:
        report = replay(failed[0].seed, options.failover)
        print("\n".join(report.lines))
        print(f"seed {report.seed}: {report.failure}; again with --seed {report.seed}")
    sys.exit(bool(failed))
