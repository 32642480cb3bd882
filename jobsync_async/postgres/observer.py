"""Looking at the whole cluster over a LISTEN connection. Nothing is written: SELECT on the tables
is enough."""

from __future__ import annotations

from jobsync_async.core.observer_state import ClusterReading, SeenWorker
from jobsync_async.errors import StoreUnavailable
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.listener import Listener
from jobsync_async.postgres.sql import Queries


class ObserverFeed(Listener):
    """The LISTEN connection of an observer, and its one statement."""

    def __init__(self, connection: Connection, connector: Connector) -> None:
        super().__init__(connection, connector)
        assert connector.queries is not None, "the schema is opened first"
        self._queries: Queries = connector.queries

    async def read(self, since: int) -> ClusterReading:
        """The workers, and the tokens that changed after version `since`, in one atomic read; -1
        reads all of them.

        Raises StoreUnavailable or SchemaError.
        """

        async def work(connection: Connection) -> ClusterReading:
            # Thousands of numbers: several times faster than text.
            cursor = connection.cursor(binary=True)
            row = await (await cursor.execute(self._queries["look"], {"since": since})).fetchone()
            if row is None:
                raise StoreUnavailable(
                    "the cluster's row is missing: a worker that runs, or that starts, makes it "
                    "anew"
                )
            workers = zip(row.numbers or (), row.names or (), row.addresses or (), strict=True)
            return ClusterReading(
                since=since,
                version=row.version,
                term=row.term,
                generation=row.generation,
                leader=row.leader,
                total_tokens=row.total_tokens,
                hash_function=row.hash_function,
                workers=[SeenWorker(*worker) for worker in workers],
                tokens=row.token_ids or (),
                owners=row.owners or (),
                announced=row.announced,
            )

        return await self.run(lambda connection: self._connector.call(connection, work))
