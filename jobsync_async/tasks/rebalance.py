"""The rebalance task: hears of changes, reads the own tokens, and lets go of those that are to go.

One task does all of it, in turn. So what was read before an acknowledgement is never applied after
it, and a reading that an end of the lease overtook is recognised and dropped.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection

from jobsync_async.core.ownership import UNKNOWN
from jobsync_async.core.retries import Retries
from jobsync_async.core.rows import PART
from jobsync_async.errors import CoordinationError, StoreError, StoreUnavailable
from jobsync_async.postgres.store import Store
from jobsync_async.postgres.tokens import TokenFeed
from jobsync_async.tasks.outages import FOLLOWING
from jobsync_async.tasks.overdue import Overdue
from jobsync_async.tasks.runners import Announcer
from jobsync_async.tasks.worker import Worker

# A notification and a heartbeat's answer may cross: only after this long is the notification taken
# for missed.
_CROSSING_SEC = 0.2
# After a notification that named a version that does not exist, others are not followed for so
# long.
_DISTRUST_SEC = 1.0
# A change that concerns nobody in particular is read at once by whoever leads or may come to; the
# others spread their readings over so long, times the number of workers. And each waits as long
# before it reads again: then all of them together read 250 times a second at most, however many
# there are and however much changes.
_READ_EACH_SEC = 0.004
# Who is named is waited for, and so is whoever leads: they read at once, and wait less before they
# read again.
_PROMPT_EACH_SEC, _MOST_PROMPT_SEC = 0.001, 0.05
# Tokens are on their way here. It is told when all have come; till then it looks after so long, and
# then twice as long, for those that have.
_AWAIT_SEC = 0.1
# Spreads numbers that follow each other evenly over the interval from 0 to 1, however many there
# are.
_GOLDEN = 0.6180339887498949


async def follow_changes(
    worker: Worker,
    store: Store,
    feed: TokenFeed | None,
    leave: Callable[[CoordinationError], object],
) -> None:
    """Serve a LISTEN connection, for ever; a broken or suspect one is replaced by a fresh one.

    `leave` is called with the reason when the worker is to leave because a token of it is stuck.
    """
    failures = 0
    overdue, announcer = Overdue(worker, leave), Announcer(worker)
    while True:
        try:
            feed = feed or await store.listen()
            follower = _ChangeFollower(worker, feed, overdue, announcer)
            try:
                await follower.serve()
            finally:
                failures = 0 if follower.served else failures
                feed.abandon()
                await feed.close()
                feed = None
        except StoreError as error:
            failures += 1
            store.suspect()
            worker.metrics.listener_reconnects += 1
            # a jitter
            wait_sec = worker.outages.wait_after(FOLLOWING, error, failures, random.random())  # noqa: S311
            # if the server is away or another one, the heartbeat is to know soon
            worker.beat_wanted.set()
            await asyncio.sleep(wait_sec)


def released(worker: Worker, tokens: Collection[int], waited_sec: float, took_sec: float) -> None:
    """These are others' now. The first had waited so long for it, and to write it took so long."""
    worker.ownership.released(tokens)
    worker.metrics.handoffs += len(tokens)
    worker.metrics.handoff_sec = waited_sec
    worker.metrics.handoff_duration.observe(waited_sec + took_sec)
    if worker.tracer is not None:
        span = worker.tracer.begin("hand_off", ago_sec=waited_sec + took_sec, tokens=len(tokens))
        span.end("completed")
    worker.wake_waiters()


