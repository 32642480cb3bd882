"""What the library uses of psycopg, over a simulated network: connections, transactions,
notifications, and a pool.

Everything above the driver is the real code. `seams.installed` puts this module in psycopg's place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from jobsync_async.postgres.limits import Limited
from jobsync_async.postgres.sql import Queries
from tests.copies import copied
from tests.simulation.server import Session
from tests.simulation.statements import Result

if TYPE_CHECKING:
    from tests.simulation.process import Process

QUERIES = Queries("public", "sync_")
_NAMES = {QUERIES[name]: name for name in QUERIES}
_descriptors = count(1000)


def name_of(query: Any) -> str:
    """Which statement it is."""
    if isinstance(query, bytes):
        known = _NAMES.get(query)
        if known is not None:
            return known
        if query.endswith(b" FOR KEY SHARE) AS fenced"):
            return "fence"
    elif hasattr(query, "as_string") and query.as_string(None).startswith("LISTEN"):
        return "listen"
    raise AssertionError(f"the simulation does not know this statement: {query!r:.200}")


@lru_cache(maxsize=1000)
def _purpose(conninfo: str) -> str:
    return str(conninfo_to_dict(conninfo).get("application_name")) if "=" in conninfo else conninfo


class Cursor:
    """The result of a statement."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: deque[Any] = deque()
        self.rowcount = -1

    async def execute(self, query: Any, params: Any = None) -> Cursor:
        name = name_of(query)
        if name == "fence":
            params = dict(zip(("token_id", "incarnation", "epoch"), params, strict=True))
        result = await self._connection.send(name, params)
        self._rows = deque(result.rows)
        self.rowcount = max(result.count, len(result.rows))
        return self

    async def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    async def fetchall(self) -> list[Any]:
        rows = list(self._rows)
        self._rows.clear()
        return rows


