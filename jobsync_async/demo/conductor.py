"""Runs the demo: starts the workers, kills one, adds one, and checks afterwards, against the
database, what was promised."""

from __future__ import annotations

import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
from anyio.abc import Process
from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from jobsync_async.config import CoordinationConfig
from jobsync_async.demo import tables
from jobsync_async.demo.checks import KeptPromise, check
from jobsync_async.demo.tables import Tables
from jobsync_async.demo.worker import Orders
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.errors import JobSyncError
from jobsync_async.host.finishing import finish_first
from jobsync_async.host.orders import start_process
from jobsync_async.postgres.connection import Connector
from jobsync_async.postgres.driver_errors import translated
from jobsync_async.postgres.schema import open_schema

FIRST = ("alpha", "beta", "gamma")
KILLED, ADDED = "beta", "delta"
_KILL_AT = 1 / 5
_TURN_SEC = 0.02
_WITHIN_SEC = 240.0
_LEAVE_WITHIN_SEC = 10.0


class DemoFailed(JobSyncError):
    """The demo could not go on. The message says why."""


@dataclass(frozen=True)
class MembershipChange:
    """A change of the workers, and how long it took until every token had a live owner again and
    the shares were even; None when all work was done before that."""

    what: str
    seconds: float | None
    tokens_moved: int


@dataclass
class DemoProgress:
    """How far it is; changes while the demo runs.

    Attributes:
        total: files. completed: files by worker. tokens: tokens by live worker.
        news: what happened, with the second in which it did. takeovers: what the changes of workers
            took.
        checks: what was checked in the end.
    """

    total: int
    started_at: float = field(default_factory=time.monotonic)
    completed: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    news: list[tuple[float, str]] = field(default_factory=list)
    takeovers: list[MembershipChange] = field(default_factory=list)
    checks: list[KeptPromise] = field(default_factory=list)

    @property
    def done(self) -> int:
        return sum(self.completed.values())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_at

    def tell(self, what: str) -> None:
        self.news.append((self.seconds, what))


@contextmanager
def server(dsn: str | None) -> Iterator[str]:
    """The DSN of the server to run on: the given one, or an embedded one that is gone
    afterwards."""
    if dsn is not None:
        yield dsn
        return
    with EmbeddedPostgres() as postgres:
        yield postgres.dsn


