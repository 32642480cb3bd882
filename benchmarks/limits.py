"""Ours against what PostgreSQL itself takes for the same: the least that any such library could
take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from itertools import chain
from statistics import median, quantiles
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg

from benchmarks.results import Result
from jobsync_async import CoordinationConfig, Job
from jobsync_async.core.distribution import Distribution
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.leader_state import LeaderState, Reading
from jobsync_async.core.rows import Announcement, Identity
from jobsync_async.postgres.store import Store

TOTAL = 10_000
# Until what follows a change is over: the leader looks at it, and a worker reads again after a
# millisecond at the earliest.
_QUIET_SEC = 0.003


async def commits(dsn: str, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of a rebalance when 1 of 7 dies, and of one bare statement that writes the same
    rows."""
    config = CoordinationConfig(dsn=dsn, appname="commit_")
    store = await Store.open(config, "benchmark")
    state = LeaderState(TOTAL, token_hasher(TOTAL, config.hash_function))
    leader = Identity("leader", uuid4())
    ours, bare = [], []

    def decide(reading: Reading) -> Distribution | None:
        state.update(reading)
        return state.distribute()

    async def lead() -> float:
        started = time.perf_counter()
        outcome = await store.leading.rebalance(
            leader, 1, (), state.version, state.pin_version, decide
        )
        assert outcome is not None
        assert outcome.wrote
        return (time.perf_counter() - started) * 1000

    try:
        await store.membership.join(leader, Announcement())
        others = [Identity(f"w{number}", uuid4()) for number in range(6)]
        for other in others:
            await store.membership.join(other, Announcement())
        await lead()
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            for _ in range(rounds):
                state.update(await store.leading.read(state.version, state.pin_version))
                dying = others.pop(0)
                row = await (
                    await connection.execute(
                        "SELECT array_agg(token_id) FROM commit_token WHERE incarnation = %s",
                        [dying.incarnation],
                    )
                ).fetchone()
                assert row is not None
                started = time.perf_counter()
                # The same rows, columns and indexes, in one statement that knows all it needs;
                # changed back by the next.
                await connection.execute(
                    "UPDATE commit_token SET node = 'x', incarnation = %s, epoch = epoch + 1, "
                    "version = version + 1, assigned_at = now() WHERE token_id = ANY(%s)",
                    [dying.incarnation, row[0]],
                )
                bare.append((time.perf_counter() - started) * 1000)
                await connection.execute(
                    "DELETE FROM commit_node WHERE incarnation = %s", [dying.incarnation]
                )
                await connection.execute(
                    "UPDATE commit_cluster SET version = greatest(version, (SELECT max(version) "
                    "FROM commit_token))"
                )
                ours.append(await lead())
                # All workers but the leader must be many again for the next round to move as many.
                born = Identity(f"n{len(ours)}", uuid4())
                await store.membership.join(born, Announcement())
                others.append(born)
                state.update(await store.leading.read(state.version, state.pin_version))
                await lead()
                await _hand_on(store, [leader, *others])
    finally:
        await store.close()
    return ours, bare


