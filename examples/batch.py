"""A batch that several processes do together: each invoice is booked exactly once.

Start it in several terminals, each with a name of its own:

    JOBSYNC_DSN=postgresql://... python examples/batch.py anna

The booking is written in a transaction with `fence`, so a worker that lost an invoice can never book it. Kill one midway:
the others finish its part. Start it again: it finds everything done.
"""

import asyncio
import os
import sys

import psycopg
from psycopg_pool import AsyncConnectionPool

from jobsync_async import BatchResult, Claim, CoordinationConfig, Job

INVOICES = [f"invoice-{number:04}" for number in range(1000)]


async def book(job: Job, pool: AsyncConnectionPool, claim: Claim) -> None:
    """Book one invoice. Either all of this is committed while the invoice is ours, or nothing."""
    async with pool.connection() as connection, connection.transaction():
        await job.fence(connection, claim)
        await connection.execute("INSERT INTO booking (invoice, booked_by) VALUES (%s, %s)", [claim.task_id, job.node_name])


async def work(name: str, dsn: str, invoices: list[str] = INVOICES) -> BatchResult:
    """Join, do a share of the batch, and leave when all of it is done."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SELECT pg_advisory_lock(1)")  # two workers must not create it at the same moment
        await connection.execute("CREATE TABLE IF NOT EXISTS booking (invoice text, booked_by text)")
    async with (
        AsyncConnectionPool(dsn, open=False) as pool,
        Job(name, CoordinationConfig(dsn=dsn, appname="batch_")) as job,
    ):
        return await job.run_batch(invoices, lambda claim: book(job, pool, claim), concurrency=4)


if __name__ == "__main__":
    me = sys.argv[1] if len(sys.argv) > 1 else f"worker-{os.getpid()}"
    result = asyncio.run(work(me, os.environ.get("JOBSYNC_DSN", "")))
    print(f"{me}: {len(result.completed_here)} booked here, {len(result.completed_elsewhere)} elsewhere")