def files_of_python(most: int | None) -> tuple[str, list[str]]:
    """The folder of the standard library, and the Python files in it, relative to it: up to `most`,
    spread over all."""
    folder = Path(sysconfig.get_path("stdlib"))
    inside = (path.relative_to(folder) for path in folder.rglob("*.py"))
    paths = sorted(str(path) for path in inside if "site-packages" not in path.parts)
    if most is not None and most < len(paths):
        paths = [paths[i * len(paths) // most] for i in range(most)]
    return str(folder), paths


class Demo:
    """One run. `run` does it; `progress` can be looked at meanwhile."""

    def __init__(self, dsn: str, most_files: int | None = None) -> None:
        self._folder, self._paths = files_of_python(most_files)
        self.progress = DemoProgress(total=len(self._paths))
        self._dsn = dsn
        self._config = CoordinationConfig(dsn=dsn, appname=f"demo_{uuid4().hex[:8]}_")
        self._processes: dict[str, Process] = {}
        self._tables: Tables
        self._connection: AsyncConnection[Any]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the run ends

    async def run(self) -> None:
        """To the end, and to the checks. Raises DemoFailed, or what a server raises that cannot be
        used."""
        with self._log:
            async with self._prepared():
                try:
                    await self._conduct()
                    self.progress.checks = await check(
                        self._connection, self._tables, self._folder, self.progress.total
                    )
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._end_processes()

    # -- around it ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def _prepared(self) -> AsyncIterator[None]:
        """Makes the tables, and drops them in the end."""
        connector = Connector(self._config.conninfo, self._config.bulk_limit_sec)
        queries = await open_schema(connector, self._config)
        self._tables = Tables(queries.schema, self._config.appname)
        with translated():
            self._connection = await connector.open("demo")
            self._connection.row_factory = tuple_row
            async with self._connection:
                try:
                    for statement in tables.CREATE.split(";")[:-1]:
                        await self._connection.execute(self._tables.fill(statement))
                    await self._ask(tables.ADD_FILES, paths=self._paths)
                    yield
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._connection.execute("SET lock_timeout = '5s'")
                        await self._connection.execute(self._tables.drop())

    async def _end_processes(self) -> None:
        """No process of ours outlives this."""
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
            await process.aclose()

    # -- the story ---------------------------------------------------------------------------------

    async def _conduct(self) -> None:
        progress = self.progress
        for name in FIRST:
            await self._start(name)
        if not await self._until_settled():
            raise DemoFailed(
                "all files were done before the workers had settled; run it on more files"
            )
        progress.tell(f"{len(FIRST)} workers share {self._config.total_tokens:,} tokens")
        await self._until(lambda: self._completed(_KILL_AT))

        before = await self._version()
        await self._kill(KILLED)
        progress.tell(f"{KILLED} killed by SIGKILL")
        killed_at = time.monotonic()
        settled = await self._until_settled()
        await self._note_takeover(
            f"{KILLED} was killed", time.monotonic() - killed_at if settled else None, before
        )

        before = await self._version()
        await self._start(ADDED)
        settled = await self._until_settled()
        # Counted from its joining: its process took a while to start before.
        seconds = (await self._ask(tables.SINCE_JOIN, worker=ADDED))[0][0] if settled else None
        await self._note_takeover(f"{ADDED} joined", seconds, before)

        await self._until(lambda: self._completed(1))
        await self._until(self._have_left)

    async def _version(self) -> int:
        ((version,),) = await self._ask(tables.VERSION)
        return int(version)

    async def _note_takeover(self, what: str, seconds: float | None, since: int) -> None:
        ((moved,),) = await self._ask(tables.MOVED, since=since)
        self.progress.takeovers.append(MembershipChange(what, seconds, moved))
        if seconds is None:
            self.progress.tell(f"{what}: all files were done before the shares were even")
        else:
            self.progress.tell(
                f"{what}: all tokens owned and even after {seconds:.2f} s, {moved:,} moved"
            )

    async def _start(self, name: str) -> None:
        config = self._config
        # The added one may come when the others have left.
        minimum_nodes = len(FIRST) if name in FIRST else 1
        orders = Orders(
            name, self._dsn, self._tables.schema, config.appname, minimum_nodes, self._folder
        )
        self._processes[name] = await start_process(
            "jobsync_async.demo.worker", orders, stdout=self._log, stderr=self._log
        )

    async def _kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        await process.wait()
        await process.aclose()
        await self._ask(tables.KILLED, worker=name)

    # -- looking on --------------------------------------------------------------------------------

    def _running(self) -> Sequence[str]:
        return sorted(self._processes)

    async def _until(self, condition: Callable[[], Any]) -> None:
        """Look again and again, and keep `progress` up to date, until the condition holds."""
        deadline = time.monotonic() + _WITHIN_SEC
        while not await condition():
            if time.monotonic() > deadline:
                raise DemoFailed(f"nothing more happened within {_WITHIN_SEC:g} s{self._logged()}")
            for name, process in self._processes.items():
                if process.returncode:
                    raise DemoFailed(
                        f"{name} ended with exit status {process.returncode}{self._logged()}"
                    )
            await anyio.sleep(_TURN_SEC)
            await self._look()

    async def _look(self) -> None:
        self.progress.completed = dict(await self._ask(tables.PROGRESS))
        self.progress.tokens = dict(await self._ask(tables.TOKENS))

    async def _until_settled(self) -> bool:
        """Wait until all workers have their even shares. False when the work was done before, after
        which they leave."""
        settled = False

        async def settled_or_done() -> bool:
            nonlocal settled
            ((settled,),) = await self._ask(tables.SETTLED, workers=self._running())
            return settled or await self._completed(1)

        await self._until(settled_or_done)
        return bool(settled)

    async def _completed(self, part: float) -> bool:
        return self.progress.done >= part * self.progress.total

    async def _have_left(self) -> bool:
        return all(process.returncode == 0 for process in self._processes.values())

    def _logged(self) -> str:
        self._log.seek(0)
        text = self._log.read().decode("utf-8", "replace").strip()
        return f"; the workers logged:\n{text[-3000:]}" if text else ""

    async def _ask(self, statement: str, **values: object) -> list[Any]:
        async def asked() -> list[Any]:
            cursor = await self._connection.execute(self._tables.fill(statement), values)
            return await cursor.fetchall() if cursor.description else []

        # A statement that is cancelled half-way takes the connection with it.
        return await finish_first(asked())
