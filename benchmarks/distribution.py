"""What a distribution costs: plan, write, commit, and write-ahead log."""

from __future__ import annotations

import time
from uuid import uuid4

import psycopg

from benchmarks.results import Result
from jobsync_async import CoordinationConfig
from jobsync_async.core.assignment import PlanNode, plan
from jobsync_async.core.board import Board, Distribution, Reading
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.rows import Announcement, Identity
from jobsync_async.postgres.store import Store

WORKERS = 7


async def distribute(dsn: str, total: int, number: int) -> tuple[float, float, float]:
    """Milliseconds for the first distribution and for one death of seven, and the WAL of the latter in MiB."""
    config = CoordinationConfig(dsn=dsn, total_tokens=total, appname=f"d{total}_{number}_")
    store = await Store.open(config, "benchmark")
    try:
        workers = [Identity(f"w{n}", uuid4()) for n in range(WORKERS)]
        for worker in workers:
            await store.membership.join(worker, Announcement())
        board = Board(total, token_hasher(total, config.hash_function))

        def decide(reading: Reading) -> Distribution | None:
            board.take(reading)
            return board.distribute()

        async def lead() -> float:
            started = time.perf_counter()
            outcome = await store.leading.rebalance(workers[0], 1, (), board.version, board.pin_version, decide)
            assert outcome is not None
            assert outcome.wrote
            return (time.perf_counter() - started) * 1000

        first_ms = await lead()
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            # What a leader has read before, it need not read again: it knows the first distribution.
            board.take(await store.leading.read(board.version, board.pin_version))
            await connection.execute(f"DELETE FROM d{total}_{number}_node WHERE name = 'w{WORKERS - 1}'")
            await connection.execute("CHECKPOINT")
            before = await _wal(connection)
            death_ms = await lead()
            wal = await _wal(connection) - before
            await connection.execute(f"DROP TABLE d{total}_{number}_token")
        return first_ms, death_ms, wal / 2**20
    finally:
        await store.close()


async def _wal(connection: psycopg.AsyncConnection) -> float:
    row = await (await connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")).fetchone()
    assert row is not None
    return float(row[0])


async def measure(dsn: str, rounds: int) -> list[Result]:
    small = [await distribute(dsn, 10_000, number) for number in range(rounds)]
    large = [await distribute(dsn, 1_000_000, number) for number in range(2)]
    return [
        Result("first distribution of 10,000 tokens", "ms", [first for first, _, _ in small], 40),
        Result("rebalance of 10,000 tokens when 1 of 7 dies", "ms", [death for _, death, _ in small], 25),
        Result("its write-ahead log, full pages after a checkpoint included", "MiB", [wal for _, _, wal in small], 1),
        Result("first distribution of 1,000,000 tokens", "ms", [first for first, _, _ in large], 3000),
        *plans(rounds),
    ]


def plans(rounds: int) -> list[Result]:
    """The pure plan: one of 51 workers is gone."""
    nodes = [PlanNode(f"w{n}", 1.0) for n in range(50)]
    pinned = {token: (f"w{token % 50}",) for token in range(10_000)}
    results = []
    for title, pins in (("no pins", {}), ("all pinned", pinned)):
        current: list[str | None] = [f"w{token % 51}" for token in range(10_000)]
        times = []
        for _ in range(3 * rounds):
            started = time.perf_counter()
            plan(nodes, current, pins)
            times.append((time.perf_counter() - started) * 1000)
        results.append(Result(f"pure plan, 10,000 tokens and 50 workers, {title}", "ms", times, 5))
    return results
