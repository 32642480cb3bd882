"""The main job: a batch of many ids, done by worker processes that begin at one moment.

It stands beside PgQueuer, and beside loops that people write by hand over a table of jobs. Each
takes what is there, at the same server, in turn with the others.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

import psycopg

from benchmarks.batch_workers import Took, cpu_ms_per_sec, workers
from benchmarks.results import Result
from benchmarks.sides import LeftOut, Side, peer
from jobsync_async.embedded import EmbeddedPostgres

_LOOPS = {
    "each": "a loop that commits each job",
    "hundred": "a loop that commits a hundred",
    "batched": "a loop that takes and does a hundred at once",
}
# The last of them does not see a crash: what it has taken is done.
_TIMES = {"batched": 0.25}
_SETTLED_SEC = 3.0
_YESTERDAY, _TODAY = "current_date - 1", "current_date"


def measure(postgres: EmbeddedPostgres, sides: Sequence[Side], quick: bool) -> list[Result]:
    side, dsn = sides[0], postgres.dsn
    return [
        *_waiting(postgres, side, quick),  # before the server has anything else to tidy up
        *_beside_others(dsn, side, quick),
        *_beside_the_ideal(dsn, side, quick),
        *_growing(dsn, side, quick),
        *_beside_old_rows(dsn, side, quick),
    ]


# == beside others =================================================================================


def _beside_others(dsn: str, side: Side, quick: bool) -> Iterator[Result]:
    ids, rounds = 20_000, 1 if quick else 5
    took: defaultdict[str, list[float]] = defaultdict(list)
    ends: list[Took] = []
    theirs = _pgqueuer(dsn)
    for number in range(rounds):
        ends.append(_ours(dsn, side, f"beside{number}_", 4, ids))
        took["ours"].append(ends[-1].sec)
        for way in _LOOPS:
            took[way].append(_loop(dsn, side, way, ids))
        if theirs is not None:
            took["pgqueuer"].append(_peer(dsn, side, theirs, ids))
    title = f"{ids:,} ids, 4 workers, 0 ms; theirs: "
    names = {**_LOOPS, "pgqueuer": f"PgQueuer {_PGQUEUER}"}
    for way in took.keys() - {"ours"}:
        times = None if quick else _TIMES.get(way, 1.0)
        yield Result(title + names[way], "s", took["ours"], None, took[way], times=times)
    after = [one.after_last_ms for one in ends]
    most_ms = 50 + 20 * median(took["ours"])
    yield Result("  after the last completion until all have returned", "ms", after, most_ms)


_PGQUEUER = "1.6.0"


def _pgqueuer(dsn: str) -> Side | None:
    try:
        side = peer("pgqueuer", f"pgqueuer=={_PGQUEUER}", "asyncpg==0.32.0")
    except LeftOut as reason:
        print(f"PgQueuer is left out: {reason}", flush=True)
        return None
    side.run(dsn, "install")
    return side


def _ours(
    dsn: str,
    side: Side,
    appname: str,
    count: int,
    ids: int,
    done: int | None = None,
    **more: object,
) -> Took:
    with workers(dsn, side) as room:
        room.begin(appname, count, ids, **more)
        return room.run(ids if done is None else done)


def _loop(dsn: str, side: Side, way: str, ids: int) -> float:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS job")
        connection.execute(
            "CREATE TABLE job (id bigint PRIMARY KEY, state text NOT NULL DEFAULT 'new')"
        )
        connection.execute("INSERT INTO job SELECT generate_series(1, %s)", [ids])
        connection.execute("CREATE INDEX ON job (id) WHERE state = 'new'")
        connection.execute("ANALYZE job")
    with workers(dsn, side) as room:
        room.begin_loops(way, 4)
        return room.run(ids).sec


def _peer(dsn: str, side: Side, theirs: Side, ids: int) -> float:
    theirs.run(dsn, "enqueue", ids)
    with workers(dsn, side) as room:
        room.begin_peers(theirs, 4)
        return room.run(ids).sec


# == beside the ideal ==============================================================================


def _beside_the_ideal(dsn: str, side: Side, quick: bool) -> Iterator[Result]:
    """Handlers of 5 ms, which take nothing else. Theirs is the same handlers without anything
    around: the timers of an event loop are late by themselves."""
    for concurrency in (8,) if quick else (8, 64):
        for count in (1,) if quick else (1, 4):
            each = 600 * concurrency
            more = {"handler_ms": 5.0, "concurrency": concurrency}
            ideal_sec = each * 0.005 / concurrency
            took, bare = list[float](), list[float]()
            for number in range(1 if quick else 3):
                appname = f"ideal{concurrency}_{count}_{number}_"
                took.append(_ours(dsn, side, appname, count, each * count, **more).sec)
                with workers(dsn, side) as room:
                    room.begin_loops("bare", count, ids=each, **more)
                    bare.append(room.run(each * count).sec)
            name = (
                f"5 ms, {count} workers, {concurrency} at once, {each * count:,} ids: of the ideal"
            )
            # More of them than two processors can call.
            times = None if quick or concurrency * count > _MOST_AT_ONCE else 0.85
            ours, theirs = ([100 * ideal_sec / sec for sec in all_] for all_ in (took, bare))
            yield Result(name, "%", ours, None, theirs, times=times, more=True)


_MOST_AT_ONCE = 64


# == more ids ======================================================================================


def _growing(dsn: str, side: Side, quick: bool) -> Iterator[Result]:
    """The time for each, from the word to the last return; and a million of which all is done."""
    sizes = (2_000, 20_000) if quick else (2_000, 20_000, 200_000, 1_000_000)
    each_us = {}
    for ids in sizes:
        rounds = 1 if quick or ids == 1_000_000 else 3
        took = [_ours(dsn, side, f"n{ids}_{number}_", 4, ids) for number in range(rounds)]
        each_us[ids] = [1e6 * one.sec / ids for one in took]
        yield Result(f"{ids:,} ids, 4 workers: for each", "us", each_us[ids])
        if ids == sizes[-1] and not quick:
            after = [one.after_last_ms for one in took]
            most_ms = 50 + 20 * median(one.sec for one in took)
            yield Result(
                "  after the last completion until all have returned", "ms", after, most_ms
            )
            yield Result("  the longest hold of an event loop", "ms", [took[0].held_ms], 50)
            yield Result("  memory of a worker over its ids", "MiB", [took[0].memory_mib], 200)
    middle = [median(values) for values in each_us.values()]
    goal = None if quick else 1.3
    yield Result("  the slowest of these over the fastest", "x", [max(middle) / min(middle)], goal)
    took = [_ours(dsn, side, f"f{number}_", 4, sizes[0], warm=False) for number in range(rounds)]
    first_us = [1e6 * one.sec / sizes[0] for one in took]
    yield Result(f"{sizes[0]:,} ids, the first batch of its processes: for each", "us", first_us)
    ids = sizes[-1]
    again = _ours(dsn, side, f"n{ids}_0_", 1, ids, done=0)
    yield Result(f"{ids:,} ids of which all is complete, run again", "s", [again.sec], 3)
    yield Result("  the longest hold of the event loop", "ms", [again.held_ms], 50)


# == beside old rows ===============================================================================


def _beside_old_rows(dsn: str, side: Side, quick: bool) -> Iterator[Result]:
    """Beside a million rows of yesterday and as many of other tasks of today. Statistics are those
    of empty tables, none, or those of all rows."""
    ids, old, rounds = (5_000, 50_000, 1) if quick else (20_000, 1_000_000, 3)
    took: defaultdict[str, list[float]] = defaultdict(list)
    kinds = ("empty", "never analyzed", "analyzed before", "analyzed after")
    tables = {kind: f"old_{kind.replace(' ', '_')}_" for kind in kinds}
    for kind, appname in tables.items():
        _ours(dsn, side, appname, 4, 100, name="first")
        if kind != "empty":
            _fill(dsn, appname, old, kind)
    for number in range(rounds):
        for kind, appname in tables.items():
            took[kind].append(_ours(dsn, side, appname, 4, ids, name=f"b{number}").sec)
    for kind in kinds[1:]:
        name = f"{ids:,} ids beside 2 x {old:,} old rows, {kind}; theirs: none"
        times = None if quick else 1 / 1.2
        yield Result(name, "s", took[kind], None, took["empty"], times=times)


def _fill(dsn: str, appname: str, rows: int, kind: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in ("claim", "audit"):
            connection.execute(f"ALTER TABLE {appname}{table} SET (autovacuum_enabled = false)")
            if kind == "analyzed before":
                connection.execute(f"ANALYZE {appname}{table}")
            for date in (_YESTERDAY, _TODAY):
                connection.execute(
                    f"INSERT INTO {appname}{table} (date, task_key, task_id, token_id, node, epoch)"
                    f" SELECT {date}, sha256(('old-' || i)::bytea), 'old-' || i, i % 10000, 'w0', 1"
                    f" FROM generate_series(1, {rows}) i"
                )
            if kind == "analyzed after":
                connection.execute(f"ANALYZE {appname}{table}")


# == waiting for others ============================================================================


def _waiting(postgres: EmbeddedPostgres, side: Side, quick: bool) -> Iterator[Result]:
    """One worker has done its share, and waits for another, which does not end."""
    ids = 20_000 if quick else 200_000
    with workers(postgres.dsn, side) as room:
        room.begin("waits_", 2, ids, says=True, stays_at=1)
        room.go()
        pid = room.until_share_is_done()
        time.sleep(_SETTLED_SEC)
        assert postgres.pid is not None
        taken = cpu_ms_per_sec(pid, postgres.pid, seconds=5 if quick else 20)
    name = f"CPU of a worker that waits for {ids // 2:,} ids, and of the server"
    yield Result(name, "ms/s", taken, None if quick else 5)
