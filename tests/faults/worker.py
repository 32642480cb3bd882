"""A worker process for the fault tests: works on the tasks that it owns, and writes down when it
did so.

It is started by the nursery (a fork) or as ``python -m tests.faults.worker SETTINGS``, with its
settings as JSON. All times are read from a clock that every process on the machine shares. Its log
is a file of JSON lists, one a line; `history.py` reads it:

    ["up", t, pid]                              joined ["begin", t, task, epoch]
    t: before the check that allowed it ["end", t, task, epoch, holding]            holding: by its
    own clock the lease still stood ["commit", t, task, epoch, n]               a fenced transaction
    was acknowledged; t: before its first check ["refused", t, task, epoch]                 the
    fence said no ["state", t, healthy, leads, [token, ...]]  what the job says of itself, when it
    changed ["piece", t, id]                            a piece of the batch was begun ["looked", t,
    who, {...}]                   answers of the job at one moment, asked for by the test ["said",
    t, word, ...]                      progress of something that the test asked for ["memory", t,
    kib]                          resident set, now and then ["left", t]; ["failed", t, why]
    the last word

What it does *without* the fence goes to one plain file, shared by all, one line each: time of the
check, time of the act, worker, task, epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

import anyio
import psycopg

from jobsync_async import Claim, CoordinationConfig, Job, OwnershipLost, StoreUnavailable
from jobsync_async.host import process
from jobsync_async.postgres.connection import Connection
from tests.faults import history, wires

LONGEST_LIFE_SEC = 1200
CLEANUP_SEC = 0.03
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_WRITE = """
    WITH next AS (UPDATE public.counter SET n = n + 1 WHERE task = %(task)s RETURNING task, n)
    INSERT INTO public.effect (task, n, epoch, worker) SELECT task, n, %(epoch)s, %(worker)s
        FROM next RETURNING n
