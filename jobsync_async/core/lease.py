"""How long a worker may act, and when others may say that it is dead. Pure: time is an argument.

* Only an acknowledged heartbeat extends a lease, and the lease counts from before it was *sent*.
* A beat stands still only from when somebody *saw* it, by the clock of whoever watches.
* A worker is judged by its own times, which are read together with its beat.
* A lease is over before anybody may expire its worker.
* A watcher that read nothing for longer than a worker's gap watches that worker anew. So no outage
  makes anybody expire who lives.

A worker may act until `lease_sec` after it sent the last heartbeat that was acknowledged. Others
may expire it once its beat has stood still for `timeout_sec` after they saw it. Between the two
moments lies the margin, for the beat was seen after it was sent. Clocks may run wrong by a fraction
``r``. No two workers ever hold one token as long as
``lease_sec * (1 + r) < timeout_sec * (1 - r)``.

Timeout and interval are settings of a worker, not of a cluster. Its row says them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

# A fifth of the timeout covers clocks whose rates differ by 11 %; real ones differ by less than
# 0.1 %.
SAFETY_MARGIN = 0.2


def lease_sec(timeout_sec: float) -> float:
    """Length of a lease for a heartbeat timeout: the timeout less the safety margin (12 s of
    15 s)."""
    return timeout_sec * (1 - SAFETY_MARGIN)


class Times(NamedTuple):
    """A worker's `heartbeat_timeout_sec` and `heartbeat_interval_sec`, as its row says them."""

    timeout_sec: float
    interval_sec: float

    @classmethod
    def said(cls, timeout_sec: float | None, interval_sec: float | None) -> Times:
        """What a row says; of one that says nothing, what is so at worst: it is never silent for
        long enough, or sends heartbeats as rarely as its timeout allows."""
        if timeout_sec is None:
            return cls(float("inf"), 0.0)
        return cls(
            timeout_sec, lease_sec(timeout_sec) / 2 if interval_sec is None else interval_sec
        )

    @property
    def gap_sec(self) -> float:
        """A watcher that read nothing for longer than this begins to observe this worker anew. A
        worker that lives was seen at most an interval before, and is back within a quarter of one
        after the watcher: together that stays below its timeout, so that no outage, however long,
        makes somebody expire who lives."""
        return max(1.25 * self.interval_sec, self.timeout_sec - 1.5 * self.interval_sec)


class Lease:
    """The right to act until `deadline` (seconds on the worker's own monotonic clock), extended by
    heartbeats alone."""

    __slots__ = ("_sent_at", "deadline", "length")

    def __init__(self, length: float) -> None:
        self.length: float = length
        self.deadline: float = float("-inf")
        self._sent_at: float = float("-inf")

    def extend(self, sent_at: float, length: float = float("inf")) -> None:
        """A heartbeat sent at `sent_at` was acknowledged. An older one, acknowledged late, takes
        nothing back.

        Args:
            length: what the row allows that this heartbeat left; never more than this worker's own
                counts.
        """
        if sent_at >= self._sent_at:
            self._sent_at = sent_at
            self.deadline = sent_at + min(self.length, length)

    def end(self) -> None:
        """Stop acting now: the worker was expired, or is about to join under a new incarnation."""
        self.deadline = float("-inf")

    def void(self) -> None:
        """Stop acting for good: no heartbeat extends this lease any more."""
        self.length = self.deadline = float("-inf")

    def valid(self, now: float) -> bool:
        return now < self.deadline

    def remaining(self, now: float) -> float:
        """Seconds left, 0 when it is over."""
        return max(0.0, self.deadline - now)


class Beat(NamedTuple):
    """One worker's heartbeat counter as it was read: what an expiry must find unchanged."""

    name: str
    incarnation: UUID
    beat: int


class _Entry(NamedTuple):
    """Since when a beat has been seen, and the times that came with it."""

    since: float
    times: Times


class BeatWatch:
    """Since when each worker's beat has stood still, by the watcher's own clock, and whether that
    is long for that worker.

    When the watcher itself read nothing for longer than a worker's gap, it starts anew with that
    worker: whatever stopped it (an outage, a pause) may have stopped the other too, which gets its
    chance to send a heartbeat first. For the same reason nobody is stalled by a reading that is
    older than that.
    """

    _READ_WITHIN = 0.8
    """A part of the smallest gap, so that an answer that is a little late is no gap."""

    def __init__(self) -> None:
        self._seen: dict[Beat, _Entry] = {}
        self._read_at = float("-inf")

    def observe(self, beats: Mapping[Beat, Times], now: float) -> None:
        """Take in what one answer showed, oldest first; `now` is when it *arrived*. Workers that it
        does not show are forgotten."""
        unread_sec = now - self._read_at
        known = {
            beat: entry for beat, entry in self._seen.items() if unread_sec <= entry.times.gap_sec
        }
        self._seen = {beat: known.get(beat) or _Entry(now, times) for beat, times in beats.items()}
        self._read_at = now

    def forget(self) -> None:
        """Start anew: nobody is expired before a full timeout of new observation."""
        self._seen = {}

    def stalled(self, now: float) -> list[Beat]:
        """Workers whose beat has stood still for their timeout."""
        return [beat for beat in self._seen if self.stalls_at(beat, now) <= now]

    def stalls_at(self, beat: Beat, now: float) -> float:
        """When this very beat has stood still for its worker's timeout; infinity when it is not
        watched, or when the beats must be read once more before that counts."""
        entry = self._seen.get(beat)
        if entry is None:
            return float("inf")
        at = entry.since + entry.times.timeout_sec
        return at if max(at, now) - self._read_at <= entry.times.gap_sec else float("inf")

    @property
    def beats(self) -> Collection[Beat]:
        """The beats that are watched, oldest worker first."""
        return self._seen.keys()

    @property
    def read_within_sec(self) -> float:
        """How soon after a reading the next is due, for none to be a gap; infinity when nobody is
        watched."""
        return self._READ_WITHIN * min(
            (entry.times.gap_sec for entry in self._seen.values()), default=float("inf")
        )

    def stalled_for(self, beat: Beat, now: float) -> float:
        """Seconds that this very beat has been observed to stand still; 0 when it was not seen."""
        entry = self._seen.get(beat)
        return 0.0 if entry is None else now - entry.since

    def next_due(self, now: float) -> float:
        """When the first worker would reach its timeout if nothing moved; infinity when the next
        reading comes first."""
        return min((self.stalls_at(beat, now) for beat in self._seen), default=float("inf"))


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between tries: doubling from `first_sec` up to `most_sec`, spread by a factor of 0.5 to
    1 taken from `chance`."""

    first_sec: float = 0.05
    most_sec: float = 2.0

    def wait_sec(self, failures: int, chance: float) -> float:
        """Seconds to wait after the given number of failures in a row (1 or more); `chance` is in
        [0, 1)."""
        return min(self.most_sec, self.first_sec * 2.0 ** min(failures - 1, 30)) * (
            0.5 + 0.5 * chance
        )
