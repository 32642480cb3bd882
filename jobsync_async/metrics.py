"""Counters that a worker keeps of itself. Plain numbers, read with `Job.metrics`; exporters turn
them into their own kinds."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields

BOUNDS_SEC = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    60.0,
)
"""Upper bounds of the buckets of every `Histogram`: from a round trip on one machine to two
hand-off timeouts."""


class Histogram:
    """Durations in seconds, counted by size.

    Attributes:
        counts: how many were at most as long as each of `BOUNDS_SEC` and longer than the one
            before; the last counts the rest.
        sum: of all of them, in seconds.
        listeners: called with each duration, for exporters whose library keeps its own buckets.
            Must not block or raise.
    """

    __slots__ = ("counts", "listeners", "sum")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BOUNDS_SEC) + 1)
        self.sum: float = 0.0
        self.listeners: tuple[Callable[[float], object], ...] = ()

    def __repr__(self) -> str:
        return f"<Histogram of {sum(self.counts)}, {self.sum:.3f} s in all>"

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_SEC, seconds)] += 1
        self.sum += seconds
        for listener in self.listeners:
            listener(seconds)


@dataclass(slots=True)
class Metrics:
    """Since the worker started.

    Attributes:
        heartbeats, heartbeats_failed: acknowledged, and not.
        heartbeat_sec: how long the last acknowledged one took.
        lease_losses: how often the lease ended, or the worker was expired, while it held tokens.
        rejoins: how often it joined anew after it was expired.
        notifications: heard, junk included. resyncs: readings of the own tokens.
        listener_reconnects: fresh LISTEN connections after the first.
        rebalances, tokens_moved, rebalance_ms: distributions that this worker wrote as leader; the
            last one's duration.
        rebalances_by_reason: how many of these for each of `core.distribution.REASONS`.
        nodes_expired, takeovers: workers that it expired, and how often it took the leadership
            over.
        deaths_reported: workers of this host that it saw dead and took out of the cluster.
        sessions_watched, sessions_expired: with ``failover="session"``: workers whose sessions it
            watches now, and workers that it expired because their session was gone.
        tokens_unmatched: pinned tokens that no live worker may have, by its last plan.
        handoffs, handoff_sec: tokens handed on, and how long the last one was revoked before.
        handoffs_overdue, handoff_overdue_sec: tokens that are still in use here past the hand-off
            timeout, at the last look, and how long ago the first of them was revoked.
        paused: 1 while the cluster is paused, as far as this worker knows; else 0.
        ids_unserved: ids of what runs here that nobody serves, for their tokens' owners do not run
            it, at the last look.
        claims: claims begun. claims_lost: of these, those that were cancelled. claims_active: of
            these, those open now.
        fences_rejected: fences that found another owner.
        heartbeat_duration: how long acknowledged heartbeats took.
        rebalance_duration: how long the distributions took that this worker wrote, from the lock to
            the commit.
        handoff_duration: for each acknowledgement, how long the first of its tokens had been
            revoked.
        takeover_duration: for each worker that this one expired, from its last heartbeat that was
            seen until its tokens were given to others, or its leadership was taken over.
    """

    heartbeats: int = 0
    heartbeats_failed: int = 0
    heartbeat_sec: float = 0.0
    lease_losses: int = 0
    rejoins: int = 0
    notifications: int = 0
    resyncs: int = 0
    listener_reconnects: int = 0
    rebalances: int = 0
    tokens_moved: int = 0
    rebalance_ms: float = 0.0
    nodes_expired: int = 0
    takeovers: int = 0
    deaths_reported: int = 0
    sessions_watched: int = 0
    sessions_expired: int = 0
    tokens_unmatched: int = 0
    handoffs: int = 0
    handoff_sec: float = 0.0
    handoffs_overdue: int = 0
    handoff_overdue_sec: float = 0.0
    ids_unserved: int = 0
    paused: int = 0
    claims: int = 0
    claims_lost: int = 0
    fences_rejected: int = 0
    claims_active: int = 0
    rebalances_by_reason: Counter[str] = field(default_factory=Counter)
    heartbeat_duration: Histogram = field(default_factory=Histogram)
    rebalance_duration: Histogram = field(default_factory=Histogram)
    handoff_duration: Histogram = field(default_factory=Histogram)
    takeover_duration: Histogram = field(default_factory=Histogram)

    def shown_as(self, before: Metrics) -> None:
        """Whoever listens to the durations there listens to those here."""
        for each in fields(self):
            kept = getattr(self, each.name)
            if isinstance(kept, Histogram):
                kept.listeners = getattr(before, each.name).listeners