class _ChangeFollower:
    """Serves one LISTEN connection until it breaks.

    Attributes:
        served: whether it has done once what was to be done.
    """

    def __init__(
        self, worker: Worker, feed: TokenFeed, overdue: Overdue, announcer: Announcer
    ) -> None:
        self._worker = worker
        self._feed = feed
        self._overdue = overdue
        self._announcer = announcer
        self.served = False
        self._first = True
        self._missed_since: float | None = None
        self._distrust_until = float("-inf")
        self._paced_until = float("-inf")
        self._prompt_until = float("-inf")
        self._await_sec, self._await_until = _AWAIT_SEC, float("inf")
        self._general_since: float | None = None
        self._crowd_sec = 0.0
        self._retries = Retries()  # a fence held the row of a token that nobody here uses any more

    async def serve(self) -> None:
        """Wait, read, decide, acknowledge; for ever. Raises StoreUnavailable when the connection
        broke or is suspect."""
        worker, feed = self._worker, self._feed
        heard_before = ends_before = 0
        while True:
            now = worker.clock()
            if self._must_read(now):
                await self._read()
                # Whoever waits for what was read goes on before what is left to do here.
                await asyncio.sleep(0)
            await self._acknowledge()
            await self._check_overdue()
            await self._announcer.step(feed, worker.clock())
            self.served = True
            worker.outages.succeeded(FOLLOWING)
            worker.metrics.notifications += feed.notifications - heard_before
            # Also what came along with an answer, for which nobody is woken.
            heard_before = feed.notifications
            await feed.wait(worker.sync_wanted, self._wait_sec(worker.clock()))
            worker.sync_wanted.clear()
            if feed.batch_ends != ends_before:
                ends_before = feed.batch_ends
                worker.batch_ended()

    def _must_read(self, now: float) -> bool:
        worker = self._worker
        if not worker.lease.valid(now):
            return False  # nothing may be held: the next heartbeat that succeeds asks again
        if self._first or worker.ownership.since == UNKNOWN:
            return True
        if now >= self._news_due(now):
            return True
        if worker.hinted > worker.version and not self._feed.pushed:
            return True
        if not self._missed:
            self._missed_since = None
            return False
        if self._missed_since is None:
            self._missed_since = now
        if now - self._missed_since >= _CROSSING_SEC:
            raise StoreUnavailable(
                "a change was learned from a heartbeat, of which no notification came"
            )
        return False

    def _news_due(self, now: float) -> float:
        """When what was heard is to be read; infinity when nothing was, or only what concerns
        others and can wait."""
        worker, feed = self._worker, self._feed
        due = float("inf")
        # Whoever leads, and the next two in age: there may be something for them to do.
        prompt = worker.wants_all_beats()
        if feed.named > worker.version or (prompt and feed.general > worker.version):
            due = self._prompt_until
        elif feed.general > worker.version:
            since = self._general_since = (
                now if self._general_since is None else self._general_since
            )
            place = 0.0 if feed.age is None else feed.age * _GOLDEN % 1
            due = max(self._paced_until, since + place * self._crowd_sec)
        if worker.hinted > worker.version and not self._missed:
            due = min(due, self._paced_until)
        return max(min(due, self._await_until), self._distrust_until)

    @property
    def _missed(self) -> bool:
        """Whether a heartbeat told of an announcement that was not heard."""
        return self._worker.announced > max(self._worker.version, self._feed.heard)

    async def _read(self) -> None:
        worker, feed = self._worker, self._feed
        # What is heard during the reading may be newer than what it shows.
        heard = feed.take_heard()
        self._general_since = None
        snapshot = await feed.read_changes(worker.identity, worker.ownership.since)
        self._first = False
        self._crowd_sec = snapshot.crowd * _READ_EACH_SEC
        self._paced_until = worker.clock() + self._crowd_sec
        self._prompt_until = worker.clock() + min(
            snapshot.crowd * _PROMPT_EACH_SEC, _MOST_PROMPT_SEC
        )
        self._await_until = worker.clock() + self._await_sec if snapshot.coming else float("inf")
        self._await_sec = (
            min(2 * self._await_sec, worker.config.heartbeat_interval_sec)
            if snapshot.coming
            else _AWAIT_SEC
        )
        if heard > snapshot.version:  # no commit of ours: forged, or meant for somebody else
            self._distrust_until = worker.clock() + _DISTRUST_SEC
        worker.snapshot_read(snapshot)

    async def _acknowledge(self) -> None:
        worker = self._worker
        now = worker.clock()
        waits_for_fence = now < self._retries.due_at < float("inf")
        revocations = worker.ownership.releasable()
        if not revocations:
            self._retries.done()
            return
        if waits_for_fence:
            return
        me, missed = worker.identity, False
        since = min(worker.ownership.revoking[token].since for token, _ in revocations)
        for first in range(0, len(revocations), PART):
            part = revocations[first : first + PART]
            handed_on = await self._feed.acknowledge(me, part)
            missed = missed or len(handed_on) < len(part)
            if handed_on and worker.identity == me:
                worker.seen = max(worker.seen, self._feed.written)
                released(worker, handed_on, now - since, worker.clock() - now)
        if missed:
            self._retries.missed(now)
        else:
            self._retries.done()

    async def _check_overdue(self) -> None:
        worker = self._worker
        stuck = self._overdue.check(worker.clock())
        if stuck is not None:
            await self._feed.show_stuck(worker.identity, stuck)
            self._overdue.shown(stuck)

    def _wait_sec(self, now: float) -> float | None:
        """Seconds until something is due by time alone; None for nothing."""
        deadlines = [
            self._retries.due_at,
            self._overdue.next_check(now),
            self._announcer.next_step(),
        ]
        # Without it nothing is read, and so nothing of this is due.
        if self._worker.lease.valid(now):
            if self._missed_since is not None:
                deadlines.append(self._missed_since + _CROSSING_SEC)
            deadlines.append(self._news_due(now))
        first = min(deadlines)
        return None if first == float("inf") else first - now
