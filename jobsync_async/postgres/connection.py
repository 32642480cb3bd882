"""Connections that answer in time or are given up, and statements that are not cut off half-way.

Three rules hold for every statement of the coordination code:

* It is not cancelled. A cancelled psycopg call may commit all the same, and then nobody knows. So a
  statement runs in a task of its own, and a caller that is cancelled waits for its end first
  (`finish_first`).
* It ends in time. The server bounds it by ``statement_timeout`` and ``lock_timeout``; a dead
  network ends it by TCP's own timeouts; and because a stopped server process does neither, the
  socket is shut down when the answer stays away (`limit`).
* When a connection failed, whatever was under way may or may not have happened. The connection is
  thrown away, the caller gets `StoreUnavailable`, and reads again before it decides anything.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import AsyncClientCursor, AsyncConnection, errors
from psycopg.rows import namedtuple_row

from jobsync_async.errors import ConfigError, StoreError, StoreUnavailable
from jobsync_async.host.finishing import finish_first
from jobsync_async.postgres import forks
from jobsync_async.postgres.driver_errors import first_line, translated, without_frames
from jobsync_async.postgres.driver_logs import take_for_details
from jobsync_async.postgres.names import resolved
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

# What PostgreSQL calls it: most statements are worth a plan that fits their values; the few that
# follow a notification within a millisecond are written to be planned once.
PLAN_EACH_TIME, PLAN_ONCE = "force_custom_plan", "force_generic_plan"


class Connection(AsyncConnection[Any]):
    """A connection that knows to which server it leads; None where that may change under it, behind
    a pooler.

    `outages` is how many there had been when it was last seen to be sound; `used` whether somebody
    had it before.
    """

    server: str | None = None
    outages = 0
    used = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        forks.connections.add(self)

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connect to where the names in it lead now. Raises psycopg's errors."""
        return await super().connect(await resolved(conninfo), **options)

    async def together(self, queries: Sequence[bytes], values: dict[str, Any]) -> list[list[Any]]:
        """Send statements in one message, so that no lock waits for this process between them; the
        rows of each. All share the parameters. They are one transaction, in which each sees what is
        committed when it begins."""
        cursor = AsyncClientCursor(self, row_factory=namedtuple_row)
        await cursor.execute(b";\n".join(queries), values)
        rows = list[list[Any]]()
        while True:
            rows.append([] if cursor.description is None else await cursor.fetchall())
            if not cursor.nextset():
                return rows

    async def copy_in(self, query: bytes, pieces: Iterable[bytes]) -> int:
        """COPY what the pieces make up together into a table; how many rows."""
        cursor = self.cursor()
        async with cursor.copy(query) as copy:
            for piece in pieces:
                await copy.write(piece)
        return cursor.rowcount


take_for_details(Connection)


@contextmanager
def limit(connection: Connection, seconds: float) -> Iterator[None]:
    """Shut the connection's socket down when the block takes longer: whoever waits for an answer
    then gets an error."""
    timer = asyncio.get_running_loop().call_later(seconds, shut_down, connection)
    try:
        yield
    finally:
        timer.cancel()


def shut_down(connection: AsyncConnection[Any]) -> None:
    """End a connection from outside, whatever it is doing. Its waiter sees the end of the
    stream."""
    if connection.closed:
        return
    with (
        suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)