"""


def clock() -> float:
    """The time that all processes share, in seconds; counts suspend, and no faked or adjusted wall
    clock changes it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class FaultWorker:
    """One process's job, its handlers, and what the test tells it to do."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.name: str = settings["name"]
        # As if on a host of its own: what neighbours can see of each other is not used.
        if settings["far"]:
            process._boot_id = lambda: f"the host of {self.name}"
        self.job = Job(
            self.name,
            CoordinationConfig(dsn=settings["dsn"], **settings["config"]),
            wait_on_enter=60,
        )
        self.tasks = range(settings["config"]["total_tokens"])
        self._log = os.open(settings["log"], _APPEND, 0o644)
        self._effects = os.open(settings["effects"], _APPEND, 0o644)
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._stop = asyncio.Event()

    def log(self, event: str, *values: Any) -> None:
        os.write(self._log, json.dumps([event, *values]).encode() + b"\n")

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        try:
            async with self.job:
                self.log("up", clock(), os.getpid())
                async with anyio.create_task_group() as group:
                    for task in (self._tell_state, self._obey, self._work, self._batch):
                        group.start_soon(task)
                    await self._stop.wait()
                    # What is open is finished, and handed on, before anything is cancelled.
                    if self.settings["drains"]:
                        await self.job.drain()
                    group.cancel_scope.cancel()
            self.log("left", clock())
        except BaseException as error:
            self.log("failed", clock(), repr(error))
            raise
        finally:
            if self._connection is not None:
                await self._connection.close()

    # -- work --------------------------------------------------------------------------------------

    async def _work(self) -> None:
        await self.job.run_owned(self.tasks, self._handle)

    async def _handle(self, claim: Claim) -> None:
        task = claim.task_id
        began = clock()
        claim.check()
        self.log("begin", began, task, claim.epoch)
        try:
            next_write = began + self.settings["write_every_sec"] * (task % 10) / 10
            while True:
                self._act(claim)
                if clock() >= next_write:
                    next_write += self.settings["write_every_sec"]
                    await self._commit(claim)
                await anyio.sleep(self.settings["act_every_sec"])
        finally:
            with anyio.CancelScope(shield=True):  # cleaning up takes a moment, and is work
                await anyio.sleep(CLEANUP_SEC)
            worker = claim._worker
            holding = worker.may_act() and worker.identity.incarnation == claim._incarnation
            self.log("end", clock(), task, claim.epoch, holding)

    def _act(self, claim: Claim) -> None:
        """An effect that nothing but the check before it keeps exclusive."""
        checked = clock()
        claim.check()
        os.write(
            self._effects,
            history.line(history.Act(self.name, claim.task_id, claim.epoch, checked, clock())),
        )

    async def _commit(self, claim: Claim) -> None:
        """An effect through the fence. The database may be away: then it is left out."""
        try:
            async with self._turn:
                connection = await self._connected()
                with connection.limited(self.settings["patience_sec"]):
                    await self._transaction(connection, claim)
        except OwnershipLost:
            self.log("refused", clock(), claim.task_id, claim.epoch)
            # It may lead to a server that was left, whose rows are of before.
            await self._connection.close()
            raise
        except psycopg.Error:
            pass  # whether it was committed is not known, and so not claimed

    async def _transaction(
        self, connection: psycopg.AsyncConnection[Any], claim: Claim, sleep_sec: float = 0
    ) -> None:
        checked = clock()
        async with connection.transaction():
            await self.job.fence(connection, claim)
            n = await self._write(connection, claim)
            if sleep_sec:
                self.log("said", clock(), "holding", claim.token_id, claim.epoch)
                await connection.execute("SELECT pg_sleep(%s)", [sleep_sec])
        self.log("commit", checked, claim.token_id, claim.epoch, n)

    async def _write(self, connection: psycopg.AsyncConnection[Any], claim: Claim) -> int:
        values = {"task": claim.token_id, "epoch": claim.epoch, "worker": self.name}
        row = await (await connection.execute(_WRITE, values)).fetchone()
        assert row is not None
        return int(row[0])

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await self._connect()
        return self._connection

    async def _connect(self) -> Connection:
        """The user's own way to the database, which the test does not cut."""
        return await Connection.connect(
            self.settings["direct_dsn"],
            autocommit=True,
            application_name=f"user {self.name}",
            connect_timeout=3,
        )

    async def _batch(self) -> None:
        """A batch that all workers share."""
        first = self._first_piece()
        if self.settings["batch"]:
            ids = [first + n for n in range(self.settings["batch"])]
            result = await self.job.run_batch(ids, self._piece, concurrency=4)
            self.log("said", clock(), "batch is done", len(result.failed))

    def _beside(self, task: int) -> int:
        """Another task on the same token: a worker works on one task once at a time, and `_work` is
        at work on the first."""
        return task + len(self.tasks)

    def _first_piece(self) -> int:
        """The first id of the batch: the one that was given, else the first beside those of
        `_work`."""
        given = self.settings["batch_from"]
        return self._beside(0) if given is None else int(given)

    async def _piece(self, claim: Claim) -> None:
        self.log("piece", clock(), claim.task_id - self._first_piece())
        await anyio.sleep(0.05)

    # -- what is told ------------------------------------------------------------------------------

    async def _tell_state(self) -> None:
        job, last, memory_at = self.job, None, 0.0
        while True:
            now = clock()
            state = (job.am_i_healthy(), job.am_i_leader(), job.my_tokens)
            if state != last:
                self.log("state", now, *state[:2], sorted(state[2]))
                last = state
            if now >= memory_at:
                memory_at = now + 2
                self.log("memory", now, _resident_kib())
            await anyio.sleep(0.01)

    async def _obey(self) -> None:
        """Commands come as datagrams."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as commands:
            commands.setblocking(False)
            commands.bind(self.settings["socket"])
            self.log("said", clock(), "listening")
            async with anyio.create_task_group() as group:
                while True:
                    command = json.loads(await loop.sock_recv(commands, 10_000))
                    group.start_soon(self._do, command)

    async def _do(self, command: dict[str, Any]) -> None:
        await getattr(self, f"do_{command.pop('do')}")(**command)

    async def do_block(self, seconds: float) -> None:
        """Block the event loop inside a claim, and look at once: here, and in a task that was ready
        to run all the while."""
        task = self._beside(min(self.job.my_tokens))
        with contextlib.suppress(OwnershipLost):
            # Not in a transaction, whose fence would hold its token up.
            async with (
                self.job.claim(task) as claim,
                self._turn,
            ):
                other = asyncio.ensure_future(self._look("another task", claim))
                self.log("said", clock(), "blocking")
                time.sleep(seconds)  # noqa: ASYNC251 - that is the fault
                await self._look("the one that blocked", claim)
                await other
                await anyio.sleep_forever()
        self.log("said", clock(), "unblocked", claim.valid)

    async def _look(self, who: str, claim: Claim) -> None:
        job = self.job
        seen = {
            "owns": job.owns(claim.task_id),
            "claim": claim.valid,
            "filtered": len(job.filter_owned(self.tasks)),
            "tokens": len(job.my_tokens),
            "healthy": job.am_i_healthy(),
            "leads": job.am_i_leader(),
        }
        self.log("looked", clock(), who, seen)

    async def do_hold_fence(self, task: int, seconds: float) -> None:
        """A user's transaction that takes long, on a connection of its own."""
        with contextlib.suppress(OwnershipLost):
            async with (
                self.job.claim(self._beside(task)) as claim,
                await self._connect() as connection,
            ):
                with anyio.CancelScope(shield=True):
                    await self._transaction(connection, claim, seconds)
        self.log("said", clock(), "done", task)

    async def do_last_words(self, task: int, seconds: float) -> None:
        """A fenced transaction whose COMMIT is already on the way to the server, which takes its
        time to get there."""
        async with self.job.claim(self._beside(task)) as claim, await self._connect() as connection:
            await connection.execute("BEGIN")
            await self.job.fence(connection, claim)
            await self._write(connection, claim)
            self.log("said", clock(), "holding", task, claim.epoch)
            await connection.execute(f"SELECT pg_sleep({float(seconds)}); COMMIT".encode())

    async def do_late_fence(self, task: int) -> None:
        """Ask the fence, and only the fence, after the process was stopped for more than a
        second."""
        with contextlib.suppress(OwnershipLost):
            async with (
                self.job.claim(self._beside(task)) as claim,
                await self._connect() as connection,
            ):
                with anyio.CancelScope(shield=True):
                    self.log("said", clock(), "waiting")
                    before = clock()
                    while clock() - before < 1:
                        before = clock()
                        await anyio.sleep(0.005)
                    async with connection.transaction():
                        query, values = claim.fence_sql()
                        row = await (await connection.execute(query.encode(), values)).fetchone()
                        self.log("said", clock(), "fence", claim.valid, row is not None)

    async def do_pin(self, tasks: list[int], to: str) -> None:
        await self.job.register_locks_bulk([(task, to, None) for task in tasks])
        self.log("said", clock(), "pinned")

    async def do_call_in_crowds(self, seconds: float, callers: int) -> None:
        """Many calls at once, each of which waits in the database for as long as it may."""
        until = clock() + seconds

        async def caller() -> None:
            while clock() < until:
                with contextlib.suppress(StoreUnavailable):
                    await self.job.get_audit()

        self.log("said", clock(), "calling")
        async with anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(caller)
        self.log("said", clock(), "called")


def _resident_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def main(settings: dict[str, Any]) -> None:
    """Run one worker to its end. Ends by itself after a while, should the test be gone."""
    signal.setitimer(signal.ITIMER_REAL, LONGEST_LIFE_SEC)
    if settings["network"]:
        wires.enter(settings["network"])
    logging.basicConfig(
        filename=settings["diary"],
        level=logging.INFO,
        format="%(relativeCreated)d %(name)s %(message)s",
    )
    asyncio.run(_run(settings))


async def _run(settings: dict[str, Any]) -> None:
    await FaultWorker(settings).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
