"""The page, served on this event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp

from benchmarks.browsers import CHROMIUM, MISSING

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@asynccontextmanager
async def served(app: ASGIApp, *, port: int = 0, **options: Any) -> AsyncIterator[str]:
    """The application on a port of this machine, a free one by default; its address, which ends in
    a slash."""
    settings = uvicorn.Config(
        app, ws="none", log_level="warning", timeout_graceful_shutdown=5, **options
    )
    server = uvicorn.Server(settings)
    with socket.create_server(("127.0.0.1", port)) as listening:
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup([listening])
        ticking = asyncio.create_task(server.main_loop())
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            await ticking
            if hasattr(app, "aclose"):
                await app.aclose()
            await server.shutdown([listening])
