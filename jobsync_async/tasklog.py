"""The tasks that a job begins and completes by hand: `add_task`, `set_claim`, `write_audit`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Any

from jobsync_async.core.ids import id_text
from jobsync_async.core.rows import Work
from jobsync_async.core.runs import Run, date_of
from jobsync_async.engine import Engine
from jobsync_async.errors import NotOwner, OwnershipLost, StoreUnavailable
from jobsync_async.types import TaskOrId, task_id_of


class TaskLog:
    """What was begun, and what is to be written down as done, each under the date of its beginning.

    Args:
        date: the date where a call gives none; None asks for the cluster's at each call.
    """

    def __init__(self, engine: Engine, token_of: Callable[[Hashable], int], date: dt.date | None) -> None:
        self._engine = engine
        self._token_of = token_of
        self._date = date
        self._added: dict[dt.date, list[Work]] = {}

    async def add(self, tasks: Iterable[TaskOrId], date: object) -> list[TaskOrId]:
        """Begin tasks, and keep them for `write`; those that may begin, for they are not complete for the date already."""
        given = list(tasks)
        day, works, held = await self._begin(given, date)
        self._keep(day, [work for work in works if held[work.task_id]])
        return [task for task, work in zip(given, works, strict=True) if held[work.task_id]]

    async def begin(self, tasks: Iterable[TaskOrId], date: object) -> None:
        """Record that tasks begin, all or none. Raises NotOwner or OwnershipLost, with the owner as the tables have it, or
        StoreUnavailable."""
        await self._begin(tasks, date)

    async def _begin(self, tasks: Iterable[TaskOrId], date: object) -> tuple[dt.date, list[Work], dict[str, bool]]:
        """The date, the tasks, and whether each, as text, may begin: False when it is complete."""
        try:
            return await self._record(tasks, date_of(date))
        except (NotOwner, OwnershipLost) as error:
            with suppress(StoreUnavailable):
                owner = None if error.token_id is None else await self._engine.owner_of(error.token_id)
                error.owner = None if owner is None else owner.node
            raise

    async def _record(self, tasks: Iterable[TaskOrId], given: dt.date | None) -> tuple[dt.date, list[Work], dict[str, bool]]:
        works = [self._work(task) for task in tasks]
        day = await self._day(given)
        if not works:
            return day, [], {}
        me = self._engine.worker.identity
        held = await self._engine.work.record_claims(me, Run(day), works, all_or_none=True)
        for work in works:
            if work.task_id not in held:
                raise OwnershipLost(
                    f"task {work.task_id!r} (token {work.token_id}) has gone to another worker; nothing was recorded",
                    task_id=work.task_id,
                    token_id=work.token_id,
                    epoch=work.epoch,
                )
        return day, works, held

    def _work(self, task: TaskOrId) -> Work:
        task_id, worker = task_id_of(task), self._engine.worker
        text, token = id_text(task_id, self._engine.codec), self._token_of(task_id)
        epoch = worker.ownership.epoch(token) if worker.owns(token) else None
        if epoch is None:
            raise NotOwner(
                f"task {text!r} (token {token}) is not this worker's: leave it to its owner, and ask job.owns(…) first",
                task_id=task_id,
                token_id=token,
            )
        return Work(text, token, epoch)

    def _keep(self, day: dt.date, works: list[Work]) -> None:
        if works:
            self._added.setdefault(day, []).extend(works)

    async def write(self, date: object) -> int:
        """Write what was added as completed, all of it or that of one date; how much of it was not before. What cannot be
        written is kept."""
        given = date_of(date)
        written = 0
        for day in [day for day in self._added if given in (None, day)]:
            works = self._added.pop(day, [])
            try:
                written += await self._engine.work.write_audit(self._engine.worker.identity, Run(day), works)
            except BaseException:  # cleaned up, and raised again
                self._keep(day, works)  # writing it twice does no harm
                raise
        return written

    async def read(self, date: object) -> list[dict[str, Any]]:
        """The completions of a date by all workers."""
        return await self._engine.work.read_audit(await self._day(date_of(date)))

    async def _day(self, given: dt.date | None) -> dt.date:
        return given or self._date or await self._engine.work.read_date()
