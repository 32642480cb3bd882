"""The bound on everybody's heartbeat timeout: how long workers wait when the server was failed
over, and who may join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jobsync_async.core.server_history import UNSAID_TIMEOUT_SEC
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.link import Link
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext


class Bound(NamedTuple):
    """What the cluster row says: how long a new generation is waited for, and which timeout a
    worker may have; None before the first worker. `written` is a place in the server's log from
    after that."""

    longest_wait: float | None
    longest_allowed: float | None
    written: str


class Bounds:
    """The statements about the bound. All raise StoreUnavailable or SchemaError."""

    def __init__(self, link: Link, queries: Queries, context: StatementContext) -> None:
        self._link = link
        self._queries = queries
        self._context = context

    async def read(self) -> Bound:
        """The bound as it is."""
        return await self._link.run(self._read)

    async def _read(self, connection: Connection) -> Bound:
        row = await (await connection.execute(self._queries["read_bound"])).fetchone()
        assert row is not None, "whoever opens the tables finds the row or makes it"
        return Bound(*row)

    async def set(self, bound: float) -> Sequence[str]:
        """Let workers wait for so long, and lower what is allowed to that. When it would be lowered
        below what workers have, or may have, nothing is done: their names."""

        async def work(connection: Connection) -> Sequence[str]:
            values = {"bound": bound, **self._context.values(connection.server)}
            if (
                await (await connection.execute(self._queries["lock_cluster"], values)).fetchone()
                is None
            ):
                raise self._context.changed()
            before = (await self._read(connection)).longest_wait
            above = [
                name
                for (name,) in await (
                    await connection.execute(self._queries["above_bound"], values)
                ).fetchall()
            ]
            if above and bound < (UNSAID_TIMEOUT_SEC if before is None else before):
                return above
            await connection.execute(self._queries["set_bound"], values)
            return ()

        return await self._link.transaction(work)

    async def allow(self, bound: float) -> None:
        """Let workers join with such a timeout, if others wait for so long."""

        async def work(connection: Connection) -> None:
            values = {"bound": bound, **self._context.values(connection.server)}
            await connection.execute(self._queries["allow_bound"], values)

        await self._link.run(work)

    async def lagging(self, written: str) -> list[str]:
        """Replicas that may not have what was written up to there, for people."""

        async def work(connection: Connection) -> list[str]:
            cursor = await connection.execute(
                self._queries["replicas_without"], {"written": written}
            )
            return [name for (name,) in await cursor.fetchall()]

        return await self._link.run(work)
