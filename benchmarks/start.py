"""From the start of a process to its first token: what rolling updates, cron jobs and tests wait
for. Beside a program that loads psycopg, connects as often, waits for as many answers, and writes
as many rows."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

from benchmarks.results import Result
from benchmarks.sides import Side, server
from jobsync_async.embedded import EmbeddedPostgres

_PROGRAM = Path(__file__).with_name("start_worker.py")
_MOST = 1.3
COUNTED = {"log_statement": "all", "log_connections": "on", "log_line_prefix": "%a|"}


def measure(postgres: EmbeddedPostgres, sides: Sequence[Side], quick: bool) -> list[Result]:
    side, asked = sides[0], (0, 0)
    for _ in range(2):  # what is compiled, and the tables; then it is counted
        _, asked = _start(postgres, side, "ours", "start_")
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE start_least (LIKE start_token INCLUDING ALL)")
        connection.execute("INSERT INTO start_least SELECT * FROM start_token")
    ours, least = list[float](), list[float]()
    for _ in range(5 if quick else 25):
        ours.append(1000 * _start(postgres, side, "ours", "start_")[0])
        least.append(1000 * _start(postgres, side, "least", *asked)[0])
    name = "start to the first token; theirs: psycopg, {} connections, {} answers, rows written"
    times = None if quick else 1 / _MOST
    return [Result(name.format(*asked), "ms", ours, None, least, times=times)]


def _start(
    postgres: EmbeddedPostgres, side: Side, *arguments: object
) -> tuple[float, tuple[int, int]]:
    """How many seconds it took, and how many connections and statements."""
    before, began = _asked(postgres), time.perf_counter()
    with subprocess.Popen(
        [side.python, str(_PROGRAM), *map(str, arguments)],
        env={**side.environment, **server(postgres.dsn), "PGAPPNAME": "start"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        took, now = time.perf_counter() - began, _asked(postgres)
        process.stdin.close()  # now it may leave
    if line != b"there\n" or process.returncode:
        raise RuntimeError("the process has failed")
    return took, (now[0] - before[0], now[1] - before[1])


def _asked(postgres: EmbeddedPostgres) -> tuple[int, int]:
    """How many connections were made, and statements sent, up to now."""
    lines = postgres.log().splitlines()
    asked = [line for line in lines if "statement:" in line or "execute " in line]
    return sum("connection authorized" in line for line in lines), len(asked)
