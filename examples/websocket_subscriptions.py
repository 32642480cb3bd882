"""One subscription per symbol in the whole cluster.

Each worker holds the subscriptions of the symbols whose tokens it owns:

    JOBSYNC_DSN=postgresql://... \
        python websocket_subscriptions.py ws://localhost:8765 anna

Without a name it takes its host and process id. Without JOBSYNC_DSN, libpq's
own settings say where the database is.

The exchange says that a symbol is unsubscribed here before another worker
subscribes to it.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from jobsync_async import Claim, CoordinationConfig, Job

SYMBOLS = ["BTC-USD", "ETH-USD", "SOL-USD", "ADA-USD", "DOT-USD", "XRP-USD"]
OnPrice = Callable[[str, str], object]


async def stream_symbol(claim: Claim[str], url: str, on_price: OnPrice) -> None:
    """Follow one symbol until its token goes.

    If the connection breaks, this raises, and is started again in a while.
    """
    symbol = claim.task_id
    async with connect(url) as upstream:
        try:
            await upstream.send(f"subscribe {symbol}")
            async for message in upstream:
                on_price(symbol, str(message))
        finally:
            await unsubscribe(upstream, symbol)
    raise ConnectionError(f"the server closed the stream of {symbol}")


async def unsubscribe(upstream: ClientConnection, symbol: str) -> None:
    """Wait until the exchange has let go.

    The next worker subscribes as soon as this returns. Cancelling does not
    hurry it.
    """
    with anyio.move_on_after(10, shield=True), suppress(ConnectionClosed):
        await upstream.send(f"unsubscribe {symbol}")
        while await upstream.recv() != f"unsubscribed {symbol}":
            pass  # prices that were on their way
        await upstream.close()


async def work(name: str, dsn: str, url: str, on_price: OnPrice) -> None:
    """Join, and hold this worker's subscriptions until it is stopped."""
    config = CoordinationConfig(dsn=dsn, appname="ws_")

    async def handle(claim: Claim[str]) -> None:
        await stream_symbol(claim, url, on_price)

    async with Job(name, config, handle_signals=True) as job:
        await job.run_owned(SYMBOLS, handle)


def show(symbol: str, price: str) -> None:
    print(symbol, price, flush=True)


async def main() -> None:
    """What ``python websocket_subscriptions.py URL [name]`` does."""
    default = f"{socket.gethostname()}-{os.getpid()}"
    name = sys.argv[2] if len(sys.argv) > 2 else default
    await work(name, os.environ.get("JOBSYNC_DSN", ""), sys.argv[1], show)


if __name__ == "__main__":
    asyncio.run(main())
    print("left")
