"""What people make a cluster do: pause and resume, evict workers and allow them again.

Each act is one transaction, which takes a version and writes a row of the history. Where nothing is
to be changed, nothing is written.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import psycopg

from jobsync_async.core.rows import Steered
from jobsync_async.postgres.cluster_version import take_version
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.history import HistoryStatements
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext
from jobsync_async.types import Pause


class Eviction(NamedTuple):
    """A name that no worker joins under, and the worker that was put out for it.

    Attributes:
        changed: False when the name was evicted before, and no worker has it.
        at, by, reason: since when, by whom and why.
        row: what the row of the worker is called that was put out; None when there is none.
        older: whether it is of 0.1.0, which joins again all the same.
    """

    changed: bool
    at: dt.datetime
    by: str
    reason: str | None
    row: str | None
    older: bool


T = TypeVar("T", Steered, Eviction)


class Steering:
    """The statements. All raise StoreUnavailable; it may have been done all the same, and to repeat
    it is safe.

    Args:
        pool: whose connections they use.
        history: where it is written down.
    """

    def __init__(
        self, pool: Pool, queries: Queries, context: StatementContext, history: HistoryStatements
    ) -> None:
        self._pool = pool
        self._queries = queries
        self._context = context
        self._history = history

    async def pause(self, by: str, reason: str | None = None) -> Steered:
        """Let no worker start anything new, until `resume`. A pause that holds already stays as it
        is."""

        async def work(connection: Connection, version: int) -> Steered:
            before = await self._read_pause(connection)
            if before is None:
                values = {"by": by, "reason": reason}
                await self._execute(connection, "pause", values)
                await self._history.record(connection, "paused", by=by, reason=reason)
            return Steered(before is None, version, before or await self._read_pause(connection))

        return await self._act(work)

    async def resume(self, by: str) -> Steered:
        """Let everything be started again."""

        async def work(connection: Connection, version: int) -> Steered:
            before = await self._read_pause(connection)
            if before is not None:
                await self._execute(connection, "resume", {})
                await self._history.record(connection, "resumed", by=by)
            return Steered(before is not None, version, before)

        return await self._act(work)

    async def evict(self, name: str, by: str, reason: str | None = None) -> Eviction:
        """Put a worker out, whether or not there is one of this name now. Its heartbeats count no
        more, so its lease ends and it is expired. No worker joins under this name, until
        `allow`."""
        said = {"name": name, "by": by, "reason": reason}

        async def work(connection: Connection, version: int) -> Eviction:
            before = await self._one(connection, "find_evicted", said)
            row = await self._one(connection, "evict_node", said)
            changed = before is None or row is not None
            incarnation: UUID | None = None if row is None else row.incarnation
            if changed:
                worker = {**said, "incarnation": incarnation}
                await self._execute(connection, "record_eviction", worker)
                await self._history.record(
                    connection, "evicted", by=by, node=name, incarnation=incarnation, reason=reason
                )
                await self._execute(connection, "lead_in_place_of", worker)
            now = await self._one(connection, "find_evicted", said)
            older = row is not None and row.older
            return Eviction(changed, now.at, now.by, now.reason, now.row, older)

        return await self._act(work)

    async def allow(self, name: str, by: str) -> bool:
        """Let workers of this name join again; False when it was not evicted."""

        async def work(connection: Connection, version: int) -> Steered:
            cursor = await self._execute(connection, "allow_again", {"name": name})
            allowed = cursor.rowcount == 1
            if allowed:
                await self._history.record(connection, "allowed", by=by, node=name)
            return Steered(allowed, version, None)

        return (await self._act(work)).changed

    async def _act(self, work: Callable[[Connection, int], Awaitable[T]]) -> T:
        """Run `work` in one transaction, under the next version; what it returns. If it changed
        nothing, no version is taken."""

        async def in_transaction(connection: Connection) -> T:
            async with connection.transaction() as transaction:
                version = await take_version(connection, self._queries, self._context)
                done = await work(connection, version)
                if not done.changed:
                    raise psycopg.Rollback(transaction)
            return done

        return await self._pool.run(in_transaction)

    async def _read_pause(self, connection: Connection) -> Pause | None:
        row = await self._one(connection, "read_pause", {})
        return None if row is None else Pause(*row)

    async def _one(self, connection: Connection, name: str, values: dict[str, Any]) -> Any:
        return await (await self._execute(connection, name, values)).fetchone()

    async def _execute(self, connection: Connection, name: str, values: dict[str, Any]) -> Any:
        values = {**self._context.values(connection.server), **values}
        return await connection.execute(self._queries[name], values)
