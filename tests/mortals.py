"""Worker processes that are there to be killed, and what they told before.

As a program (``python -m tests.mortals ORDERS``, JSON), one worker: it prints a line of JSON for
every change of its tokens, and leaves when its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psycopg

from jobsync_async import CoordinationConfig, Job
from jobsync_async.host import process


class Mortal:
    """One process. `owned` is what it told last; `come` when it told last that tokens came
    (seconds, the clock of all)."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, news: asyncio.Event) -> None:
        self.name = name
        self.child = child
        self.owned: set[int] = set()
        self.come_at: dict[int, float] = {}
        self.fenced: int | None = None
        self._news = news
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.child.stdout is not None
        async for line in self.child.stdout:
            said = json.loads(line)
            self.owned |= set(said.get("come", ()))
            self.owned -= set(said.get("gone", ()))
            self.come_at |= dict.fromkeys(said.get("come", ()), said["t"])
            self.fenced = said.get("fenced", self.fenced)
            self._news.set()

    def kill(self) -> float:
        """SIGKILL; when it was sent."""
        sent_at = time.monotonic()
        self.child.send_signal(signal.SIGKILL)
        return sent_at

    async def end(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        await self.child.wait()
        await self._reading


class Mortals:
    """The processes by name; the dead are not among them."""

    def __init__(self, config: CoordinationConfig) -> None:
        self._config = config
        self._news = asyncio.Event()
        self.living: dict[str, Mortal] = {}
        self._dead: list[Mortal] = []

    async def start(self, *names: str, **orders: Any) -> None:
        """Start workers at once, and wait until each has told of its first tokens.

        Args:
            boot_id: pretend to run on another machine.
            fenced_wait: hold a token's fence, and wait for the advisory lock of this key in a
                statement.
            failover: as in the configuration.
        """
        for name in names:
            fields = (
                "dsn",
                "total_tokens",
                "hash_function",
                "heartbeat_interval_sec",
                "heartbeat_timeout_sec",
            )
            settings = {field: getattr(self._config, field) for field in fields}
            child = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "tests.mortals",
                    json.dumps({"name": name, "settings": settings, **orders}),
                ),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1_000_000,
            )
            self.living[name] = Mortal(name, child, self._news)
        await self.until(lambda: all(self.living[name].come_at for name in names))

    async def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        with anyio.fail_after(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def kill(self, *names: str) -> float:
        """SIGKILL, one right after the other; when the first was sent."""
        killed = [self.living.pop(name) for name in names]
        self._dead += killed
        return min([mortal.kill() for mortal in killed])

    def owned(self) -> set[int]:
        """What the living own, by what they told; fails when two own one token."""
        owned: set[int] = set()
        for mortal in self.living.values():
            assert owned.isdisjoint(mortal.owned), (
                f"{mortal.name} and another own {owned & mortal.owned}"
            )
            owned |= mortal.owned
        return owned

    async def all_owned(self, seconds: float = 30, *, but: int = 0) -> None:
        """Wait until the living own every token (but so many)."""
        await self.until(lambda: len(self.owned()) == self._config.total_tokens - but, seconds)

    def last_came(self) -> float:
        """When the last token came to anybody who lives."""
        return max(at for mortal in self.living.values() for at in mortal.come_at.values())

    def first_came(self, since: float) -> float:
        """When the first token came to anybody who lives after this moment."""
        return min(
            at for mortal in self.living.values() for at in mortal.come_at.values() if at > since
        )

    async def end(self) -> None:
        for mortal in (*self.living.values(), *self._dead):
            await mortal.end()


@asynccontextmanager
async def mortals(config: CoordinationConfig) -> AsyncIterator[Mortals]:
    """Worker processes, all of them ended and reaped afterwards."""
    made = Mortals(config)
    try:
        yield made
    finally:
        await made.end()


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps({"t": time.monotonic(), **what}) + "\n")
    sys.stdout.flush()


async def follow(job: Job) -> None:
    async for change in job.token_changes():
        tell(come=sorted(change.assigned), gone=sorted(change.revoked | change.lost))


async def hold_fence(job: Job, dsn: str, key: int) -> None:
    """In a connection of the user's own: a transaction that is fenced, and in the middle of a
    statement."""
    token = min(job.my_tokens)
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        job.claim(token) as claim,
    ):
        async with connection.transaction():
            await job.fence(connection, claim)
            tell(fenced=token)
            await connection.execute("SELECT pg_advisory_lock(%s)", [key])


async def main(
    name: str,
    settings: dict[str, Any],
    boot_id: str | None = None,
    fenced_wait: int | None = None,
    **more: Any,
) -> None:
    if boot_id is not None:
        process._boot_id = lambda: boot_id
    config = CoordinationConfig(**settings, **more)
    input_ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), input_ended.set)
    async with Job(name, config) as job:
        following = asyncio.ensure_future(follow(job))
        if fenced_wait is not None:
            await hold_fence(job, settings["dsn"], fenced_wait)
        await input_ended.wait()
    await following


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S"
    )
    asyncio.run(main(**json.loads(sys.argv[1])))
