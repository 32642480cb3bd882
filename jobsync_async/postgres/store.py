"""Everything that a worker keeps open towards PostgreSQL, in one place.

In steady state a worker holds two connections: one that carries heartbeats and nothing else, and
one that listens, reads and acknowledges. What a leader writes and what users call goes over further
ones, opened when needed and closed when idle.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jobsync_async.config import CoordinationConfig
from jobsync_async.postgres import forks
from jobsync_async.postgres.cluster_row import settings
from jobsync_async.postgres.connection import Connector, shut_down
from jobsync_async.postgres.deaths import Deaths
from jobsync_async.postgres.failover import Failover
from jobsync_async.postgres.history import HistoryStatements
from jobsync_async.postgres.leader import Leading
from jobsync_async.postgres.link import Link
from jobsync_async.postgres.membership import Membership
from jobsync_async.postgres.pins import PinStatements
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.schema import open_schema
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext
from jobsync_async.postgres.status import Status
from jobsync_async.postgres.tokens import PolledFeed, PushedFeed, TokenFeed
from jobsync_async.postgres.work import WorkStore

if TYPE_CHECKING:
    from jobsync_async.postgres.batch_runs import BatchRuns
    from jobsync_async.postgres.bounds import Bounds
    from jobsync_async.postgres.inspection import Inspection
    from jobsync_async.postgres.observer import ObserverFeed
    from jobsync_async.postgres.predecessor import Predecessor
    from jobsync_async.postgres.pruning import Pruning
    from jobsync_async.postgres.sessions import Sessions
    from jobsync_async.postgres.steering import Steering

_IDLE_SEC = 5.0


class Store:
    """The store of one worker. Made by `Store.open`; `close` ends every connection.

    Attributes:
        membership, leading, deaths, pins, work, status: the statements, by what they are about.
        forgetting: those about the history, on a connection that nothing else waits for.
        failover: those about the server itself.
        sessions: those of failover by session; None without it.
        tag: in the ``application_name`` of each of its sessions, so that they can be ended when the
            process is dead.
        queries: their texts, for this cluster's tables.
        codec: Python's name for the database's encoding.
    """

    def __init__(
        self,
        config: CoordinationConfig,
        queries: Queries,
        heartbeats: Connector,
        others: Connector,
        tag: str,
    ) -> None:
        context = others.context
        self.queries = queries
        self.tag = tag
        self._notify = config.notify
        self._poll_interval_sec = config.poll_interval_sec
        self._others = others
        self._heartbeats = heartbeats
        self._heartbeat_link = Link(heartbeats, "heartbeat")
        self._leader_link = Link(others, "leader", idle_sec=_IDLE_SEC)
        # Its own, for the leader's may be waiting for a lock that a dead worker's session holds.
        self._deaths_link = Link(others, "deaths", idle_sec=_IDLE_SEC)
        self._forgetting_link = Link(others, "forgetting", idle_sec=_IDLE_SEC)
        self._pool = Pool(others, idle_sec=_IDLE_SEC)
        key = (
            f"{queries.schema}.{config.appname} session " if config.failover == "session" else None
        )
        self.membership: Membership = Membership(
            self._heartbeat_link, self._leader_link, queries, context, config.times, session_key=key
        )
        self.leading: Leading = Leading(self._leader_link, queries, context)
        self.deaths: Deaths = Deaths(self._deaths_link, queries, context)
        self.forgetting: HistoryStatements = HistoryStatements(self._forgetting_link, queries)
        self._sessions_link = Link(others, "sessions", idle_sec=_IDLE_SEC)
        self.sessions: Sessions | None = None
        if key is not None:  # most workers do without, and without the memory that it takes
            from jobsync_async.postgres.sessions import Sessions  # noqa: PLC0415

            self.sessions = Sessions(
                self._heartbeat_link, self._sessions_link, queries, context, key
            )
        self.pins: PinStatements = PinStatements(self._pool, queries, context)
        self.failover: Failover = Failover(
            self._heartbeat_link,
            self._leader_link,
            queries,
            context,
            settings(config, context.channel, queries.readings.profile),
        )
        self.codec: str = others.codec
        self.work: WorkStore = WorkStore(self._pool, queries, context, self.codec)
        self.status: Status = Status(self._pool, queries)
        self._predecessor = config.predecessor

    @classmethod
    async def open(
        cls, config: CoordinationConfig, node_name: str, *, observe: bool = False
    ) -> Store:
        """Connect, find or create the tables, and check that they fit; to `observe`, they must be
        there, and fit as they are.

        Raises StoreUnavailable, SchemaError or ConfigError.
        """

        tag = os.urandom(6).hex()

        def conninfo(purpose: str) -> str:
            return config.conninfo(
                f"{node_name} {purpose}", None if observe else tag, reads_only=observe
            )

        context = StatementContext(node_name)
        others = Connector(conninfo, config.bulk_limit_sec, context)
        queries = await open_schema(others, config, observe=observe)
        heartbeats = Connector(conninfo, config.statement_limit_sec, context, pooled=others.pooled)
        heartbeats.queries = queries
        store = cls(config, queries, heartbeats, others, tag)
        if observe:  # a person's
            store.pins.history = store.history
        return store

    async def listen(self) -> TokenFeed:
        """A fresh LISTEN connection, or what stands in for it where there is no push. Raises
        StoreUnavailable."""
        feed: TokenFeed = (
            await PushedFeed.open(self._others) if self._notify else PolledFeed(self._others)
        )
        feed.poll_interval_sec = self._poll_interval_sec
        return feed

    @property
    def context(self) -> StatementContext:
        """What the statements stand on."""
        return self._others.context

    @property
    def predecessor(self) -> Predecessor | None:
        """The workers of jobsync that this cluster replaces; None without any."""
        if self._predecessor is None:
            return None
        # most workers do without
        from jobsync_async.postgres.predecessor import Predecessor  # noqa: PLC0415

        return Predecessor(self._pool, self.queries, self._predecessor)

    @property
    def inspection(self) -> Inspection:
        """The statements of the command line."""
        # a worker has no use for it
        from jobsync_async.postgres.inspection import Inspection  # noqa: PLC0415

        return Inspection(self._pool, self.queries)

    @property
    def bounds(self) -> Bounds:
        """The statements about the bound on timeouts, for the command line."""
        # a worker has no use for it
        from jobsync_async.postgres.bounds import Bounds  # noqa: PLC0415

        return Bounds(self._leader_link, self.queries, self._others.context)

    @property
    def batch_runs(self) -> BatchRuns:
        """The statements about runs of batches, for people."""
        # a worker has no use for it
        from jobsync_async.postgres.batch_runs import BatchRuns  # noqa: PLC0415

        return BatchRuns(self._pool, self.queries)

    @property
    def history(self) -> HistoryStatements:
        """The statements about what happened, for people."""
        return HistoryStatements(self._pool, self.queries)

    @property
    def steering(self) -> Steering:
        """The statements with which people steer the cluster."""
        # most workers do without
        from jobsync_async.postgres.steering import Steering  # noqa: PLC0415

        return Steering(self._pool, self.queries, self._others.context, self.history)

    @property
    def pruning(self) -> Pruning:
        """The statements that delete old days, for the command line."""
        # a worker has no use for it
        from jobsync_async.postgres.pruning import Pruning  # noqa: PLC0415

        return Pruning(self._pool, self.queries)

    async def observe(self) -> ObserverFeed:
        """A fresh LISTEN connection for somebody who only looks. Raises StoreUnavailable."""
        # a worker has no use for it
        from jobsync_async.postgres.observer import ObserverFeed  # noqa: PLC0415

        return await ObserverFeed.open(self._others)

    def suspect(self) -> None:
        """A connection broke: others may have. What is idle is looked at before somebody is handed
        it. No I/O."""
        self._pool.suspect()

    def cut(self) -> None:
        """End every connection at once, whatever it is doing, and open no more, as when the process
        dies. No I/O."""
        self._others.sever()
        self._heartbeats.sever()
        for connection in tuple(forks.connections):
            if (
                not connection.closed
                and self.tag in connection.info.get_parameters()["application_name"]
            ):
                shut_down(connection)

    async def close(self) -> None:
        """End every connection; nothing is sent."""
        await self._pool.close()
        await self._sessions_link.close()
        await self._deaths_link.close()
        await self._forgetting_link.close()
        await self._leader_link.close()
        await self._heartbeat_link.close()
