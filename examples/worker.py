"""A worker for containers: settings from the environment, and health by HTTP.

    JOBSYNC_DSN=postgresql://... NODE_NAME=worker-1 python worker.py

``/health/live`` says that the process can work. Restart it when that says 503,
or does not answer. ``/health/ready`` says that this worker may act. On SIGTERM
the worker finishes what it has begun, hands everything on, and leaves.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from jobsync_async import Claim, CoordinationConfig, Job

FEEDS = [f"feed-{number}" for number in range(20)]
PORT = int(os.environ.get("PORT", "8000"))
logger = logging.getLogger("worker")
ANSWER = "HTTP/1.1 {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def follow(claim: Claim[str]) -> None:
    """Your work: one of these for each feed, in the whole cluster."""
    logger.info("following %s", claim.task_id)
    try:
        await asyncio.sleep(float("inf"))
    finally:
        logger.info("left %s", claim.task_id)


@asynccontextmanager
async def health(job: Job) -> AsyncIterator[None]:
    """Answer probes. Neither of the two asks PostgreSQL."""

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request = await reader.readline()
        path = request.split()[1:2]
        well = (
            job.failure is None
            if path == [b"/health/live"]
            else path == [b"/health/ready"] and job.am_i_healthy()
        )
        status = "200 OK" if well else "503 Service Unavailable"
        writer.write(ANSWER.format(status).encode())
        writer.close()

    async with await asyncio.start_server(answer, port=PORT):
        yield


async def main() -> None:
    logging.basicConfig(level=logging.INFO)
    name = os.environ.get("NODE_NAME") or socket.gethostname()
    job = Job(name, CoordinationConfig.from_env(), handle_signals=True)
    # Probes are answered while it joins, too, and while it leaves.
    async with health(job), job:
        await job.run_owned(FEEDS, follow)


if __name__ == "__main__":
    asyncio.run(main())
