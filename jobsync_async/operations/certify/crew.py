"""The worker processes of a certification, as whoever certifies sees them."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

import anyio
from anyio.abc import ByteReceiveStream, Process, TaskGroup

from jobsync_async.errors import JobSyncError
from jobsync_async.host.orders import start_process
from jobsync_async.host.task_groups import task_group
from jobsync_async.operations.certify.worker import TrialOrders

_MOST_OF_LOG = 3000


class CertifyFailed(JobSyncError):
    """The trial could not go on. The message says why."""


async def lines_of(stream: ByteReceiveStream | None) -> AsyncIterator[dict[str, Any]]:
    """What a process of ours tells."""
    assert stream is not None, "it was piped"
    rest = b""
    async for piece in stream:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield json.loads(line)


class Crew:
    """Workers by name, and what they have told. Made by `crew`.

    Attributes:
        tokens: how many each worker has that runs. told_at: when it said so, on `time.monotonic`.
        lost: how often each had tokens that were gone.
        times: how long statements took, by name, of all that told it.
    """

    def __init__(self, group: TaskGroup, log: IO[bytes]) -> None:
        self.tokens: dict[str, int] = {}
        self.told_at: dict[str, float] = {}
        self.lost = defaultdict[str, int](int)
        self.times = defaultdict[str, list[float]](list)
        self._group = group
        self._log = log
        self._processes: dict[str, Process] = {}
        self._events = defaultdict[str, dict[str, dict[str, Any]]](dict)
        self._expected_to_end: set[str] = set()
        self._failure: str | None = None
        self._news = anyio.Event()

    async def start(self, orders: TrialOrders) -> None:
        """Start a worker; `heard` tells how far it is."""
        process = await start_process(
            f"{__package__}.worker", orders, stdout=subprocess.PIPE, stderr=self._log
        )
        self._processes[orders.name] = process
        self._group.start_soon(self._listen, orders.name, process)

    async def order(self, name: str, command: str) -> None:
        """Tell a worker to do something."""
        stream = self._processes[name].stdin
        assert stream is not None, "it was piped"
        if command == "leave":
            self._expected_to_end.add(name)
        self._events[name].clear()
        await stream.send(f"{command}\n".encode())

    async def heard(self, name: str, event: str, seconds: float) -> dict[str, Any]:
        """What a worker tells of an event since its last order. Raises TimeoutError or
        CertifyFailed."""
        await self._until(lambda: event in self._events[name], seconds)
        return self._events[name][event]

    async def settled(self, names: Sequence[str], total: int, seconds: float) -> float:
        """Wait until these share so many tokens evenly; when that was, on `time.monotonic`. Raises
        TimeoutError or CertifyFailed."""

        def are() -> bool:
            shares = [self.tokens.get(name, 0) for name in names]
            return sum(shares) == total and max(shares) - min(shares) <= 1

        await self._until(are, seconds)
        return max(self.told_at[name] for name in names)

    async def kill(self, name: str) -> float:
        """End a worker by SIGKILL; when that was, on `time.monotonic`."""
        self._expected_to_end.add(name)
        at = time.monotonic()
        self._processes[name].kill()
        await self.ended(name)
        return at

    async def ended(self, name: str) -> None:
        """Wait for the end of a worker that was told to leave, or killed."""
        await self._processes[name].wait()
        self.tokens.pop(name, None)

    async def end(self) -> None:
        """No process of ours outlives this. Nobody listens to them any more."""
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
            await process.aclose()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        with anyio.fail_after(seconds):
            while not condition():
                if self._failure is not None:
                    raise CertifyFailed(self._failure)
                self._news = anyio.Event()
                await self._news.wait()

    async def _listen(self, name: str, process: Process) -> None:
        async for told in lines_of(process.stdout):
            self._take(name, told)
            self._news.set()
        await process.wait()
        if name not in self._expected_to_end and self._failure is None:
            self._failure = f"worker {name} ended by itself{self._logged()}"
        self._news.set()

    def _take(self, name: str, told: dict[str, Any]) -> None:
        event = told["event"]
        self._events[name][event] = told
        if event == "tokens" and name not in self._expected_to_end:
            self.tokens[name], self.told_at[name] = told["tokens"], told["at"]
            self.lost[name] += told["lost"]
        elif event == "times":
            for statement, samples in told["statements"].items():
                self.times[statement] += samples
        elif event == "failed":
            self._failure = f"worker {name}: {told['error']}"

    def _logged(self) -> str:
        self._log.seek(0)
        text = self._log.read().decode("utf-8", "replace").strip()
        return f"; the workers logged:\n{text[-_MOST_OF_LOG:]}" if text else ""


@asynccontextmanager
async def crew() -> AsyncIterator[Crew]:
    """No worker outlives the block."""
    with tempfile.TemporaryFile() as log:
        made = None
        try:
            async with task_group() as group:
                made = Crew(group, log)
                yield made
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                if made is not None:
                    await made.end()
