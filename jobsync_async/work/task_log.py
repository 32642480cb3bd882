"""The tasks that a job begins and completes by hand: `add_task`, `set_claim`, `write_audit`.

A task that was added is at work until it is written as complete. So its token stays here, as under
a claim: another worker that got it would begin the task anew. Nobody says when the work has failed.
So the token goes at the hand-off time-out at the latest, and at once when this worker leaves.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import Any

from jobsync_async.core.ids import id_text
from jobsync_async.core.rows import Work
from jobsync_async.core.runs import Run, date_of
from jobsync_async.errors import CoordinationError, NotOwner, OwnershipLost, StoreUnavailable
from jobsync_async.host.logs import WorkerLog
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import Id, TaskOrId, task_id_of
from jobsync_async.work.engine import Engine


class _Added:
    """A task that was added and is not written yet: a `User` of its token."""

    runs_in = None  # whoever works on it does not say so

    def __init__(self, worker: Worker, work: Work) -> None:
        self.work = work
        self._worker = worker
        self._holds = worker.ownership.enter(work.token_id, self) is not None

    @property
    def task(self) -> str:
        return self.work.task_id

    def revoked(self) -> None:
        """The token waits until the task is written."""

    def lost(self, why: str) -> None:
        WorkerLog(__name__, self._worker.identity.name).warning(
            "task %.200r was added and is not written as complete, and its token goes (%s): "
            "another worker may do it again",
            self.task,
            why,
            task_id=self.task,
            token_id=self.work.token_id,
        )
        self.let_go()

    def let_go(self) -> None:
        """Use the token no longer."""
        if self._holds:
            self._holds = False
            if self._worker.ownership.leave(self.work.token_id, self):
                self._worker.user_left()


class TaskLog:
    """What was begun, and what is to be written down as done, each under the date of its beginning.

    Args:
        date: the date where a call gives none; None asks for the cluster's at each call.
    """

    def __init__(
        self, engine: Engine, token_of: Callable[[Hashable], int], date: dt.date | None
    ) -> None:
        self._engine = engine
        self._token_of = token_of
        self._date = date
        self._added: dict[dt.date, list[_Added]] = {}

    async def add(self, tasks: Iterable[Id], date: object) -> list[Id]:
        """Begin tasks, and keep them for `write`; those that may begin, for they are not complete
        for the date already, and the cluster is not paused."""
        given = list(tasks)
        if self._held_up(given):
            return []
        added: list[_Added] = []
        try:
            day, held = await self._begin(
                given, date, lambda work: added.append(_Added(self._engine.worker, work))
            )
        except BaseException:  # cleaned up, and raised again
            _let_go(added)
            raise
        _let_go(one for one in added if not held[one.task])
        self._keep(day, [one for one in added if held[one.task]])
        return [task for task, one in zip(given, added, strict=True) if held[one.task]]

    async def begin(self, tasks: Iterable[TaskOrId], date: object) -> None:
        """Record that tasks begin, all or none. Raises NotOwner or OwnershipLost, with the owner as
        the tables have it, CoordinationError while the cluster is paused, or StoreUnavailable."""
        given = list(tasks)
        if self._held_up(given):
            raise CoordinationError(
                f"nothing is begun, for the cluster is {self._engine.worker.paused}; nothing was "
                "recorded"
            )
        await self._begin(given, date)

    def _held_up(self, tasks: Iterable[TaskOrId]) -> bool:
        """Whether the cluster is paused, and one of these would begin by this: nobody here works on
        it."""
        worker, codec = self._engine.worker, self._engine.codec
        if worker.paused is None:
            return False
        ids = [task_id_of(task) for task in tasks]
        at_work = {user.task for user in worker.ownership.users()}
        return not at_work.issuperset(id_text(task_id, codec) for task_id in ids)

    async def _begin(
        self,
        tasks: Iterable[TaskOrId],
        date: object,
        hold: Callable[[Work], object] = lambda work: None,
    ) -> tuple[dt.date, dict[str, bool]]:
        """The date, and whether each task, as text, may begin: False when it is complete. `hold` is
        called with each as it is seen to be owned."""
        try:
            return await self._record(tasks, date_of(date), hold)
        except (NotOwner, OwnershipLost) as error:
            with suppress(StoreUnavailable):
                owner = (
                    None if error.token_id is None else await self._engine.owner_of(error.token_id)
                )
                error.owner = None if owner is None else owner.node
            raise

    async def _record(
        self, tasks: Iterable[TaskOrId], given: dt.date | None, hold: Callable[[Work], object]
    ) -> tuple[dt.date, dict[str, bool]]:
        ids = [task_id_of(task) for task in tasks]
        works = [self._work(task_id) for task_id in ids]
        for work in works:
            hold(work)
        day = await self._day(given)
        if not works:
            return day, {}
        me = self._engine.worker.identity
        held = await self._engine.work.record_claims(me, Run(day), works, all_or_none=True)
        for task_id, work in zip(ids, works, strict=True):
            if work.task_id not in held:
                raise OwnershipLost(
                    f"task {work.task_id!r} (token {work.token_id}) has gone to another worker; "
                    "nothing was recorded",
                    task_id=task_id,
                    token_id=work.token_id,
                    epoch=work.epoch,
                )
        return day, held

    def _work(self, task_id: Hashable) -> Work:
        worker = self._engine.worker
        text, token = id_text(task_id, self._engine.codec), self._token_of(task_id)
        epoch = worker.ownership.epoch(token) if worker.owns(token) else None
        if epoch is None:
            raise NotOwner(
                f"task {text!r} (token {token}) is not this worker's: leave it to its owner, and "
                "ask job.owns(…) first",
                task_id=task_id,
                token_id=token,
            )
        return Work(text, token, epoch)

    def _keep(self, day: dt.date, added: list[_Added]) -> None:
        if added:
            self._added.setdefault(day, []).extend(added)

    async def write(self, date: object) -> int:
        """Write what was added as completed, all of it or that of one date; how much of it was not
        before. What cannot be written is kept."""
        given = date_of(date)
        written = 0
        for day in [day for day in self._added if given in (None, day)]:
            added = self._added.pop(day, [])
            try:
                works = [one.work for one in added]
                written += await self._engine.work.write_audit(
                    self._engine.worker.identity, Run(day), works
                )
            except BaseException:  # cleaned up, and raised again
                self._keep(day, added)  # writing it twice does no harm
                raise
            _let_go(added)
        return written

    def let_go(self) -> None:
        """The worker leaves: no token waits for what is not written."""
        for added in self._added.values():
            _let_go(added)

    async def read(self, date: object) -> list[dict[str, Any]]:
        """The completions of a date by all workers."""
        return await self._engine.work.read_audit(await self._day(date_of(date)))

    async def _day(self, given: dt.date | None) -> dt.date:
        return given or self._date or await self._engine.work.read_date()


def _let_go(added: Iterable[_Added]) -> None:
    for one in added:
        one.let_go()
