"""One subscription per symbol in the whole cluster: each worker holds those whose tokens it owns.

    JOBSYNC_DSN=postgresql://... python examples/websocket_subscriptions.py anna ws://localhost:8765

A symbol is unsubscribed here, and the connection closed, before another worker subscribes to it.
"""

import asyncio
import os
import sys
from collections.abc import Callable

from websockets.asyncio.client import connect

from jobsync_async import Claim, CoordinationConfig, Job

SYMBOLS = ["BTC-USD", "ETH-USD", "SOL-USD", "ADA-USD", "DOT-USD", "XRP-USD"]


async def stream_symbol(claim: Claim, url: str, on_price: Callable[[str, str], None]) -> None:
    """Follow one symbol until its token goes. If the connection breaks, this raises, and is started again in a while."""
    async with connect(url) as socket:
        await socket.send(f"subscribe {claim.task_id}")
        try:
            async for message in socket:
                on_price(str(claim.task_id), str(message))
        finally:
            await socket.send(f"unsubscribe {claim.task_id}")
    raise ConnectionError(f"the server closed the stream of {claim.task_id}")


async def work(name: str, dsn: str, url: str, on_price: Callable[[str, str], None]) -> None:
    """Join, and hold this worker's subscriptions until it is stopped."""
    async with Job(name, CoordinationConfig(dsn=dsn, appname="ws_")) as job:
        await job.run_owned(SYMBOLS, lambda claim: stream_symbol(claim, url, on_price))


if __name__ == "__main__":
    try:
        asyncio.run(work(sys.argv[1], os.environ.get("JOBSYNC_DSN", ""), sys.argv[2], print))
    except KeyboardInterrupt:
        print("left")
