"""A real browser: Debian's Chromium, driven by Playwright's Python package. Nothing is downloaded
for it, and it keeps nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "there is no Chromium (Debian's package `chromium`)"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """A browser; each of its contexts has nothing in it."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield chromium
        finally:
            await chromium.close()


async def until(page: Any, expression: str, seconds: float = 5) -> None:
    """Wait until an expression holds in a page. Playwright's own way needs `eval` there, which the
    page forbids."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await page.evaluate(expression):
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(expression)
        await asyncio.sleep(0.02)
