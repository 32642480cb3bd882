"""An exchange that makes its prices up, and sends each one every second.

    python exchange.py 8765

It says on its terminal what is subscribed and unsubscribed.
"""

import asyncio
import random
import sys

from websockets.asyncio.server import ServerConnection, serve


async def send_prices(client: ServerConnection) -> None:
    while True:
        await client.send(f"{random.uniform(10, 99):.2f}")  # noqa: S311
        await asyncio.sleep(1)


async def handle(client: ServerConnection) -> None:
    """One subscription: a client asks for one symbol, and gives it back."""
    _, symbol = str(await client.recv()).split()
    print(f"subscribed   {symbol}", flush=True)
    prices = asyncio.create_task(send_prices(client))
    try:
        async for _ in client:  # "unsubscribe SYMBOL"
            prices.cancel()
            print(f"unsubscribed {symbol}", flush=True)
            await client.send(f"unsubscribed {symbol}")
    finally:
        prices.cancel()


async def main() -> None:
    async with serve(handle, "localhost", int(sys.argv[1])):
        print("The exchange is open.", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("The exchange is closed.")
