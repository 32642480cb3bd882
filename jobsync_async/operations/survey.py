"""The cluster at a glance, with what only people ask for: runs of batches, what is set aside, and
whether a worker that is late is still connected."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from jobsync_async.core.lease import lease_sec
from jobsync_async.operations.batches import MOST_RUNS, described
from jobsync_async.postgres.batch_runs import RunRow
from jobsync_async.postgres.store import Store
from jobsync_async.runtime.cluster_status import describe

MOST_COUNTED = 1_000
"""Failures of each run, and ids that are set aside, are counted up to so many."""

_LATE = 0.5  # of its lease
_RECENT = dt.timedelta(days=1)


async def survey(store: Store, timeout_sec: float | None = None) -> dict[str, Any]:
    """What `describe` returns, and more: ``batches``, ``set_aside``, and ``connected`` of each
    worker. A few statements. Raises StoreUnavailable.
    """
    seen = await describe(store, timeout_sec)
    late = [node["name"] for node in seen["nodes"] if _late(node, timeout_sec)]
    connected = await store.inspection.connected(late) if late else {}
    runs = await store.batch_runs.find(None, None, MOST_RUNS, most_failed=MOST_COUNTED + 1)
    return {
        **seen,
        "nodes": [{**node, "connected": connected.get(node["name"])} for node in seen["nodes"]],
        "batches": recent(runs, seen["nodes"]),
        "set_aside": await store.inspection.count_set_aside(MOST_COUNTED),
    }


def recent(runs: Sequence[RunRow], nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that are open, or were finished within a day, with who runs each. Pure."""
    return [
        {
            **described(run),
            "failed": min(run.failed, MOST_COUNTED),
            "all_counted": run.failed <= MOST_COUNTED,
            "run_by": run_by(run, nodes),
        }
        for run in runs
        if run.finished_at is None or run.at - run.finished_at < _RECENT
    ]


def run_by(run: RunRow, nodes: Sequence[dict[str, Any]]) -> list[str] | None:
    """The workers that say that they run it; None where there are none, but not all say what they
    run."""
    it = {"kind": "batch", "name": run.name, "date": run.date.isoformat()}
    names = [node["name"] for node in nodes if it in (node["runs"] or ())]
    return names if names or all(node["runs"] is not None for node in nodes) else None


def _late(node: dict[str, Any], timeout_sec: float | None) -> bool:
    limit_sec = node["timeout_sec"] if timeout_sec is None else timeout_sec
    return limit_sec is not None and node["heartbeat_age_sec"] >= _LATE * lease_sec(limit_sec)
