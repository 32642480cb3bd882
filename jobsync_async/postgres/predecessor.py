"""The rows of jobsync's workers, wherever the search path leads."""

from __future__ import annotations

from psycopg import errors, sql

from jobsync_async.errors import SchemaError
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries


class Predecessor:
    """Reads jobsync's tables, and writes nothing there.

    Args:
        prefix: the `appname` of its configuration.
    """

    def __init__(self, link: Pool, queries: Queries, prefix: str) -> None:
        self._link = link
        self._queries = queries
        self.prefix = prefix

    async def beats(self) -> dict[str, object] | None:
        """What each of its workers wrote as its last heartbeat, by name; None when there are no
        such tables.

        Raises StoreUnavailable, or SchemaError without the right to read them.
        """

        async def work(connection: Connection) -> dict[str, object] | None:
            await connection.execute(self._queries["restore_search_path"])
            # Its name alone does not tell: our table of workers has the same. This one only jobsync
            # has.
            cursor = await connection.execute(
                self._queries["find_table"], {"table": f"{self.prefix}leader_lock"}
            )
            found = await cursor.fetchone()
            if found is None:
                return None
            table = sql.Identifier(found.schema, f"{self.prefix}node")
            query = sql.SQL(
                "SELECT name, pg_catalog.date_part('epoch', last_heartbeat) AS beat FROM {}"
            ).format(table)
            try:
                rows = await (await connection.execute(query)).fetchall()
            except errors.InsufficientPrivilege as error:
                raise SchemaError(
                    f"predecessor={self.prefix!r} needs the right to see its workers: GRANT SELECT "
                    f"ON {table.as_string()} TO this worker's role"
                ) from error
            return {row.name: row.beat for row in rows}

        return await self._link.transaction(work)
