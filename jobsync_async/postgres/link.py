"""A connection for one purpose, which is opened when it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jobsync_async.errors import StoreError
from jobsync_async.host.finishing import finish_first
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.driver_errors import translated

T = TypeVar("T")


class Link:
    """One connection for one purpose, opened when it is first needed and anew after it failed. One
    user at a time.

    Args:
        idle_sec: close the connection when it was not used for so long; None keeps it.
    """

    def __init__(
        self, connector: Connector, purpose: str, *, idle_sec: float | None = None
    ) -> None:
        self._connector = connector
        self._purpose = purpose
        self._idle_sec = idle_sec
        self._idle_timer: asyncio.TimerHandle | None = None
        self._connection: Connection | None = None
        self._on_stir: Callable[[], object] | None = None
        self._renew = False
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        state = "closed" if self._connection is None or self._connection.closed else "open"
        return f"<Link {self._purpose!r} {state}>"

    def tell_stir_to(self, listener: Callable[[], object]) -> None:
        """Call `listener` when the server says something, or ends the connection, while nobody uses
        it."""
        self._on_stir = listener

    async def run(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        one_snapshot: bool = False,
        again: bool = True,
    ) -> T:
        """Run `work` with the connection, not cancelled and bounded in time; with `one_snapshot`,
        everything that it reads is of one moment; `again` is as in `Connector.call`. Raises
        StoreUnavailable or SchemaError."""
        return await finish_first(self._run(work, one_snapshot=one_snapshot, again=again))

    def renew(self) -> None:
        """Let the next use begin with a fresh connection: the present one may lead to the wrong
        server."""
        self._renew = True

    async def transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """The same in one transaction, committed when `work` returns."""

        async def in_transaction(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection)

        return await self.run(in_transaction)

    async def _run(
        self, work: Callable[[Connection], Awaitable[T]], *, one_snapshot: bool, again: bool
    ) -> T:
        async with self._turn:
            self._stop_idle_timer()
            self._stop_listening()
            connection = await self._ensure()
            try:
                with translated(), connection.limited(self._connector.patience_sec):
                    return await self._connector.call(
                        connection, work, one_snapshot=one_snapshot, again=again
                    )
            except StoreError:
                await self._discard()
                raise
            finally:
                self._start_idle_timer()
                self._listen_while_idle()

    async def _ensure(self) -> Connection:
        there = self._connection
        if there is not None and (self._renew or there.closed or self._connector.left(there)):
            await self._discard()
        self._renew = False
        if self._connection is None:
            self._connection = await self._connector.open(self._purpose)
        return self._connection

    async def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _start_idle_timer(self) -> None:
        if self._idle_sec is not None and self._connection is not None:
            self._idle_timer = asyncio.get_running_loop().call_later(
                self._idle_sec, self._close_idle
            )

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _listen_while_idle(self) -> None:
        if (
            self._on_stir is not None
            and self._connection is not None
            and not self._connection.closed
        ):
            asyncio.get_running_loop().add_reader(self._connection.fileno(), self._stirred)

    def _stop_listening(self) -> None:
        if (
            self._on_stir is not None
            and self._connection is not None
            and not self._connection.closed
        ):
            asyncio.get_running_loop().remove_reader(self._connection.fileno())

    def _stirred(self) -> None:
        self._stop_listening()
        if self._on_stir is not None:
            self._on_stir()

    def _close_idle(self) -> None:
        if not self._turn.locked() and self._connection is not None:
            connection, self._connection = self._connection, None
            connection.pgconn.finish()

    async def close(self) -> None:
        """Close the connection; a later use would open another."""
        await finish_first(self._close())

    async def _close(self) -> None:
        async with self._turn:
            self._stop_idle_timer()
            self._stop_listening()
            await self._discard()
