"""When to take the leadership over, and when to rebalance. Pure: time and facts are arguments.

* A leader is replaced only if its row is gone, or its beat has stood still for its own timeout.
* However many workers die at once, one that lives comes to take over.
* A rebalance waits only if nothing but joins asks for it, and never for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from jobsync_async.core.distribution import RebalanceReason
from jobsync_async.core.lease import Beat, BeatWatch
from jobsync_async.core.rows import HeartbeatAnswer


class Takeover:
    """Whether this worker is to take over from a leader that is gone or stands still.

    The next in age (rank 0) takes over as soon as the leader's beat has stood still for the
    leader's timeout. The one after it (rank 1) does as soon as both beats have stood still, each
    for its own timeout. Each further one waits a heartbeat longer: so no set of simultaneous deaths
    leaves the cluster without a leader, and two rarely try at once. When they do, the term decides.
    """

    def __init__(self, watch: BeatWatch, step_sec: float) -> None:
        self._watch = watch
        self._step_sec = step_sec
        self._gone_since: float | None = None

    def due(
        self, leader: UUID | None, answer: HeartbeatAnswer, now: float
    ) -> tuple[bool, Sequence[Beat]]:
        """Whether to take over now from `leader`, and the beat to expire for it (none when the
        leader's row is gone)."""
        beat = self._leaders_beat(leader)
        if beat is not None:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = now
        due = now >= self.due_at_latest(leader, answer, now)
        return due, (beat,) if due and beat is not None else ()

    def due_at_latest(self, leader: UUID | None, answer: HeartbeatAnswer, now: float) -> float:
        """When to take over if nothing changes; infinity while the leader is not watched, or before
        the next reading."""
        beat = self._leaders_beat(leader)
        if beat is not None:
            gone_at = self._watch.stalls_at(beat, now)
        elif self._gone_since is not None and all(
            shown.incarnation != leader for shown in answer.beats
        ):
            gone_at = self._gone_since
        else:
            return float("inf")
        at_last = gone_at + answer.rank * self._step_sec
        older = [beat for beat in self._watch.beats if beat.incarnation != answer.leader][
            : answer.rank
        ]
        if len(older) < answer.rank:  # it watches the leader alone
            return at_last
        return min(at_last, max([gone_at, *(self._watch.stalls_at(beat, now) for beat in older)]))

    def _leaders_beat(self, leader: UUID | None) -> Beat | None:
        return next((beat for beat in self._watch.beats if beat.incarnation == leader), None)


class Pacing:
    """Lets joins that come close together be one rebalance, and nothing else wait.

    A rebalance for joins alone is due when none came for a while, at the latest `MOST_DELAYS` such
    whiles after the first. The while is `delay_sec`, and after each such rebalance twice as long,
    up to `MOST_TIMES` as long, until joins pause: for `MOST_DELAYS` of them, or, after one that
    came alone, for two delays. So one that comes alone is soon counted in. A crowd may take seconds
    to come in, for there are hundreds already or the machines are slow. It makes a few rebalances
    and not one for each `MOST_DELAYS` delays.
    """

    MOST_DELAYS = 5
    MOST_TIMES = 8

    def __init__(self, delay_sec: float) -> None:
        self._delay_sec = self._while_sec = delay_sec
        self._due_at = float("-inf")
        self._crowd = False
        self._first: float | None = None
        self._last = 0.0
        self._reasons: tuple[str, ...] = ()

    def due_at(self, need: RebalanceReason, now: float) -> float:
        """When the rebalance that is needed is to be done; call it again whenever the need is
        looked at anew."""
        if need.urgent:
            return now
        if self._first is None:
            self._first = self._last = now
            if now - self._due_at > (
                self.MOST_DELAYS * self._while_sec if self._crowd else 2 * self._delay_sec
            ):
                self._while_sec = self._delay_sec
        if need.reasons != self._reasons:
            self._reasons, self._last = need.reasons, now
        self._due_at = min(
            self._last + self._while_sec, self._first + self.MOST_DELAYS * self._while_sec
        )
        return self._due_at

    def done(self) -> None:
        """The rebalance is written, or not needed any more."""
        if self._first is not None:
            self._crowd = self._last > self._first
            self._while_sec = min(2 * self._while_sec, self.MOST_TIMES * self._delay_sec)
        self._first = None
        self._reasons = ()
