"""Connections that answer in time or are given up, and statements that are not cut off half-way.

Three rules hold for every statement of the coordination code:

* It is not cancelled. A cancelled psycopg call may commit all the same, and then nobody knows. So a
  statement runs in a task of its own, and a caller that is cancelled waits for its end first
  (`finish_first`).
* It ends in time. The server bounds it by ``statement_timeout`` and ``lock_timeout``; a dead
  network ends it by TCP's own timeouts; and because a stopped server process does neither, the
  socket is shut down when the answer stays away (`Connection.limited`).
* When a connection failed, whatever was under way may or may not have happened. The connection is
  thrown away, the caller gets `StoreUnavailable`, and reads again before it decides anything.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import AsyncClientCursor, AsyncConnection, errors
from psycopg.pq import ConnStatus
from psycopg.rows import namedtuple_row

from jobsync_async.errors import ConfigError, StoreError, StoreUnavailable
from jobsync_async.postgres import forks
from jobsync_async.postgres.driver_errors import first_line, translated, without_frames
from jobsync_async.postgres.driver_logs import take_for_details
from jobsync_async.postgres.limits import Limited
from jobsync_async.postgres.names import Hung, resolved
from jobsync_async.postgres.recognition import named_refusals
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

# What PostgreSQL calls it: most statements are worth a plan that fits their values; the few that
# follow a notification within a millisecond are written to be planned once.
PLAN_EACH_TIME, PLAN_ONCE = "force_custom_plan", "force_generic_plan"


class Connection(AsyncConnection[Any], Limited):
    """A connection that knows to which server it leads; None where that may change under it, behind
    a pooler.

    `outages` is how many there had been when it was last seen to be sound; `used` whether somebody
    had it before; `hung` is where it is told when no answer comes.
    """

    server: str | None = None
    hung: Hung | None = None
    outages = 0
    used = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        forks.connections.add(self)

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connect to where the names in it lead now. Raises psycopg's errors.

        With `hung`, the places that hung are tried last, and this one is noted there if it hangs.

        Where it is cancelled, the half-made connection is closed at once. psycopg's frames hold
        it, and with them in the traceback the server keeps a session until Python collects them.
        """
        hung: Hung | None = options.pop("hung", None)
        try:
            made = await super().connect(await resolved(conninfo, hung), **options)
        except asyncio.CancelledError as cancelled:
            raise cancelled.with_traceback(None) from None
        made.hung = hung
        return made

    def give_up(self) -> None:
        """See `Limited`. Where it led is tried last from then on."""
        if self.hung is not None and not self.closed:
            self.hung.note(self.pgconn)
        shut_down(self)

    def ended(self) -> bool:
        """Whether the other side has ended it, as far as that has arrived. Does not wait. What has
        closed an idle connection (a time-out on the way, a server that was suspended) is found so
        before somebody uses it in vain."""
        readable = select.poll()
        try:
            readable.register(self.fileno(), select.POLLIN)
            while self.pgconn.status == ConnStatus.OK and readable.poll(0):
                self.pgconn.consume_input()
        except psycopg.Error:
            return True
        return self.pgconn.status != ConnStatus.OK

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
        return {
            "autocommit": True,
            "row_factory": namedtuple_row,
            "hung": self.context.hung,
            **never_prepare,
        }

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
        with translated(), connection.limited(self.patience_sec):
            async with named_refusals(connection, self.queries):
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
        async with named_refusals(connection, self.queries), connection.transaction():
            await connection.execute(
                self.queries["one_snapshot" if one_snapshot else "read_committed"]
            )
            if self.pooled:
                await self.pin(connection, self.queries)
            return await work(connection)

    def left(self, connection: Connection) -> bool:
        """Whether a connection that was used before serves no more: it has ended, or leads to a
        server that this worker has left since, which says nothing of where a new one leads."""
        return self.context.leads_elsewhere(connection.server) or connection.ended()

    def sever(self) -> None:
        """Open no more, and send nothing more on those that are open."""
        self.severed = True

    def _check(self) -> None:
        if self.severed:
            raise StoreUnavailable("the connections were cut for good")

    def _bounds(self) -> dict[str, str]:
        milliseconds = str(round(self.limit_sec * 1000))
        return {"statement_ms": milliseconds, "lock_ms": milliseconds, "idle_ms": milliseconds}
