"""Which server the statements may act on, and beginning anew on another one.

Every statement that acts requires three things to be one: the identity of its server, the one in
the cluster row, and the one that the worker has adopted (``{sound}`` in ``queries.sql``). A direct
connection keeps its server, so the identity is read once per connection, when it is opened. Through
a pooler each transaction may meet another: there, each statement reads it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from jobsync_async.core.server_history import AdoptedHistory, ServerReading
from jobsync_async.errors import ConfigError
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.link import Link
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext


class Failover:
    """The statements about the server's identity.

    Args:
        looks: the link for looking, which is the one that carries heartbeats: they are to act on
            the server that was seen.
        changes: the link for beginning anew.
        settings: the cluster row's constant columns, for a database in which it is missing.
    """

    def __init__(
        self,
        looks: Link,
        changes: Link,
        queries: Queries,
        context: StatementContext,
        settings: dict[str, Any],
    ) -> None:
        self._looks = looks
        self._changes = changes
        self._queries = queries
        self._context = context
        self._settings = settings

    def on_change(self, tell: Callable[[], None]) -> None:
        """Call `tell` when a connection leads to another server than the one adopted."""

        def changed() -> None:
            self._looks.renew()
            tell()

        self._context.on_change = changed

    def adopt(self, history: AdoptedHistory | None) -> None:
        """From now on only statements on this history act; None for whichever the row and the
        server agree on. No I/O."""
        self._context.history = history

    async def read_server(self) -> ServerReading:
        """What the cluster row records, and which server this is. Raises StoreUnavailable, and
        ConfigError where the row is that of a cluster with other settings, which a restored or
        replaced database may hold."""

        async def work(connection: Connection) -> ServerReading:
            cursor = await connection.execute(
                self._queries["read_server"], self._context.values(connection.server)
            )
            row = await cursor.fetchone()
            assert row is not None, "an outer join has a row"
            found = row._asdict()
            for name in ("total_tokens", "hash_function"):
                ours, theirs = self._settings[name], found.pop(name)
                if theirs not in (None, ours):
                    raise ConfigError(
                        f"{name} is {ours!r} here and {theirs!r} in the cluster that is on this "
                        "server now; all workers must agree: change this setting, or use another "
                        "appname for another cluster"
                    )
            return ServerReading(**found)

        return await self._looks.run(work)

    def unreadable(self, seen: ServerReading) -> bool:
        """Whether the row was begun by readings that the server refuses by now. Then others may
        act on it that have asked before. No I/O."""
        return seen.recorded is not None and seen.recorded == self._context.unreadable

    async def condemn(self, seen: ServerReading, known: AdoptedHistory | None) -> bool:
        """Let nobody act on a history that others may take for sound, but that is older than what
        this worker has seen, or unreadable.

        False when it has changed since. Raises StoreUnavailable; it may have been done all the
        same.
        """
        values = {
            "recorded": seen.recorded,
            "seen_generation": seen.generation,
            "known_generation": 0 if known is None else known.generation,
            "unreadable": self.unreadable(seen),
        }

        async def work(connection: Connection) -> bool:
            here = self._context.values(connection.server)
            return (
                await connection.execute(self._queries["condemn_history"], {**values, **here})
            ).rowcount == 1

        return await self._change(work)

    async def begin(
        self, seen: ServerReading, known: AdoptedHistory | None, version: int, waited_sec: float
    ) -> bool:
        """Begin the next generation on the server that was seen; False when the row has changed
        since. Nobody is a member and no token is owned afterwards.

        Args:
            known: the history adopted before, with the highest version seen under it: neither is
                ever gone back to.
            waited_sec: how long it was waited, which is the bound on timeouts from now on.

        Raises StoreUnavailable; it may have been begun all the same, which the next look tells.
        """
        values = {
            "recorded": seen.recorded,
            "actual": seen.actual,
            "seen_generation": seen.generation,
            "known_generation": 0 if known is None else known.generation,
            "known_version": version,
            "seen_wait": seen.longest_wait,
            "waited": waited_sec,
            "reason": seen.why_anew(readable=self._context.unreadable is None),
        }

        async def work(connection: Connection) -> bool:
            row = None
            async with connection.transaction() as transaction:
                if seen.actual is None:
                    await connection.execute(
                        self._queries["restore_cluster"], {**self._settings, "waited": waited_sec}
                    )
                here = self._context.values(connection.server)
                cursor = await connection.execute(
                    self._queries["begin_generation"], {**values, **here}
                )
                row = await cursor.fetchone()
                if row is None:
                    raise psycopg.Rollback(transaction)
                await connection.execute(self._queries["free_all_tokens"], row._asdict())
                await connection.execute(self._queries["delete_all_nodes"])
            return row is not None

        return await self._change(work)

    async def _change(self, work: Callable[[Connection], Awaitable[bool]]) -> bool:
        """Whether it was changed. Where it was not, or nobody knows, the connection may lead to
        another server than the one that was seen: then the next one is fresh."""
        changed = False
        try:
            changed = await self._changes.run(work)
        finally:
            if not changed:
                self._changes.renew()
        return changed
