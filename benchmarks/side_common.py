"""What the programs of all sides share. It stands beside them and imports only the standard
library, for each of them runs in an environment that has its own side and nothing of the others."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WAL_BYTES = "SELECT pg_current_wal_insert_lsn() - '0/0'"


def task_ids() -> list[str]:
    """Those that are asked about."""
    return [f"task-{number}" for number in range(200_000)]


def rss() -> float:
    """MiB of memory that this process has."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def asked_per_second(job: Any) -> float:
    """can_claim_task per second, by a Job that owns everything."""
    ids = task_ids()
    assert job.can_claim_task(ids[0])
    started = time.perf_counter()
    for task_id in ids:
        job.can_claim_task(task_id)
    return len(ids) / (time.perf_counter() - started)


def tell(**what: Any) -> None:
    """Print a line of JSON with the time, in seconds, on the clock that all processes of a machine
    share.

    What a worker tells: ``joining``, ``leaving``, ``left``; ``owned`` (how many), with ``come`` and
    ``gone`` (which).
    """
    print(json.dumps({"t": time.monotonic(), **what}), flush=True)


class Holdings:
    """What a worker has told that it owns; tells of each change."""

    def __init__(self) -> None:
        self._told: frozenset[int] = frozenset()

    def now(self, owned: frozenset[int]) -> None:
        if owned != self._told:
            tell(owned=len(owned), come=sorted(owned - self._told), gone=sorted(self._told - owned))
            self._told = owned


def run(functions: Mapping[str, Any]) -> None:
    """Call the function that the command line names, with the other arguments, and print what it
    returns, if anything."""
    answer = functions[sys.argv[1]](*sys.argv[2:])
    if inspect.iscoroutine(answer):
        answer = asyncio.run(answer)
    if answer is not None:
        print(json.dumps(answer), flush=True)
