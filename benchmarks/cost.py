"""What a worker costs while nothing happens: statements, connections, memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter

import psycopg

from benchmarks.results import Result
from jobsync_async import CoordinationConfig, Job
from jobsync_async.embedded import EmbeddedPostgres

SETTINGS = {"log_statement": "all", "log_line_prefix": "%a|"}

_MEMORY = """
import asyncio, gc, sys
import psycopg
from pathlib import Path
def rss():
    gc.collect()
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
async def main():
    bare = rss()
    from jobsync_async import CoordinationConfig, Job
    config = CoordinationConfig(dsn=sys.argv[1], appname="memory_")
    jobs = [Job("w0", config)]
    await jobs[0].start()
    await asyncio.sleep(1)
    first = rss()
    more = 10
    for n in range(1, more + 1):
        jobs.append(Job(f"w{n}", config))
        await jobs[-1].start()
    await asyncio.sleep(1)
    print((first - bare) / 1024, (rss() - first) / 1024 / more)
    await asyncio.gather(*(job.stop() for job in jobs))
asyncio.run(main())
"""


async def measure(postgres: EmbeddedPostgres, seconds: float) -> list[Result]:
    """A leader and a follower in steady state, all their statements counted by the server's log."""
    config = CoordinationConfig(dsn=postgres.dsn, appname="cost_")
    async with Job("leader", config), Job("follower", config):
        await asyncio.sleep(12)  # until what starting needed is closed again
        async with await psycopg.AsyncConnection.connect(postgres.dsn) as connection:
            cursor = await connection.execute(
                "SELECT split_part(application_name, ' ', 3), count(*) FROM pg_stat_activity "
                "WHERE application_name LIKE 'jobsync_async %%' GROUP BY 1"
            )
            connections = dict(await cursor.fetchall())
        before = _statements(postgres)
        await asyncio.sleep(seconds)
        per_minute = {
            name: (count - before[name]) * 60 / seconds for name, count in _statements(postgres).items() if name in connections
        }
    return [
        *(Result(f"statements per minute, {name}", "", [per_minute[name]], 13) for name in ("follower", "leader")),
        *(Result(f"connections, {name}", "", [connections[name]], 2) for name in ("follower", "leader")),
    ]


def _statements(postgres: EmbeddedPostgres) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in postgres.log().splitlines():
        application, _, rest = line.partition("|")
        if application.startswith("jobsync_async ") and ("statement:" in rest or "execute " in rest):
            counts[application.split()[2]] += 1
    return counts


def memory(dsn: str, rounds: int) -> list[Result]:
    """Resident memory over that of a process that has imported psycopg."""
    first, further = [], []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-c", _MEMORY, dsn], capture_output=True, text=True, check=True)
        one, more = map(float, done.stdout.split())
        first.append(one)
        further.append(more)
    return [
        Result("memory of the first Job over `import psycopg`", "MiB", first, 8),
        Result("memory of each further Job", "MiB", further, 0.5),
    ]
