"""A worker without tasks: the test sends each of its statements, in the order that it wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio
import psycopg

from jobsync_async import CoordinationConfig
from jobsync_async.core.distribution import Distribution
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.leader_state import LeaderState, Reading
from jobsync_async.core.lease import Beat
from jobsync_async.core.rows import Announcement, HeartbeatAnswer, Identity, NameInUse, Snapshot
from jobsync_async.postgres.leader import RebalanceOutcome
from jobsync_async.postgres.store import Store
from jobsync_async.postgres.tokens import TokenFeed


class Hand:
    """One incarnation of a worker, with a store of its own."""

    def __init__(
        self, store: Store, feed: TokenFeed, config: CoordinationConfig, name: str
    ) -> None:
        self.store = store
        self.feed = feed
        self.me = Identity(name, uuid4())
        token_of = token_hasher(config.total_tokens, config.hash_function)
        self.state = LeaderState(config.total_tokens, token_of, config.minimum_nodes)

    async def join(self, replace: Beat | None = None) -> NameInUse | None:
        return await self.store.membership.join(self.me, Announcement(), replace=replace)

    async def beat(self, *, watch_all: bool = True) -> HeartbeatAnswer | None:
        return await self.store.membership.heartbeat(self.me, watch_all=watch_all)

    async def last_beat(self) -> Beat:
        """What others see of this worker; counts one beat."""
        answer = await self.beat()
        assert answer is not None
        mine = next(beat for beat in answer.beats if beat.incarnation == self.me.incarnation)
        # The answer shows the tables as they were when the heartbeat was sent.
        return mine._replace(beat=mine.beat + 1)

    async def read(self, since: int = -1) -> Snapshot:
        return await self.feed.read_changes(self.me, since)

    async def mine(self) -> dict[int, tuple[int, bool]]:
        """Token to (epoch, whether it is to go)."""
        return {row.token_id: (row.epoch, row.revoking) for row in (await self.read()).mine}

    async def acknowledge(self, tokens: Sequence[int] | None = None) -> list[int]:
        """Let go of the tokens that are to go, or of some of them, by what is in the tables now."""
        rows = [
            row
            for row in (await self.read()).mine
            if row.revoking and (tokens is None or row.token_id in tokens)
        ]
        return await self.feed.acknowledge(self.me, [(row.token_id, row.version) for row in rows])

    async def lead(self, expire: Sequence[Beat] = ()) -> RebalanceOutcome | None:
        """One rebalance, as the leader's task would write it."""

        def decide(reading: Reading) -> Distribution | None:
            self.state.update(reading)
            return self.state.distribute()

        term = (await self.read()).term
        outcome = await self.store.leading.rebalance(
            self.me, term, expire, self.state.version, self.state.pin_version, decide
        )
        if outcome is not None and outcome.skipped:
            self.state.plan_again()
        return outcome


@asynccontextmanager
async def hand(config: CoordinationConfig, name: str) -> AsyncIterator[Hand]:
    """A worker by hand that has not joined yet."""
    store = await Store.open(config, name)
    feed = await store.listen()
    try:
        yield Hand(store, feed, config, name)
    finally:
        await feed.close()
        await store.close()


async def rows(
    admin: psycopg.AsyncConnection[Any],
) -> dict[int, tuple[str | None, int, str | None]]:
    """Owner, epoch and next owner of each token, by the tables."""
    cursor = await admin.execute(
        "SELECT token_id, node, epoch, next_node FROM sync_token ORDER BY token_id"
    )
    return {row[0]: row[1:] for row in await cursor.fetchall()}


async def blocked(admin: psycopg.AsyncConnection[Any], fragment: str, how_many: int = 1) -> None:
    """Wait until so many statements of this library wait for a lock."""
    query = """SELECT count(*) FROM pg_stat_activity
               WHERE wait_event_type = 'Lock' AND query LIKE %s AND datname = current_database()"""
    with anyio.fail_after(10):
        while (await (await admin.execute(query, [f"%{fragment}%"])).fetchone() or (0,))[
            0
        ] < how_many:
            await asyncio.sleep(0.005)
