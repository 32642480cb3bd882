"""Looking at the whole cluster over a LISTEN connection. Nothing is written: SELECT on the tables
is enough."""

from __future__ import annotations

import logging
from collections.abc import Callable

from jobsync_async.core.observer_state import ClusterReading, SeenWorker
from jobsync_async.core.outages import OutageNews, Outages
from jobsync_async.errors import SchemaError, StoreError, StoreUnavailable
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.driver_errors import kind_of
from jobsync_async.postgres.listener import Listener
from jobsync_async.postgres.sql import Queries

logger = logging.getLogger(__name__)

_LOOKING = "looking"


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


class ObserverOutages:
    """What an observer says of outages: two lines for each. Each failure is a line at DEBUG."""

    def __init__(self, channel: str, clock: Callable[[], float]) -> None:
        self._channel = channel
        self._clock = clock
        self._outages = Outages(_LOOKING)

    def failed(self, error: StoreError, failures: int, began: float | None) -> None:
        """A look failed, the last of so many in a row; it began then, None for now."""
        logger.debug(
            "observing anew: %s", error, extra={"channel": self._channel, "failures": failures}
        )
        now = self._clock()
        began = now if began is None else began
        self._say(self._outages.failed(_LOOKING, kind_of(error), error, failures, began, now))

    def succeeded(self, began: float) -> None:
        """A look that began then succeeded."""
        self._say(self._outages.succeeded(_LOOKING, began, self._clock()))

    def _say(self, news: list[OutageNews]) -> None:
        for one in news:
            over = "the outage is over after %.1f s, in which %d looks failed; the last: %s"
            begins = "an outage began %.1f s ago, and %d looks have failed; the last: %s"
            # Whoever looks can ask for `connected`, too. A refusal wants somebody who ends it.
            refused = isinstance(one.error, SchemaError) and not one.over
            logger.log(
                logging.WARNING if refused else logging.INFO,
                over if one.over else begins,
                one.seconds,
                one.failures,
                one.error,
                extra={
                    "channel": self._channel,
                    "outage": one.what,
                    "seconds": round(one.seconds, 3),
                    "failures": one.failures,
                },
            )