class Connector:
    """Opens connections that are set up for the coordination statements.

    Args:
        conninfo: makes the connection string for a purpose.
        limit_sec: how long a statement may take on the server; the client waits half as long again.
        context: what the worker has adopted; a connection that leads elsewhere is refused.
        pooled: behind a pooler in transaction mode, where nothing of a session may be relied on:
            neither settings, nor prepared statements, nor which server it leads to.
    """

    def __init__(
        self,
        conninfo: Callable[[str], str],
        limit_sec: float,
        context: StatementContext | None = None,
        *,
        pooled: bool = False,
    ) -> None:
        self._conninfo = conninfo
        self.context: StatementContext = context or StatementContext()
        self.pooled = pooled
        self.limit_sec = limit_sec
        self.patience_sec: float = limit_sec * 1.5
        self.queries: Queries | None = None
        self.codec: str = "utf-8"
        self.severed: bool = False

    def conninfo(self, purpose: str) -> str:
        return self._conninfo(purpose)

    @property
    def options(self) -> dict[str, Any]:
        """How psycopg is to open a connection."""
        never_prepare = {"prepare_threshold": None} if self.pooled else {}
        return {"autocommit": True, "row_factory": namedtuple_row, **never_prepare}

    async def open(self, purpose: str, *, plans: str = PLAN_EACH_TIME) -> Connection:
        """A connection in autocommit. Raises StoreUnavailable (ServerChanged is one), or
        ConfigError for bad settings."""
        self._check()
        connection = await self._connect(purpose)
        try:
            await self.prepare(connection, plans=plans)
            self.context.check(connection.server)
        except BaseException:  # cleaned up, and raised again
            await connection.close()
            raise
        return connection

    async def _connect(self, purpose: str) -> Connection:
        try:
            return await Connection.connect(self._conninfo(purpose), **self.options)
        except psycopg.Error as error:
            failure = without_frames(error)
        # Nothing was sent: a value that libpq or psycopg cannot take.
        if isinstance(failure, psycopg.ProgrammingError):
            raise ConfigError(
                f"the connection settings cannot work: {first_line(failure)}"
            ) from failure
        with translated():
            raise failure

    async def prepare(self, connection: Connection, *, plans: str = PLAN_EACH_TIME) -> None:
        """Set bounds and names for the session. Nothing to do before the schema is known."""
        if self.queries is None or self.pooled:
            return
        with translated(), limit(connection, self.patience_sec):
            await self.pin(connection, self.queries, plans=plans)

    async def pin(
        self, connection: Connection, queries: Queries, *, plans: str = PLAN_EACH_TIME
    ) -> None:
        """Set what the statements rely on: for the session, or for the transaction that has begun
        where it may be another's."""
        values = {**self._bounds(), "plans": plans}
        if self.pooled:
            await connection.execute(queries["bound_transaction"], values)
            return
        row = await (await connection.execute(queries["prepare_session"], values)).fetchone()
        assert row is not None
        connection.server = row.server

    async def call(
        self,
        connection: Connection,
        work: Callable[[Connection], Awaitable[T]],
        *,
        one_snapshot: bool = False,
        again: bool = True,
    ) -> T:
        """Run `work` in the way that the connection needs; with `one_snapshot`, all its statements
        read the same moment.

        Args:
            again: whether `work` may be run again when what it announces finds the server's queue
                of notifications full.

        Raises ServerChanged, and closes the connection, when it leads to another server than the
        one adopted.
        """
        return await self.announcing(
            lambda: self._call(connection, work, one_snapshot=one_snapshot), again=again
        )

    async def announcing(self, work: Callable[[], Awaitable[T]], *, again: bool = True) -> T:
        """Run `work`. Where it fails at its commit because the queue of notifications is full, run
        it without announcing."""
        try:
            return await work()
        except errors.ProgramLimitExceeded:
            if not self.context.announces:
                raise
            self.context.queue_is_full()
            if not again:
                raise
        return await work()

    async def _call(
        self,
        connection: Connection,
        work: Callable[[Connection], Awaitable[T]],
        *,
        one_snapshot: bool,
    ) -> T:
        self._check()
        try:
            self.context.check(connection.server)
        except StoreError:
            await connection.close()
            raise
        if not self.pooled and not one_snapshot:
            return await work(connection)
        assert self.queries is not None, "the schema is opened first"
        async with connection.transaction():
            await connection.execute(
                self.queries["one_snapshot" if one_snapshot else "read_committed"]
            )
            if self.pooled:
                await self.pin(connection, self.queries)
            return await work(connection)

    def sever(self) -> None:
        """Open no more, and send nothing more on those that are open."""
        self.severed = True

    def _check(self) -> None:
        if self.severed:
            raise StoreUnavailable("the connections were cut for good")

    def _bounds(self) -> dict[str, str]:
        milliseconds = str(round(self.limit_sec * 1000))
        return {"statement_ms": milliseconds, "lock_ms": milliseconds, "idle_ms": milliseconds}


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
                with translated(), limit(connection, self._connector.patience_sec):
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
        # An old one to a server that was left since says nothing of where new ones lead.
        if self._renew or (there and self._connector.context.leads_elsewhere(there.server)):
            await self._discard()
            self._renew = False
        if self._connection is None or self._connection.closed:
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
