"""When in the leader's interval a worker sends its heartbeats, so that they are seen soon. Pure.

A beat is seen when whoever watches it sends one itself, and only from then on does its silence count. So workers send theirs
shortly before the leader's, and the next in age, which watches the leader, shortly after: each is then replaced soon after the
timeout instead of up to an interval later. But what comes shortly after the leader's beat comes long before its next. So the
leader looks once more, without a beat, when the next in age has sent its own.

How long ago the leader's beat was is read off the server's clock. Nothing but the moment of a beat depends on it, and that
never comes later than an interval after the last, so a clock that is set wrong costs nobody its lease.
"""

from __future__ import annotations

BEFORE = 0.08
"""How long before the leader's beat, as a fraction of the interval (0.4 s of 5 s)."""
AFTER = 0.06
"""How long after it the next in age follows."""
LOOK = 0.14
"""How long after it the leader looks at the beats once more: after that of the next in age, wherever in its place it is."""
SPREAD = 0.05
"""How far from there a beat may be, either way: hundreds do not come all at once, and small drifts are left alone."""


def wait_for_next(interval_sec: float, leader_age_sec: float | None, *, successor: bool, chance: float) -> float:
    """Seconds from one heartbeat to the next: from half an interval to a whole one.

    Args:
        interval_sec: the longest that a beat may come after the last.
        leader_age_sec: how long before this beat the leader's last one was, by the server's clock; None for the leader itself.
        successor: whether this worker is the next in age.
        chance: spreads those that have the same aim; from 0 up to 1.
    """
    if leader_age_sec is None or not 0 <= leader_age_sec < 1.5 * interval_sec:
        return interval_sec  # a leader that is late, or a clock that was set, says nothing about the next beat
    aim = AFTER if successor else -BEFORE
    half = 0.5 + SPREAD  # who is half an interval off counts as early: no step is shorter than half
    late = (leader_age_sec / interval_sec - aim + half) % 1 - half
    if abs(late) <= SPREAD:
        return interval_sec
    late += SPREAD * (chance - 0.5)
    return interval_sec * (1 - late if late > 0 else (1 - late) / 2)  # who is early comes round in two shorter steps
