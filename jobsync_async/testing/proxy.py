"""A road between one worker and PostgreSQL that can be closed: a TCP proxy on the test's own event
loop."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async.config import CoordinationConfig

_CHUNK = 65_536


class Proxy:
    """Forwards connections to a server until it is told not to.

    Args:
        host: the server's host name, address, or folder of its Unix-domain socket.
        far_port: the port there.
    """

    def __init__(self, host: str, far_port: int) -> None:
        self.host = host
        self._far_port = far_port
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False

    def __repr__(self) -> str:
        state = "open" if self._open.is_set() else "refusing" if self._refusing else "silent"
        return f"<Proxy to {self.host}:{self._far_port} {state}, {len(self._pipes)} connections>"

    @property
    def port(self) -> int:
        """The port on the loopback to connect to."""
        assert self._server is not None, "start() comes first"
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        """End all connections, and listen no more."""
        if self._server is not None:
            self._server.close()
        pipes = tuple(self._pipes)
        for pipe in pipes:
            pipe.cancel()
        if pipes:
            await asyncio.wait(pipes)

    def cut(self, *, silent: bool) -> None:
        """Let nothing through. `silent`: connections stay, and nothing is heard on them; else they
        break and new ones fail."""
        self._open.clear()
        self._refusing = not silent
        if not silent:
            for pipe in self._pipes:
                pipe.cancel()

    def heal(self) -> None:
        """Let everything through again, first what was held up."""
        self._refusing = False
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pipe = asyncio.current_task()
        assert pipe is not None
        self._pipes.add(pipe)
        try:
            if not self._refusing:
                await self._join(reader, writer)
        finally:
            self._pipes.discard(pipe)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            far_reader, far_writer = await self._connect()
        except OSError:
            return
        try:
            await asyncio.gather(
                self._forward(reader, far_writer), self._forward(far_reader, writer)
            )
        finally:
            far_writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self.host}/.s.PGSQL.{self._far_port}")
        return await asyncio.open_connection(self.host, self._far_port)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        await self._open.wait()
        with suppress(OSError):
            writer.write_eof()


def endpoint(config: CoordinationConfig) -> tuple[str, int]:
    """Host and port of the server that a configuration leads to, found by connecting once. Blocks
    for a moment."""
    with psycopg.connect(config.conninfo("test kit")) as connection:
        return connection.info.host, connection.info.port


def through(config: CoordinationConfig, proxy: Proxy) -> CoordinationConfig:
    """The same cluster, reached through the proxy."""
    given = conninfo_to_dict(config.conninfo(""))
    del given["application_name"]  # tells what each connection is for
    # The name stays what certificates and password files know; the address is the proxy's.
    name = "localhost" if proxy.host.startswith("/") else proxy.host
    dsn = make_conninfo(
        "", **{**given, "host": name, "hostaddr": "127.0.0.1", "port": str(proxy.port)}
    )
    return replace(config, dsn=dsn, host=None, port=None, dbname=None, user=None, password=None)
