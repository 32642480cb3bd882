"""The page served on its own, by uvicorn."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager

import anyio
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import ConfigError
from jobsync_async.host.task_groups import task_group
from jobsync_async.web.app import ClusterPage, Steer
from jobsync_async.web.forgery import HEADERS


class _Server(uvicorn.Server):
    """One that ends the streams before it waits for them, and ends in order when it is told to."""

    def __init__(self, config: uvicorn.Config, page: ClusterPage) -> None:
        super().__init__(config)
        self._page = page

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # uvicorn would raise them again at its end

    async def end_on_signal(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._page.aclose()
        await super().shutdown(sockets)


class KnownHosts:
    """Refuses requests under other names. A page of another site whose name leads to this machine
    would otherwise be of the same origin, and could read and do everything here.

    Args:
        names: under which browsers may ask for the page, without a port; None for all.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self._app = app
        self._names = None if names is None else {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._names is None:
            await self._app(scope, receive, send)
            return
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode(
            "latin-1"
        )
        bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if bare.strip("[]").lower() in self._names:
            await self._app(scope, receive, send)
            return
        text = f"this page is not known as {bare!r:.100}: allow that name by --allow-host\n"
        headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
        headers.append((b"content-type", b"text/plain; charset=utf-8"))
        await send({"type": "http.response.start", "status": 421, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


async def serve(
    config: CoordinationConfig,
    steer: Steer | None,
    *,
    host: str,
    port: int,
    names: Collection[str] | None,
    say: Callable[[str], object],
) -> None:
    """Serve the page until the process is told to end.

    Args:
        names: under which it may be asked for; None for all.
        say: told the address when it can be asked.

    Raises ConfigError when the address is taken.
    """
    page = ClusterPage(config, steer)
    settings = uvicorn.Config(
        KnownHosts(page, names),
        host=host,
        port=port,
        ws="none",
        log_level="warning",
        access_log=False,
    )
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{listening.getsockname()[1]}/")
    server = _Server(settings, page)
    with listening:
        async with task_group() as group:
            group.start_soon(server.end_on_signal)
            await server.serve([listening])
            group.cancel_scope.cancel()
