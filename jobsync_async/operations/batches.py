"""Batches seen from outside: how far each run is, what has failed, who does it; and a run that is
opened anew, so that what has failed is tried again.

What is asked of the tables costs the same however many ids a batch has.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from typing import Any

import anyio

from jobsync_async.core.hashing import name_key
from jobsync_async.postgres.batch_runs import (
    MOST_FAILED,
    FailedRow,
    RunRow,
    RunWorkerRow,
    Sought,
)
from jobsync_async.postgres.store import Store

MOST_RUNS = 20
MOST_IDS = 20
"""So many ids of each error are told."""

_KEY = re.compile("[0-9a-f]{8,64}")
_DIGITS = 64


async def list_runs(
    store: Store, date: dt.date | None = None, most: int = MOST_RUNS
) -> dict[str, Any]:
    """The runs of batches, on all dates or on one: the open ones first, then the newest."""
    rows = await store.batch_runs.find(None, date, most)
    return {
        "runs": [described(row) for row in rows],
        "more": rows[0].all_runs - len(rows) if rows else 0,
    }


async def find_run(store: Store, name: str | None, date: dt.date | None) -> RunRow | None:
    """The run that is meant: the open one, else the newest; None for none.

    Args:
        name: the batch's, or the first digits of the key of one without a name; None for any.
        date: the run's; None for any.
    """
    rows = await store.batch_runs.find(None if name is None else sought(name), date, 1)
    return rows[0] if rows else None


async def look(store: Store, run: RunRow, over_sec: float) -> dict[str, Any]:
    """One run in depth. Of an open one, the rate is measured by a second look after `over_sec`."""
    workers = await store.batch_runs.workers(run)
    if run.finished_at is None:
        await anyio.sleep(over_sec)
        rows = await store.batch_runs.find(Sought(*[run.batch_key] * 3), run.date, 1)
        rate = rate_between(run, rows[0]) if rows else None
        run = rows[0] if rows else run
    else:
        rate = rate_over(run)
    return {**described(run), **speed(run, rate), "workers": [w._asdict() for w in workers]}


async def failures(store: Store, run: RunRow) -> dict[str, Any]:
    """What of a run has failed, by error."""
    return {**_named(run), **grouped(await store.batch_runs.failed(run))}


async def retry(store: Store, run: RunRow, by: str) -> dict[str, Any]:
    """Open a run anew and forget what was given up in it, if some was and no worker runs it: the
    next call of `run_batch` that continues it tries these ids again.

    * A worker that runs it now keeps in mind what it has given up. It does not look again, and
      others would wait for it. So then nothing is done.
    * What is set aside stays so.
    * What is complete is not touched.
    """
    failed = await store.batch_runs.failed(run)
    workers = await store.batch_runs.workers(run)
    given_up = [one for one in failed if not one.set_aside]
    refused = refusal(run, given_up, workers)
    forgotten = 0
    if refused is None:
        reopened = await store.batch_runs.reopen(run, by)
        if reopened is None:
            refused = (
                "a worker has just begun to run it, or is of 0.1.0 and does not tell what it runs; "
                "see what comes of that first"
            )
        else:
            forgotten = await store.batch_runs.forget_failed(run, reopened)
    return {
        **_named(run),
        "reopened": refused is None,
        "forgotten": forgotten,
        "set_aside": len(failed) - len(given_up),
        "refused": refused,
    }


# -- pure ------------------------------------------------------------------------------------------


def sought(name: str) -> Sought:
    """Which batches are meant by a name, or by the first digits, eight at least, of a key."""
    digits = name.lower()
    if not _KEY.fullmatch(digits):
        return Sought(name_key(name), b"\1", b"\0")  # no range
    low, high = (bytes.fromhex(digits.ljust(_DIGITS, fill)) for fill in "0f")
    return Sought(name_key(name), low, high)


def described(run: RunRow) -> dict[str, Any]:
    """A run, as values that JSON can hold.

    All ids of a finished run are done with. Of an open one, those are that its workers have
    counted, which leaves out what was complete before it.
    """
    counted = max(run.completed + run.otherwise, 0)
    done = counted if run.total is None else min(counted, run.total)
    if run.finished_at is not None and run.total is not None:
        done = run.total
    remaining = None if run.total is None else run.total - done
    return {
        **_named(run),
        "total": run.total,
        "completed": run.completed,
        "otherwise": run.otherwise,
        "done": done,
        "failed": run.failed,
        "remaining": 0 if run.finished_at is not None else remaining,
        "started_at": run.started_at.isoformat(),
        "started_by": run.started_by,
        "finished_at": None if run.finished_at is None else run.finished_at.isoformat(),
        "unnamed_beside": max(run.unnamed - 1, 0),
    }


def _named(run: RunRow) -> dict[str, Any]:
    return {"name": run.name, "key": run.batch_key.hex(), "date": run.date.isoformat()}


def title(run: dict[str, Any]) -> str:
    """A run in a few words."""
    name = f"{run['key'][:12]}, which has no name," if run["name"] is None else repr(run["name"])
    return f"batch {name} of {run['date']}"


def rate_between(sooner: RunRow, later: RunRow) -> float | None:
    """How many ids a second were done between two looks; None where no time has passed."""
    seconds = (later.at - sooner.at).total_seconds()
    counted = later.completed + later.otherwise - sooner.completed - sooner.otherwise
    return max(counted, 0) / seconds if seconds > 0 else None


def rate_over(run: RunRow) -> float | None:
    """How many ids a second were completed since a run that is finished was opened for the last
    time; None where no time has passed."""
    assert run.finished_at is not None, "its end is what it is measured to"
    seconds = (run.finished_at - run.started_at).total_seconds()
    return (run.completed - run.completed_before) / seconds if seconds > 0 else None


def speed(run: RunRow, rate: float | None) -> dict[str, float | None]:
    """The rate, and how long the rest takes at it; None where that is not known."""
    remaining = described(run)["remaining"]
    left = 0.0 if remaining == 0 else remaining / rate if remaining and rate else None
    return {"rate_per_sec": rate, "left_sec": left}


def grouped(failed: Iterable[FailedRow], most_ids: int = MOST_IDS) -> dict[str, Any]:
    """What has failed, by error, the most frequent first, with some of the ids of each."""
    ids: dict[tuple[str, bool], list[str]] = {}
    for one in failed:
        ids.setdefault((one.error, one.set_aside), []).append(one.task_id)
    total = sum(map(len, ids.values()))
    return {
        "failed": total,
        "all_counted": total < MOST_FAILED,
        "errors": [
            {
                "error": error,
                "set_aside": set_aside,
                "count": len(of),
                "ids": sorted(of)[:most_ids],
                "more_ids": max(len(of) - most_ids, 0),
            }
            for (error, set_aside), of in sorted(ids.items(), key=lambda one: -len(one[1]))
        ],
    }


def refusal(
    run: RunRow, given_up: Sequence[FailedRow], workers: Iterable[RunWorkerRow]
) -> str | None:
    """Why what has failed in a run is not tried again; None when it is."""
    running = [worker.node for worker in workers if worker.runs_it]
    if not given_up:
        return "nothing was given up in it"
    if running:
        return (
            f"it is run now by {', '.join(running)}, and who runs it does not try again what was "
            "given up: do it when that is over"
        )
    if run.unnamed > 1:
        return (
            f"{run.unnamed} batches without a name have this date, and it is not known whose the "
            f"failures are: call run_batch with the same ids and date={run.date}, which tries its "
            "own again; or give batches names"
        )
    return None
