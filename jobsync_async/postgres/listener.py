"""The LISTEN connection: it hears of changes, and it is the one on which the worker reads them and
acknowledges.

Notifications are hints to look. A payload is a version number; anything else is ignored, and
nothing that is heard can raise or make more than one reading at a time. The idle wait watches the
socket through the event loop, so that it can be ended at any moment without cancelling a psycopg
call, and costs nothing while nothing happens.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg import sql

from jobsync_async.errors import StoreUnavailable
from jobsync_async.host.finishing import finish_first
from jobsync_async.postgres.cluster_version import MOST_NAMED
from jobsync_async.postgres.connection import PLAN_ONCE, Connection, Connector, shut_down
from jobsync_async.postgres.driver_errors import translated

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

_ANNOUNCEMENT = re.compile(rb"([0-9]{1,18})((?: [0-9]{1,18}){0,%d})" % MOST_NAMED, re.ASCII)


_END_OF_BATCH = b"batch"
_NOW = b"now"


class Hearing:
    """What was heard of changes since the last reading began, and how many ends of batches ever.

    Attributes:
        heard: the highest version that was heard of. general: the same of changes that concern
            nobody in particular. named: the same of those that concern this worker.
    """

    heard: int = -1
    general: int = -1
    named: int = -1
    batch_ends: int = 0

    def hear_of(self, version: int, *, general: bool = False, named: bool = False) -> None:
        """A change was announced."""
        self.heard = max(self.heard, version)
        if general:
            self.general = max(self.general, version)
        if named:
            self.named = max(self.named, version)

    def hear_of_end(self) -> None:
        """Somebody says that nothing is left of a batch."""
        self.batch_ends += 1

    def hurry(self) -> None:
        """What was heard of concerns everybody, and cannot wait."""
        self.named = max(self.named, self.general)

    def take_heard(self) -> int:
        """`heard`; all three begin anew. A reading that begins after this shows all of what they
        told."""
        heard = self.heard
        self.heard = self.general = self.named = -1
        return heard


class Listener(Hearing):
    """One connection that listens. After an error it is closed, and a new `Listener` must be
    opened.

    Attributes:
        age: the number by which announcements name the worker that listens; None names nobody.
        notifications: how many came, junk included.
    """

    def __init__(self, connection: Connection, connector: Connector) -> None:
        self.age: int | None = None
        self.notifications: int = 0
        self._channel = connector.context.channel.encode()
        self._connection = connection
        self._connector = connector
        connection.add_notify_handler(self._on_notify)

    @classmethod
    async def open(cls, connector: Connector) -> Self:
        """Connect and LISTEN on the cluster's channel. What changed before is not heard: read
        everything after this. Where the configuration says that nothing can be listened to, nothing
        is. Raises StoreUnavailable."""
        connection = await connector.open("listener", plans=PLAN_ONCE)
        listener = cls(connection, connector)
        listen = sql.SQL("LISTEN {}").format(sql.Identifier(connector.context.channel))
        if connector.pooled:
            return listener
        try:
            await listener.run(lambda connection: connection.execute(listen))
        except BaseException:  # cleaned up, and raised again
            await listener.close()
            raise
        return listener

    async def wait(self, wake: asyncio.Event, timeout_sec: float | None) -> None:
        """Return when a notification came, `wake` is set, or the time is over. Raises
        StoreUnavailable when the connection broke."""
        loop = asyncio.get_running_loop()
        try:
            descriptor = self._connection.fileno()
        except psycopg.Error as error:
            raise StoreUnavailable("the LISTEN connection is closed") from error
        if self._consume():
            return
        readable = asyncio.Event()

        def on_readable() -> None:
            readable.set()
            wake.set()

        timer = None if timeout_sec is None else loop.call_later(max(0.0, timeout_sec), wake.set)
        loop.add_reader(descriptor, on_readable)
        try:
            await wake.wait()
        finally:
            loop.remove_reader(descriptor)
            if timer is not None:
                timer.cancel()
        if readable.is_set():
            self._consume()

    async def heard_in_time(self, wanted: int, seconds: float) -> bool:
        """Wait until so many notifications have come in all, for so long at most; whether they
        have. Raises StoreUnavailable when the connection broke."""
        deadline = time.perf_counter() + seconds
        while self.notifications < wanted and (left := deadline - time.perf_counter()) > 0:
            await self.wait(asyncio.Event(), left)
        return self.notifications >= wanted

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` with the connection, not cancelled and bounded in time. Raises
        StoreUnavailable or SchemaError."""

        async def bounded() -> T:
            with translated(), self._connection.limited(self._connector.patience_sec):
                return await self._connector.announcing(lambda: work(self._connection))

        return await finish_first(bounded())

    def abandon(self) -> None:
        """End the connection at once, even while it waits for an answer that does not come."""
        shut_down(self._connection)

    async def close(self) -> None:
        with suppress(psycopg.Error):
            await self._connection.close()

    def _consume(self) -> int:
        """Take in what has arrived; how many notifications. One that came along with the answer to
        a query is in libpq's buffer already: the socket does not become readable for it."""
        before = self.notifications
        connection = self._connection.pgconn
        with translated():
            connection.consume_input()
            while notify := connection.notifies():
                self._hear(notify.relname, notify.extra)
        return self.notifications - before

    def _on_notify(self, notify: psycopg.Notify) -> None:
        self._hear(notify.channel.encode(), notify.payload.encode(errors="replace"))

    def _hear(self, channel: bytes, payload: bytes) -> None:
        # Anybody may send thousands a second: what is not a version of ours is counted, and costs
        # nothing more.
        self.notifications += 1
        if channel == self._channel and payload == _END_OF_BATCH:
            self.hear_of_end()
            return
        if channel == self._channel and payload == _NOW:
            self.hurry()
            return
        if channel != self._channel or not (said := _ANNOUNCEMENT.fullmatch(payload)):
            return
        version, names = int(said[1]), said[2]
        if not names or self.age is None:
            self.hear_of(version, general=True)
        else:
            self.hear_of(version, named=b" %d " % self.age in names + b" ")
