"""One worker's life in a cluster: it joins, keeps its tasks running, and leaves.

The tasks run in a task group inside one supervisor task, which is the coordinator's own. So a job
can be started in one task and stopped in another, in an ``async with``, a test fixture or a
framework's lifespan.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.ids import require_storable
from jobsync_async.core.rows import Announcement, Identity
from jobsync_async.errors import (
    ConfigError,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from jobsync_async.host.clock import lease_clock
from jobsync_async.host.logs import WorkerLog
from jobsync_async.host.waiting import end, ended
from jobsync_async.postgres.pooler import require_push
from jobsync_async.postgres.store import Store
from jobsync_async.postgres.tokens import TokenFeed
from jobsync_async.postgres.work import WorkStore
from jobsync_async.runtime.cluster_status import describe, not_formed
from jobsync_async.tasks.forgetting import forget_old
from jobsync_async.tasks.heartbeat import enter, guard_lease, keep_beating
from jobsync_async.tasks.leader import LeaderMonitor
from jobsync_async.tasks.neighbours import NeighbourWatch
from jobsync_async.tasks.overdue import stuck_tokens
from jobsync_async.tasks.rebalance import follow_changes
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import NodeInfo, Owner
from jobsync_async.work.callbacks import Callback, RebalanceCallback
from jobsync_async.work.pins import PinRegistry

if TYPE_CHECKING:
    from jobsync_async.postgres.steering import Steering
    from jobsync_async.tasks.predecessor import PredecessorWatch

# Idle tokens of several owners arrive one owner after the other; start waits so long for the rest
# after the first.
_REST_OF_FIRST_TOKENS_SEC = 1.0
# A worker that leaves first looks whether everybody lets go at once. If so, one transaction hands
# everything on.
_QUICK_LEAVE_SEC = 0.02


class Coordinator:
    """The worker, its store, and the supervisor of its tasks. It lives once: a job that starts
    again makes another.

    Attributes:
        worker: the shared state of the tasks.
        store: the statements; set by `open`.
        failure: what ended the job, None while it runs or when it ended in order.
    """

    def __init__(
        self,
        config: CoordinationConfig,
        name: str,
        announcement: Announcement,
        on_rebalance: Callback | None,
    ) -> None:
        self.worker: Worker = Worker(config, name, announcement, lease_clock)
        self.store: Store | None = None
        self.failure: BaseException | None = None
        self._on_failure: Callable[[], object] = lambda: None
        self._callback = (
            None
            if on_rebalance is None
            else RebalanceCallback(self.worker, on_rebalance, self._fail)
        )
        self._supervisor: asyncio.Task[None] | None = None
        self._stop_wanted = asyncio.Event()
        self._predecessor: PredecessorWatch | None = None
        self._hurry = False
        self._broken = False
        self._ending = False
        self._log = WorkerLog(__name__, name)

    @property
    def work(self) -> WorkStore:
        return self._opened().work

    @property
    def locks(self) -> PinRegistry:
        config = self.worker.config
        token_of = token_hasher(config.total_tokens, config.hash_function)
        return PinRegistry(self._opened().pins, token_of, self.worker.identity.name, self.codec)

    @property
    def steering(self) -> Steering:
        return self._opened().steering

    @property
    def fence_table(self) -> str:
        return self._opened().queries.table("token")

    @property
    def codec(self) -> str:
        return "utf-8" if self.store is None else self.store.codec

    # -- starting ----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, and find or create the tables. Raises StoreUnavailable, SchemaError or
        ConfigError."""
        worker = self.worker
        store = await Store.open(worker.config, worker.identity.name)
        try:
            require_storable("node_name", worker.identity.name, store.codec)
            require_storable("address", worker.announcement.address or "", store.codec)
        except ConfigError:
            await store.close()
            raise
        self.store = store
        worker.announcement = worker.announcement._replace(session_tag=self.store.tag)

    async def start(self, wait_sec: float) -> None:
        """Join, and return when the first tokens are here; `stop` must be called, also when this
        raises.

        Raises NodeNameTaken, ClusterNotFormed, ConfigError, StoreUnavailable or SchemaError.
        """
        worker, store = self.worker, self._opened()
        if (predecessor := store.predecessor) is not None:
            # most workers do without
            from jobsync_async.tasks.predecessor import PredecessorWatch  # noqa: PLC0415

            self._predecessor = PredecessorWatch(worker, predecessor)
            await self._predecessor.wait(wait_sec)
        store.failover.on_change(worker.server_changed)
        feed = await store.listen()  # before joining, so that no announcement is missed
        try:
            await enter(worker, store.membership, store.failover, store.deaths)
            if worker.config.notify and store.context.announces:
                # The join announced itself: that must be heard.
                limit_sec = worker.config.statement_limit_sec
                feed = await require_push(feed, store.listen, limit_sec)
        except BaseException:  # cleaned up, and raised again
            await feed.close()
            raise
        supervise = self._supervise(store, feed)
        self._supervisor = asyncio.create_task(
            supervise, name=f"jobsync_async {worker.identity.name}"
        )
        await self._first_tokens(store, wait_sec)
        worker.started = True
        if (callback := self._callback) is not None and self.failure is None:
            callback.begin()
            await worker.until(lambda: callback.begun or self.failure)
        if self.failure is not None:
            raise self.failure
        tokens, app = len(worker.ownership.grants), worker.config.appname
        self._log.info("joined %s with %d tokens", app, tokens, appname=app, tokens=tokens)

    def _opened(self) -> Store:
        assert self.store is not None, "open() comes first"
        return self.store

    async def _first_tokens(self, store: Store, wait_sec: float) -> None:
        worker = self.worker
        if not await worker.until(
            lambda: self.failure or worker.settled or worker.ownership.grants, wait_sec
        ):
            raise await not_formed(store, worker.config.minimum_nodes, wait_sec)
        await worker.until(lambda: self.failure or worker.settled, _REST_OF_FIRST_TOKENS_SEC)

    # -- running -----------------------------------------------------------------------------------

    def tell_failure_to(self, listener: Callable[[], object]) -> None:
        """Call `listener` when something ends the job; at once if it has ended."""
        self._on_failure = listener
        if self.failure is not None:
            listener()

    async def _supervise(self, store: Store, feed: TokenFeed) -> None:
        worker = self.worker
        works: list[Callable[[], Coroutine[Any, Any, None]]] = [
            partial(keep_beating, worker, store.membership, store.failover, store.deaths),
            partial(guard_lease, worker),
            partial(follow_changes, worker, store, feed, self._fail),
            LeaderMonitor(worker, store.leading, store.membership).run,
            NeighbourWatch(worker, store.deaths).run,
            partial(forget_old, worker, store.forgetting),
        ]
        if store.sessions is not None:  # most workers do without
            from jobsync_async.tasks.sessions import SessionMonitor  # noqa: PLC0415

            works.append(SessionMonitor(worker, store.sessions, store.deaths).run)
        if self._predecessor is not None:
            works.append(partial(self._predecessor.run, self.set_draining))
        try:
            tasks = [asyncio.create_task(self._run(work)) for work in works]
            try:
                await self._stop_wanted.wait()
                idle = not self._broken and await self._let_go(store)
            except asyncio.CancelledError:
                self.failure = self.failure or _cancelled_from_outside()
                raise
            finally:
                self._ending = True
                await end(tasks)
                if self._callback is not None:
                    await self._callback.end()
            # With no heartbeat under way any more, which would find the row gone and join anew.
            if idle:
                await self._sign_off(store, worker.identity)
            elif self._broken and worker.before is not None and await self._unused_within(1):
                # It was evicted: with that nobody need wait for the end of its lease.
                await self._sign_off(store, worker.before)
        finally:
            worker.end()
            await feed.close()
            await store.close()

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """One of the coordination tasks. Without it the worker cannot go on: everything is let go,
        and the lease runs out."""
        try:
            await work()
        except Exception as error:  # whatever it is, it reaches the user as it is
            self._break(error)
        except asyncio.CancelledError:
            if not self._ending:
                self._break(_cancelled_from_outside())
            raise

    def _break(self, error: Exception) -> None:
        self._broken = True
        self.worker.end()
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        kind = type(error).__name__
        self._log.error("the job ends: %s: %s", kind, error, error=kind)
        if self.failure is None:
            self.failure = error
        self._stop_wanted.set()
        self.worker.wake_waiters()
        self._on_failure()

    # -- on request --------------------------------------------------------------------------------

    async def nodes(self) -> list[NodeInfo]:
        """The workers, oldest first. Raises StoreUnavailable."""
        return await self._opened().status.nodes()

    async def owner_of(self, token: int) -> Owner | None:
        """Who owns a token; None for nobody. Raises StoreUnavailable."""
        return await self._opened().status.owner_of(token)

    async def describe(self) -> dict[str, Any]:
        """The cluster at a glance. Raises StoreUnavailable."""
        worker = self.worker
        own = {
            "coordination_enabled": True,
            "state": worker.state,
            "lease_remaining_sec": round(worker.lease.remaining(worker.clock()), 3),
            "tokens_still_in_use": len(worker.ownership.busy()),
        }
        return own | await describe(self._opened())

    async def set_draining(self, draining: bool) -> bool:
        """Say that this worker is to have no tokens, or may have some again; returns when it has
        none, or with False when that was called off. Raises StoreError."""
        worker, membership = self.worker, self._opened().membership
        state = "draining" if draining else "active"
        while not worker.ended:
            me = worker.identity
            await membership.set_state(me.name, state, me.incarnation)
            said = await worker.until(
                lambda: worker.ended or worker.identity != me or worker.state == state,  # noqa: B023
                worker.config.heartbeat_interval_sec,
            )
            # Otherwise it joins anew, and its row may not have been there yet: it says it again.
            if said and worker.identity == me:
                break
        return await worker.drained() if draining else True

    # -- stopping ----------------------------------------------------------------------------------

    def begin_to_stop(self, by: asyncio.Task[Any] | None) -> None:
        """Hand everything on and leave, from now on. Readers of the task that stops it are closed:
        it does not come back to them before the job has ended."""
        for stream in tuple(self.worker.streams):
            if by is not None and stream.asked_by is by:
                stream.close()
        self._stop_wanted.set()

    async def ended(self) -> None:
        """Return when it has left and all tasks have ended; what ended it is in `failure`."""
        assert self._supervisor is not None, "start() comes first"
        await ended(self._supervisor)
        if not self._supervisor.cancelled():
            self.failure = self.failure or self._supervisor.exception()

    async def stop(self) -> None:
        """Hand everything on, leave, and end the tasks, at whatever point the start has come to."""
        if self._supervisor is None:
            await self._withdraw()
        else:
            self.begin_to_stop(None)
            await self.ended()

    def hurry(self) -> None:
        """Cancel the claims that are open when it stops, instead of waiting for them; now, if it is
        stopping."""
        self._hurry = True
        self.worker.wake_waiters()

    async def _withdraw(self) -> None:
        """Undo a start that did not get far."""
        store, self.store = self.store, None
        if store is None:
            return
        with suppress(StoreError):
            await self._delete_row(store, self.worker.identity)
        self.worker.end()
        await store.close()

    async def _let_go(self, store: Store) -> bool:
        """Stop starting work and wait until the work under way is done; whether it is.

        When nobody needs time to let go, nothing is sent: signing off frees all tokens in one
        transaction. Otherwise the leader is told to take the idle ones meanwhile. Work that goes on
        past the hand-off time-out is cancelled by the rebalance task. If it does not end even so,
        the row must stay: its tokens are this worker's until the lease is over.
        """
        worker, me = self.worker, self.worker.identity
        worker.publish(worker.ownership.let_go(worker.clock()))
        if not await self._idle_within(_QUICK_LEAVE_SEC) and not self._hurry:
            # The lease goes on or not, in either case there is nothing more to say.
            with suppress(StoreError):
                await store.membership.set_state(me.name, "draining", me.incarnation, "it leaves")
            await self._idle_within(worker.config.handoff_timeout_sec + 1)
        if self._hurry:
            for _, user in worker.ownership.users_of(worker.ownership.busy()):
                user.lost("the worker leaves at once")
            self._hurry = False
            await self._idle_within(1)
        busy = worker.ownership.busy()
        if busy:
            text = (
                "leaves while %d of its tokens are still in use (token %d first); the others get "
                "them in %g s"
            )
            timeout = worker.config.heartbeat_timeout_sec
            self._log.warning(text, len(busy), busy[0], timeout, tokens_busy=len(busy))
        return not busy

    async def _sign_off(self, store: Store, me: Identity) -> None:
        try:
            await self._delete_row(store, me)
        except StoreError as error:
            self._log.warning("could not sign off, the others notice in a while: %s", error)
        else:
            self._log.info("left")

    async def _delete_row(self, store: Store, me: Identity) -> None:
        """Try twice: the first time may find out that a connection broke while it was idle."""
        try:
            await store.membership.leave(me, self.failure)
        except StoreUnavailable:
            await store.membership.leave(me, self.failure)

    async def _unused_within(self, seconds: float) -> bool:
        users = self.worker.ownership.users
        return await self.worker.until(lambda: not any(users()), seconds)

    async def _idle_within(self, seconds: float) -> bool:
        worker = self.worker
        # What has ignored its cancellation is not waited for once more.
        await worker.until(
            lambda: (
                self._hurry
                or len(worker.ownership.busy()) == len(stuck_tokens(worker, worker.clock()))
            ),
            seconds,
        )
        return not worker.ownership.busy()


def _cancelled_from_outside() -> UsageError:
    return UsageError(
        "a task of the job itself was cancelled: its event loop ended before the job was stopped, "
        "or somebody cancelled all tasks; stop the job first, or leave its `async with`"
    )
