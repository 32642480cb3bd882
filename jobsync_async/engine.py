"""What a `Job` needs of the thing behind it, be it a cluster or nothing but memory."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from jobsync_async.core.rows import Identity, Progress, Work
from jobsync_async.locks import Locks
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import NodeInfo, Owner


class Records(Protocol):
    """Claims and completions of tasks. Recording again is safe; all raise StoreUnavailable."""

    async def record_claims(
        self, me: Identity, date: dt.date, works: Sequence[Work], *, all_or_none: bool = False
    ) -> dict[str, bool]:
        """Write down that tasks begin; for each whose ownership held, whether it may begin (False: it is complete already).

        Args:
            all_or_none: write nothing when the ownership of any of them did not hold.
        """

    async def record_completions(self, me: Identity, date: dt.date, works: Sequence[Work]) -> dict[str, bool]:
        """Complete tasks; for each whose ownership held, whether this call completed it (False: it was complete before)."""

    async def write_audit(self, me: Identity, date: dt.date, works: Sequence[Work]) -> int:
        """Write down tasks as done, whoever owns them now; how many were not written down before."""

    async def read_audit(self, date: dt.date) -> list[dict[str, Any]]:
        """The completions of a date, oldest first."""

    async def record_failures(self, date: dt.date, failures: Sequence[tuple[Work, str]]) -> int:
        """Write down that tasks were given up, with the error; of how many: those that nobody has begun anew since."""

    async def forget_failures(self, date: dt.date, texts: Iterable[str]) -> None:
        """Try again what was given up."""

    async def read_progress(self, date: dt.date, texts: Iterable[str]) -> dict[str, Progress]:
        """Which of the tasks are done with."""


class Engine(Protocol):
    """`Coordinator` and `Standalone`, for one life of a job: from one start to its end.

    Attributes:
        worker: what is owned, and the lease.
        failure: what ended the job, None while it runs or when it ended in order.
        work, locks: claims and completions, and pins; there after `open`.
        fence_table: quoted name of the table to fence with; None without one.
        codec: Python's name for the encoding of what can be stored; known after `open`.
    """

    worker: Worker
    failure: BaseException | None

    @property
    def work(self) -> Records: ...
    @property
    def locks(self) -> Locks: ...
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
        """Leave, and end everything, to the end; also after an `open` or `start` that raised or was cancelled."""

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
        """Hand everything on, or take tokens again; False when a drain was called off before it was done."""
