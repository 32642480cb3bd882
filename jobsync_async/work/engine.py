"""What a `Job` needs of the thing behind it, be it a cluster or nothing but memory."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from jobsync_async.core.rows import Identity, Steered, TaskProgress, Work
from jobsync_async.core.runs import Asked, Begun, Complete, Opened, Parts, Place, Run
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import NodeInfo, Owner
from jobsync_async.work.pins import PinRegistry


class WorkRecords(Protocol):
    """Claims and completions of tasks, and batches. Recording again is safe; all raise
    StoreUnavailable."""

    async def read_date(self) -> dt.date:
        """The cluster's date."""

    async def record_claims(
        self, me: Identity, run: Run, works: Sequence[Work], *, all_or_none: bool = False
    ) -> dict[str, bool]:
        """Write down that tasks begin; for each whose ownership held, whether it may begin (False:
        it is complete already).

        Args:
            all_or_none: write nothing when the ownership of any of them did not hold.
        """

    async def begin_tasks(
        self, me: Identity, run: Run, works: Sequence[Work], *, lost_limit: int, most_lost: int
    ) -> dict[str, Begun]:
        """Begin tasks of a batch; what came of each whose ownership held.

        Args:
            lost_limit: a task is set aside when so many workers have ended while they were at work
                on it.
            most_lost: a task that has lost more owners than this is not begun now.
        """

    async def record_completions(
        self, me: Identity, run: Run, works: Sequence[Work]
    ) -> dict[str, bool]:
        """Complete tasks; for each whose ownership held, whether this call completed it (False: it
        was complete before)."""

    async def write_audit(self, me: Identity, run: Run, works: Sequence[Work]) -> int:
        """Write down tasks as done, whoever owns them now; how many were not written down
        before."""

    async def read_audit(self, date: dt.date) -> list[dict[str, Any]]:
        """The completions of a date, oldest first."""

    async def end_claims(
        self, me: Identity, run: Run, ended: Sequence[tuple[Work, str | None]]
    ) -> int:
        """Write down that tasks ended in order without being completed: given up with the error,
        or, with None, let go of. For how many of them the claim was still the last."""

    async def note_failure(self, run: Run, work: Work, error: str) -> None:
        """Count that the handler of a task failed, and is called again, for people to read."""

    async def forget_failures(self, me: Identity, run: Run, texts: Iterable[str]) -> None:
        """Try again what was given up."""

    async def read_progress(self, run: Run, texts: Iterable[str]) -> dict[str, TaskProgress]:
        """Which of the tasks are done with."""

    async def read_set_aside(self, run: Run, texts: Iterable[str]) -> dict[str, TaskProgress]:
        """Which of the tasks are set aside, on whatever date, and not complete in this run."""

    async def begin_batch(
        self, me: Identity, key: bytes, ids_key: bytes, asked: Asked, total: int | None
    ) -> Opened:
        """Begin a run of a batch, or continue one that is open.

        Args:
            key: the batch's. ids_key: that of its ids, which is the same where it has no name.
            total: how many ids it has; None for a stream, with the key of no ids.
        """

    async def find_complete(
        self, key: bytes, ids_key: bytes, asked: Asked, total: int
    ) -> Complete | None:
        """What is complete of the run that `begin_batch` would open anew, if it was over these ids
        and ended with all of them completed; else None. Opens nothing."""

    async def advance_batch(self, me: Identity, run: Run, place: Place, *, anyhow: bool) -> bool:
        """Go on to the next portion of a stream; whether the run is there too. It comes from the
        portion before, and from elsewhere only if it has to come `anyhow`."""

    async def finish_batch(self, run: Run, opened: Opened, ids_key: bytes) -> None:
        """All ids of a run are done with, which is told to all who wait. Does nothing when it was
        opened anew meanwhile."""

    async def read_parts(self, run: Run, opened: Opened, ids_key: bytes) -> Parts:
        """How far a run is, as all workers count it together."""

    async def find_dates(self, run: Run, tokens: Mapping[str, int]) -> set[tuple[str, dt.date]]:
        """Under which dates the owners of tasks work on them, as worker and date; nothing where the
        batch has one open run.

        Args:
            tokens: the token of each task's text.
        """

    async def find_strays(self, run: Run, place: Place, tokens: Collection[int]) -> set[str]:
        """Owners of tokens that run this very run, and are at another place of its stream, as far
        or further."""


class Pauses(Protocol):
    """Pausing and resuming the cluster. Both raise StoreUnavailable."""

    async def pause(self, by: str, reason: str | None = None) -> Steered:
        """Let nothing new be started; a pause that holds already stays."""

    async def resume(self, by: str) -> Steered:
        """Let everything be started again."""


class Engine(Protocol):
    """`Coordinator` and `Standalone`, for one life of a job: from one start to its end.

    Attributes:
        worker: what is owned, and the lease.
        failure: what ended the job, None while it runs or when it ended in order.
        work, locks, steering: claims and completions, pins, and pauses; there after `open`.
        fence_table: quoted name of the table to fence with; None without one.
        codec: Python's name for the encoding of what can be stored; known after `open`.
    """

    worker: Worker
    failure: BaseException | None

    @property
    def work(self) -> WorkRecords: ...
    @property
    def locks(self) -> PinRegistry: ...
    @property
    def steering(self) -> Pauses: ...
    @property
    def fence_table(self) -> str | None: ...
    @property
    def codec(self) -> str: ...

    async def open(self) -> None:
        """Connect."""

    async def start(self, wait_sec: float) -> None:
        """Join, and return when the first tokens are here."""

    def begin_to_stop(self, by: asyncio.Task[Any] | None) -> None:
        """Leave, and end everything, from now on; `by` is the task that asks for it."""

    async def ended(self) -> None:
        """Return when everything has ended, for whatever reason."""

    async def stop(self) -> None:
        """Leave, and end everything, to the end; also after an `open` or `start` that raised or was
        cancelled."""

    def hurry(self) -> None:
        """Do not wait for work under way, now and when it stops: cancel it."""

    def tell_failure_to(self, listener: Callable[[], object]) -> None:
        """Call `listener` when something ends the job; at once if it has ended."""

    async def nodes(self) -> list[NodeInfo]:
        """The workers, oldest first."""

    async def describe(self) -> dict[str, Any]:
        """The cluster at a glance."""

    async def owner_of(self, token: int) -> Owner | None:
        """Who owns a token."""

    async def set_draining(self, draining: bool) -> bool:
        """Hand everything on, or take tokens again; False when a drain was called off before it was
        done."""
