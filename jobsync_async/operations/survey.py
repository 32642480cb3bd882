"""The cluster at a glance, with what only people ask for: runs of batches, what is set aside, and
whether a worker that is late is still connected."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobsync_async.core.lease import lease_sec
from jobsync_async.operations.batches import MOST_RUNS, described
from jobsync_async.postgres.batch_runs import RunRow
from jobsync_async.postgres.store import Store
from jobsync_async.runtime.cluster_status import describe, silent_after

MOST_COUNTED = 1_000
"""Failures of each run, and ids that are set aside, are counted up to so many."""

_LATE = 0.5  # of its lease
_RECENT = dt.timedelta(days=1)


async def survey(
    store: Store, timeout_sec: float | None = None, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `describe` returns, and more: ``batches``, ``set_aside``, and ``connected`` of each
    worker. A few statements. Raises StoreUnavailable.

    Args:
        known: an earlier answer, from which batches and what is set aside are taken: that is the
            larger part of the work, and no change of the cluster's version tells of it.
    """
    seen = await describe(store, timeout_sec)
    late = [node["name"] for node in seen["nodes"] if _late(node, timeout_sec)]
    connected = await store.inspection.connected(late) if late else {}
    if known is None:
        _, known = await look_at_runs(store)
    return {
        **seen,
        "nodes": [{**node, "connected": connected.get(node["name"])} for node in seen["nodes"]],
        "batches": [{**run, "run_by": run_by(run, seen["nodes"])} for run in known["batches"]],
        "set_aside": known["set_aside"],
    }


async def look_at_runs(store: Store) -> tuple[list[RunRow], dict[str, Any]]:
    """The latest runs of batches, the open ones first; and what `survey` takes as known. Two
    statements. Raises StoreUnavailable."""
    rows = await store.batch_runs.find(None, None, MOST_RUNS, most_failed=MOST_COUNTED + 1)
    aside = await store.inspection.count_set_aside(MOST_COUNTED)
    return rows, {"batches": recent(rows), "set_aside": aside}


def recent(runs: Iterable[RunRow]) -> list[dict[str, Any]]:
    """The runs that are open, or were finished within a day. Pure."""
    return [
        {
            **described(run),
            "failed": min(run.failed, MOST_COUNTED),
            "all_counted": run.failed <= MOST_COUNTED,
            "still_sec": None,
        }
        for run in runs
        if run.finished_at is None or run.at - run.finished_at < _RECENT
    ]


def run_by(run: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The workers that say that they run it; None where there are none, but not all say what they
    run. Pure."""
    it = {"kind": "batch", "name": run["name"], "date": run["date"]}
    names = [node["name"] for node in nodes if it in (node["runs"] or ())]
    return names if names or all(node["runs"] is not None for node in nodes) else None


class Stillness:
    """For how long open runs stand still, from look to look: ``still_sec``. No I/O."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], tuple[int, float]] = {}

    def note(self, seen: Mapping[str, Any], now: float) -> None:
        """Write it into what `survey` returned."""
        before, self._since = self._since, {}
        for run in seen["batches"]:
            if run["finished_at"] is None:
                key, done = (run["key"], run["date"]), run["done"]
                was, since = before.get(key, (done, now))
                self._since[key] = (done, since if was == done else now)
                run["still_sec"] = now - self._since[key][1]


def _late(node: dict[str, Any], timeout_sec: float | None) -> bool:
    limit_sec = silent_after(node, timeout_sec)
    return limit_sec is not None and node["heartbeat_age_sec"] >= _LATE * lease_sec(limit_sec)
