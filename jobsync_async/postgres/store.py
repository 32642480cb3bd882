"""Everything that a worker keeps open towards PostgreSQL, in one place.

In steady state a worker holds two connections: one that carries heartbeats and nothing else, and one that listens, reads and
acknowledges. What a leader writes and what users call goes over further ones, opened when needed and closed when idle.
"""

from __future__ import annotations

from jobsync_async.config import CoordinationConfig
from jobsync_async.postgres.connection import Connector, Link
from jobsync_async.postgres.inspection import Inspection
from jobsync_async.postgres.leading import Leading
from jobsync_async.postgres.membership import Membership
from jobsync_async.postgres.observing import ViewFeed
from jobsync_async.postgres.pins import Pins
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.schema import open_schema
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.status import Status
from jobsync_async.postgres.tokens import TokenFeed
from jobsync_async.postgres.work import WorkStore

_IDLE_SEC = 5.0


class Store:
    """The store of one worker. Made by `Store.open`; `close` ends every connection.

    Attributes:
        membership, leading, pins, work, status: the statements, by what they are about.
        queries: their texts, for this cluster's tables.
    """

    def __init__(self, config: CoordinationConfig, queries: Queries, heartbeats: Connector, others: Connector) -> None:
        self.queries = queries
        self._channel = config.channel
        self._others = others
        self._heartbeat_link = Link(heartbeats, "heartbeat")
        self._leader_link = Link(others, "leader", idle_sec=_IDLE_SEC)
        self._pool = Pool(others, idle_sec=_IDLE_SEC)
        self.membership = Membership(self._heartbeat_link, self._leader_link, queries, config.channel)
        self.leading = Leading(self._leader_link, queries, config.channel)
        self.pins = Pins(self._pool, queries, config.channel)
        self.work = WorkStore(self._pool, queries)
        self.status = Status(self._pool, queries)

    @classmethod
    async def open(cls, config: CoordinationConfig, node_name: str, *, observe: bool = False) -> Store:
        """Connect, find or create the tables, and check that they fit; to `observe`, they must be there, and fit as they are.

        Raises StoreUnavailable, SchemaError or ConfigError.
        """

        def conninfo(purpose: str) -> str:
            return config.conninfo(f"{node_name} {purpose}", reads_only=observe)

        others = Connector(conninfo, config.bulk_limit_sec)
        queries = await open_schema(others, config, observe=observe)
        heartbeats = Connector(conninfo, config.statement_limit_sec)
        heartbeats.queries = queries
        store = cls(config, queries, heartbeats, others)
        await store._pool.open()
        return store

    async def listen(self) -> TokenFeed:
        """A fresh LISTEN connection. Raises StoreUnavailable."""
        return await TokenFeed.open(self._others, self._channel)

    @property
    def inspection(self) -> Inspection:
        """The statements of the command line."""
        return Inspection(self._pool, self.queries)

    async def observe(self) -> ViewFeed:
        """A fresh LISTEN connection for somebody who only looks. Raises StoreUnavailable."""
        return await ViewFeed.open(self._others, self._channel)

    async def check(self) -> None:
        """After an outage: replace the connections that it broke."""
        await self._pool.check()

    async def close(self) -> None:
        """End every connection; nothing is sent."""
        await self._pool.close()
        await self._leader_link.close()
        await self._heartbeat_link.close()
