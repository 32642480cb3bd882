"""The tasks that a job begins and completes by hand: `add_task`, `set_claim`, `write_audit`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Any

from jobsync_async.core.ids import id_text
from jobsync_async.core.rows import Work
from jobsync_async.engine import Engine
from jobsync_async.errors import NotOwner, OwnershipLost, StoreUnavailable
from jobsync_async.types import TaskOrId, task_id_of


class TaskLog:
    """What was begun, and what is to be written down as done, under one date."""

    def __init__(self, engine: Engine, token_of: Callable[[Hashable], int], date: dt.date) -> None:
        self._engine = engine
        self._token_of = token_of
        self._date = date
        self._added: list[Work] = []

    async def add(self, tasks: Iterable[TaskOrId]) -> list[TaskOrId]:
        """Begin tasks, and keep them for `write`; those that may begin, for they are not complete for the date already."""
        given = list(tasks)
        works, held = await self.begin(given)
        self._added += [work for work in works if held[work.task_id]]
        return [task for task, work in zip(given, works, strict=True) if held[work.task_id]]

    async def begin(self, tasks: Iterable[TaskOrId]) -> tuple[list[Work], dict[str, bool]]:
        """Record that tasks begin, all or none; the tasks, and whether each, as text, may begin: False when it is complete.

        Raises NotOwner or OwnershipLost, with the owner as the tables have it, or StoreUnavailable.
        """
        try:
            return await self._begin(tasks)
        except (NotOwner, OwnershipLost) as error:
            with suppress(StoreUnavailable):
                owner = None if error.token_id is None else await self._engine.owner_of(error.token_id)
                error.owner = None if owner is None else owner.node
            raise

    async def _begin(self, tasks: Iterable[TaskOrId]) -> tuple[list[Work], dict[str, bool]]:
        works = [self._work(task) for task in tasks]
        if not works:
            return [], {}
        me = self._engine.worker.identity
        held = await self._engine.work.record_claims(me, self._date, works, all_or_none=True)
        for work in works:
            if work.task_id not in held:
                raise OwnershipLost(
                    f"task {work.task_id!r} (token {work.token_id}) has gone to another worker; nothing was recorded",
                    task_id=work.task_id,
                    token_id=work.token_id,
                    epoch=work.epoch,
                )
        return works, held

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

    async def write(self) -> int:
        """Write what was added as completed; how much of it was not before. What cannot be written is kept."""
        works, self._added = self._added, []
        if not works:
            return 0
        try:
            return await self._engine.work.write_audit(self._engine.worker.identity, self._date, works)
        except BaseException:  # cleaned up, and raised again
            self._added = works + self._added  # writing it twice does no harm
            raise

    async def read(self) -> list[dict[str, Any]]:
        """The completions of the date by all workers."""
        return await self._engine.work.read_audit(self._date)