class Connection(Limited):
    """One connection of a process. What travels between it and its session is subject to the
    network's weather.

    Attributes:
        server, outages, used: what the library has found out: to which server it leads, when it
            was last sound, and whether it was used.
        pooled: it leads to a pooler, which passes transactions on to whichever server there is.
        idle_limit: whether the server ends a transaction that is left alone for too long.
    """

    def __init__(
        self, process: Process, purpose: str, *, autocommit: bool = True, pooled: bool = False
    ) -> None:
        self.process = process
        self.purpose = purpose
        self.autocommit = autocommit
        self.server: str | None = None
        self.outages = 0
        self.used = False
        self.pooled = pooled
        self.idle_limit = purpose != "user"
        self.closed = False
        self.session: Session = process.network.server.connect(self)
        self._fd = next(_descriptors)
        self._answer: asyncio.Future[Result] | None = None
        self._in_transaction = False
        self._opened = False
        self._broken: str | None = None
        self._inbox: deque[str] = deque()
        self._handlers: list[Callable[[Any], None]] = []
        self.pgconn = SimpleNamespace(
            consume_input=self._consume, notifies=self._notifies, finish=self.hang_up
        )
        process.connections[self] = None

    @classmethod
    async def connect(cls, conninfo: str, **options: Any) -> Connection:
        """Open a connection from the process that runs now."""
        loop: Any = asyncio.get_running_loop()
        process: Process = loop.process
        answer = loop.create_future()
        process.network.connect(process, lambda error: _settle(answer, error))
        await answer
        if process.loop.dead or not process.network.server.up:
            raise psycopg.OperationalError("connection refused")
        purpose = _purpose(conninfo)
        pooled = "prepare_threshold" in options
        return cls(process, purpose, autocommit=options.get("autocommit", False), pooled=pooled)

    def ended(self) -> bool:
        """Whether it is known here that it broke."""
        return self.closed or self._broken is not None

    # -- statements --------------------------------------------------------------------------------

    def cursor(self, **_: Any) -> Cursor:
        return Cursor(self)

    async def execute(self, query: Any, params: Any = None) -> Cursor:
        return await self.cursor().execute(query, params)

    async def together(self, queries: Sequence[bytes], values: Any) -> list[Sequence[Any]]:
        """Statements in one message; the rows of each."""
        result = await self.send("+".join(map(name_of, queries)), values)
        return [one.rows for one in result.rows]

    async def copy_in(self, query: bytes, pieces: Iterable[bytes]) -> int:
        """Rows in the format that PostgreSQL copies; how many."""
        return (await self.send(name_of(query), {"rows": copied(b"".join(pieces))})).count

    async def send(self, name: str, values: Any) -> Result:
        """Send a statement and wait for its answer. Raises psycopg's errors."""
        self._require_open()
        assert self._answer is None, f"two statements at a time on {self}"
        answer = self._answer = asyncio.get_running_loop().create_future()
        explicit = self._in_transaction or not self.autocommit
        self._opened = self._opened or explicit
        self.process.network.send(self, name, values, explicit)
        return await self._await(answer)

    async def _await(self, answer: asyncio.Future[Result]) -> Result:
        try:
            return await answer
        except asyncio.CancelledError:
            # psycopg cancels the query; here the connection is given up, which is no better for the
            # caller
            self.hang_up()
            raise
        finally:
            self._answer = None

    def answered(self, result: Result | Exception) -> None:
        """The answer has arrived. Notifications that came along are in libpq's buffer now, or were
        told to the handlers."""
        if self._answer is None or self._answer.done():
            return
        if isinstance(result, Exception):
            self._answer.set_exception(result)
        else:
            self._answer.set_result(result)
        if self._inbox and self.process.network.random.random() < 0.5:
            while self._inbox:
                payload = self._inbox.popleft()
                for handler in self._handlers:
                    handler(SimpleNamespace(channel=self.listens_to, payload=payload))

    listens_to = "sync_changes"

    def _require_open(self) -> None:
        if self._broken is None and self.process.loop.dead:
            self._broken = "the process is dead"
        if self.closed or self._broken is not None:
            self.hang_up()
            raise psycopg.OperationalError(self._broken or "the connection is closed")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """Begins with the first statement in it; within another one it is a savepoint."""
        if self._in_transaction:
            async with self._savepoint() as marker:
                yield marker
            return
        self._in_transaction = True
        self._opened = False
        marker = SimpleNamespace()
        try:
            yield marker
        except BaseException as error:
            self._in_transaction = False
            rolled_back = not self.closed and self._broken is None and self._answer is None
            if rolled_back and self._opened:
                self._opened = False
                rolled_back = await self._roll_back()
            if (
                rolled_back
                and isinstance(error, psycopg.Rollback)
                and error.transaction in (None, marker)
            ):
                return
            raise
        self._in_transaction = False
        if self._opened:
            self._opened = False
            await self._command("commit")

    @asynccontextmanager
    async def _savepoint(self) -> AsyncIterator[Any]:
        self._opened = True
        await self._command("savepoint", explicit=True)
        marker = SimpleNamespace()
        try:
            yield marker
        except BaseException as error:
            rolled_back = not self.closed and self._broken is None and self._answer is None
            if rolled_back:
                rolled_back = await self._roll_back("roll_back_to", explicit=True)
            if (
                rolled_back
                and isinstance(error, psycopg.Rollback)
                and error.transaction in (None, marker)
            ):
                return
            raise
        await self._command("release", explicit=True)

    async def _roll_back(self, how: str = "rollback", *, explicit: bool = False) -> bool:
        # Psycopg logs it, and raises what the block raised, a Rollback too.
        with suppress(psycopg.OperationalError):
            await self._command(how, explicit=explicit)
            return True
        return False

    async def _command(self, how: str, *, explicit: bool = False) -> None:
        self._require_open()
        answer = self._answer = asyncio.get_running_loop().create_future()
        self.process.network.send(self, how, None, explicit)
        await self._await(answer)

    @property
    def info(self) -> Any:
        idle, inside = pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS
        return SimpleNamespace(
            transaction_status=inside if self._in_transaction else idle,
            dbname="simulated",
            encoding="utf-8",
        )

    # -- notifications -----------------------------------------------------------------------------

    def add_notify_handler(self, handler: Callable[[Any], None]) -> None:
        self._handlers.append(handler)

    def notified(self, payload: str) -> None:
        """A notification has arrived at the socket."""
        if not self.closed and self._broken is None:
            self._inbox.append(payload)
            if self._answer is None:
                self.process.loop.readable(self._fd)

    def _consume(self) -> None:
        self._require_open()

    def _notifies(self) -> Any:
        if not self._inbox:
            return None
        return SimpleNamespace(
            relname=self.listens_to.encode(), extra=self._inbox.popleft().encode()
        )

    def fileno(self) -> int:
        if self.closed:
            raise psycopg.OperationalError("the connection is closed")
        return self._fd

    # -- the end -----------------------------------------------------------------------------------

    def broke(self, why: str) -> None:
        """The stream has ended: whoever waits for an answer sees it, and so does whoever uses the
        connection next."""
        if self.closed or self._broken is not None:
            return
        self._broken = why
        if self._answer is not None:
            _settle(self._answer, psycopg.OperationalError(why))
        elif self.process.loop.readers:
            self.process.loop.readable(self._fd)

    def server_closed(self) -> None:
        """The server ended the session."""
        self.process.network.hang_up(self, "server closed the connection unexpectedly")

    def give_up(self) -> None:
        shut_down(self)

    def hang_up(self) -> None:
        """Close, at once; the server learns of it."""
        if not self.closed:
            self.closed = True
            self.process.connections.pop(self, None)
            self.process.network.client_closed(self)

    async def close(self) -> None:
        self.hang_up()


def shut_down(connection: Connection) -> None:
    """What the library does to a connection from outside: its socket is shut down."""
    if not connection.closed:
        connection.broke("the socket was shut down")
        connection.process.network.client_closed(connection)


def _settle(future: asyncio.Future[Any], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


class Pool:
    """What `jobsync_async.postgres.pool` uses of psycopg_pool."""

    def __init__(
        self,
        conninfo: str,
        *,
        kwargs: dict[str, Any],
        configure: Callable[[Any], Awaitable[None]],
        max_size: int,
        **_: Any,
    ) -> None:
        self._conninfo = conninfo
        self._options = kwargs
        self._configure = configure
        self._free: list[Connection] = []
        self._turn = asyncio.Semaphore(max_size)
        self._closed = False

    async def open(self) -> None:
        """Connects to nothing yet."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        if self._closed:
            raise psycopg.OperationalError("the pool is closed")
        async with self._turn:
            connection = self._take()
            if connection is None:
                connection = await Connection.connect(self._conninfo, **self._options)
                try:
                    await self._configure(connection)
                except BaseException:
                    await connection.close()
                    raise
            try:
                yield connection
            finally:
                if self._closed or connection.closed or connection._broken is not None:
                    await connection.close()
                else:
                    self._free.append(connection)

    def _take(self) -> Connection | None:
        while self._free:
            connection = self._free.pop()
            if not connection.closed and connection._broken is None:
                return connection
            connection.hang_up()
        return None

    async def close(self) -> None:
        self._closed = True
        while self._free:
            self._free.pop().hang_up()
