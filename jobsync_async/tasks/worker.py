"""What the tasks of one worker share: who it is, its lease, what it owns, what it knows of the cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID, uuid4
from weakref import WeakSet

from jobsync_async.clock import Clock
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.lease import Backoff, Lease, Watch
from jobsync_async.core.ownership import Change, Ownership
from jobsync_async.core.rows import Announcement, HeartbeatAnswer, Identity, Snapshot
from jobsync_async.metrics import Metrics

logger = logging.getLogger(__name__)


class User(Protocol):
    """Somebody who uses a token, and is told when it goes. Called from the worker's tasks; must not block or raise."""

    @property
    def task(self) -> str:
        """The task, as text."""

    def revoked(self) -> None:
        """The token is to go: finish soon."""

    def lost(self, why: str) -> None:
        """The token is gone, or the time to finish is over: stop now."""


class Stream(Protocol):
    """A reader of changes, which holds revoked tokens until it comes back for its next item."""

    def stopped_by(self, task: asyncio.Task[Any] | None) -> None:
        """`task` stops the job: if it is the one that reads, there is nothing to wait for."""


class Worker:
    """The shared state of one worker.

    Attributes:
        identity: name and incarnation; another incarnation after every rejoin.
        lease: the right to act, extended by the heartbeat task alone.
        ownership: the tokens, changed by the rebalance task and by whoever ends the lease.
        watch: since when the beats of others have stood still.
        term, leader: the highest term seen, and who leads in it.
        answer: the last heartbeat's; watches_all: whether it showed everybody's beats.
        version: the cluster's version at the last reading; hinted: the highest that a heartbeat told of.
        state, settled: what the own row said at the last reading, and whether the last plan counted this worker in.
        streams: the open readers of changes.
        ended: the worker has left and will not own anything again.
        sync_wanted, lead_wanted, beat_wanted: wake the rebalance, leader and heartbeat task.
    """

    def __init__(self, config: CoordinationConfig, name: str, announcement: Announcement, clock: Clock) -> None:
        self.config = config
        self.announcement = announcement
        self.clock = clock
        self.metrics = Metrics()
        self.backoff = Backoff(most_sec=min(2.0, config.heartbeat_interval_sec))
        self.identity = Identity(name, uuid4())
        self.lease = Lease(config.lease_sec)
        self.ownership: Ownership[User] = Ownership(self.identity.incarnation)
        self.watch = Watch(config.heartbeat_timeout_sec, gap_sec=2 * config.heartbeat_interval_sec)
        self.term = -1
        self.leader: UUID | None = None
        self.answer: HeartbeatAnswer | None = None
        self.watches_all = False
        self.version = -1
        self.hinted = -1
        self.state: str | None = None
        self.settled = False
        self.streams: WeakSet[Stream] = WeakSet()
        self.ended = False
        self.sync_wanted = asyncio.Event()
        self.lead_wanted = asyncio.Event()
        self.beat_wanted = asyncio.Event()
        self.lease_extended = asyncio.Event()
        self._changed = asyncio.Event()

    # -- what is true now -----------------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this worker believes to lead. A hint: every leader's transaction proves it again."""
        return self.leader == self.identity.incarnation

    def may_act(self) -> bool:
        """Whether the lease is valid, by the clock and at this very moment."""
        return self.lease.valid(self.clock())

    def owns(self, token: int) -> bool:
        """Whether work on the token may start now."""
        return token in self.ownership.owned and self.clock() < self.lease.deadline

    def owned_now(self) -> frozenset[int]:
        """The tokens on which work may start now."""
        return self.ownership.owned if self.may_act() else frozenset()

    @property
    def stuck_after_sec(self) -> float:
        """How long after its revocation a token counts as stuck: its work was cancelled, and had a heartbeat's time to end."""
        return self.config.handoff_timeout_sec + self.config.heartbeat_interval_sec

    def overdue(self, now: float) -> list[int]:
        """Revoked tokens that are still in use here past the hand-off time-out, in order."""
        return self._revoked_before(now - self.config.handoff_timeout_sec)

    def stuck(self, now: float) -> list[int]:
        """Those of them whose work has ignored its cancellation."""
        return self._revoked_before(now - self.stuck_after_sec)

    def _revoked_before(self, moment: float) -> list[int]:
        revoking = self.ownership.revoking
        return [token for token in self.ownership.busy() if revoking[token].since <= moment]

    # -- what the tasks tell each other -----------------------------------------------------------------------------------

    def wants_all_beats(self) -> bool:
        """Whether the next heartbeat is to show everybody's beats: the leader watches all, and so does the next in age, so
        that it has seen enough when its turn comes."""
        return self.leads or (self.answer is not None and self.answer.rank == 0)

    def members_differ(self, known: Set[UUID]) -> bool:
        """Whether the last heartbeat's answer shows other members than those that are known. Unknown is False."""
        if self.answer is None or not self.watches_all:
            return False
        return {beat.incarnation for beat in self.answer.beats} != known

    def beat_answered(self, sent_at: float, answer: HeartbeatAnswer, *, watched_all: bool) -> None:
        """A heartbeat was acknowledged. The lease counts from before it was sent, the observation of others from now."""
        arrived = self.clock()
        self.metrics.heartbeats += 1
        self.metrics.heartbeat_sec = arrived - sent_at
        self.lease.extend(sent_at)
        self.lease_extended.set()
        self.watch.observe((beat for beat in answer.beats if beat.incarnation != self.identity.incarnation), arrived)
        self.answer, self.watches_all = answer, watched_all
        self.hinted = answer.version
        self.saw_leader(answer.term, answer.leader)
        if answer.version > self.version or not self.ownership.known:
            self.sync_wanted.set()
        self.lead_wanted.set()

    def snapshot_read(self, snapshot: Snapshot) -> None:
        """The own tokens were read; applies what continues what is known, while the lease is valid."""
        self.metrics.resyncs += 1
        self.version = max(self.version, snapshot.version)
        self.saw_leader(snapshot.term, snapshot.leader)
        if snapshot.state is None:
            self.beat_wanted.set()  # the row is gone: the next heartbeat finds that out, and joins anew
            return
        now = self.clock()
        if not self.lease.valid(now):
            return
        change = self.ownership.apply(snapshot, now)
        if change is not None:
            news = self.state != snapshot.state or self.settled != snapshot.settled
            self.state, self.settled = snapshot.state, snapshot.settled
            self.publish(change, news=news)
        self.lead_wanted.set()

    def saw_leader(self, term: int, leader: UUID | None) -> None:
        """Somebody leads in a term; older terms are ignored."""
        if term > self.term:
            self.term, self.leader = term, leader
            if self.leads:
                self.beat_wanted.set()  # the next answer shows everybody's beats
            self.lead_wanted.set()

    def stop_acting(self, why: str) -> None:
        """The lease is over, or the worker was expired: everything held is lost, at once."""
        self.lease.end()
        change = self.ownership.forget()
        self.settled = False
        if change:
            self.metrics.lease_losses += 1
            logger.warning(
                "%s: %s; %d tokens are lost and their work is cancelled",
                self.identity.name,
                why,
                len(change.lost),
                extra={"node": self.identity.name, "tokens_lost": len(change.lost)},
            )
        self.publish(change, why=why, news=True)

    def begin_incarnation(self) -> None:
        """Continue under a new incarnation, after the old one was expired."""
        self.stop_acting("expired by the cluster")
        self.identity = Identity(self.identity.name, uuid4())
        self.announcement = replace(self.announcement, state=self.state or "active")  # who drained goes on draining
        self.ownership.begin(self.identity.incarnation)
        self.watch.forget()

    def publish(self, change: Change, *, why: str = "taken by the cluster", news: bool = False) -> None:
        """Tell users and readers of a change; of `news`, even if no token changed."""
        for _, user in self.ownership.users_of(change.lost):
            user.lost(why)
        for _, user in self.ownership.users_of(change.revoked):
            user.revoked()
        if change or news:
            self.wake_waiters()

    def wake_waiters(self) -> None:
        """Something that somebody waits for in `changed` may be so now."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def user_left(self) -> None:
        """Somebody let go of a revoked token."""
        self.sync_wanted.set()
        self.wake_waiters()

    def end(self) -> None:
        """The worker has left, or cannot go on: nothing is held any more, and streams end."""
        self.ended = True
        self.lease.end()
        self.publish(self.ownership.forget(), why="the job has ended", news=True)

    async def changed(self) -> None:
        """Return at the next change of anything that readers or waiters look at. Look first, then wait, with no await in
        between."""
        await self._changed.wait()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds, which is looked at after every change."""
        while not condition():
            await self.changed()
