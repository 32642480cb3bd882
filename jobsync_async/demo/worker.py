"""One worker process of the demo: checksums and compresses the files that it owns, until all are
done everywhere."""

from __future__ import annotations

import asyncio
import hashlib
import lzma
import sys
from dataclasses import dataclass
from functools import partial

import anyio
from anyio import to_thread
from psycopg_pool import AsyncConnectionPool

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.server_profile import ANY_SERVER
from jobsync_async.demo import tables
from jobsync_async.host.orders import StartOrders
from jobsync_async.job import Job
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.sql import Queries
from jobsync_async.work.claims import Claim

_ONE_BY_ONE = 1
_LIMIT_SEC = 10.0


@dataclass(frozen=True)
class Orders(StartOrders):
    """What the conductor tells a worker."""

    VARIABLE = "JOBSYNC_ASYNC_DEMO"

    name: str
    dsn: str
    schema: str
    appname: str
    minimum_nodes: int
    folder: str

    def config(self) -> CoordinationConfig:
        """The demo's cluster: it takes a worker for dead after two seconds without a sign of
        life."""
        return CoordinationConfig(
            dsn=self.dsn,
            schema=self.schema,
            appname=self.appname,
            minimum_nodes=self.minimum_nodes,
            heartbeat_interval_sec=0.4,
            heartbeat_timeout_sec=2,
        )


async def checksum(
    job: Job, pool: AsyncConnectionPool[Connection], orders: Orders, claim: Claim[str]
) -> None:
    """The handler: one file."""
    own = tables.Tables(orders.schema, orders.appname)
    run = {"path": claim.task_id, "worker": job.node_name, "epoch": claim.epoch}
    async with pool.connection() as connection:
        await connection.execute(own.fill(tables.BEGIN_RUN), run)
    content = await anyio.Path(orders.folder, claim.task_id).read_bytes()
    packed = await to_thread.run_sync(lzma.compress, content)
    result = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "packed": len(packed),
    }
    async with pool.connection() as connection, connection.transaction():
        await job.fence(connection, claim)
        await connection.execute(own.fill(tables.WRITE_RESULT), {**run, **result})
        await connection.execute(own.fill(tables.END_RUN), run)


async def work(orders: Orders) -> None:
    """Join, do this worker's part of the batch, and leave."""
    own = tables.Tables(orders.schema, orders.appname)
    config = orders.config()
    connector = Connector(config.conninfo, _LIMIT_SEC)
    # Whatever the server's defaults are, its sessions are set up.
    connector.queries = Queries(orders.schema, orders.appname, ANY_SERVER)
    pool = AsyncConnectionPool(
        config.conninfo(f"{orders.name} results"),
        connection_class=Connection,
        kwargs=connector.options,
        configure=connector.prepare,
        min_size=1,
        max_size=_ONE_BY_ONE + 1,
        open=False,
    )
    async with (
        pool,
        Job(orders.name, config) as job,
    ):
        async with pool.connection() as connection:
            paths = [
                path
                for (path,) in await (
                    await connection.execute(own.fill(tables.READ_PATHS))
                ).fetchall()
            ]
        await job.run_batch(paths, partial(checksum, job, pool, orders), concurrency=_ONE_BY_ONE)


async def work_until_orphaned(orders: Orders) -> None:
    """`work`, but end when the conductor is gone: its end of the pipe to this process is then
    closed."""
    pipe = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin
    )
    try:
        async with anyio.create_task_group() as group:

            async def watch_conductor() -> None:
                await pipe.read()
                group.cancel_scope.cancel()

            group.start_soon(watch_conductor)
            await work(orders)
            group.cancel_scope.cancel()
    finally:
        transport.close()


if __name__ == "__main__":
    anyio.run(work_until_orphaned, Orders.from_environment())
