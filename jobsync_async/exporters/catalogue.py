"""Which metrics there are: their names, units, meaning, and where each is read.

Names and units follow OpenTelemetry's conventions; `prometheus_name` translates them as its
exporters do. Labels are the cluster's ``appname`` and the ``worker``; rebalances also have a
``reason``, one of `core.distribution.REASONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from jobsync_async.core.distribution import REASONS
from jobsync_async.job import Job
from jobsync_async.metrics import Histogram

LABELS = ("appname", "worker")
_UNIT_SUFFIXES = {"s": "_seconds", "1": ""}


@dataclass(frozen=True)
class Metric:
    """A number of one worker.

    Attributes:
        name: OpenTelemetry's.
        kind: a counter only rises; a gauge is as it is; an updown is a gauge that makes sense as a
            sum over workers.
        unit: UCUM: ``s``, or what is counted in braces.
        read: its value at a job, without I/O; None where the job has none.
        label: a further label, with `read` called for each of its `values`.
    """

    name: str
    kind: Literal["counter", "gauge", "updown"]
    unit: str
    help: str
    read: Callable[..., float | None]
    label: str | None = None
    values: tuple[str, ...] = ()

    def readings(self, job: Job) -> Iterator[tuple[tuple[str, ...], float]]:
        """Label values (those of `LABELS`, then of `label`) with the number there."""
        for extra in [(value,) for value in self.values] if self.label else [()]:
            number = self.read(job, *extra)
            if number is not None:
                yield (*label_values(job), *extra), number


@dataclass(frozen=True)
class Durations:
    """A histogram of seconds of one worker."""

    name: str
    help: str
    read: Callable[[Job], Histogram]


def label_values(job: Job) -> tuple[str, str]:
    """The values of `LABELS` for a job."""
    return job._worker.config.appname, job.node_name


def prometheus_name(name: str, *, unit: str = "s", counter: bool = False) -> str:
    """An OpenTelemetry name as Prometheus has it: ``jobsync.heartbeat.duration`` is
    ``jobsync_heartbeat_duration_seconds``."""
    return name.replace(".", "_") + _UNIT_SUFFIXES.get(unit, "") + ("_total" if counter else "")


def _of(field: str) -> Callable[[Job], float]:
    return lambda job: float(getattr(job.metrics, field))


def _lease(job: Job) -> float | None:
    left = job.lease_remaining_sec
    return left if math.isfinite(left) else None


def _rebalances(job: Job, reason: str) -> float:
    return job.metrics.rebalances_by_reason[reason]


METRICS = (
    Metric(
        "jobsync.tokens.owned",
        "updown",
        "{token}",
        "Tokens on which work may start here",
        lambda job: len(job.my_tokens),
    ),
    Metric(
        "jobsync.tokens",
        "gauge",
        "{token}",
        "Tokens that the cluster has",
        lambda job: job._worker.config.total_tokens,
    ),
    Metric(
        "jobsync.healthy",
        "gauge",
        "1",
        "1 while the worker runs with a valid lease",
        lambda job: job.am_i_healthy(),
    ),
    Metric(
        "jobsync.leader", "updown", "1", "1 at the worker that leads", lambda job: job.am_i_leader()
    ),
    Metric(
        "jobsync.lease.remaining",
        "gauge",
        "s",
        "How long the worker may act without another heartbeat",
        _lease,
    ),
    Metric(
        "jobsync.lease.losses",
        "counter",
        "{loss}",
        "Leases that ended while tokens were held",
        _of("lease_losses"),
    ),
    Metric(
        "jobsync.rejoins", "counter", "{join}", "Joins after having been expired", _of("rejoins")
    ),
    Metric(
        "jobsync.heartbeat.failures",
        "counter",
        "{heartbeat}",
        "Heartbeats without an answer",
        _of("heartbeats_failed"),
    ),
    Metric(
        "jobsync.claims.active", "updown", "{claim}", "Claims that are open", _of("claims_active")
    ),
    Metric("jobsync.claims", "counter", "{claim}", "Claims begun", _of("claims")),
    Metric(
        "jobsync.claims.lost",
        "counter",
        "{claim}",
        "Claims that were cancelled",
        _of("claims_lost"),
    ),
    Metric(
        "jobsync.fence.rejections",
        "counter",
        "{fence}",
        "Fences that found another owner",
        _of("fences_rejected"),
    ),
    Metric("jobsync.handoffs", "counter", "{token}", "Tokens handed on", _of("handoffs")),
    Metric(
        "jobsync.handoffs.overdue",
        "updown",
        "{token}",
        "Revoked tokens in use past the timeout",
        _of("handoffs_overdue"),
    ),
    Metric(
        "jobsync.handoff.overdue",
        "gauge",
        "s",
        "How long ago the first of these was revoked",
        _of("handoff_overdue_sec"),
    ),
    Metric(
        "jobsync.ids.unserved",
        "gauge",
        "{id}",
        "Ids whose tokens' owners do not run what they are for",
        _of("ids_unserved"),
    ),
    Metric(
        "jobsync.paused",
        "gauge",
        "1",
        "1 while the cluster is paused, as far as this worker knows, else 0",
        _of("paused"),
    ),
    Metric(
        "jobsync.notifications",
        "counter",
        "{notification}",
        "Notifications heard, junk included",
        _of("notifications"),
    ),
    Metric("jobsync.resyncs", "counter", "{read}", "Readings of the own tokens", _of("resyncs")),
    Metric(
        "jobsync.listener.reconnects",
        "counter",
        "{connection}",
        "LISTEN connections renewed",
        _of("listener_reconnects"),
    ),
    Metric(
        "jobsync.rebalances",
        "counter",
        "{rebalance}",
        "Distributions written as leader",
        _rebalances,
        "reason",
        REASONS,
    ),
    Metric(
        "jobsync.tokens.moved",
        "counter",
        "{token}",
        "Tokens that these distributions moved",
        _of("tokens_moved"),
    ),
    Metric(
        "jobsync.tokens.unmatched",
        "updown",
        "{token}",
        "Pinned tokens that no live worker may have",
        _of("tokens_unmatched"),
    ),
    Metric(
        "jobsync.workers.expired",
        "counter",
        "{worker}",
        "Workers that showed no life and were removed",
        _of("nodes_expired"),
    ),
    Metric(
        "jobsync.leader.takeovers",
        "counter",
        "{takeover}",
        "Leaderships taken over from the dead",
        _of("takeovers"),
    ),
)

DURATIONS = (
    Durations(
        "jobsync.heartbeat.duration",
        "How long answered heartbeats took",
        lambda job: job.metrics.heartbeat_duration,
    ),
    Durations(
        "jobsync.handoff.duration",
        "From the revocation of a token until it was handed on, the slowest of each "
        "acknowledgement",
        lambda job: job.metrics.handoff_duration,
    ),
    Durations(
        "jobsync.takeover.duration",
        "From a dead worker's last heartbeat until its tokens or its leadership were another's",
        lambda job: job.metrics.takeover_duration,
    ),
    Durations(
        "jobsync.rebalance.duration",
        "How long distributions took to write",
        lambda job: job.metrics.rebalance_duration,
    ),
)
