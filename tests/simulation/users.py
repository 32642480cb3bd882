"""What users do with a job: claims, fences, readers of changes, coroutines that follow their
tokens, batches, pins, drains.

Each function is a task in a simulated process. Whatever it calls may be cancelled at any moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import psycopg

from jobsync_async import CoordinationError, Job, StoreUnavailable, UsageError
from jobsync_async.types import RebalanceEvent
from jobsync_async.work.claims import Claim
from tests.simulation.driver import Connection
from tests.simulation.process import Process

# What a user has to expect; anything else that comes out of the library is a defect.
EXPECTED = (CoordinationError, StoreUnavailable, UsageError, psycopg.OperationalError)


@asynccontextmanager
async def _connected() -> AsyncIterator[Connection]:
    """A connection of the user's own program, which may stay in a transaction for as long as it
    likes."""
    connection = await Connection.connect("user", autocommit=True)
    connection.idle_limit = False
    try:
        yield connection
    finally:
        await connection.close()


class Users:
    """The users of one process."""

    def __init__(self, process: Process, random: Random, tokens: int) -> None:
        self._process = process
        self._random = random
        self._tokens = tokens
        self._stale: list[Claim] = []

    @property
    def _job(self) -> Job:
        assert self._process.job is not None
        return self._process.job

    def some(self) -> tuple[str, Callable[[], Coroutine[Any, Any, None]]]:
        """One of them, by chance."""
        kinds = (
            self.claim,
            self.claim,
            self.claim,
            self.fence,
            self.fence,
            self.follow,
            self.run_owned,
            self.record,
            self.stale,
        )
        kind = self._random.choice(kinds)
        return kind.__name__, kind

    async def _work(self, most_sec: float) -> None:
        await anyio.sleep(self._random.random() * most_sec)

    def _own_id(self) -> int | None:
        job = self._job
        # Also while the cluster is paused.
        owned = [task for task in range(self._tokens) if job.task_to_token(task) in job.my_tokens]
        return self._random.choice(owned) if owned else None

    # -- claims and fences -------------------------------------------------------------------------

    async def claim(self) -> None:
        """Claims one task after the other, and works on each for a while."""
        try:
            for _ in range(self._random.randint(1, 6)):
                task = self._own_id()
                if task is None:
                    await self._work(1)
                    continue
                async with self._job.claim(task) as claim:
                    await self.body(claim, 1.5)
        except EXPECTED:
            return

    async def body(self, claim: Claim, most_sec: float) -> None:
        """Uses a claim until it is done or lost, and sometimes takes its time to clean up, which is
        use as well."""
        number = self._process.claimed(claim)
        try:
            await self._work(most_sec)
        finally:
            try:
                if self._random.random() < 0.2:
                    with anyio.CancelScope(shield=self._random.random() < 0.5):
                        await self._work(0.3)
            finally:
                self._process.unclaimed(number)
                self._stale = [*self._stale[-3:], claim]

    async def fence(self) -> None:
        """Commits something through the fence, in a transaction that takes a while."""
        try:
            async with _connected() as connection:
                task = self._own_id()
                if task is not None:
                    async with self._job.claim(task) as claim:
                        await self._fenced(connection, claim)
        except EXPECTED:
            return

    async def _fenced(self, connection: Connection, claim: Claim) -> None:
        number = self._process.claimed(claim)
        try:
            async with connection.transaction():
                await self._job.fence(connection, claim)  # type: ignore[arg-type]
                await self._work(self._random.choice((0.05, 0.5, 3)))
        finally:
            self._process.unclaimed(number)

    async def stale(self, claim: Claim | None = None) -> None:
        """A part of the user's program that goes on with a claim which is over: the fence alone
        must stop it."""
        if claim is None and not self._stale:
            return
        claim = claim or self._random.choice(self._stale)
        try:
            async with _connected() as connection, connection.transaction() as transaction:
                query, params = claim.fence_sql()
                cursor = await connection.execute(query.encode(), params)
                if await cursor.fetchone() is None:
                    raise psycopg.Rollback(transaction)
                await self._work(1)
        # A Rollback comes out when the connection breaks at it.
        except (psycopg.OperationalError, psycopg.Rollback):
            return

    # -- readers -----------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Reads changes, and takes its time for each of them."""
        number = self._process.reading()
        try:
            async with self._job.token_changes() as changes:
                self._process.streams[number] = held = set[int]()
                for _ in range(self._random.randint(1, 15)):
                    change = await changes.__anext__()
                    held |= change.assigned
                    held -= change.lost
                    self._process.uses += 1
                    await self._work(0.8)
                    held -= change.revoked  # asking for the next item lets go of them
                    self._process.uses += 1
        except (StopAsyncIteration, *EXPECTED):
            return
        finally:
            self._process.streams.pop(number, None)
            self._process.uses += 1

    async def on_rebalance(self, event: RebalanceEvent) -> None:
        """A callback that takes its time."""
        await self._work(0.2)

    async def run_owned(self) -> None:
        """One coroutine per owned id, for a while."""
        ids = self._random.sample(range(self._tokens), self._tokens // 2)

        async def handler(claim: Claim) -> None:
            for _ in range(self._random.randint(1, 10)):
                await self.body(claim, 2.0)
                if self._random.random() < 0.1:
                    raise ValueError("the handler does not feel well")

        with anyio.move_on_after(self._random.uniform(1, 12)):
            try:
                await self._job.run_owned(ids, handler)
            except EXPECTED:
                return

    # -- records, pins, status ---------------------------------------------------------------------

    async def record(self) -> None:
        """Claims, completions, status."""
        job = self._job
        try:
            task = self._own_id()
            if task is not None:
                await job.add_tasks([task])
                await job.set_claim(task)
            await job.write_audit()
            await job.get_coordination_status()
            await job.owner_of(self._random.randrange(self._tokens))
        except EXPECTED:
            return

    async def pin(self) -> None:
        """Pins a task, or clears all pins."""
        try:
            if self._random.random() < 0.7:
                patterns = self._random.sample(["a", "b", "_", "c%", "nobody", "%"], 2)
                await self._job.register_locks_bulk(
                    [(self._random.randrange(self._tokens), patterns, None)]
                )
            else:
                await self._job.clear_all_locks()
        except EXPECTED:
            return

    async def clear(self) -> None:
        """Clears all pins."""
        try:
            await self._job.clear_all_locks()
        except EXPECTED:
            return

    async def drain(self) -> None:
        """Drains, and takes tokens again."""
        self._process.drained = True
        try:
            with anyio.move_on_after(self._random.uniform(0.5, 6)):
                await self._job.drain()
                await self._work(2)
        except EXPECTED:
            pass
        await self.undrain()

    async def halt(self) -> None:
        """Pauses the cluster for a while."""
        try:
            await self._job.pause("to look at something")
            await self._work(self._random.choice((0.5, 5)))
        except EXPECTED:
            pass
        await self.resume()

    async def resume(self) -> None:
        """Lets all go on, as soon as that can be said."""
        await self._until_said(self._job.resume)

    async def evict(self, name: str) -> None:
        """Puts a worker out, perhaps the one that this runs in, and allows it again some time."""
        job, answers = self._job, self._random.random() < 0.8
        self._process.trace(f"evicts {name}")
        try:
            await job._engine.steering.evict(name, "somebody")  # type: ignore[attr-defined]
            await self._work(self._random.choice((0.5, 6)))
        except EXPECTED:
            pass
        if answers:
            await self.allow(name)

    async def allow(self, name: str) -> None:
        """Lets workers of this name join again, as soon as that can be said."""
        steering: Any = self._job._engine.steering
        await self._until_said(lambda: steering.allow(name, "somebody"))

    async def undrain(self) -> None:
        """Takes tokens again, as soon as that can be said."""
        await self._until_said(self._job.undrain)

    async def _until_said(self, say: Callable[[], Coroutine[Any, Any, object]]) -> None:
        while self._job._state != "stopped":  # then its connections are closed
            try:
                await say()
            except StoreUnavailable:
                await asyncio.sleep(0.3)
            except UsageError:
                return
            else:
                return

    async def batch(self, ids: list[str]) -> None:
        """Takes part in a batch to its end."""

        async def handler(claim: Claim) -> None:
            await self.body(claim, 0.1)

        try:
            result = await self._job.run_batch(ids, handler, concurrency=4)
        except EXPECTED:
            return
        parts = (result.completed_here, result.completed_elsewhere, frozenset(result.failed))
        assert frozenset().union(*parts) == set(ids), "every id is done with"
        assert sum(map(len, parts)) == len(ids), "the parts are disjoint"
        assert not result.failed
