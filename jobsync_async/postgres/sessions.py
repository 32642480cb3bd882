"""Failover by session: who still holds the lock that lives as long as its session, and expiring
those who do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobsync_async.core.lease import Beat
from jobsync_async.core.session_loss import Session, SessionReading, WatcherSession
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.deaths import delete_nodes
from jobsync_async.postgres.link import Link
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext


class Sessions:
    """The statements about sessions.

    Args:
        heartbeats: the link whose session holds this worker's own lock.
        link: that of the watcher: what it sees counts only while its session is the same.
        key: what the locks' names begin with.
    """

    def __init__(
        self, heartbeats: Link, link: Link, queries: Queries, context: StatementContext, key: str
    ) -> None:
        self._heartbeats = heartbeats
        self._link = link
        self._queries = queries
        self._context = context
        self._key = key

    def tell_loss_to(self, listener: Callable[[], object]) -> None:
        """Call `listener` as soon as the session of the heartbeats ends, so that the lock is taken
        anew within the grace."""
        self._heartbeats.tell_stir_to(listener)

    async def read(self) -> SessionReading:
        """All workers, and who holds its lock. Raises StoreUnavailable."""

        async def work(connection: Connection) -> SessionReading:
            rows = await (
                await connection.execute(self._queries["read_sessions"], {"key": self._key})
            ).fetchall()
            watcher = WatcherSession(rows[0].server_started, rows[0].pid, rows[0].backend_start)
            there = [row for row in rows if row.name is not None]
            return SessionReading(
                watcher,
                [
                    Session(Beat(row.name, row.incarnation, row.beat), row.session_tag, row.held)
                    for row in there
                ],
            )

        return await self._link.run(work)

    async def expire(self, watcher: WatcherSession, gone: Sequence[Session]) -> list[str]:
        """Delete the rows of workers whose locks are gone, if all is still as it was seen, and let
        the oldest lead if the leader was among them; the names of those that were deleted. Raises
        StoreUnavailable."""
        values = {
            **watcher._asdict(),
            "key": self._key,
            "names": [session.beat.name for session in gone],
            "incarnations": [session.beat.incarnation for session in gone],
            "beats": [session.beat.beat for session in gone],
        }

        return await delete_nodes(
            self._link, self._queries, self._context, "expire_sessionless", values
        )
