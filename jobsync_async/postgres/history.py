"""What happened to the cluster: writing down what people do, and reading it all.

A worker's own statements write their rows themselves, in ``queries.sql``. Whatever writes a row
does so in the transaction of the change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries


class HistoryStatements:
    """The statements about the history. All raise StoreUnavailable or SchemaError."""

    def __init__(self, pool: Pool, queries: Queries) -> None:
        self._pool = pool
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
