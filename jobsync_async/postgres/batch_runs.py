"""Runs of batches for people: how far they are, what has failed, who does it; and to open one
anew."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries

MOST_FAILED = 10_000
"""Failures of a run are looked at, and counted, up to so many."""

_AT_A_TIME = 5_000


class Sought(NamedTuple):
    """By which keys batches are looked for: one that has a name by the key of it; one that has none
    by the range in which its key is."""

    name_key: bytes
    low: bytes
    high: bytes


class RunRow(NamedTuple):
    """A run as the tables tell of it.

    Attributes:
        total: how many ids it has, None where that is not known.
        completed_before: how many were completed before it was opened for the last time.
        completed, otherwise: what its workers count, as in `Parts`.
        failed: how many of its ids have failed, up to `MOST_FAILED`.
        unnamed: of a batch without a name, how many such batches have this date, itself included.
        all_runs: how many runs were asked for, of which only some are shown.
        at: when that was so, by the server's clock.
    """

    batch_key: bytes
    date: dt.date
    name: str | None
    total: int | None
    started_at: dt.datetime
    started_by: str
    finished_at: dt.datetime | None
    completed_before: int
    completed: int
    otherwise: int
    failed: int
    unnamed: int
    all_runs: int
    at: dt.datetime


class FailedRow(NamedTuple):
    """An id that has failed in a run."""

    task_id: str
    error: str
    set_aside: bool


class RunWorkerRow(NamedTuple):
    """What a worker, under its name, has done of a run, and whether it says that it runs it."""

    node: str
    completed: int
    otherwise: int
    runs_it: bool


class BatchRuns:
    """The statements about them; all but the last two only read. All raise StoreUnavailable or
    SchemaError."""

    def __init__(self, pool: Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def find(
        self,
        sought: Sought | None,
        date: dt.date | None,
        most: int,
        most_failed: int = MOST_FAILED,
    ) -> list[RunRow]:
        """The runs of batches, the open ones first, then the newest. None stands for all. Failures
        are counted up to `most_failed` in each."""
        keys = dict.fromkeys(Sought._fields) if sought is None else sought._asdict()
        values = {**keys, "date": date, "most": most, "most_failed": most_failed}
        return [RunRow(*row) for row in await self._fetch("list_runs", values)]

    async def failed(self, run: RunRow) -> list[FailedRow]:
        """What of a run has failed, up to `MOST_FAILED` ids."""
        values = {**_key(run), "most_failed": MOST_FAILED}
        return [FailedRow(*row) for row in await self._fetch("list_failed", values)]

    async def workers(self, run: RunRow) -> list[RunWorkerRow]:
        """Who has done how much of a run, or runs it now, the busiest first."""
        return [RunWorkerRow(*row) for row in await self._fetch("list_run_workers", _key(run))]

    async def reopen(self, run: RunRow, by: str) -> dt.datetime | None:
        """Open a run anew; when. None, and nothing is done, while a worker says that it runs it."""
        rows = await self._fetch("reopen_run", {**_key(run), "by": by})
        return rows[0].started_at if rows else None

    async def forget_failed(self, run: RunRow, reopened: dt.datetime) -> int:
        """Forget what was given up before a run was opened anew, so that it is tried again; how
        many ids. What is set aside stays so. Some at a time, each in a transaction of its own."""
        forgotten, after = 0, b""
        while True:
            values = {**_key(run), "started_at": reopened, "after": after, "most": _AT_A_TIME}
            (row,) = await self._fetch("forget_failed", values)
            if row.last is None:
                return forgotten
            forgotten, after = forgotten + row.forgotten, row.last

    async def _fetch(self, name: str, values: Mapping[str, Any]) -> Sequence[Any]:
        async def work(connection: Connection) -> Sequence[Any]:
            cursor = connection.cursor(binary=True)
            return await (await cursor.execute(self._queries[name], values)).fetchall()

        return await self._pool.run(work)


def _key(run: RunRow) -> dict[str, Any]:
    return {"batch_key": run.batch_key, "date": run.date, "name": run.name}
