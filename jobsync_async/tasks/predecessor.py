"""Workers of jobsync and ours, side by side: ours hold nothing while one of theirs lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from jobsync_async.core.predecessor import PredecessorBeats
from jobsync_async.errors import ClusterNotFormed, StoreError, StoreUnavailable
from jobsync_async.host.logs import WorkerLog
from jobsync_async.postgres.predecessor import Predecessor
from jobsync_async.tasks.outages import PREDECESSOR
from jobsync_async.tasks.worker import Worker

_LOOK_EVERY_SEC = 1.0


class PredecessorWatch:
    """Waits until no worker of jobsync lives, and then looks on: one that comes back makes this
    worker let go."""

    def __init__(self, worker: Worker, predecessor: Predecessor) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._predecessor = predecessor
        self._watch = PredecessorBeats(worker.config.heartbeat_timeout_sec)
        self._failures = 0

    async def _live(self) -> list[str]:
        """The workers of jobsync that live. Raises StoreUnavailable or SchemaError."""
        try:
            beats = await self._predecessor.beats()
        except StoreError as error:
            self._watch.missed()
            self._failures += 1
            self._worker.outages.failed(PREDECESSOR, error, self._failures)
            raise
        if self._failures:
            self._failures = 0
            self._worker.outages.succeeded(PREDECESSOR)
        return self._watch.observe(beats or {}, self._worker.clock())

    async def wait(self, seconds: float) -> None:
        """Return when none lives. Raises ClusterNotFormed when one still does after so many
        seconds; StoreUnavailable, SchemaError."""
        worker = self._worker
        if await self._predecessor.beats() is None:
            self._log.warning(
                "waits for no worker of jobsync: there are no tables of it under the prefix %r on "
                "this role's search path; is predecessor= right?",
                self._predecessor.prefix,
            )
            return
        began, told = worker.clock(), list[str]()
        while live := await self._live_within(began + seconds):
            waited = worker.clock() - began
            if waited >= seconds:
                raise ClusterNotFormed(
                    f"after {seconds:g} s workers of jobsync live still: {', '.join(live)}; this "
                    "worker may begin when all have left: stop them, or raise wait_on_enter",
                    minimum_nodes=worker.config.minimum_nodes,
                )
            if live != told:
                told = live
                self._log.info("waits for workers of jobsync to leave: %s", ", ".join(live))
            await asyncio.sleep(min(_LOOK_EVERY_SEC, seconds - waited))
        if told:
            waited = worker.clock() - began
            self._log.info(
                "begins after %.1f s: no worker of jobsync lives", waited, seconds=waited
            )

    async def _live_within(self, deadline: float) -> list[str]:
        """The same; until the deadline an outage is waited for."""
        while True:
            try:
                return await self._live()
            except StoreUnavailable:
                if self._worker.clock() >= deadline:
                    raise
                await asyncio.sleep(_LOOK_EVERY_SEC)

    async def run(self, set_draining: Callable[[bool], Awaitable[object]]) -> None:
        """Let go of everything while a worker of jobsync lives that was not there before, for
        ever."""
        yielded = False
        while True:
            await asyncio.sleep(_LOOK_EVERY_SEC)
            with suppress(StoreError):  # looked for again, and done again
                live = await self._live()
                if live and not yielded:
                    self._log.warning("hands on: workers of jobsync are back: %s", ", ".join(live))
                    await set_draining(True)
                elif yielded and not live:
                    self._log.info("goes on: no worker of jobsync lives any more")
                    await set_draining(False)
                yielded = bool(live)
