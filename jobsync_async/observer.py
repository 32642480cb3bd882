"""`Observer`: the cluster from outside, for a router or a dashboard."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.lease import Backoff
from jobsync_async.core.observer_state import UNKNOWN, ClusterReading, ObserverState
from jobsync_async.errors import SchemaError, StoreError, StoreUnavailable, UsageError
from jobsync_async.host.clock import lease_clock
from jobsync_async.host.finishing import finish_first
from jobsync_async.postgres.observer import ObserverFeed, ObserverOutages
from jobsync_async.postgres.store import Store
from jobsync_async.runtime.cluster_status import describe
from jobsync_async.types import ClusterChange, Owner, TaskOrId, task_id_of

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

# A notification and a look by the clock may cross: only after this long is the notification taken
# for missed.
_CROSSING_SEC = 0.2
# After a notification that named a version that does not exist, others are not followed for so
# long.
_DISTRUST_SEC = 1.0
# For so long rights or tables may be gone: tools take them and give them back.
_REFUSED_SEC = 2.0


class Observer:
    """Looks at a cluster without joining it: ``async with Observer(config) as cluster``.

    It writes nothing, has no row in the tables, and its role needs SELECT on them only; the tables
    must be there. One connection listens; calls use up to four further ones, opened when needed and
    closed when idle. When the server is gone for a while, it goes on by itself afterwards. Once per
    ``heartbeat_interval_sec`` it looks without having been told to: where notifications do not
    arrive, it is that late. With ``notify=False`` it looks every ``poll_interval_sec``.

    Args:
        config: the cluster. ``total_tokens`` and ``hash_function`` are taken from the cluster
            itself.
        name: what its sessions are called in ``application_name``.
    """

    def __init__(self, config: CoordinationConfig, *, name: str = "observer") -> None:
        self._config = config
        self._name = name
        self._store: Store | None = None
        self._token_of: Callable[[Any], int] | None = None
        self._follower: _ClusterFollower | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = (
            "closed"
            if self._follower is None
            else "connected"
            if self._follower.connected
            else "not connected"
        )
        return f"<Observer {self._config.appname!r} {state}>"

    async def __aenter__(self) -> Self:
        """Connect and look. Raises StoreUnavailable, and SchemaError when there is no such cluster
        or SELECT is not granted."""
        if self._store is not None:
            raise UsageError("this Observer is open already; make another one")
        store = await Store.open(self._config, self._name, observe=True)
        try:
            feed = await store.observe()
            follower = _ClusterFollower(self._config, store, feed)
            try:
                first = await follower.first_reading()
            except BaseException:  # cleaned up, and raised again
                await feed.close()
                raise
        except BaseException:  # cleaned up, and raised again
            await store.close()
            raise
        self._store, self._follower = store, follower
        self._token_of = token_hasher(first.total_tokens, first.hash_function)
        self._task = asyncio.create_task(follower.run(), name=f"jobsync_async {self._name}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        store, task, follower, self._store = self._store, self._task, self._follower, None
        assert store is not None
        assert task is not None
        assert follower is not None
        follower.end()
        await finish_first(_closed(task, store))
        if follower.failure is not None and error is None:
            raise follower.failure

    @property
    def connected(self) -> bool:
        """Whether changes are being heard of at this moment. No I/O."""
        return self._follower is not None and self._follower.connected

    async def status(self) -> dict[str, Any]:
        """The cluster at a glance: what ``jobsync-async status --json`` prints and
        docs/command-line.md describes, without what is wrong, batches, what is set aside, and who
        is connected.

        A few statements. Raises StoreUnavailable.
        """
        return await describe(self._opened())

    async def owner_of(self, task: TaskOrId) -> Owner | None:
        """Who owns a task now: name, address and epoch; None for nobody. One statement.

        A router that asks often keeps a table from `changes` instead. Raises StoreUnavailable.
        """
        store = self._opened()
        return await store.status.owner_of(self.task_to_token(task))

    def task_to_token(self, task: TaskOrId) -> int:
        """The token that a task hashes to in this cluster. No I/O."""
        self._opened()
        assert self._token_of is not None
        return self._token_of(task_id_of(task))

    def changes(self) -> ClusterChanges:
        """An asynchronous iterator of `ClusterChange` (``jobsync_async.types``), told by push.

        The first item shows everything: ``workers`` with their addresses, and in ``moved`` each
        token with its owner. Every further one shows what is different from what this reader was
        told: workers that ``joined`` and ``left``, tokens that ``moved`` and to whom, leader and
        term. A pin or a state that changed gives an item too, with a new ``version``. Nothing is
        queued: a slow reader gets one item that merges all changes. While the server cannot be
        reached there are no items; afterwards there is one, if anything changed. The iteration ends
        with the observer.

        Heartbeats are not changes: ask `status` for them.
        """
        self._opened()
        assert self._follower is not None
        return ClusterChanges(self._follower)

    def _opened(self) -> Store:
        if self._store is None:
            raise UsageError(
                "the Observer is not open: use `async with Observer(config) as cluster:`"
            )
        return self._store


def store_of(observer: Observer) -> Store:
    """The statements of an open observer, for `operations/`, which asks more than it tells."""
    return observer._opened()


class ClusterChanges:
    """An asynchronous iterator of `ClusterChange`, made by `Observer.changes`; also an
    ``async with``."""

    def __init__(self, follower: _ClusterFollower) -> None:
        self._follower = follower
        self._reader = follower.state.reader()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ClusterChange:
        """The next change. Raises what ended the observer, if something did."""
        follower = self._follower
        while not self._closed and not follower.ended:
            change = self._reader.next_change()
            if change is not None:
                return change
            await follower.changed()
        if follower.failure is not None:
            raise follower.failure
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        self._follower.tell()


class _ClusterFollower:
    """The observer's task: waits for news, looks, and listens anew when the connection broke.

    A look by the clock, every heartbeat interval, is the net under the notifications: it finds a
    dead connection, and one that does not hear what it should.
    """

    def __init__(self, config: CoordinationConfig, store: Store, feed: ObserverFeed) -> None:
        self.state: ObserverState = ObserverState()
        self.connected: bool = True
        self.ended: bool = False
        self.failure: BaseException | None = None
        self._channel = store.context.channel
        self._store = store
        self._feed: ObserverFeed | None = feed
        self._pushed = config.notify
        self._interval_sec = (
            config.heartbeat_interval_sec if config.notify else config.poll_interval_sec
        )
        self._due = 0.0
        self._tried_at: float | None = None  # when a look began that has not ended
        self._outages = ObserverOutages(self._channel, lease_clock)
        self._backoff = Backoff()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return at the next change; look first, then wait, with no await in between."""
        await self._changed.wait()

    def tell(self) -> None:
        """Wake whoever waits in `changed`."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def end(self) -> None:
        """Let `run` come to its end."""
        self.ended = True
        self._wake.set()
        self.tell()

    async def first_reading(self) -> ClusterReading:
        """Fill the state. Raises StoreUnavailable or SchemaError."""
        assert self._feed is not None
        return await self._read_changes(self._feed)

    async def run(self) -> None:
        """Follow the cluster until `end`. What it cannot go on after is kept in `failure`, for the
        readers."""
        try:
            await self._run()
        except Exception as error:  # whatever it is, it reaches the reader as it is
            kind = type(error).__name__
            logger.error(
                "the observer ends: %s: %s",
                kind,
                error,
                extra={"channel": self._channel, "error": kind},
            )
            self.failure = error
        finally:
            self.connected = False
            self.ended = True
            self.tell()

    async def _run(self) -> None:
        failures, begun = 0, 0.0
        while not self.ended:
            try:
                self._tried_at = lease_clock()
                feed, self._feed = self._feed or await self._store.observe(), None
                try:
                    if not self.connected:
                        self._store.suspect()
                        await self._read_changes(feed)  # what happened in between was not heard
                    await self._serve(feed)
                finally:
                    feed.abandon()
                    await feed.close()
            except StoreError as error:
                if self.connected:
                    failures, begun = 0, lease_clock()
                failures += 1
                # a jitter
                wait_sec = self._backoff.wait_sec(failures, random.random())  # noqa: S311
                if (
                    isinstance(error, SchemaError)
                    and lease_clock() + wait_sec > begun + _REFUSED_SEC
                ):
                    raise
                self.connected = False
                self._outages.failed(error, failures, self._tried_at)
                await self._pause(wait_sec)

    async def _pause(self, seconds: float) -> None:
        """Wait for so long, or until `end`."""
        self._clear_wake()
        timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)
        await self._wake.wait()
        timer.cancel()
        self._clear_wake()

    def _clear_wake(self) -> None:
        if not self.ended:
            self._wake.clear()

    async def _serve(self, feed: ObserverFeed) -> None:
        """Wait and look, until `end`. Raises StoreUnavailable when the connection broke or does not
        hear what it should."""
        while not self.ended:
            if feed.heard > self.state.version:
                await self._follow(feed)
            elif lease_clock() >= self._due:
                await self._check(feed)
            # what was heard during a look is in `heard` already: the socket does not become
            # readable for it
            else:
                await feed.wait(self._wake, self._due - lease_clock())
                self._clear_wake()

    async def _follow(self, feed: ObserverFeed) -> None:
        heard = feed.take_heard()
        await self._read_changes(feed)
        if heard > self.state.version:  # no commit of ours: forged, or meant for somebody else
            await self._pause(_DISTRUST_SEC)
            if not self.ended:
                await self._read_changes(feed)

    async def _check(self, feed: ObserverFeed) -> None:
        """Look without having been told to; what is found should have been announced."""
        before = self.state.version
        announced = (await self._read_changes(feed)).announced
        if not self._pushed or announced <= before or self.ended:
            return
        deadline = lease_clock() + _CROSSING_SEC
        while feed.heard < announced and not self.ended:
            if lease_clock() >= deadline:
                raise StoreUnavailable("a change was found of which no notification came")
            await feed.wait(self._wake, deadline - lease_clock())
            self._clear_wake()

    async def _read_changes(self, feed: ObserverFeed) -> ClusterReading:
        state = self.state
        looks = state.looks
        self._tried_at = tried_at = lease_clock()
        look = await feed.read(state.version)
        if not state.update(look):
            look = await feed.read(UNKNOWN)
            state.update(look)
        self.connected, self._tried_at = True, None
        self._outages.succeeded(tried_at)
        self._due = lease_clock() + self._interval_sec
        if state.looks != looks:
            self.tell()
        return look


async def _closed(task: asyncio.Task[None], store: Store) -> None:
    await asyncio.wait([task])
    await store.close()
