"""Taking workers out of the cluster whose processes are known to be dead: nothing has to be waited
for, and nobody to lead."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg

from jobsync_async.core.rows import Neighbour
from jobsync_async.postgres.cluster_version import take_version
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.link import Link
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext

# A server process that is told to end does so in milliseconds. After these waits (a quarter of a
# second together), one that is still there is stuck, and not waited for.
_LOOKS_SEC = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)


class Deaths:
    """The statements about the dead."""

    def __init__(self, link: Link, queries: Queries, context: StatementContext) -> None:
        self._link = link
        self._queries = queries
        self._context = context

    async def end_sessions(self, tags: Sequence[str | None]) -> bool:
        """End what the workers of these tags left connected: a statement under way holds locks
        until it is done, and the server looks only then whether anybody waits for it. Returns when
        none is left, or False when one does not end.

        Raises StoreUnavailable.
        """
        tags = [tag for tag in tags if tag is not None]

        async def work(connection: Connection) -> bool:
            for pause_sec in _LOOKS_SEC:
                if not (
                    await connection.execute(self._queries["end_sessions"], {"tags": tags})
                ).rowcount:
                    return True
                await asyncio.sleep(pause_sec)
            return False

        return not tags or await self._link.run(work)

    async def report(self, dead: Sequence[Neighbour]) -> list[str]:
        """Delete the rows of workers whose processes were seen dead, and let the oldest lead if the
        leader was among them; the names of those that were still there. Their tokens have no owner
        after that, and the leader hears of it.

        Raises StoreUnavailable; reporting again is safe.
        """
        await self.end_sessions([worker.session_tag for worker in dead])
        processes = [(worker, worker.process) for worker in dead if worker.process is not None]
        values = {
            "names": [worker.name for worker, _ in processes],
            "incarnations": [worker.incarnation for worker, _ in processes],
            "boot_ids": [worker.boot_id for worker, _ in processes],
            "namespaces": [worker.namespace for worker, _ in processes],
            "pids": [process.pid for _, process in processes],
            "started": [process.started for _, process in processes],
        }

        return await delete_nodes(self._link, self._queries, self._context, "delete_dead", values)


async def delete_nodes(
    link: Link, queries: Queries, context: StatementContext, statement: str, values: dict[str, Any]
) -> list[str]:
    """Run a statement that deletes workers, under the next version, and let the oldest lead if the
    leader was among them; the names of those deleted. If there are none, nothing is announced
    either. Raises StoreUnavailable."""

    async def work(connection: Connection) -> list[str]:
        deleted: list[str] = []
        async with connection.transaction() as transaction:
            await take_version(connection, queries, context)
            here = context.values(connection.server)
            cursor = await connection.execute(queries[statement], {**values, **here, "taken": True})
            deleted = [name for (name,) in await cursor.fetchall()]
            if not deleted:
                raise psycopg.Rollback(transaction)
            await connection.execute(queries["lead_if_nobody_does"], here)
        return deleted

    return await link.run(work)
