"""Sensors spread over several clusters, each on a PostgreSQL server of its own.

Each name in capitals is a cluster, whose variables say where it is:

    NORTH_DSN=postgresql://... SOUTH_DSN=postgresql://... \
        python several_clusters.py anna NORTH SOUTH

Start it several times, each with a name of its own, and all with the same
clusters. Stop one of the servers: its sensors wait until it is back. The others
go on.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import Sequence
from functools import partial

import anyio
import psycopg

from jobsync_async import (
    Claim,
    CoordinationConfig,
    Job,
    StoreError,
    task_to_token,
)

SENSORS = [f"sensor-{number}" for number in range(6)]

CREATE = """
    CREATE TABLE IF NOT EXISTS reading (
        sensor text,
        read_by text,
        at timestamptz DEFAULT clock_timestamp()
    )
"""
STORE = "INSERT INTO reading (sensor, read_by) VALUES (%s, %s)"


def cluster_of(sensor: str, clusters: Sequence[str]) -> str:
    """The cluster that a sensor belongs to: the same in every process.

    It is the one with the highest hash. So a further cluster takes its share
    from each of the others, and nothing moves between these. The hash is
    another one than for tokens: within a cluster all tokens have sensors.
    """

    def height(cluster: str) -> tuple[int, str]:
        return task_to_token(f"{cluster} {sensor}", 1_000_000, "md5"), cluster

    return max(clusters, key=height)


async def follow(job: Job, dsn: str, claim: Claim[str]) -> None:
    """Store what a sensor says, in its cluster, while it is ours."""
    connect = psycopg.AsyncConnection.connect
    async with await connect(dsn, autocommit=True) as connection:
        while True:
            async with connection.transaction():
                await job.fence(connection, claim)
                row = [claim.task_id, job.node_name]
                await connection.execute(STORE, row)
            await asyncio.sleep(0.01)  # until it says something again


async def make_table(dsn: str) -> None:
    connect = psycopg.AsyncConnection.connect
    async with await connect(dsn, autocommit=True) as connection:
        # Two workers must not create it at the same moment.
        await connection.execute("SELECT pg_advisory_lock(1)")
        await connection.execute(CREATE)


async def work(name: str, cluster: str, sensors: Sequence[str]) -> None:
    """Be a worker of one cluster, whenever its server is there.

    A server that goes away later does not end the job. Handlers are started
    again when it is back.
    """
    config = CoordinationConfig.from_env(f"{cluster}_")
    dsn = config.conninfo("readings")
    while True:
        try:
            await make_table(dsn)
            async with Job(name, config) as job:
                await job.run_owned(sensors, partial(follow, job, dsn))
        except (StoreError, psycopg.OperationalError) as error:
            print(f"{cluster}, tried again: {error}", file=sys.stderr)
            await asyncio.sleep(1)


async def main() -> None:
    """What ``python several_clusters.py NAME CLUSTER...`` does."""
    gc.freeze()  # so that no collection of all objects takes 20 ms
    name, *clusters = sys.argv[1:]
    loop = asyncio.get_running_loop()
    async with anyio.create_task_group() as group:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Each job hands on, and leaves.
            loop.add_signal_handler(number, group.cancel_scope.cancel)
        for cluster in clusters:
            mine = [s for s in SENSORS if cluster_of(s, clusters) == cluster]
            group.start_soon(work, name, cluster, mine)
    print("left")


if __name__ == "__main__":
    asyncio.run(main())
