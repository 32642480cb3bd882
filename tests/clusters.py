"""Several jobs on one event loop, and a watch that nobody ever owns what another owns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from jobsync_async import CoordinationConfig, Job


class Cluster:
    """Jobs by name. `cluster()` makes one and ends what is left of it."""

    def __init__(self, config: CoordinationConfig) -> None:
        self.config = config
        self.jobs: dict[str, Job] = {}
        self.watched = True

    def __getitem__(self, name: str) -> Job:
        return self.jobs[name]

    async def start(self, *names: str, **options: Any) -> list[Job]:
        """Start jobs, all at once."""
        jobs = [Job(name, self.config, **{"wait_on_enter": 20, **options}) for name in names]
        await asyncio.gather(*(job.start() for job in jobs))
        self.jobs |= {job.node_name: job for job in jobs}
        return jobs

    async def stop(self, name: str) -> None:
        """Leave in order."""
        await self.jobs[name].stop()
        del self.jobs[name]

    async def crash(self, name: str) -> None:
        """End a job's tasks and connections without a word to anybody, as if its process had died."""
        supervisor = self.jobs.pop(name)._engine._supervisor
        supervisor.cancel()
        await asyncio.wait([supervisor])

    def owners(self) -> dict[int, str]:
        """Who owns each token; fails when two do."""
        owners: dict[int, str] = {}
        for name, job in self.jobs.items():
            for token in job.my_tokens:
                assert token not in owners, f"{name} and {owners[token]} both own token {token}"
                owners[token] = name
        return owners

    def counts(self) -> dict[str, int]:
        """How many tokens each owns."""
        return {name: len(job.my_tokens) for name, job in self.jobs.items()}

    async def settled(self, seconds: float = 10, *, unowned: int = 0) -> dict[str, int]:
        """Wait until every token (but `unowned` ones) is owned; who has how many."""
        with anyio.fail_after(seconds):
            while len(self.owners()) != self.config.total_tokens - unowned:
                await asyncio.sleep(0.002)
        return self.counts()

    async def even(self, seconds: float = 10) -> dict[str, int]:
        """Wait until every token is owned, and nobody has more than one more than another."""
        with anyio.fail_after(seconds):
            while max((await self.settled(seconds)).values()) - min(self.counts().values()) > 1:
                await asyncio.sleep(0.002)
        return self.counts()

    async def watch(self) -> None:
        """Look at every turn of the event loop that no token has two owners, for ever, but while `watched` is False."""
        while True:
            if self.watched:
                self.owners()
            await asyncio.sleep(0)


@asynccontextmanager
async def cluster(config: CoordinationConfig) -> AsyncIterator[Cluster]:
    """A cluster that is watched for two owners of a token, and stopped in the end."""
    made = Cluster(config)
    watching = asyncio.ensure_future(made.watch())
    try:
        yield made
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await asyncio.gather(*(job.stop() for job in made.jobs.values()), return_exceptions=True)
        if not watching.cancelled():
            await watching
