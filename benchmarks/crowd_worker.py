"""A process of many Jobs: orders come as lines of JSON, ``{"start": [names], "at_once": 5}`` or
``{"stop": [names], …}``; it tells of what changes.

It prints ``{"t", "owned": {name: how many}, "gone": [names]}`` of those of its Jobs that own more
or fewer tokens than it said last, looking every few milliseconds; and ``{"t", "joining": name}``,
``joined`` and ``leaving``. Seconds are on the clock that all processes share.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
from functools import partial
from typing import Any

from jobsync_async import CoordinationConfig, Job

_LOOK_SEC = 0.005


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps({"t": time.monotonic(), **what}) + "\n")
    sys.stdout.flush()


class Crowd:
    """The Jobs, by name."""

    def __init__(self, config: CoordinationConfig) -> None:
        self._config = config
        self._jobs: dict[str, Job] = {}

    async def start(self, turn: asyncio.Semaphore, name: str) -> None:
        job = Job(name, self._config, wait_on_enter=300, lock_provider=lambda _: tell(joining=name))
        self._jobs[name] = job
        # Until it has joined; while the cluster forms, its start goes on until all have.
        async with turn:
            starting = asyncio.ensure_future(job.start())
            # looked at from outside
            while job._worker.state is None and not starting.done():  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SEC)
            if not starting.done():
                tell(joined=name)
        await starting

    async def stop(self, name: str) -> None:
        tell(leaving=name)
        await self._jobs[name].stop()
        del self._jobs[name]

    async def watch(self) -> None:
        """Tell of changes, for ever."""
        told: dict[str, int] = {}
        while True:
            now = {
                name: len(job.my_tokens)
                for name, job in self._jobs.items()
                if job._worker.state is not None
            }
            if now != told:
                tell(owned=dict(now.items() - told.items()), gone=[*(told.keys() - now.keys())])
                told = now
            await asyncio.sleep(_LOOK_SEC)


def _end_if_failed(order: asyncio.Future[Any]) -> None:
    if not order.cancelled() and (error := order.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)


async def main(appname: str, total: str, minimum_nodes: str) -> None:
    crowd = Crowd(
        CoordinationConfig(
            appname=appname, total_tokens=int(total), minimum_nodes=int(minimum_nodes)
        )
    )
    loop = asyncio.get_running_loop()
    watching = asyncio.ensure_future(crowd.watch())
    under_way: list[asyncio.Future[Any]] = []
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        turn = asyncio.Semaphore(order["at_once"])
        starts, stops = order.get("start", ()), order.get("stop", ())
        under_way.append(
            asyncio.gather(*map(partial(crowd.start, turn), starts), *map(crowd.stop, stops))
        )
        under_way[-1].add_done_callback(_end_if_failed)
    watching.cancel()
    if not all(order.done() for order in under_way):
        os._exit(1)  # whoever gave the orders is gone half-way
    await asyncio.gather(*map(crowd.stop, tuple(crowd._jobs)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
