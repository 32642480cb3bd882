"""What grows with what: heartbeats, rebalances and plans with 10,000 tokens and with a hundred
times as many.

Ten workers without tasks, whose statements are sent by hand in turn: nine are alike, and one has a
thousand tokens however many there are. It dies and comes back, so a thousand tokens move each time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import median
from uuid import uuid4

import psycopg

from benchmarks.results import Result
from jobsync_async import CoordinationConfig
from jobsync_async.core.assignment import PlanNode, plan
from jobsync_async.core.distribution import Distribution
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.leader_state import LeaderState, Reading
from jobsync_async.core.lease import Beat
from jobsync_async.core.rows import Announcement, Identity
from jobsync_async.postgres.leader import RebalanceOutcome
from jobsync_async.postgres.store import Store
from jobsync_async.postgres.tokens import TokenFeed

_FEW, _MANY = 10_000, 1_000_000
_ALIKE, _MOVED = 9, 1_000
_BEATS = 300


class Cluster:
    """Workers by hand, the first of which leads.

    Attributes:
        took: milliseconds of each event; of rebalances, without what the leader's plan took, which
            is apart.
        wal: bytes of the write-ahead log.
    """

    def __init__(
        self,
        store: Store,
        feed: TokenFeed,
        config: CoordinationConfig,
        connection: psycopg.AsyncConnection,
    ) -> None:
        self._store = store
        self._feed = feed
        self._connection = connection
        self._total = config.total_tokens
        self._state = LeaderState(self._total, token_hasher(self._total, config.hash_function))
        self._alike = [Identity(f"w{number}", uuid4()) for number in range(_ALIKE)]
        self._small = Identity("small", uuid4())
        self._version = -1
        self.took: defaultdict[str, list[float]] = defaultdict(list)
        self.wal: defaultdict[str, list[float]] = defaultdict(list)

    async def begin(self) -> None:
        """All join, and share out the tokens."""
        await self._store.failover.read_server()
        for one in self._alike:
            await self._store.membership.join(one, Announcement())
        await self._join()
        await self._rebalance("first")
        self._version = (await self._feed.read_changes(self._alike[0], -1)).version

    async def _join(self) -> None:
        weight = _ALIKE * _MOVED / (self._total - _MOVED)
        self._small = Identity("small", uuid4())
        await self._store.membership.join(self._small, Announcement(weight=weight))

    async def beat(self) -> None:
        started = time.perf_counter()
        await self._store.membership.heartbeat(self._alike[1], watch_all=False)
        self.took["heartbeat"].append((time.perf_counter() - started) * 1000)

    async def die_and_come_back(self) -> None:
        """A death, by which a thousand tokens are assigned; a join, for which as many are revoked;
        and the handing on."""
        answer = await self._store.membership.heartbeat(self._alike[0], watch_all=True)
        assert answer is not None
        await self._rebalance("death", next(beat for beat in answer.beats if beat.name == "small"))
        await self._join()
        await self._rebalance("join")
        since = self._version
        for one in self._alike:
            started = time.perf_counter()
            snapshot = await self._feed.read_changes(one, since)
            going = [(row.token_id, row.version) for row in snapshot.mine if row.revoking]
            assert len(await self._feed.acknowledge(one, going)) == len(going) > 0
            self.took["reading and handing on"].append((time.perf_counter() - started) * 1000)
            self._version = snapshot.version

    async def _rebalance(self, what: str, *expire: Beat) -> None:
        decided = [0.0]

        def decide(reading: Reading) -> Distribution | None:
            started = time.perf_counter()
            self._state.update(reading)
            distribution = self._state.distribute()
            decided[0] = time.perf_counter() - started
            return distribution

        term = (
            await self._feed.read_changes(self._alike[0], -1 if what == "first" else self._version)
        ).term
        state, before = self._state, await self._wal()
        started = time.perf_counter()
        outcome: RebalanceOutcome | None = await self._store.leading.rebalance(
            self._alike[0], term, expire, state.version, state.pin_version, decide
        )
        took = time.perf_counter() - started
        assert outcome is not None
        assert outcome.skipped == 0
        self.took[what].append((took - decided[0]) * 1000)
        self.took[f"plan for a {what}"].append(decided[0] * 1000)
        self.wal[what].append((await self._wal() - before) / 1024)

    async def _wal(self) -> float:
        row = await (
            await self._connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
        ).fetchone()
        assert row is not None
        return float(row[0])


async def _costs(dsn: str, total: int, rounds: int) -> Cluster:
    config = CoordinationConfig(dsn=dsn, appname=f"growth{total}_", total_tokens=total)
    store = await Store.open(config, "benchmark")
    try:
        feed = await store.listen()
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            cluster = Cluster(store, feed, config, connection)
            await cluster.begin()
            await connection.execute("VACUUM ANALYZE")
            for _ in range(_BEATS):
                await cluster.beat()
            for _ in range(rounds):
                await cluster.die_and_come_back()
        await feed.close()
    finally:
        await store.close()
    return cluster


def _plan_ns(total: int) -> float:
    """Nanoseconds for each token of a plan for a join: fifty workers and one more."""
    nodes = [PlanNode(f"w{number}", 1.0) for number in range(51)]
    current = [f"w{token % 50}" for token in range(total)]
    started = time.perf_counter()
    assert plan(nodes, current, {}).gains
    return (time.perf_counter() - started) * 1e9 / total


async def measure(dsn: str, quick: bool) -> list[Result]:
    """The same with few and with many tokens, and how many times as much many cost."""
    rounds = 3 if quick else 15
    few, many = (
        await _costs(dsn, _FEW, rounds),
        await _costs(dsn, 100_000 if quick else _MANY, rounds),
    )
    results = []
    for what, name, goal in (
        ("heartbeat", "a heartbeat", 1.5),
        ("death", f"a rebalance of {_MOVED:,} for a death", 1.5),
        ("join", f"a rebalance of {_MOVED:,} for a join", 1.5),
        ("reading and handing on", f"{_MOVED // _ALIKE} of them read and handed on", 1.5),
    ):
        results += _grown(name, "ms", few.took[what], many.took[what], goal)
    for what in ("death", "join"):
        results += _grown(f"log of that for a {what}", "KiB", few.wal[what], many.wal[what], 1.5)
        results += _grown(
            f"the plan of that for a {what}",
            "ms",
            few.took[f"plan for a {what}"],
            many.took[f"plan for a {what}"],
        )
    sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    each = {total: [_plan_ns(total) for _ in range(5)] for total in sizes}
    results += [
        Result(f"{total:,} tokens: a plan, for each token", "ns", values)
        for total, values in each.items()
    ]
    times = median(each[sizes[-1]]) / median(each[sizes[0]])
    results.append(
        Result(f"a plan, each of {sizes[-1]:,} tokens over {sizes[0]:,}", "x", [times], 2)
    )
    return results


def _grown(
    name: str, unit: str, few: list[float], many: list[float], goal: float | None = None
) -> list[Result]:
    return [
        Result(f"few tokens: {name}", unit, few),
        Result(f"many tokens: {name}", unit, many),
        Result(f"many over few: {name}", "x", [median(many) / median(few)], goal),
    ]
