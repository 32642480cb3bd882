"""Counters that a worker keeps of itself. Plain numbers, read with `Job.metrics`; exporters turn them into their own kinds."""

from __future__ import annotations

from dataclasses import dataclass


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
        rebalances, tokens_moved, rebalance_ms: distributions that this worker wrote as leader; the last one's duration.
        nodes_expired, takeovers: workers that it expired, and how often it took the leadership over.
        deaths_reported: workers of this host that it saw dead and took out of the cluster.
        sessions_watched, sessions_expired: with ``failover="session"``: workers whose sessions it watches now, and workers that
            it expired because their session was gone.
        tokens_unmatched: pinned tokens that no live worker may have, by its last plan.
        handoffs, handoff_sec: tokens handed on, and how long the last one was revoked before.
        handoffs_overdue, handoff_overdue_sec: tokens that are still in use here past the hand-off time-out, at the last look,
            and how long ago the first of them was revoked.
        claims: claims begun. claims_lost: of these, those that were cancelled.
        fences_rejected: fences that found another owner.
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
    claims: int = 0
    claims_lost: int = 0
    fences_rejected: int = 0
