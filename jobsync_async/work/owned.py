"""`Job.run_owned`: one coroutine, or one thread, per owned task id, cluster-wide."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from jobsync_async.core.ids import Item, items_of
from jobsync_async.core.lease import Backoff
from jobsync_async.core.reader import Grant
from jobsync_async.core.texts import error_text
from jobsync_async.errors import NotOwner, UsageError
from jobsync_async.host.logs import WorkerLog
from jobsync_async.host.task_groups import task_group
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import Id, Runner, TasksOrIds
from jobsync_async.work.handlers import CallOutcome, Handler, HandlerRunner, apart, check_ids
from jobsync_async.work.holding import Holding

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

Ids = TasksOrIds[Id] | Callable[[], TasksOrIds[Id] | Awaitable[TasksOrIds[Id]]]

_BACKOFF = Backoff(first_sec=0.2, most_sec=30)
_STEADY_SEC = 60.0
"""A handler that ran for so long before it raised is restarted as if it were the first time."""


class OwnedRunner:
    """Starts the handler for each owned id, and ends it when the id goes.

    Args:
        hold: makes the holding for an id, one whose work is cancelled as soon as the token is
            revoked.
        token_of: the token that an id hashes to.
        ended: makes the error for a job that has ended, with what that means here.
        ids: the ids by their text, or a callable that gives them.
        codec: what their texts must be storable in.
        refresh_sec: how often a callable for the ids is called again.
        name: by which workers tell each other that they run this.
    """

    def __init__(
        self,
        worker: Worker,
        hold: Callable[[Hashable], Holding],
        token_of: Callable[[Hashable], int],
        ended: Callable[[str], UsageError],
        ids: Mapping[str, Item] | Callable[[], Any],
        codec: str,
        handler: Handler,
        refresh_sec: float,
        name: str,
    ) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._hold = hold
        self._token_of = token_of
        self._ended = ended
        self._ids = ids
        self._codec = codec
        self._runner = HandlerRunner(worker, handler, Runner("owned", name))
        self._refresh_sec = refresh_sec
        self._name = name
        self._wanted: Mapping[str, Item] = {}
        self._running: dict[str, _Run] = {}
        # Ids whose handler returned, with the token and the stay in which it did: not started again
        # in the same stay.
        self._finished: dict[str, tuple[int, Grant]] = {}
        # How often in a row it failed, by id: also over a loss of the lease that it caused itself.
        self._failures: Counter[str] = Counter()

    async def run(self) -> NoReturn:
        """Until the worker ends or the caller is cancelled; everything has ended when this raises.
        Raises UsageError."""
        worker = self._worker
        async with task_group() as group:
            group.start_soon(worker.runners.keep, Runner("owned", self._name), self._ids_on)
            if callable(self._ids):
                group.start_soon(self._refresh, self._ids)
            else:
                self._wanted = self._ids
            while not worker.ended:
                self._match(group)
                await worker.changed()
            group.cancel_scope.cancel()
        if worker.ended:
            raise self._ended("nothing that run_owned had started runs any more")
        raise UsageError(
            "run_owned was cut off: a task of it was cancelled, by somebody who cancels all "
            "tasks there are"
        )

    async def _refresh(self, ids: Callable[[], Any]) -> None:
        """Ask for the ids, for ever. When they cannot be had, those of before are kept."""
        failures = 0
        while True:
            try:
                given = await apart("the callable for the ids of run_owned", ids)
                check_ids(given)
                self._wanted = items_of(given, self._token_of, self._codec)
            except Exception as error:  # the user's, whatever it is: logged, and asked again
                failures += 1
                wait_sec = _BACKOFF.wait_sec(failures, random.random())  # noqa: S311 - a jitter
                self._log.warning(
                    "the ids of run_owned could not be had, those of before are kept; asking "
                    "again in %.1f s: %s",
                    wait_sec,
                    error_text(error),
                    exc_info=error,
                    failures=failures,
                    seconds=wait_sec,
                )
            else:
                failures, wait_sec = 0, self._refresh_sec
                self._worker.wake_waiters()
            await anyio.sleep(wait_sec)

    def _ids_on(self) -> Mapping[int, int]:
        return Counter(item.token for item in self._wanted.values())

    def _match(self, group: TaskGroup) -> None:
        """Start what is owned and not running; end what is not wanted any more. Claims see to what
        is not owned any more."""
        worker, grants = self._worker, self._worker.ownership.grants
        self._finished = {
            text: stay for text, stay in self._finished.items() if grants.get(stay[0]) == stay[1]
        }
        for text, item in self._wanted.items():
            started = text in self._running or text in self._finished
            if not started and worker.may_start(item.token):
                run = self._running[text] = _Run(item)
                group.start_soon(self._keep_running, run)
        for text in self._running.keys() - self._wanted.keys():
            self._running[text].not_wanted()

    async def _keep_running(self, run: _Run) -> None:
        worker, (task_id, text, token) = self._worker, run.item
        with run.scope:
            while worker.owns(token):
                if self._failures[text]:
                    # a jitter
                    await anyio.sleep(_BACKOFF.wait_sec(self._failures[text], random.random()))  # noqa: S311
                run.holding = self._hold(task_id)
                try:
                    async with run.holding:
                        started_at = worker.clock()
                        grant = worker.ownership.grants.get(token)
                        attempt = self._failures[text] + 1
                        outcome = await self._runner.run(run.holding, attempt)
                        kept = run.holding.claim.valid
                except NotOwner:
                    break  # it went while this waited
                self._record_end(run.item, outcome, worker.clock() - started_at, kept=kept)
                if outcome.returned and grant is not None:
                    self._finished[text] = (token, grant)
                    break
        del self._running[text]
        if worker.owns(token) and text not in self._finished:
            worker.wake_waiters()  # the token came back while this was ending

    def _record_end(self, item: Item, outcome: CallOutcome, seconds: float, *, kept: bool) -> None:
        """Count and tell a failure, which makes the next start wait. That its claim was lost is
        none, unless it was `kept`: then the tables say that it is lost, and may say so again."""
        if outcome.error is not None:
            what = "raised"
        elif outcome.blocked_sec:
            what = f"blocked the event loop for {outcome.blocked_sec:.1f} s"
        elif outcome.lost and not outcome.cut and kept:
            what = "was told by the tables that its claim is lost"
        else:
            del self._failures[item.text]
            return
        self._failures[item.text] = 1 if seconds >= _STEADY_SEC else self._failures[item.text] + 1
        failures = self._failures[item.text]
        self._log.error(
            "the handler of task %r %s (%d in a row); while the task is here, it is started "
            "again after a wait",
            item.task_id,
            what,
            failures,
            exc_info=outcome.error,
            task_id=item.text,
            token_id=item.token,
            failures=failures,
        )


class _Run:
    """One id that is kept running, and how to end that."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.holding: Holding | None = None

    def not_wanted(self) -> None:
        if self.holding is not None:
            self.holding.ask_to_end("unwanted")
        self.scope.cancel()
