"""What happened to the cluster: writing down what people do, reading it all, and forgetting it.

A worker's own statements write their rows themselves, in ``queries.sql``. Whatever writes a row
does so in the transaction of the change.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg import AsyncCursor

from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.link import Link
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries


class HistoryStatements:
    """The statements about the history. All raise StoreUnavailable or SchemaError."""

    def __init__(self, link: Link | Pool, queries: Queries) -> None:
        self._link = link
        self._queries = queries

    async def record(
        self,
        connection: Connection,
        kind: str,
        *,
        by: str | None,
        node: str | None = None,
        incarnation: UUID | None = None,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Write down what somebody does, in the transaction on `connection` that does it; the row's
        number.

        Args:
            kind: one of those that ``schema.sql`` lists.
            by: the person who asked, or the worker.
            node, incarnation: the worker that it is about; None for the whole cluster.
        """
        values = {
            "kind": kind,
            "node": node,
            "incarnation": incarnation,
            "by": by,
            "reason": reason,
            "details": None if details is None else json.dumps(details),
        }
        row = await (await connection.execute(self._queries["record_event"], values)).fetchone()
        assert row is not None, "an INSERT of a row gives one back"
        return int(row.id)

    async def events(
        self, most: int, since_sec: float | None = None, node: str | None = None
    ) -> list[dict[str, Any]]:
        """The latest rows, the newest first: of the last so many seconds, and of one worker, if
        that is asked for."""
        values = {"most": most, "since_sec": since_sec, "node": node}
        return await self._rows("list_events", values)

    async def rebalances(self, most: int, since_sec: float | None = None) -> list[dict[str, Any]]:
        """The latest distributions, the newest first."""
        return await self._rows("list_rebalances", {"most": most, "since_sec": since_sec})

    async def leader(self) -> dict[str, Any]:
        """Who is said to lead, in which term, and whether it is there."""
        return (await self._rows("read_leader", {}))[0]

    async def terms(self, most: int) -> list[dict[str, Any]]:
        """The latest rows with which a term begins, the newest first."""
        return await self._rows("list_terms", {"most": most})

    async def forget(
        self, most: int, *, days: float | None = None, before: dt.date | None = None
    ) -> tuple[int, int]:
        """Delete the oldest rows of the history, and the oldest distributions, up to `most` of
        each; how many that were. The last change of the leader and the last distribution stay.

        Args:
            days: what is older than so many, by the server's clock.
            before: in place of that, what is from before a date of the cluster.
        """
        values = {"most": most, "days": days, "before": before}
        events, rebalances = [
            await self._run(name, values) for name in ("forget_events", "forget_rebalances")
        ]
        return events.rowcount, rebalances.rowcount

    async def count_before(self, before: dt.date) -> tuple[int, int]:
        """How many rows and distributions `forget` would delete in the end."""
        (row,) = await self._rows("count_old", {"before": before, "days": None})
        return row["events"], row["rebalances"]

    async def _rows(self, name: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [row._asdict() for row in await (await self._run(name, values)).fetchall()]

    async def _run(self, name: str, values: Mapping[str, Any]) -> AsyncCursor[Any]:
        async def work(connection: Connection) -> AsyncCursor[Any]:
            return await connection.execute(self._queries[name], values)

        return await self._link.run(work)
