"""A batch that several processes do together. Each invoice is booked once.

Start it in several terminals, each with a name of its own:

    JOBSYNC_DSN=postgresql://... python batch.py anna

Without a name it takes its host and process id. Without JOBSYNC_DSN, libpq's
own settings (PGHOST, PGDATABASE, ...) say where the database is.

Kill one midway: the others finish its part. Stop it with Ctrl-C or SIGTERM: it
books what it has begun, and leaves. Start it again: it goes on.
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

# A worker may die after it committed a booking, and before it could say so.
# Then the next owner books the invoice again. The fence lets it, for it is the
# owner now. The primary key makes the second booking do nothing.
CREATE = """
    CREATE TABLE IF NOT EXISTS
    booking (invoice text PRIMARY KEY, booked_by text)
"""
BOOK = """
    INSERT INTO booking (invoice, booked_by) VALUES (%s, %s)
    ON CONFLICT DO NOTHING
"""


async def book(job: Job, pool: AsyncConnectionPool, claim: Claim[str]) -> None:
    """Book one invoice, while it is ours. All is committed, or nothing is."""
    await asyncio.sleep(0.1)  # the work
    async with pool.connection() as connection, connection.transaction():
        await job.fence(connection, claim)
        await connection.execute(BOOK, [claim.task_id, job.node_name])


async def make_table(dsn: str) -> None:
    connect = psycopg.AsyncConnection.connect
    async with await connect(dsn, autocommit=True) as connection:
        # Two workers must not create it at the same moment.
        await connection.execute("SELECT pg_advisory_lock(1)")
        await connection.execute(CREATE)


async def work(
    name: str,
    dsn: str,
    invoices: list[str] = INVOICES,
) -> BatchResult[str] | None:
    """Do a share of the batch, and leave when all of it is done.

    It returns None when it is told to leave before.
    """
    await make_table(dsn)
    config = CoordinationConfig(dsn=dsn, appname="batch_")
    async with (
        AsyncConnectionPool(dsn, open=False) as pool,
        Job(name, config, handle_signals=True) as job,
    ):

        async def handle(claim: Claim[str]) -> None:
            await book(job, pool, claim)

        with RichProgress("invoices") as progress:  # on standard error
            return await job.run_batch(
                invoices,
                handle,
                concurrency=4,
                progress=progress,
            )
    return None


async def main() -> None:
    """What ``python batch.py [name]`` does."""
    default = f"{socket.gethostname()}-{os.getpid()}"
    name = sys.argv[1] if len(sys.argv) > 1 else default
    result = await work(name, os.environ.get("JOBSYNC_DSN", ""))
    if result is None:
        print("left; start it again to go on")
        return
    here, elsewhere = result.completed_here, result.completed_elsewhere
    print(f"{name}: {len(here)} booked here, {len(elsewhere)} elsewhere")


if __name__ == "__main__":
    asyncio.run(main())
