"""What certify tries on the server between two sessions of its own, beside the workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
import psycopg
from psycopg import errors, sql

from jobsync_async.host.clock import lease_clock
from jobsync_async.operations.certify.figures import (
    STRENGTHS,
    ClockReading,
    Conflicts,
    Keys,
    Latency,
    Pushes,
    Settings,
    TimeOut,
    Waits,
)
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.driver_errors import first_line
from jobsync_async.postgres.listener import Listener
from jobsync_async.postgres.sql import Queries

_WAITS_SEC = 0.05
_TIMEOUT_SEC = 0.2
_TIMEOUT_WITHIN_SEC = 4.0
_HEARD_WITHIN_SEC = 2.0
_NUMBERS = 3


class ProbeSession:
    """One session that sends statements of ``certify.sql``."""

    def __init__(self, connection: Connection, queries: Queries, connector: Connector) -> None:
        self.connection = connection
        self.queries = queries
        self.context = connector.context
        self._patience_sec = connector.patience_sec

    async def ask(
        self, statement: str, parts: dict[str, str] | None = None, /, **values: Any
    ) -> list[Any]:
        """The rows of an answer. Raises what the driver raises."""
        texts = {part: sql.SQL(text) for part, text in (parts or {}).items()}
        with self.connection.limited(self._patience_sec):
            cursor = await self.connection.execute(self.queries.probe(statement, **texts), values)
            return await cursor.fetchall() if cursor.description else []

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """An answer that stays away for so long ends the session."""
        before, self._patience_sec = self._patience_sec, seconds
        try:
            yield
        finally:
            self._patience_sec = before

    async def lock(self, strength: str, how: str = "", name: str = "a") -> list[Any]:
        """Lock a row in a strength."""
        return await self.ask("lock_row", {"strength": strength, "how": how}, name=name)

    @asynccontextmanager
    async def undone(self) -> AsyncIterator[None]:
        """A transaction that is rolled back, whatever has happened in it."""
        async with self.connection.transaction(force_rollback=True):
            yield


class Probes:
    """The trials. All raise what the driver raises.

    Args:
        connector: makes connections that may take long; its queries are those of the run's tables.
    """

    def __init__(self, connector: Connector, queries: Queries) -> None:
        self._connector = connector
        self._queries = queries

    async def open(self) -> ProbeSession:
        connection = await self._connector.open("certify")
        return ProbeSession(connection, self._queries, self._connector)

    @asynccontextmanager
    async def sessions(self) -> AsyncIterator[tuple[ProbeSession, ProbeSession]]:
        """Two of them."""
        async with AsyncExitStack() as stack:
            two = []
            for _ in range(2):
                two.append(await self.open())
                stack.push_async_callback(two[-1].connection.close)
            yield two[0], two[1]

    @asynccontextmanager
    async def rows(self, session: ProbeSession) -> AsyncIterator[None]:
        """Three rows to lock, ``a``, ``b`` and ``c``."""
        await session.ask("take_rows")
        for name in ("a", "b", "c"):
            await session.ask("put_row", name=name, reason="1")
        try:
            yield
        finally:
            await session.ask("take_rows")

    # -- locks -------------------------------------------------------------------------------------

    async def row_locks(self) -> Conflicts:
        """Each strength beside each other."""
        observed = dict[tuple[str, str], bool | str]()
        async with self.sessions() as (one, other), self.rows(one):
            for held in STRENGTHS:
                async with one.undone():
                    refusal = await _refusal(one, held)
                    for wanted in STRENGTHS:
                        observed[held, wanted] = refusal or await _conflicts(other, wanted)
        return observed

    async def waits(self) -> Waits:
        """An expiry beside a heartbeat; what is seen after a wait; rows that are passed over; a
        snapshot."""
        async with self.sessions() as (one, other), self.rows(one):
            async with _committed(one):
                await one.ask("change_row", name="c", reason="2")
                expiry = asyncio.ensure_future(_deleted(other))
                waited = await _waits(expiry, one)
            deleted = await expiry
            async with _committed(one):
                await one.ask("change_row", name="a", reason="3")
                await one.ask("change_row", name="b", reason="3")
                reading = asyncio.ensure_future(_read_after_lock(other))
                waited &= await _waits(reading, one)
            reread, seen = await reading
            async with one.undone():
                await one.lock("KEY SHARE")
                free = {row.name for row in await other.ask("skip_locked")}
                skipped = "b" in free and "a" not in free
            return Waits(waited, deleted, reread, seen, skipped, await _one_moment(one, other))

    async def advisory_locks(self, key: str) -> Keys:
        """Two that want one number, alone or together."""
        async with self.sessions() as (one, other):
            async with one.undone():
                await one.ask("lock_key", key=key)
                exclusive = not await _got(other, "try_key", key)
                exclusive &= not await _got(other, "share_key", key)
            ended = await _got(other, "try_key", key)
            async with one.undone():
                shared = await _got(one, "share_key", key) and await _got(other, "share_key", key)
                shared &= not await _got(other, "try_key", key)
            if self._connector.pooled:
                return Keys(exclusive, shared, ended, None)
            await one.ask("hold_key", key=key)
            session = not await _got(other, "try_key", key)
            await one.connection.close()
            with anyio.move_on_after(_HEARD_WITHIN_SEC):
                # a server process takes a moment to notice that its client went
                while not await _got(other, "try_key", key):  # noqa: ASYNC110
                    await anyio.sleep(_WAITS_SEC)
                return Keys(exclusive, shared, ended, session)
            return Keys(exclusive, shared, ended, False)

    async def sequence(self) -> list[int]:
        """Numbers that two sessions get in turn; the rows are rolled back."""
        numbers = []
        async with self.sessions() as two:
            for session in two * _NUMBERS:
                async with session.undone():
                    numbers += [row.id for row in await session.ask("number")]
        return numbers

    # -- time-outs ---------------------------------------------------------------------------------

    async def bounds(self) -> list[TimeOut]:
        """Each time-out that workers rely on, with sessions of its own."""
        async with self.sessions() as (keeper, _), self.rows(keeper):
            async with self.sessions() as (one, _):
                found = [await _acts(one, "statement_timeout", _sleep)]
            async with self.sessions() as (one, other), other.undone():
                await other.lock("UPDATE")
                found.append(await _acts(one, "lock_timeout", _take))
            async with self.sessions() as (one, other), other.undone():
                found.append(await _idle(one, other))
                await other.connection.close()  # with what is left of it
        return found

    # -- time --------------------------------------------------------------------------------------

    async def clock(self, session: ProbeSession) -> ClockReading:
        """One look at the clocks."""
        began, wall = lease_clock(), time.time()
        cursor = session.connection.cursor(binary=True)  # as text, numbers may be rounded
        row = await (await cursor.execute(self._queries["doctor_clock"])).fetchone()
        trip = lease_clock() - began
        assert row is not None, "a SELECT without FROM has a row"
        return ClockReading(began + trip / 2, wall + trip / 2, row.seconds, trip)

    async def trips(self, session: ProbeSession, count: int) -> Latency:
        """The smallest statement that there is."""
        nothing = self._queries["say_something"]
        return await _timed(count, lambda: session.connection.execute(nothing))

    async def commits(self, session: ProbeSession, count: int) -> Latency:
        """The smallest transaction that writes."""
        async with self.rows(session):
            return await _timed(
                count, lambda: session.ask("change_row", name="a", reason=str(time.time()))
            )

    async def pushes(self, channel: str, count: int) -> Pushes:
        """Notifications on a channel that nobody else hears."""
        connector = self._connector
        before, connector.context.channel = connector.context.channel, channel
        try:
            listener = await Listener.open(connector)
        finally:
            connector.context.channel = before
        try:
            async with self.sessions() as (sender, _):
                samples = list[float]()
                for _ in range(count):
                    heard, began = listener.notifications, time.perf_counter()
                    await sender.ask("notify", channel=channel)
                    if not await listener.heard_in_time(heard + 1, _HEARD_WITHIN_SEC):
                        if not samples:
                            return Pushes(None, 1)
                        continue
                    samples.append(time.perf_counter() - began)
                heard = listener.notifications
                async with sender.undone():
                    await sender.ask("notify", channel=channel)
                await sender.ask("notify", channel=channel)
                await listener.heard_in_time(heard + 1, _HEARD_WITHIN_SEC)
                undone = max(0, listener.notifications - heard - 1)
            return Pushes(Latency.of(samples), count - len(samples), undone)
        finally:
            await listener.close()

    # -- what the server says ----------------------------------------------------------------------

    async def settings(self, session: ProbeSession) -> tuple[Settings, Any]:
        """What decides about durability; and the row that it stands in, which has more."""
        (row,) = await session.ask("settings")
        replicas = synchronous = None
        with suppress(psycopg.Error):  # some servers hide the view
            (seen,) = await session.ask("replicas")
            replicas = seen.replicas
            synchronous = None if seen.unknown else seen.synchronous
        settings = Settings(
            row.version,
            row.fsync,
            row.full_page_writes,
            row.synchronous_commit,
            row.synchronous_standby_names,
            replicas,
            synchronous,
        )
        return settings, row


async def _refusal(session: ProbeSession, strength: str) -> str:
    """Why a row cannot be locked in a strength; empty when it is now."""
    try:
        await session.lock(strength)
    except psycopg.Error as error:
        return first_line(error)
    return ""


async def _conflicts(session: ProbeSession, wanted: str) -> bool | str:
    try:
        await session.lock(wanted, "NOWAIT")
    except errors.LockNotAvailable:
        return True
    except psycopg.Error as error:
        return first_line(error)
    return False


@asynccontextmanager
async def _committed(session: ProbeSession) -> AsyncIterator[None]:
    async with session.connection.transaction():
        yield


async def _waits(task: asyncio.Future[Any], session: ProbeSession) -> bool:
    """Whether it is still without an answer after the time that an answer takes."""
    began = time.perf_counter()
    await session.connection.execute(session.queries["say_something"])
    trips = 3 * (time.perf_counter() - began)
    done, _ = await asyncio.wait([task], timeout=_WAITS_SEC + trips)
    return not done


async def _deleted(session: ProbeSession) -> int:
    with session.connection.limited(_TIMEOUT_WITHIN_SEC):
        query = session.queries.probe("delete_unchanged")
        cursor = await session.connection.execute(query, {"name": "c", "reason": "1"})
    return cursor.rowcount


async def _read_after_lock(session: ProbeSession) -> tuple[bool, bool]:
    """Whether a row that was waited for comes as it is after that, and whether the next statement
    sees what was committed with it."""
    async with session.undone():
        (locked,) = await session.lock("UPDATE")
        (other,) = await session.ask("read_row", name="b")
    return locked.reason == "3", other.reason == "3"


async def _one_moment(one: ProbeSession, other: ProbeSession) -> bool:
    async with one.undone():
        await one.connection.execute(one.queries["one_snapshot"])
        before = await one.ask("read_row", name="a")
        await other.ask("change_row", name="a", reason="4")
        return before == await one.ask("read_row", name="a")


async def _got(session: ProbeSession, name: str, key: str) -> bool:
    (row,) = await session.ask(name, key=key)
    return bool(row.got)


async def _set(session: ProbeSession, name: str) -> None:
    await session.ask("set_for_transaction", name=name, value=str(round(1000 * _TIMEOUT_SEC)))


async def _sleep(session: ProbeSession) -> None:
    await session.ask("sleep", seconds=_TIMEOUT_WITHIN_SEC)


async def _take(session: ProbeSession) -> None:
    await session.lock("UPDATE")


async def _acts(
    session: ProbeSession, name: str, work: Callable[[ProbeSession], Awaitable[None]]
) -> TimeOut:
    """How soon the server ends something."""
    took = None
    async with session.undone():
        await _set(session, name)
        began = time.perf_counter()
        try:
            with session.within(_TIMEOUT_WITHIN_SEC):
                await work(session)
        except (errors.QueryCanceled, errors.LockNotAvailable):
            took = time.perf_counter() - began
        except psycopg.OperationalError:
            pass  # it took so long that the socket was shut down
    return TimeOut(name, _TIMEOUT_SEC, took)


async def _idle(one: ProbeSession, other: ProbeSession) -> TimeOut:
    """A transaction that is left alone with a lock."""
    name, took = "idle_in_transaction_session_timeout", None
    await _set(other, name)
    await other.lock("UPDATE")
    began = time.perf_counter()
    with suppress(psycopg.OperationalError), one.within(_TIMEOUT_WITHIN_SEC):
        async with one.undone():
            await one.lock("UPDATE")
            took = time.perf_counter() - began
    return TimeOut(name, _TIMEOUT_SEC, took)


async def _timed(count: int, work: Callable[[], Any]) -> Latency:
    samples = list[float]()
    for _ in range(count):
        began = time.perf_counter()
        await work()
        samples.append(time.perf_counter() - began)
    return Latency.of(samples)
