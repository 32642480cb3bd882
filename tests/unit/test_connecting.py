"""A connect that is cancelled leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from jobsync_async.postgres.connection import Connection


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is in a cycle stays until the test is over."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
async def test_a_connect_that_is_cancelled_closes_its_socket_at_once():
    asked, closed = asyncio.Event(), asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connecting = asyncio.create_task(Connection.connect(f"host=127.0.0.1 port={port}"))
        await asked.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await connecting
        await asyncio.wait_for(closed.wait(), 5)
    assert caught.value.__traceback__ is not None, "the error was kept all the while"
