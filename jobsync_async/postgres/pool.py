"""Connections for what users call: a small pool that opens them when they are needed and closes
them when they are idle.

A worker that calls nothing has no pool: it is made by the first call, and psycopg_pool is imported
by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors

from jobsync_async.errors import StoreUnavailable
from jobsync_async.host.finishing import finish_first
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.driver_errors import translated, without_frames
from jobsync_async.postgres.driver_logs import POOL_NAME

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool
    from typing_extensions import Self

T = TypeVar("T")


class Pool:
    """Runs work on any of up to `max_size` connections; has the methods of `Link`, for many users
    at a time."""

    def __init__(self, connector: Connector, *, max_size: int = 4, idle_sec: float = 10.0) -> None:
        self._connector = connector
        self._max_size = max_size
        self._idle_sec = idle_sec
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._outages = 0
        self._failure: psycopg.Error | None = None

    async def _opened(self) -> AsyncConnectionPool[Connection]:
        async with self._opening:
            if self._closed:
                raise StoreUnavailable("the job has ended, and its connections are closed")
            if self._pool is None:
                self._pool = self._make()
                await self._pool.open()  # starts its tasks, and connects to nothing yet
            return self._pool

    def _make(self) -> AsyncConnectionPool[Connection]:
        # half a megabyte that many workers never need
        from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

        pool = self

        class Told(Connection):
            """Says why it cannot be had."""

            @classmethod
            async def connect(cls, conninfo: str = "", **options: Any) -> Self:
                try:
                    made = await super().connect(conninfo, **options)
                except psycopg.Error as error:
                    pool._failure = without_frames(error)
                    raise
                pool._failure = None
                return made

        return AsyncConnectionPool(
            self._connector.conninfo("calls"),
            connection_class=Told,
            kwargs=self._connector.options,
            configure=self._configure,
            min_size=0,
            max_size=self._max_size,
            max_idle=self._idle_sec,
            timeout=self._connector.patience_sec,
            reconnect_timeout=self._connector.patience_sec,
            open=False,
            name=POOL_NAME,
        )

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` with a connection, not cancelled and bounded in time. Raises StoreUnavailable
        or SchemaError."""

        async def bounded() -> T:
            pool = await self._opened()
            with translated(), self._reason():
                while True:
                    async with pool.connection() as connection:
                        if await self._sound(connection):
                            with connection.limited(self._connector.patience_sec):
                                return await self._use(connection, work)

        return await finish_first(bounded())

    async def _use(self, connection: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return await self._connector.call(connection, work)
        except errors.ReadOnlySqlTransaction:  # the next one may lead to another server
            await connection.close()
            raise

    @contextmanager
    def _reason(self) -> Iterator[None]:
        """psycopg_pool says only for how long it has tried to connect: say why it could not."""
        try:
            yield
        except psycopg.OperationalError as error:
            if type(error).__name__ == "PoolTimeout" and self._failure is not None:
                raise self._failure from None
            raise

    async def transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """The same in one transaction, committed when `work` returns."""

        async def in_transaction(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection)

        return await self.run(in_transaction)

    def suspect(self) -> None:
        """There was an outage: a connection from before is looked at before it is handed to
        somebody. No I/O."""
        self._outages += 1

    async def _configure(self, connection: Connection) -> None:
        await self._connector.prepare(connection)
        connection.outages = self._outages

    async def _sound(self, connection: Connection) -> bool:
        """Whether it still works, and leads where it did; if not, it is closed, and so forgotten.
        (psycopg_pool's own check would wait a second.)"""
        used, connection.used = connection.used, True
        if used and self._connector.left(connection):
            await connection.close()
            return False
        if connection.outages == self._outages:
            return True
        outages, queries = self._outages, self._connector.queries
        assert queries is not None, "the schema is opened first"
        try:
            with connection.limited(self._connector.patience_sec):
                await connection.execute(queries["say_something"])
        except psycopg.OperationalError:
            await connection.close()
            return False
        connection.outages = outages
        return True

    async def close(self) -> None:
        async with self._opening:
            self._closed = True
            if self._pool is not None:
                await self._pool.close()
