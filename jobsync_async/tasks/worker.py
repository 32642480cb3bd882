"""What the tasks of one worker share: who it is, its lease, what it owns, what it knows of the
cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any
from uuid import UUID, uuid4
from weakref import WeakSet

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.heartbeat_schedule import LookSchedule, wait_for_next
from jobsync_async.core.lease import Backoff, Beat, BeatWatch, Lease, Times, lease_sec
from jobsync_async.core.ownership import Change, Ownership
from jobsync_async.core.rows import Announcement, HeartbeatAnswer, Identity, Neighbour, Snapshot
from jobsync_async.core.server_history import AdoptedHistory
from jobsync_async.core.turns import Turns
from jobsync_async.host.clock import Clock
from jobsync_async.host.home import Home
from jobsync_async.host.logs import WorkerLog
from jobsync_async.metrics import Metrics
from jobsync_async.tasks.outages import OutageLog
from jobsync_async.tasks.runners import Runners
from jobsync_async.tasks.traces import Tracer
from jobsync_async.tasks.users import InTurn, Stream, User, work_of
from jobsync_async.types import Pause

# When PostgreSQL is back, everybody is to have agreed again within a second.
_MOST_BACKOFF_SEC = 0.5


class Worker:
    """The shared state of one worker.

    Attributes:
        identity: name and incarnation; another after every rejoin. before: the last one before.
        lease: the right to act, extended by the heartbeat task alone.
        ownership: the tokens, changed by the rebalance task and by whoever ends the lease.
        watch: since when the beats of others have stood still.
        history: the server and generation that this worker stands on.
        bound: on everybody's heartbeat timeout, as the last heartbeat told of it.
        term, leader: the highest term seen, and who leads in it.
        answer: the last heartbeat's; watches_all: whether it showed everybody's beats.
        looks: when to look at the beats in between, for the leader and the next in age.
        version: the cluster's version at the last reading; seen: the same, or a later one under
            which this worker is known to have handed tokens on; hinted, announced: what the last
            heartbeat told of: the cluster's version, and the one that was announced last.
        paused: the pause that holds, by the last reading: then nothing new starts here.
        state, settled: what the own row said at the last reading, and whether the last plan counted
            this worker in.
        neighbours: the workers of this host, in order of age, by the last reading that showed them.
        streams: the open readers of changes. runners: what it runs. turns: who works on which task
            here.
        outages: what knows whether PostgreSQL is out of reach, and says so.
        tracer: what shows spans of what goes on here.
        batch_ends: how often it was told that a batch has ended somewhere.
        started: the job's start is over: what is refused from now on may be allowed again.
        ended: the worker has left and will not own anything again.
        home: the process and the event loop that it was started in.
        sync_wanted, lead_wanted, beat_wanted, neighbours_wanted: wake the rebalance, leader,
            heartbeat and neighbours task.
    """

    def __init__(
        self, config: CoordinationConfig, name: str, announcement: Announcement, clock: Clock
    ) -> None:
        self.config = config
        self.announcement: Announcement = announcement
        self.clock = clock
        self.metrics: Metrics = Metrics()
        self.backoff: Backoff = Backoff(
            most_sec=min(_MOST_BACKOFF_SEC, config.heartbeat_interval_sec / 4)
        )
        self.identity: Identity = Identity(name, uuid4())
        self.before: Identity | None = None
        self.lease: Lease = Lease(config.lease_sec)
        self.ownership: Ownership[User] = Ownership(self.identity.incarnation)
        self.watch: BeatWatch = BeatWatch()
        self.history: AdoptedHistory | None = None
        self.bound: float | None = None
        self.term: int = -1
        self.leader: UUID | None = None
        self.answer: HeartbeatAnswer | None = None
        self.watches_all: bool = False
        self.look_schedule: LookSchedule = LookSchedule(config.heartbeat_interval_sec)
        self.version: int = -1
        self.seen: int = -1
        self.hinted: int = -1
        self.announced: int = -1
        self.paused: Pause | None = None
        self.state: str | None = None
        self.settled: bool = False
        self.neighbours: Sequence[Neighbour] = ()
        self.streams: WeakSet[Stream] = WeakSet()
        self.turns: Turns[InTurn] = Turns()
        self.batch_ends: int = 0
        self.started: bool = False
        self.ended: bool = False
        self.home: Home = Home(name, self.lease.void)
        self.sync_wanted: asyncio.Event = asyncio.Event()
        self.lead_wanted: asyncio.Event = asyncio.Event()
        self.beat_wanted: asyncio.Event = asyncio.Event()
        self.neighbours_wanted: asyncio.Event = asyncio.Event()
        self.lease_extended: asyncio.Event = asyncio.Event()
        self.runners: Runners = Runners(self.sync_wanted.set)
        self.outages: OutageLog = OutageLog(self)
        self.tracer: Tracer | None = None
        self._changed: asyncio.Event = asyncio.Event()
        self._log = WorkerLog(__name__, name)

    def shown_as(self, before: Worker) -> None:
        """Whoever was shown that one is shown this one, which takes its place."""
        self.tracer = before.tracer
        self.metrics.shown_as(before.metrics)

    # -- what is true now --------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this worker believes to lead. A hint: every leader's transaction proves it
        again."""
        return self.leader == self.identity.incarnation

    def may_act(self) -> bool:
        """Whether the lease is valid, by the clock and at this very moment."""
        return self.lease.valid(self.clock())

    def owns(self, token: int) -> bool:
        """Whether the token is this worker's, and stays. Safe in any thread: the lease is looked at
        first, so what is granted afterwards is granted under that lease or a later one."""
        return self.clock() < self.lease.deadline and token in self.ownership.grants

    def may_start(self, token: int) -> bool:
        """Whether work on the token may start now. Safe in any thread."""
        return self.owns(token) and self.paused is None

    def owned_now(self) -> frozenset[int]:
        """The tokens of which `owns` is true. Safe in any thread."""
        return self.ownership.owned if self.may_act() else frozenset()

    def use_by(self, task: asyncio.Task[Any], *, readers: bool = True) -> str | None:
        """What of that which uses tokens here runs in `task`, for people; None for nothing. That
        task cannot wait for the moment when nobody uses a token: it would wait for itself. Without
        `readers`, those that the user reads are left out."""
        for user in self.ownership.users():
            if user.runs_in is task:
                return work_of(user)
        asked = (stream for stream in tuple(self.streams) if stream.asked_by is task)
        return next((stream.purpose for stream in asked if readers or stream.is_callback), None)

    def at_work(self) -> list[str]:
        """What is at work here on tokens, for people. Safe in any thread."""
        reading = [stream.purpose for stream in tuple(self.streams) if stream.at_work]
        return [*map(work_of, self.ownership.users()), *reading]

    def owner_known(self, token: int) -> str | None:
        """Who owns a token that is not free for work here, where it is known without I/O: this
        worker, while it hands it on."""
        return self.identity.name if self.may_act() and token in self.ownership.revoking else None

    # -- what the tasks tell each other ------------------------------------------------------------

    def next_beat_reading(self) -> float:
        """When to look at the beats if no heartbeat of its own is answered before.

        The leader and the next in age look once more after their heartbeats. Whoever sends
        heartbeats too rarely for those whom it watches looks in time not to miss one.
        """
        # With one interval for all it is that interval, or longer.
        within_sec = round(self.watch.read_within_sec, 6)
        too_rare = within_sec < self.config.heartbeat_interval_sec
        late_at = self.look_schedule.late_at(within_sec) if too_rare else float("inf")
        looks_after_beats = self.leads or (self.answer is not None and self.answer.rank == 0)
        return min(self.look_schedule.due_at, late_at) if looks_after_beats else late_at

    def wants_all_beats(self) -> bool:
        """Whether the next heartbeat is to show everybody's beats.

        The leader watches all, and so do the next two in age. So they have seen enough when their
        turn comes, even if the leader and the next in age die together.
        """
        return self.leads or (self.answer is not None and self.answer.rank <= 1)

    def next_beat_in(self, chance: float) -> float:
        """Seconds from the last heartbeat to the next, after which the others, or those that
        matter, soon see it."""
        answer, interval_sec = self.answer, self.config.heartbeat_interval_sec
        if answer is None or self.leads:
            return interval_sec
        return wait_for_next(interval_sec, answer.leader_age_sec, rank=answer.rank, chance=chance)

    def members_differ(self, known: Set[UUID]) -> bool:
        """Whether the last heartbeat's answer shows other members than those that are known.
        Unknown is False."""
        if self.answer is None or not self.watches_all:
            return False
        return {beat.incarnation for beat in self.answer.beats} != known

    def beat_answered(self, sent_at: float, answer: HeartbeatAnswer, *, watched_all: bool) -> None:
        """A heartbeat was acknowledged. The lease counts from before it was sent, the observation
        of others from now.

        A lease that is over is over, whoever has noticed it: what was held under it is lost before
        another begins. So whoever was told "no longer yours" by the clock is told of its return.
        """
        self.check_lease()
        arrived = self.clock()
        self.metrics.heartbeats += 1
        self.metrics.heartbeat_sec = arrived - sent_at
        self.metrics.heartbeat_duration.observe(arrived - sent_at)
        self.lease.extend(sent_at, lease_sec(answer.timeout_sec))
        self.lease_extended.set()
        self.beats_seen(answer.beats, arrived)
        self.look_schedule.begin(arrived)
        self.answer, self.watches_all, self.bound = answer, watched_all, answer.longest_wait
        self.hinted, self.announced = answer.version, answer.announced
        self.learn_leader(answer.term, answer.leader)
        if answer.version > self.version or not self.ownership.known:
            self.sync_wanted.set()
        self.lead_wanted.set()

    def beats_seen(self, beats: Mapping[Beat, Times], arrived: float) -> None:
        """These are the beats of all who are watched, as an answer showed them that arrived then,
        with their times."""
        known = {beat.incarnation for beat in self.watch.beats}
        others = {
            beat: times
            for beat, times in beats.items()
            if beat.incarnation != self.identity.incarnation
        }
        self.watch.observe(others, arrived)
        if not known.issuperset(beat.incarnation for beat in self.watch.beats):
            self.look_schedule.somebody_is_new(arrived)

    def snapshot_read(self, snapshot: Snapshot) -> None:
        """The own tokens were read; applies what continues what is known, while the lease is
        valid."""
        self.metrics.resyncs += 1
        if snapshot.incarnation != self.identity.incarnation:
            return  # of an incarnation that is over, perhaps on another server
        self.version = max(self.version, snapshot.version)
        self.seen = max(self.seen, snapshot.version)
        self.heed(snapshot.pause)
        self.learn_leader(snapshot.term, snapshot.leader)
        if snapshot.neighbours is not None:
            self.neighbours = snapshot.neighbours
            self.neighbours_wanted.set()
        if snapshot.state is None:
            # the row is gone: the next heartbeat finds that out, and joins anew
            self.beat_wanted.set()
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

    def heed(self, pause: Pause | None) -> None:
        """This pause holds from now on, or none does."""
        if pause == self.paused:
            return
        said = f"is {pause}; nothing new starts here" if pause else f"goes on; it was {self.paused}"
        self._log.info("the cluster %s", said)
        self.paused, self.metrics.paused = pause, int(pause is not None)
        self.wake_waiters()

    def learn_leader(self, term: int, leader: UUID | None) -> None:
        """Somebody leads in a term; older terms are ignored."""
        if term > self.term:
            self.term, self.leader = term, leader
            self.look_schedule.somebody_is_new(self.clock())
            if self.leads:
                self.beat_wanted.set()  # the next answer shows everybody's beats
            self.lead_wanted.set()

    def check_lease(self) -> None:
        """If the lease is over by the clock, everything held is lost, at once; whoever is to be
        told of tokens looks first."""
        if self.ownership.known and not self.may_act():
            self.stop_acting("no heartbeat was acknowledged for the length of the lease")

    def stop_acting(self, why: str) -> None:
        """The lease is over, or the worker was expired: everything held is lost, at once."""
        self.lease.end()
        change = self.ownership.forget()
        self.settled = False
        if change:
            self.metrics.lease_losses += 1
            lost = len(change.lost)
            self._log.warning(
                "%s; %d tokens are lost and their work is cancelled", why, lost, tokens_lost=lost
            )
        self.publish(change, why=why, news=True)

    def begin_incarnation(self, why: str) -> None:
        """Continue under a new incarnation, after the old one was expired or its server
        replaced."""
        self.stop_acting(why)
        self.before = self.identity
        self.identity = Identity(self.identity.name, uuid4())
        # Who drained goes on draining.
        anew = "joins anew, for it was not in the cluster any more"
        self.announcement = self.announcement._replace(state=self.state or "active", reason=anew)
        self.ownership.begin(self.identity.incarnation)
        self.watch.forget()

    def server_changed(self) -> None:
        """A connection leads to another server: nothing is held until the heartbeat task has found
        out what that means."""
        self.stop_acting("PostgreSQL is another server than before, or was failed over")
        self.beat_wanted.set()

    def adopt(self, history: AdoptedHistory) -> None:
        """Stand on this from now on. What was known of another history is forgotten: its numbers
        say nothing here."""
        if history == self.history:
            return
        assert not self.ownership.known, "tokens of another history are still held"
        self.history = history
        self.term, self.leader, self.answer, self.watches_all = -1, None, None, False
        self.version = self.seen = self.hinted = self.announced = -1
        self.watch.forget()

    def publish(
        self, change: Change, *, why: str = "taken by the cluster", news: bool = False
    ) -> None:
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

    def batch_ended(self) -> None:
        """Somebody says that nothing is left of a batch."""
        self.batch_ends += 1
        self.wake_waiters()

    async def changed(self) -> None:
        """Return at the next change of anything that readers or waiters look at. Look first, then
        wait, with no await in between."""
        await self._changed.wait()

    async def drained(self) -> bool:
        """Return when nothing is held any more; or False, when that is not wanted any more."""
        await self.until(
            lambda: self.ended or self.state == "active" or not self.ownership.holds_anything()
        )
        return self.ended or self.state != "active"

    async def until(self, condition: Callable[[], object], most_sec: float = float("inf")) -> bool:
        """Wait until the condition holds, which is looked at after every change, for so long at
        most; whether it holds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + most_sec
        timer = None if deadline == float("inf") else loop.call_at(deadline, self.wake_waiters)
        try:
            while not condition():
                if loop.time() >= deadline:
                    return False
                await self.changed()
            return True
        finally:
            if timer is not None:
                timer.cancel()
