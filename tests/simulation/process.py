"""One simulated process: an event loop, a job, and what uses it."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Coroutine
from itertools import count
from typing import TYPE_CHECKING, Any

from jobsync_async import Job
from jobsync_async.config import CoordinationConfig
from jobsync_async.core import rows
from jobsync_async.core.lease import Times
from jobsync_async.core.ownership import Change
from jobsync_async.tasks.worker import Worker
from jobsync_async.work.claims import Claim
from tests.simulation.network import Network
from tests.simulation.scheduler import Ordered, ProcessLoop

if TYPE_CHECKING:
    from tests.simulation.driver import Connection

DATE = dt.date(2024, 2, 29)


def shown(epoch: int) -> str:
    """An epoch for people: the generation is left out when it is the first."""
    generation, number = divmod(epoch, 1 << 32)
    return str(number) if generation == 1 else f"{generation}.{number}"


class _InOrder(dict):  # type: ignore[type-arg]
    """Who uses which token: sets that are iterated in the order of insertion, not by the addresses
    of what is in them."""

    def setdefault(self, key: Any, default: Any = None) -> Any:
        return super().setdefault(key, Ordered())


class Process:
    """Attributes:
    host, number: where it runs, and its number there with its start.
    cut_out, cut_in: whether what it sends, or what is sent to it, is held up.
    frozen: purposes of connections on which nothing arrives; frozen_once: the listener's next such
    statement.
    held: statements that do not arrive.
    claims: the claims whose bodies run; streams: what readers of changes hold; both in order of
    their beginning.
    uses: counts changes of those two.
    started, leaving, over: how far the job is in its life; drained: whether a user ever drained it.
    paused_until: when it goes on after a stop.
    times: its settings; old_library: whether it writes them nowhere.
    public: the tasks that run a public coroutine, by name: any of them may be cancelled.
    """

    def __init__(
        self,
        name: str,
        loop: ProcessLoop,
        network: Network,
        times: Times,
        trace: Callable[[str, str], None],
    ) -> None:
        self.name = name
        self.times = times
        self.old_library = False
        self.loop = loop
        self.network = network
        self.host = ""
        self.number = rows.Process(0, 0)
        self.cut_out = self.cut_in = False
        self.frozen: tuple[str, ...] = ()
        self.held: tuple[str, ...] = ()
        self.frozen_once: tuple[str, ...] = ()
        self.held_out: list[tuple[Connection, Callable[[], None]]] = []
        self.held_in: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.connections: dict[Connection, None] = {}
        self.claims: dict[int, Claim] = {}
        self.streams: dict[int, set[int]] = {}
        self.uses = 0
        self.public: dict[str, asyncio.Task[Any]] = {}
        self.job: Job | None = None
        self.started = self.leaving = self.over = self.drained = False
        self.paused_until = 0.0
        self.failures: list[BaseException] = []
        self._trace = trace
        self._numbers = count(1)
        loop.process = self

    def __repr__(self) -> str:
        return f"<Process {self.name}>"

    def trace(self, text: str) -> None:
        """Write down what happened here."""
        if self.loop.dead:
            return
        self._trace(self.name, text)

    @property
    def worker(self) -> Worker | None:
        return None if self.job is None else self.job._worker

    def make_job(self, config: CoordinationConfig, **options: Any) -> Job:
        """Make the job of this process; called from within it."""
        self.job = Job(self.name, config, date=DATE, **options)
        worker = self.job._worker
        worker.ownership._users = _InOrder()
        publish = worker.publish

        def published(change: Change, **told: Any) -> None:
            if change.lost:
                for held in self.streams.values():
                    held.difference_update(change.lost)
                self.uses += 1
            publish(change, **told)

        worker.publish = published  # type: ignore[method-assign]
        return self.job

    # -- what runs here ----------------------------------------------------------------------------

    def spawn(
        self, name: str, make: Callable[[], Coroutine[Any, Any, Any]], *, public: bool = True
    ) -> None:
        """Start a task, as soon as this process runs."""
        label = f"{name} {next(self._numbers)}"

        def start() -> None:
            task = self.loop.create_task(make(), name=label)
            if public:
                self.public[label] = task
            task.add_done_callback(lambda task: self._ended(label, task))

        self.loop.call_soon(start)

    def _ended(self, label: str, task: asyncio.Task[Any]) -> None:
        self.public.pop(label, None)
        if not task.cancelled() and (error := task.exception()) is not None and not self.loop.dead:
            self.trace(f"{label} raised {type(error).__name__}: {error}")
            self.failures.append(error)

    def claimed(self, claim: Claim) -> int:
        """A body begins to use its claim; the number to give back at the end."""
        number = next(self._numbers)
        self.claims[number] = claim
        self.uses += 1
        self.trace(f"begins {claim.task_id} (token {claim.token_id}, epoch {shown(claim.epoch)})")
        return number

    def unclaimed(self, number: int) -> None:
        claim = self.claims.pop(number)
        self.uses += 1
        self.trace(f"ends {claim.task_id} (token {claim.token_id})")

    def reading(self) -> int:
        """A reader of changes begins; its number in `streams`."""
        number = next(self._numbers)
        self.streams[number] = set()
        return number
