"""A network between one worker and PostgreSQL that does what it is told: a TCP proxy in a thread of
the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from typing_extensions import Self

Direction = Literal["up", "down"]
_CHUNK = 65_536


class Proxy:
    """Carries connections to a server, until it is told otherwise. Use it as a context manager;
    thread-safe.

    ``up`` is towards the server, ``down`` towards the worker. What is cut is not refused: it stays
    on the way, as when packets are lost and sent again, and arrives when the way is restored, if
    the connection still stands by then.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._delay_sec = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    # -- what the network does ---------------------------------------------------------------------

    def cut(self, *directions: Direction) -> None:
        """Carry nothing any more in the directions (default both), and say nothing."""
        self._call(
            lambda: [self._open[direction].clear() for direction in directions or ("up", "down")]
        )

    def restore(self) -> None:
        """Carry everything again, first what was held back."""
        self._call(lambda: [gate.set() for gate in self._open.values()])

    def delay(self, seconds: float) -> None:
        """Let everything take so long from now on, each way."""
        self._delay_sec = seconds

    def reset(self) -> None:
        """Break every connection with a TCP reset, at both ends."""
        self._call(self._reset)

    def _call(self, work: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    # -- inside ------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        for gate in self._open.values():
            gate.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        ends = {writer}
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            server_reader, server_writer = await asyncio.open_connection(*self._server)
            self._writers.add(server_writer)
            ends.add(server_writer)
            await asyncio.gather(
                self._carry("up", reader, server_writer), self._carry("down", server_reader, writer)
            )
        for end in ends:
            self._writers.discard(end)
            end.close()

    async def _carry(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Read all the time, and write when it is due and the way is open."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.ensure_future(self._deliver(direction, on_the_way, writer))
        data = b"-"
        try:
            while data:
                try:
                    data = await reader.read(_CHUNK)
                except OSError:
                    data = b""
                on_the_way.put_nowait((self._loop.time() + self._delay_sec, data))
            await delivering
        finally:
            delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await delivering

    async def _deliver(
        self,
        direction: Direction,
        on_the_way: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
    ) -> None:
        while True:
            due, data = await on_the_way.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._open[direction].wait()
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    def _reset(self) -> None:
        for writer in tuple(self._writers):
            connection = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
