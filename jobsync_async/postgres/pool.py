"""Connections for what users call: a small pool that opens them when they are needed and closes them when they are idle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from psycopg.rows import namedtuple_row
from psycopg_pool import AsyncConnectionPool

from jobsync_async.postgres.connection import Connection, Connector, finish_first, limit, translated

T = TypeVar("T")


class Pool:
    """Runs work on any of up to `max_size` connections; has the methods of `Link`, for many users at a time."""

    def __init__(self, connector: Connector, *, max_size: int = 4, idle_sec: float = 10.0) -> None:
        self._connector = connector
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            connector.conninfo("calls"),
            kwargs={"autocommit": True, "row_factory": namedtuple_row},
            configure=connector.prepare,
            min_size=0,
            max_size=max_size,
            max_idle=idle_sec,
            timeout=connector.patience_sec,
            reconnect_timeout=connector.patience_sec,
            open=False,
            name="jobsync_async",
        )

    async def open(self) -> None:
        """Start the pool; connects to nothing yet."""
        await self._pool.open()

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` with a connection, not cancelled and bounded in time. Raises StoreUnavailable or SchemaError."""

        async def bounded() -> T:
            with translated():
                async with self._pool.connection() as connection:
                    with limit(connection, self._connector.patience_sec):
                        return await work(connection)

        return await finish_first(bounded())

    async def transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """The same in one transaction, committed when `work` returns."""

        async def in_transaction(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection)

        return await self.run(in_transaction)

    async def check(self) -> None:
        """Replace idle connections that broke, before somebody is handed one."""
        await self._pool.check()

    async def close(self) -> None:
        await self._pool.close()
