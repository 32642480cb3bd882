"""The interleavings that must not bite, each forced by hand. They are numbered across the files of
this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from jobsync_async import CoordinationConfig
from tests.hands import Hand, hand

TOKENS = 12

Joined = Callable[..., "asyncio.Future[Hand]"]


@pytest.fixture
def config(make_config) -> CoordinationConfig:
    return make_config(
        total_tokens=TOKENS,
        hash_function="modulo",
        heartbeat_interval_sec=1,
        heartbeat_timeout_sec=5,
    )


@pytest.fixture
async def join(config) -> AsyncIterator[Joined]:
    """Makes workers that have joined."""
    async with AsyncExitStack() as stack:

        async def make(name: str, **kwargs) -> Hand:
            worker = await stack.enter_async_context(hand(config, name))
            assert await worker.join(**kwargs) is None
            return worker

        yield make


async def two_with_a_handoff(join) -> tuple[Hand, Hand]:
    """a owns every token; half of them are to go to b."""
    a = await join("a")
    await a.lead()
    b = await join("b")
    await a.lead()
    going = [token for token, (_, revoking) in (await a.mine()).items() if revoking]
    assert len(going) == TOKENS // 2
    return a, b
