"""What this worker runs: said in its row, and compared with what the owners of other tokens say of
themselves.

An id is served by its token's owner, if that runs what the id is for. Some workers do not: a web
process, or one of an older release during a deploy. Such a worker would own its share of the ids,
and nobody would serve them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from jobsync_async.core.serving import Noticed, Unserved, unserved
from jobsync_async.host.logs import WorkerLog
from jobsync_async.types import Runner

if TYPE_CHECKING:
    from jobsync_async.postgres.tokens import TokenFeed
    from jobsync_async.tasks.worker import Worker

IdsOn = Callable[[], Mapping[int, int]]
"""On which tokens there are ids, and how many; asked for when a worker is found that does not run
what they are for."""

# Who has just joined says a moment later what it runs.
_SETTLE_SEC = 1.0


class Runners:
    """What runs here now.

    Attributes:
        unserved: ids of it that nobody serves, and has not for a while; changes are told to whoever
            waits for the worker's.

    Args:
        wake: called when there is something new to say.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self.unserved: tuple[Unserved, ...] = ()
        self._wake = wake
        self._running: list[tuple[Runner, IdsOn]] = []

    @contextmanager
    def running(self, runner: Runner, ids_on: IdsOn) -> Iterator[None]:
        """Inside the block this is run here."""
        entry = (runner, ids_on)
        self._running.append(entry)
        self._wake()
        try:
            yield
        finally:
            self._running.remove(entry)
            self._wake()

    async def keep(self, runner: Runner, ids_on: IdsOn) -> None:
        """The same for as long as this task runs, which is for ever."""
        with self.running(runner, ids_on):
            await anyio.sleep_forever()

    @property
    def announced(self) -> frozenset[Runner]:
        """All that is run here."""
        return frozenset(runner for runner, _ in self._running)

    def wanted(self) -> dict[Runner, Mapping[int, int]]:
        """For each, where its ids are."""
        return {runner: ids_on() for runner, ids_on in self._running}


class Announcer:
    """Keeps the row's list right, and looks for ids that nobody serves; the rebalance task calls it
    at each turn."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._said = (worker.identity, worker.runners.announced)
        self._say_at = float("-inf")
        self._known: object = None
        self._changed_at = float("inf")
        self._looked_at = float("-inf")
        self._examined: object = None
        self._examined_at = float("-inf")
        self._found: list[Unserved] = []
        self._noticed = Noticed()

    async def step(self, feed: TokenFeed, now: float) -> None:
        """Say what is new and look at what is due. Raises StoreUnavailable."""
        if self._has_news() and now >= self._say_at:
            await self._say(feed, now)
        if not self._concerned():
            self._judge([], now)
            return
        known = (self._worker.version, self._worker.runners.announced)
        if known != self._known:
            self._known, self._changed_at = known, now
        if now >= self._find_at():
            self._looked_at, self._changed_at = now, float("inf")
            self._judge(await self._find(feed, now), now)

    def next_step(self) -> float:
        """When to look again if nothing changes; infinity for never."""
        due = self._say_at if self._has_news() else float("inf")
        return min(due, self._find_at()) if self._concerned() else due

    def _has_news(self) -> bool:
        me, said = self._said
        # A new row says that nothing is run.
        row = said if me == self._worker.identity else frozenset[Runner]()
        return row != self._worker.runners.announced

    async def _say(self, feed: TokenFeed, now: float) -> None:
        said = (self._worker.identity, self._worker.runners.announced)
        if await feed.announce_runs(*said):
            self._said = said
        else:  # it joins anew
            self._say_at = now + _SETTLE_SEC

    def _concerned(self) -> bool:
        """Whether there may be ids of ours on the tokens of others."""
        worker = self._worker
        return (
            bool(worker.runners.announced)
            and len(worker.ownership.grants) < worker.config.total_tokens
        )

    def _find_at(self) -> float:
        config = self._worker.config
        every_sec = (
            config.heartbeat_interval_sec
            if self._noticed.told
            else config.rebalance_check_interval_sec
        )
        return min(
            self._changed_at + _SETTLE_SEC, self._noticed.due_at, self._looked_at + every_sec
        )

    async def _find(self, feed: TokenFeed, now: float) -> list[Unserved]:
        """One small statement; the tokens of those who do not run all that we do are read when
        something has changed."""
        worker = self._worker
        idlers = await feed.read_idlers(worker.identity, worker.runners.announced)
        examined = (worker.version, tuple(idlers), worker.runners.announced)
        # Which ids there are may change too.
        fresh = now - self._examined_at < worker.config.rebalance_check_interval_sec
        if not idlers or (examined == self._examined and fresh):
            return self._found if idlers else []
        tokens = await feed.tokens_of([idler.incarnation for idler in idlers])
        self._examined, self._examined_at = examined, now
        self._found = unserved(worker.runners.wanted(), idlers, tokens)
        return self._found

    def _judge(self, found: list[Unserved], now: float) -> None:
        worker = self._worker
        new, over = self._noticed.compare(found, now)
        for one in new:
            self._log.warning(
                "%d ids of %s are on tokens of %s, which does not run it: nobody serves them. Run "
                "it there too, give that worker weight=0, or give each kind of work an appname of "
                "its own",
                one.ids,
                one.runner,
                one.node,
                runner=str(one.runner),
                ids=one.ids,
                owner=one.node,
            )
        for one in over:
            if one.runner in worker.runners.announced:
                text = "no ids of %s are unserved at %s any more"
                self._log.info(text, one.runner, one.node, runner=str(one.runner), owner=one.node)
        if worker.runners.unserved != self._noticed.told:
            worker.runners.unserved = self._noticed.told
            worker.metrics.ids_unserved = sum(one.ids for one in worker.runners.unserved)
            worker.wake_waiters()
