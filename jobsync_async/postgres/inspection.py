"""Single things for people: whose a token is, and why; what is set aside."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jobsync_async.postgres.arrays import int_array
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries
from jobsync_async.types import Owner


class ClusterSettings(NamedTuple):
    """What is fixed for the life of a cluster."""

    schema_version: int
    total_tokens: int
    hash_function: str
    layout: int
    channel: str | None
    time_zone: str | None


class Inspection:
    """Statements of the command line, which read, but for one. All raise StoreUnavailable or
    SchemaError."""

    def __init__(self, pool: Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def settings(self) -> ClusterSettings:
        """The cluster's settings."""
        (row,) = await self._fetch("read_settings", {})
        return ClusterSettings(*(getattr(row, name) for name in ClusterSettings._fields))

    async def owners_of(self, token_ids: Sequence[int]) -> dict[int, Owner]:
        """The live owners of tokens; those of nobody are not in it."""
        rows = await self._fetch("owners_of", {"token_ids": int_array(token_ids)})
        return {row.token_id: Owner(row.node, row.address, row.epoch) for row in rows}

    async def token(self, token_id: int) -> dict[str, Any] | None:
        """A token's row with its live owner and the last distribution before its last change; None
        for one without a row."""
        rows = await self._fetch("explain_token", {"token_id": token_id})
        return dict(rows[0]._asdict()) if rows else None

    async def task(self, text: str, date: dt.date) -> list[dict[str, Any]]:
        """Whether a task was begun or completed on a date: outside of named batches first, then in
        each that has it."""
        return [
            row._asdict()
            for row in await self._fetch("explain_task", {"task_id": text, "date": date})
        ]

    async def count_set_aside(self, most: int) -> int:
        """How many tasks are set aside, counted up to a bound."""
        (row,) = await self._fetch("count_set_aside", {"most": most})
        return int(row.ids)

    async def connected(self, names: Sequence[str]) -> dict[str, bool]:
        """Of some workers, whether they have sessions on the server; without those of whom that is
        not known."""
        rows = await self._fetch("connected", {"names": list(names)})
        return {row.name: row.connected for row in rows}

    async def release(
        self, ids: Sequence[str] | None, batch: str | None, date: dt.date | None, by: str
    ) -> list[dict[str, Any]]:
        """Let tasks be begun again that are set aside; which they were. None stands for all.

        Args:
            by: who asks for it, for the history.
        """
        texts = None if ids is None else list(ids)
        values = {"task_ids": texts, "batch": batch, "date": date, "by": by}
        return [row._asdict() for row in await self._fetch("release_tasks", values)]

    async def _fetch(self, name: str, values: Mapping[str, Any]) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            return await (await connection.execute(self._queries[name], values)).fetchall()

        return await self._pool.run(work)
