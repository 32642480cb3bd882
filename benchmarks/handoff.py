"""How long it takes until a worker that joins has its share of many tokens: half of them go from
one worker to it, or a third from two.

``python -m benchmarks.handoff DSN NAME TOKENS SHARE`` is such a worker. It tells how long it took
from before its start until it owned so many, and for how long its event loop was held at most.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from subprocess import PIPE, Popen
from typing import Any

from psycopg.conninfo import make_conninfo

from benchmarks.results import Result
from jobsync_async import CoordinationConfig, Job

_GOAL_SEC = 5.0
# Others look at what has changed, too.
_CALM_SEC = 2.0
_WORK_MEM = {"default settings": None, "work_mem=64kB": "64kB"}


def measure(dsn: str, quick: bool) -> list[Result]:
    """Two joins, with each setting."""
    total, rounds = (100_000, 1) if quick else (1_000_000, 3)
    results = []
    for number, (what, work_mem) in enumerate(_WORK_MEM.items()):
        options = {} if work_mem is None else {"options": f"-c work_mem={work_mem}"}
        told = [
            _joins(make_conninfo(dsn, **options), f"handoff{number}_{turn}_", total)
            for turn in range(rounds)
        ]
        for place, joined in enumerate(zip(*told, strict=True)):
            name = f"{total:,} tokens, {what}: worker {place + 2} joins"
            goal = None if quick else _GOAL_SEC
            results.append(Result(name, "s", [one["took"] for one in joined], goal))
            held = [one["held"] * 1000 for one in joined]
            results.append(Result(f"{name}: its event loop held", "ms", held))
    return results


def _joins(dsn: str, appname: str, total: int) -> list[dict[str, Any]]:
    """What the second and the third worker told."""
    with ExitStack() as stack:
        _, *others = (
            stack.enter_context(_worker(dsn, appname, total, number)) for number in (1, 2, 3)
        )
        return others


@contextmanager
def _worker(dsn: str, appname: str, total: int, number: int) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.handoff", dsn, appname]
    arguments = map(str, (number, total, total // number))
    with Popen([*command, *arguments], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            time.sleep(_CALM_SEC)
            yield told
        finally:
            process.kill()


async def _work(dsn: str, appname: str, name: str, total: int, share: int) -> None:
    held, turn = 0.0, time.monotonic()

    async def watch() -> None:
        nonlocal held, turn
        while True:
            await asyncio.sleep(0.001)
            held, turn = max(held, time.monotonic() - turn), time.monotonic()

    watching = asyncio.ensure_future(watch())
    started = time.monotonic()
    config = CoordinationConfig(dsn=dsn, appname=appname, total_tokens=total)
    async with Job(f"worker {name}", config) as job:
        # Whoever is told of changes holds tokens up, so nobody is.
        while len(job.my_tokens) < share:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        print(json.dumps({"took": time.monotonic() - started, "held": held}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    watching.cancel()


def main(arguments: Sequence[str]) -> None:
    dsn, appname, name, total, share = arguments
    asyncio.run(_work(dsn, appname, name, int(total), int(share)))


if __name__ == "__main__":
    main(sys.argv[1:])
