"""Deleting old days, in pieces that are short for everybody else."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio

from jobsync_async.errors import ConfigError
from jobsync_async.postgres.sql import GROWING
from jobsync_async.postgres.store import Store

MOST_ROWS = 10_000
"""A piece: some tens of milliseconds, and a few megabytes of the server's log."""

_HISTORY = ("history", "rebalance")

Progress = Callable[[dt.date, int], None]
"""Told after each piece: at which day it is, and how many rows are done with."""


def _untold(day: dt.date, rows: int) -> None:
    """Nobody wants to know."""


async def prune(
    store: Store,
    before: dt.date,
    *,
    dry_run: bool = False,
    progress: Progress = _untold,
    most_rows: int = MOST_ROWS,
) -> dict[str, Any]:
    """Delete the days before a date, the oldest first, but those that an open run of a batch keeps.
    What was deleted stays so when it is interrupted.

    Raises ConfigError for a date that is not in the past; StoreUnavailable.
    """
    check(before, await store.work.read_date())
    pruning, delete = store.pruning, not dry_run
    deleted = Counter(dict.fromkeys([*GROWING, *_HISTORY], 0))

    async def done_with(day: dt.date) -> bool:
        for table in GROWING:
            after: bytes | None = b""
            while after is not None:
                began = anyio.current_time()
                piece = await pruning.piece(table, day, after, most_rows, delete=delete)
                if piece is None:
                    return False
                after = piece.last
                deleted[table] += piece.rows
                if after is not None:
                    progress(day, deleted.total())
                    # Others come first.
                    await anyio.sleep(anyio.current_time() - began if delete else 0)
        return True

    days, older = 0, await pruning.older_workers()
    if not older:
        day = await pruning.next_day(None, before)
        while day is not None:
            days += await done_with(day)
            day = await pruning.next_day(day, before)
        deleted.update(await _old_history(store, before, most_rows, delete=delete))
    return {
        "before": before.isoformat(),
        "dry_run": dry_run,
        "days": days,
        "deleted": dict(deleted),
        "kept": [
            {
                "date": one.date.isoformat(),
                "name": one.name,
                "key": None if one.batch_key is None else one.batch_key.hex(),
            }
            for one in await pruning.kept(before)
        ],
        "older_workers": older,
    }


async def _old_history(
    store: Store, before: dt.date, most_rows: int, *, delete: bool
) -> Counter[str]:
    """How many rows of the history and distributions go, each up to its last."""
    deleted = Counter[str]()
    while True:
        some = (
            await store.history.forget(most_rows, before=before)
            if delete
            else await store.history.count_before(before)
        )
        deleted.update(dict(zip(_HISTORY, some, strict=True)))
        if not delete or max(some) < most_rows:
            return deleted


def check(before: dt.date, today: dt.date) -> None:
    """Raises ConfigError for a date that is not in the past."""
    if before >= today:
        raise ConfigError(
            f"the days before {before} cannot be deleted: {before} is not in the past, for it is "
            f"{today} for the cluster; give a date before that"
        )
