"""What is measured of jobsync 1.3.14, in its own environment: ``side_jobsync.py WHAT APPNAME ...``
prints one line of JSON.

The server is in libpq's environment variables. Its logging is off, as a user would have it who
measures.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import sys
import threading
import time
from typing import Any

import psycopg
from side_common import WAL_BYTES, Holdings, asked_per_second, rss, run, tell

NOW = dt.datetime.now(dt.timezone.utc)
BARE = rss()

from jobsync import client  # noqa: E402 - the memory before it is the measure

logging.disable(logging.CRITICAL)


def config(appname: str, **settings: Any) -> Any:
    return client.CoordinationConfig(
        host=os.environ["PGHOST"],
        port=int(os.environ["PGPORT"]),
        dbname=os.environ["PGDATABASE"],
        user=os.environ["PGUSER"],
        password=os.environ["PGPASSWORD"],
        appname=appname,
        **settings,
    )


def wal(connection: Any) -> float:
    return float(connection.execute(WAL_BYTES).fetchone()[0]) / 2**20


def distribution(appname: str, total: str) -> dict[str, float]:
    """Milliseconds of the first distribution on 6 workers, of a 7th that joins, and of its death;
    and the latter's WAL."""
    settings = config(appname, total_tokens=int(total))
    job = client.Job("w0", settings)
    for number in range(6):
        client.ClusterCoordinator(f"w{number}", job.db, settings, NOW).register()
    took: dict[str, float] = {}
    with psycopg.connect("", autocommit=True) as connection:
        for event in ("first", "join", "death"):
            if event == "join":
                client.ClusterCoordinator("w6", job.db, settings, NOW).register()
            if event == "death":
                connection.execute(f"DELETE FROM {job.db.tables['Node']} WHERE name = 'w6'")
                connection.execute("CHECKPOINT")
            # Nobody beats here, and with many tokens a distribution takes longer than a worker may
            # be silent.
            live = connection.execute(
                f"UPDATE {job.db.tables['Node']} SET last_heartbeat = now()"
            ).rowcount
            before = wal(connection)
            started = time.perf_counter()
            job.tokens.distribute(job.locks, job.cluster, event)
            took[event] = (time.perf_counter() - started) * 1000
            took["wal"] = wal(connection) - before
            shares = connection.execute(
                f"SELECT count(*) FROM {job.db.tables['Token']} GROUP BY node"
            ).fetchall()
            assert len(shares) == live
            assert sum(share for (share,) in shares) == int(total)
    job.db.dispose()
    return took


def plan(_: str, pinned: str) -> float:
    """Milliseconds to plan anew for 50 workers when a 51st is gone."""
    nodes = [f"w{number}" for number in range(50)]
    current = {token: f"w{token % 51}" for token in range(10_000)}
    pins: dict[int, Any] = {token: [f"w{token % 50}"] for token in range(int(pinned))}
    started = time.perf_counter()
    client.compute_minimal_move_distribution(10_000, nodes, current, pins, client.matches_pattern)
    return (time.perf_counter() - started) * 1000


def claiming(appname: str, hash_function: str) -> float:
    with client.Job("w0", config(appname, hash_function=hash_function), wait_on_enter=1) as job:
        return asked_per_second(job)


def rows(appname: str) -> dict[str, float]:
    """Rows per second: single claims, claims, completions and pins in bulk."""
    job = client.Job("w0", config(appname), wait_on_enter=1)
    rates: dict[str, float] = {}

    def timed(name: str, count: int, call: Any) -> None:
        started = time.perf_counter()
        call()
        rates[name] = count / (time.perf_counter() - started)

    with job:
        timed(
            "single",
            500,
            lambda: [job.add_task(client.Task(f"s{number}")) for number in range(500)],
        )
        many = [client.Task(f"m{number}") for number in range(10_000)]
        timed("claims", len(many), lambda: job.set_claim(many))
        for task in many:
            job.tasks.add_task(task)
        timed("audit", len(many), job.write_audit)
        pins = [(f"p{number}", "w0", "benchmark") for number in range(10_000)]
        timed("pins", len(pins), lambda: job.register_locks_bulk(pins))
    return rates


def memory(appname: str) -> list[float]:
    """MiB of a running Job over `import psycopg`."""
    with client.Job("w0", config(appname), wait_on_enter=1):
        time.sleep(1)
        return [rss() - BARE]


def hold(appname: str, name: str) -> None:
    """Be a worker until standard input ends."""
    with client.Job(
        name, config(appname), wait_on_enter=2, lock_provider=lambda _: tell(joining=True)
    ):
        tell(ready=True)
        sys.stdin.read()
    os._exit(0)


def worker(appname: str, total: str, name: str) -> None:
    """Tell of every change of its tokens; leave when a line comes."""
    settings = config(appname, total_tokens=int(total))
    job = client.Job(name, settings, wait_on_enter=2, lock_provider=lambda _: tell(joining=True))
    over = threading.Event()

    def follow() -> None:
        holdings, seen = Holdings(), None
        while not over.wait(0.002):
            tokens = job.tokens.my_tokens
            if tokens != seen:
                seen = set(tokens)
                holdings.now(frozenset(seen))

    with job:
        following = threading.Thread(target=follow)
        following.start()
        sys.stdin.readline()
        tell(leaving=True)
    over.set()
    following.join()
    tell(left=True)


if __name__ == "__main__":
    run(globals())