async def firsts(dsn: str, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of a first distribution to 6 workers, and of one bare statement that inserts the
    same rows."""
    ours, bare = [], []
    for number in range(rounds):
        config = CoordinationConfig(dsn=dsn, appname=f"first{number}_", total_tokens=TOTAL)
        store = await Store.open(config, "benchmark")
        state = LeaderState(TOTAL, token_hasher(TOTAL, config.hash_function))
        workers = [Identity(f"w{worker}", uuid4()) for worker in range(6)]

        def decide(reading: Reading, state: LeaderState = state) -> Distribution | None:
            state.update(reading)
            return state.distribute()

        try:
            for worker in workers:
                await store.membership.join(worker, Announcement())
            started = time.perf_counter()
            outcome = await store.leading.rebalance(
                workers[0], 1, (), state.version, state.pin_version, decide
            )
            ours.append((time.perf_counter() - started) * 1000)
            assert outcome is not None
            assert outcome.wrote
        finally:
            await store.close()
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await connection.execute(
                f"CREATE TABLE bare_first{number} (LIKE first{number}_token INCLUDING ALL)"
            )
            started = time.perf_counter()
            await connection.execute(
                f"INSERT INTO bare_first{number} (token_id, node, incarnation, epoch, version) "
                "SELECT g, (%s::text[])[1 + g * 6 / %s], (%s::uuid[])[1 + g * 6 / %s], 1, 0 FROM "
                "generate_series(0, %s) AS g",
                [
                    [w.name for w in workers],
                    TOTAL,
                    [w.incarnation for w in workers],
                    TOTAL,
                    TOTAL - 1,
                ],
            )
            bare.append((time.perf_counter() - started) * 1000)
    return ours, bare


async def _hand_on(store: Store, workers: Sequence[Identity]) -> None:
    feed = await store.listen()
    try:
        for worker in workers:
            rows = [row for row in (await feed.read_changes(worker, -1)).mine if row.revoking]
            if rows:
                await feed.acknowledge(worker, [(row.token_id, row.version) for row in rows])
    finally:
        await feed.close()


class Push(NamedTuple):
    """Milliseconds from sending something until it has come.

    Attributes:
        ours: a change of one of a worker's tokens, to its stream's item.
        heard: the same change, to one who only listens.
        bare: a NOTIFY that writes nothing.
    """

    ours: list[float]
    heard: list[float]
    bare: list[float]


async def pushes(dsn: str, rounds: int, count: int) -> list[Push]:
    """Changes one by one, each when the last is dealt with. No commit waits for the disk here, for
    a bare NOTIFY has none."""
    config = CoordinationConfig(dsn=dsn, appname="push_", total_tokens=100)
    async with (
        Job("w0", config) as job,
        job.token_changes() as changes,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as hearing,
    ):
        await anext(changes)
        await hearing.execute("LISTEN bare")
        await connection.execute("SET synchronous_commit = off")
        notifications = hearing.notifies()
        for table in ("cluster", "token"):
            await connection.execute(f"CREATE TABLE bare_{table} (LIKE push_{table} INCLUDING ALL)")
            await connection.execute(f"INSERT INTO bare_{table} SELECT * FROM push_{table}")

        def change(appname: str, channel: str) -> str:
            # Moves no token: another epoch, so that the stream tells of it.
            return (
                f"WITH taken AS (UPDATE {appname}cluster SET version = version + 1 RETURNING "
                "version), moved AS ("
                f"UPDATE {appname}token SET epoch = epoch + 1, version = taken.version FROM "
                "taken WHERE token_id = 0) "
                f"SELECT pg_notify('{channel}', version::text) FROM taken"
            )

        async def come(what: AsyncIterator[Any]) -> float:
            await anext(what)
            return time.perf_counter()

        async def timed(sent: str, what: AsyncIterator[Any], into: list[float]) -> None:
            coming = asyncio.ensure_future(come(what))
            await asyncio.sleep(_QUIET_SEC)
            started = time.perf_counter()
            await connection.execute(sent)
            into.append((await coming - started) * 1000)

        measured = [Push([], [], []) for _ in range(rounds)]
        for push in measured:
            for number in range(count):
                await timed(change("push_", config.channel), aiter(changes), push.ours)
                await timed(f"SELECT pg_notify('bare', '{number}')", notifications, push.bare)
                await timed(change("bare_", "bare"), notifications, push.heard)
        await notifications.aclose()  # or the connection is its own for ever
    return measured


def _p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100)[98]


async def measure(dsn: str, quick: bool) -> list[Result]:
    ours, bare = await commits(dsn, 4 if quick else 10)
    first, inserted = await firsts(dsn, 3 if quick else 10)
    measured = await pushes(dsn, *((2, 200) if quick else (5, 1000)))
    pushed, heard, notified = (
        list(chain.from_iterable(values)) for values in zip(*measured, strict=True)
    )
    middle = [median(push.ours) / median(push.bare) for push in measured]
    slowest = [_p99(push.ours) / _p99(push.bare) for push in measured]
    return [
        Result("rebalance, 1 of 7 dies (theirs: bare UPDATE)", "ms", ours, theirs=bare),
        Result("  as a multiple of the bare statement", "x", [median(ours) / median(bare)], 3),
        Result("first distribution to 6 (theirs: bare INSERT)", "ms", first, theirs=inserted),
        Result("  as a multiple of the bare statement", "x", [median(first) / median(inserted)], 3),
        Result("change to stream (theirs: bare NOTIFY)", "ms", pushed, theirs=notified),
        Result(
            "  p99 of each run",
            "ms",
            [_p99(push.ours) for push in measured],
            theirs=[_p99(push.bare) for push in measured],
        ),
        Result("  as a multiple of the bare NOTIFY, median of each run", "x", middle),
        Result("  as a multiple of the bare NOTIFY, p99 of each run", "x", slowest, 3),
        Result("change to stream (theirs: the same to LISTEN)", "ms", pushed, theirs=heard),
    ]
