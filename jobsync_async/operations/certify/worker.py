"""One worker process of a certification: does as it is told, line by line, and tells what happens
to it.

It ends at once when its standard input does: then whoever certifies is gone, and so is what this
worker would have to leave in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import psycopg

from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import JobSyncError, OwnershipLost
from jobsync_async.host.orders import StartOrders
from jobsync_async.job import Job
from jobsync_async.postgres.sql import Queries
from jobsync_async.runtime.coordinator import Coordinator
from jobsync_async.work.claims import Claim

_INPUT = 0
_START_WITHIN_SEC = 30.0


@dataclass(frozen=True)
class TrialOrders(StartOrders):
    """What a worker is told at its start: its name, and the fields of its configuration."""

    VARIABLE = "JOBSYNC_ASYNC_CERTIFY"

    name: str
    settings: dict[str, Any]

    @property
    def config(self) -> CoordinationConfig:
        return CoordinationConfig(**self.settings)


def tell(event: str, **values: Any) -> None:
    """Write one line for whoever certifies. The clock is the same for all processes of a host."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **values}) + "\n")
    sys.stdout.flush()


class Commands:
    """The lines of standard input. Their end ends the process, whatever it does."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._rest = b""
        os.set_blocking(_INPUT, False)
        asyncio.get_running_loop().add_reader(_INPUT, self._read)

    async def next(self) -> str:
        return await self._lines.get()

    def stand_still(self) -> None:
        """Do nothing at all until something is said: no heartbeat, no answer."""
        select.select([_INPUT], [], [])

    def _read(self) -> None:
        try:
            data = os.read(_INPUT, 4096)
        except BlockingIOError:
            return
        if not data:
            os._exit(1)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._lines.put_nowait(line.decode())


class Stopwatch:
    """How long each statement of this process takes, from the call to the answer."""

    def __init__(self) -> None:
        self._times = defaultdict[bytes, list[float]](list)
        self._round = 0

    def start(self) -> None:
        """From now on. The driver's own cursor is what all of them pass through."""
        execute: Callable[..., Awaitable[Any]] = psycopg.AsyncCursor.execute

        async def timed(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
            began, in_round = time.perf_counter(), self._round
            answer = await execute(cursor, query, *args, **options)
            if isinstance(query, bytes) and in_round == self._round:
                self._times[query].append(time.perf_counter() - began)
            return answer

        psycopg.AsyncCursor.execute = timed  # type: ignore[method-assign, assignment]

    def discard_what_runs(self) -> None:
        """The process stood still: what was under way says nothing."""
        self._round += 1

    def times(self, queries: Queries) -> dict[str, list[float]]:
        """In seconds, by the name of the statement; of several that are one message, by all of
        them. What is no statement of a worker is left out."""
        names = {queries[name]: name for name in queries}
        named = dict[str, list[float]]()
        for query, samples in self._times.items():
            parts = [query] if query in names else query.split(b";\n")
            if all(part in names for part in parts):
                named[" + ".join(names[part] for part in parts)] = samples
        return named


class TrialWorker:
    """The worker, and what it can be told to do.

    ``hold``: begin two transactions of a user's, one with a fence and one without yet. ``stall``:
    stand still until the next line. ``wake``: fence the second, and commit what may be. ``tell``:
    say how long statements took. ``leave``: leave in order.
    """

    def __init__(self, orders: TrialOrders) -> None:
        self._orders = orders
        self._config = orders.config
        self._queries = Queries(self._config.schema or "public", self._config.appname)
        self._watch = Stopwatch()
        self._commands = Commands()
        self._held: list[tuple[psycopg.AsyncConnection[Any], Claim[str]]] = []

    async def run(self) -> None:
        self._watch.start()
        tell("starting")
        async with (
            Job(self._orders.name, self._config, wait_on_enter=_START_WITHIN_SEC) as job,
            anyio.create_task_group() as group,
        ):
            engine = job._engine
            if isinstance(engine, Coordinator) and engine.store is not None:
                self._queries = engine.store.queries  # as this server needs them
            tell("started")
            group.start_soon(self._report, job)
            while (command := await self._commands.next()) != "leave":
                await self._obey(command, job, group)
            group.cancel_scope.cancel()
        self._tell_times()
        tell("left")

    async def _obey(self, command: str, job: Job, group: anyio.abc.TaskGroup) -> None:
        if command == "hold":
            await self._hold(job, group)
        elif command == "stall":
            tell("stalling")
            self._commands.stand_still()
            self._watch.discard_what_runs()
        elif command == "wake":
            await self._commit()
        elif command == "tell":
            self._tell_times()

    def _tell_times(self) -> None:
        tell("times", statements=self._watch.times(self._queries))

    async def _report(self, job: Job) -> None:
        async for change in job.token_changes():
            tell("tokens", tokens=len(job.my_tokens), lost=len(change.lost))

    # -- two transactions of a user's ----------------------------------------------------------

    async def _hold(self, job: Job, group: anyio.abc.TaskGroup) -> None:
        mine = (f"task-{n}" for n in range(10**9))
        chosen = dict[int, str]()
        while len(chosen) < 2:
            task = next(mine)
            if job.owns(task):
                chosen.setdefault(job.task_to_token(task), task)
        for task in chosen.values():
            connection = await psycopg.AsyncConnection.connect(
                self._config.conninfo("fence"), prepare_threshold=None
            )
            await connection.execute(
                "SELECT pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true)"
            )
            claim = await group.start(self._claim, job, task)
            self._held.append((connection, claim))
        (fenced, claim), _ = self._held
        await job.fence(fenced, claim)
        tell("held", tokens=list(chosen), epochs=[claim.epoch for _, claim in self._held])

    async def _claim(
        self, job: Job, task: str, *, task_status: anyio.abc.TaskStatus[Claim[str]]
    ) -> None:
        try:
            async with job.claim(task) as claim:
                task_status.started(claim)
                await anyio.sleep_forever()
        except OwnershipLost:
            pass  # as it must be: others were given the token

    async def _commit(self) -> None:
        """What a handler does that has stood still: it looks neither at its claim nor at the clock,
        and only the server is left to refuse it."""
        committed = []
        (fenced, _), (late, claim) = self._held
        query, parameters = claim.fence_sql()
        async with late:
            cursor = await late.execute(query.encode(), parameters)
            stale_rows = len(await cursor.fetchall())
            if stale_rows:
                await self._write(late, "stale")
                await late.commit()
                committed.append("stale")
            else:
                await late.rollback()
        try:
            async with fenced:
                await self._write(fenced, "held")
                await fenced.commit()
            committed.append("held")
        except psycopg.OperationalError:
            pass  # the server, or a proxy, has ended it
        self._held = []
        tell("committed", stale_rows=stale_rows, committed=committed)

    async def _write(self, connection: psycopg.AsyncConnection[Any], what: str) -> None:
        await connection.execute(self._queries.probe("write_effect"), {"by": what})


async def _main() -> None:
    orders = TrialOrders.from_environment()
    try:
        await TrialWorker(orders).run()
    except (JobSyncError, psycopg.Error) as error:
        tell("failed", error=str(error))
        raise SystemExit(1) from error


if __name__ == "__main__":
    anyio.run(_main)
