"""A batch that several processes do together: each invoice is booked exactly once.

Start it in several terminals; each worker has a name of its own, by default its host and process id:

    JOBSYNC_DSN=postgresql://... python examples/batch.py anna

Without JOBSYNC_DSN, libpq's own settings (PGHOST, PGDATABASE, ...) say where the database is. The booking is written in a
transaction with `fence`, so a worker that lost an invoice can never book it. Kill one midway: the others finish its part. Stop
it with Ctrl-C or SIGTERM: it books what it has begun, and leaves. Start it again: it goes on, or finds everything done.
"""

import asyncio
import os
import socket
import sys

import psycopg
from psycopg_pool import AsyncConnectionPool

from jobsync_async import BatchResult, Claim, CoordinationConfig, Job
from jobsync_async.progress import RichProgress

INVOICES = [f"invoice-{number:04}" for number in range(1000)]

# A worker may die after it committed a booking and before it could say so. Then the next owner books the invoice again: the
# fence lets it, for it is the owner now, and the primary key makes the second booking do nothing.
CREATE = "CREATE TABLE IF NOT EXISTS booking (invoice text PRIMARY KEY, booked_by text)"
BOOK = "INSERT INTO booking (invoice, booked_by) VALUES (%s, %s) ON CONFLICT DO NOTHING"


async def book(job: Job, pool: AsyncConnectionPool, claim: Claim) -> None:
    """Book one invoice. Either all of this is committed while the invoice is ours, or nothing."""
    async with pool.connection() as connection, connection.transaction():
        await job.fence(connection, claim)
        await connection.execute(BOOK, [claim.task_id, job.node_name])


async def work(name: str, dsn: str, invoices: list[str] = INVOICES) -> BatchResult | None:
    """Join, do a share of the batch, and leave when all of it is done; None when it is told to leave before."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SELECT pg_advisory_lock(1)")  # two workers must not create it at the same moment
        await connection.execute(CREATE)
    async with (
        AsyncConnectionPool(dsn, open=False) as pool,
        Job(name, CoordinationConfig(dsn=dsn, appname="batch_"), handle_signals=True) as job,
    ):
        with RichProgress("invoices") as progress:  # on standard error
            return await job.run_batch(invoices, lambda claim: book(job, pool, claim), concurrency=4, progress=progress)
    return None


async def main() -> None:
    """What ``python examples/batch.py [name]`` does."""
    name = sys.argv[1] if len(sys.argv) > 1 else f"{socket.gethostname()}-{os.getpid()}"
    result = await work(name, os.environ.get("JOBSYNC_DSN", ""))
    if result is None:
        print("left; start it again to go on")
        return
    print(f"{name}: {len(result.completed_here)} booked here, {len(result.completed_elsewhere)} elsewhere")


if __name__ == "__main__":
    asyncio.run(main())
