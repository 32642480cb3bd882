"""Deleting old days: what was begun and completed, and the runs of batches.

* A day is kept on which a run of a batch is open, or that a worker says it runs. So nothing is
  deleted that somebody may still look at to learn what is complete.
* Each piece is a transaction. It holds the table of runs, so that none is opened meanwhile, looks
  at what keeps the day, and deletes then. Whoever opens a run waits for it, and finds what is left.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, NamedTuple

from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import GROWING, LAYOUT, Queries

_BEFORE_ALL = "-infinity"


class Kept(NamedTuple):
    """A run that keeps its day; `batch_key` is None where a worker tells of it, and the tables do
    not."""

    date: dt.date
    name: str | None
    batch_key: bytes | None


class DayRows(NamedTuple):
    """Some rows of a day: how many, and the last key; None when there is none left."""

    rows: int
    last: bytes | None


class Pruning:
    """The statements. All raise StoreUnavailable or SchemaError."""

    def __init__(self, pool: Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def older_workers(self) -> list[str]:
        """Workers of a version that does not tell what it runs."""
        row = await self._pool.run(
            lambda connection: _one(connection, self._queries["list_older"], {"layout": LAYOUT})
        )
        return list(row.names or ())

    async def kept(self, before: dt.date) -> list[Kept]:
        """What keeps days before a date."""
        return await self._pool.run(lambda connection: self._kept(connection, before))

    async def next_day(self, after: dt.date | None, before: dt.date) -> dt.date | None:
        """The first day, after one and before another, that has rows; None for none."""
        values = {"after": after or _BEFORE_ALL, "before": before}

        async def work(connection: Connection) -> dt.date | None:
            days = [
                (await _one(connection, self._queries.by_days("next_day", table), values)).date
                for table in GROWING
            ]
            return min((day for day in days if day is not None), default=None)

        return await self._pool.run(work)

    async def piece(
        self, table: str, day: dt.date, after: bytes, most: int, *, delete: bool
    ) -> DayRows | None:
        """The next rows of a day after a key, about `most` of them, which are deleted if that is
        asked for; None, and nothing is deleted, when something keeps the day."""
        values = {"date": day, "after": after, "most": most}
        find, remove = (self._queries.by_days(name, table) for name in ("piece", "delete_piece"))

        async def work(connection: Connection) -> DayRows | None:
            if delete:
                await connection.execute(self._queries["hold_runs"])
            if any(kept.date == day for kept in await self._kept(connection, dt.date.max)):
                return None
            piece = DayRows(*await _one(connection, find, values))
            if not delete or piece.last is None:
                return piece
            done = await connection.execute(remove, {**values, "last": piece.last})
            return DayRows(done.rowcount, piece.last)

        return await self._pool.transaction(work)

    async def _kept(self, connection: Connection, before: dt.date) -> list[Kept]:
        cursor = await connection.execute(self._queries["list_kept"], {"before": before})
        return [Kept(*row) for row in await cursor.fetchall()]


async def _one(connection: Connection, statement: bytes, values: Mapping[str, Any]) -> Any:
    return await (await connection.execute(statement, values)).fetchone()
