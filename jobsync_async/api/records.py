"""Bookkeeping by hand: which tasks begin here, and which are done."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

from jobsync_async.api.base import Started
from jobsync_async.errors import StoreError
from jobsync_async.host.logs import WorkerLog
from jobsync_async.types import Id, Task, TaskOrId
from jobsync_async.work.task_log import TaskLog


class RecordCalls(Started):
    """Claims and completions of tasks, under a date: the one that a call gives, else the job's,
    else the cluster's, which is asked for at each call. All of it asks PostgreSQL, and raises
    StoreUnavailable, and ConfigError for what is no date."""

    _task_log: TaskLog

    async def add_task(self, task: TaskOrId, *, date: dt.date | None = None) -> bool:
        """Record that work on the task begins here, and keep it for `write_audit`, which writes it
        under the same date. True when it may begin; False when it is complete for the date already,
        or the cluster is paused, and then nothing is recorded.

        Until it is written, its token stays here, for up to ``handoff_timeout_sec`` after it is
        wanted elsewhere.

        What was done and not yet written as complete, by whomever, it does not know: write soon, or
        use `run_batch`.

        Raises NotOwner or OwnershipLost when it is not this worker's, and then records nothing;
        StoreUnavailable.
        """
        return bool(await self._log().add([task], date))

    async def add_tasks(self, tasks: Iterable[Id], *, date: dt.date | None = None) -> list[Id]:
        """`add_task` for many, in one statement: all of them or none. Those that may begin, in
        order."""
        return await self._log().add(tasks, date)

    async def set_claim(
        self, task_or_tasks: TaskOrId | Iterable[TaskOrId], *, date: dt.date | None = None
    ) -> None:
        """Record that work on a task, or on each of several, begins here; not kept for
        `write_audit`.

        A string, bytes, tuple, `Task` or anything that cannot be iterated over is one task. Raises
        as `add_task`, and CoordinationError while the cluster is paused, unless this worker is at
        work on it.
        """
        one = isinstance(task_or_tasks, (str, bytes, tuple, Task)) or not isinstance(
            task_or_tasks, Iterable
        )
        await self._log().begin([task_or_tasks] if one else task_or_tasks, date)  # type: ignore[arg-type,list-item]

    async def write_audit(self, *, date: dt.date | None = None) -> int:
        """Write the tasks that were added since the last call as completed, each under the date
        under which it was added; how many were not completed before on theirs.

        An ``async with Job(…)`` whose body ends in order writes them by itself; one whose body
        raises or is cancelled does not, nor does `stop`, for neither knows which of them were done.

        What could not be written (StoreUnavailable) is kept for the next call.

        Args:
            date: write only those of this date, and keep the others.
        """
        return await self._log().write(date)

    async def get_audit(self, *, date: dt.date | None = None) -> list[dict[str, Any]]:
        """The completions of a date by all workers, oldest first, as dictionaries: date, task_id,
        token_id, node, epoch, completed_at, and batch, the name of the batch or None."""
        return await self._log().read(date)

    async def _write_last(self) -> StoreError | None:
        """The body of the block has ended in order: write what was added. Why that could not be
        done, if it could not."""
        try:
            await self._task_log.write(None)
        except StoreError as error:
            text = "tasks that were added are not written as complete: %s"
            WorkerLog(__name__, self.node_name).warning(text, error)
            return error
        return None

    def _log(self) -> TaskLog:
        self._require_started()
        return self._task_log
