"""When in the leader's interval a worker sends its heartbeats, so that they are seen soon. Pure.

* The next beat is planned for half an interval to a whole one after the last, whatever clocks
  say.
* Only the moment of a beat depends on the server's clock. So a clock that is set wrong costs nobody
  its lease.

A beat is seen when whoever watches it sends one itself. Only from then on does its silence count.
So workers send theirs shortly before the leader's. The next two in age, which watch the leader,
send theirs shortly after it. What comes shortly after a watcher's beat comes long before its next.
So the leader and the next in age look once more, without a beat, when these have been sent. Then
whoever replaces one that dies, or two that die together, saw their last beats soon.

While somebody is new, whose beats have not come to their place, the two look again and again.

How long ago the leader's beat was is read off the server's clock.
"""

from __future__ import annotations

from typing import NamedTuple


class BeatSlot(NamedTuple):
    """When after the leader's beat others are to come, as fractions of the interval: `aim`, and up
    to `spread` either way, so that hundreds do not come all at once, and small drifts are left
    alone."""

    aim: float
    spread: float


CROWD = BeatSlot(-0.08, 0.05)
"""Before the leader's beat (0.4 s of 5 s)."""
SUCCESSORS = (BeatSlot(0.05, 0.03), BeatSlot(0.12, 0.03))
"""The next in age, and the one after it."""
LOOK = 0.17
"""How long after its own beat a watcher looks once more: the successors' have been sent by then."""
SETTLING = 3.0
"""In how many intervals whoever is new comes to its place, or all to that after another leader's
beat."""


def slot_of(rank: int) -> BeatSlot:
    """Where in the leader's interval a worker's beats belong; `rank` counts those who are older,
    the leader left out."""
    return SUCCESSORS[rank] if rank < len(SUCCESSORS) else CROWD


def wait_for_next(
    interval_sec: float, leader_age_sec: float | None, *, rank: int, chance: float
) -> float:
    """Seconds from one heartbeat to the next: from half an interval to a whole one.

    Args:
        interval_sec: the longest that a beat may come after the last.
        leader_age_sec: how long before this beat the leader's last one was, by the server's clock;
            None for the leader itself.
        rank: how many are older, the leader left out.
        chance: spreads those that have the same aim; from 0 up to 1.
    """
    if leader_age_sec is None or not 0 <= leader_age_sec < 1.5 * interval_sec:
        # a leader that is late, or a clock that was set, says nothing about the next beat
        return interval_sec
    aim, spread = slot_of(rank)
    half = 0.5 + spread  # who is half an interval off counts as early: no step is shorter than half
    late = (leader_age_sec / interval_sec - aim + half) % 1 - half
    if abs(late) <= spread:
        return interval_sec
    late += spread * (chance - 0.5)
    # Who is early comes round in two shorter steps.
    return interval_sec * (1 - late if late > 0 else (1 - late) / 2)


class LookSchedule:
    """When a watcher looks at beats without sending one: once after each of its own, again and
    again while somebody is new; and whoever watches somebody, before it is too late."""

    def __init__(self, interval_sec: float) -> None:
        self._interval_sec = interval_sec
        self._settled_at = float("-inf")
        self._last_at = float("inf")
        self.due_at: float = float("inf")

    def begin(self, now: float) -> None:
        """The own beat was answered."""
        self._last_at = now
        self.due_at = now + LOOK * self._interval_sec

    def somebody_is_new(self, now: float) -> None:
        """A worker, or the leader, after whom all take their places."""
        self._settled_at = now + SETTLING * self._interval_sec

    def done(self, now: float) -> None:
        """The watcher has looked, or tried to."""
        self._last_at = now
        self.due_at = now + LOOK * self._interval_sec if now < self._settled_at else float("inf")

    def late_at(self, most_sec: float) -> float:
        """When so long will have passed since the last beat that was answered, or the last look."""
        return self._last_at + most_sec
