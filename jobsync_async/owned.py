"""`Job.run_owned`: one coroutine per owned task id, cluster-wide."""

from __future__ import annotations

import inspect
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from jobsync_async.callbacks import call
from jobsync_async.claims import Claim, ClaimScope
from jobsync_async.core.hashing import task_text
from jobsync_async.core.lease import Backoff
from jobsync_async.core.ownership import Grant
from jobsync_async.errors import ConfigError, NotOwner, OwnershipLost, UsageError
from jobsync_async.groups import task_group
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import Runner, task_id_of

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger(__name__)

Handler = Callable[[Claim], Awaitable[object]]
Ids = Iterable[Hashable] | Callable[[], Iterable[Hashable] | Awaitable[Iterable[Hashable]]]

_BACKOFF = Backoff(first_sec=0.2, most_sec=30)
_STEADY_SEC = 60.0
"""A handler that ran for so long before it raised is restarted as if it were the first time."""


class OwnedRunner:
    """Starts a coroutine for each owned id, and ends it when the id goes.

    Args:
        claim: makes the claim scope for an id, one that is cancelled as soon as the token is revoked.
        token_of: the token that an id hashes to.
        refresh_sec: how often a callable for the ids is called again.
        name: by which workers tell each other that they run this.
    """

    def __init__(
        self,
        worker: Worker,
        claim: Callable[[Hashable], ClaimScope],
        token_of: Callable[[Hashable], int],
        ids: Ids,
        handler: Handler,
        refresh_sec: float,
        name: str,
    ) -> None:
        self._worker = worker
        self._claim = claim
        self._token_of = token_of
        self._ids = ids
        self._handler = handler
        self._refresh_sec = refresh_sec
        self._name = name
        self._wanted: dict[str, tuple[Hashable, int]] = {}
        self._running: dict[str, anyio.CancelScope] = {}
        # Ids whose handler returned, with the token and the stay in which it did: not started again in the same stay.
        self._finished: dict[str, tuple[int, Grant]] = {}

    async def run(self) -> None:
        """Until the worker ends or the caller is cancelled; all coroutines have ended when this returns."""
        worker = self._worker
        refresh = callable(self._ids)
        await self._read_ids()
        async with task_group() as group:
            group.start_soon(worker.runners.keep, Runner("owned", self._name), self._ids_on)
            while not worker.ended:
                self._match(group)
                with anyio.move_on_after(self._refresh_sec if refresh else None) as waiting:
                    await worker.changed()
                if waiting.cancelled_caught:
                    await self._read_ids()
            group.cancel_scope.cancel()

    async def _read_ids(self) -> None:
        ids = await call(self._ids) if callable(self._ids) else self._ids
        bare = (task_id_of(item) for item in ids)
        self._wanted = {task_text(task_id): (task_id, self._token_of(task_id)) for task_id in bare}

    def _ids_on(self) -> Mapping[int, int]:
        return Counter(token for _, token in self._wanted.values())

    def _match(self, group: TaskGroup) -> None:
        """Start what is owned and not running; end what is not wanted any more. Claims see to what is not owned any more."""
        worker, grants = self._worker, self._worker.ownership.grants
        self._finished = {text: stay for text, stay in self._finished.items() if grants.get(stay[0]) == stay[1]}
        for text, (task_id, token) in self._wanted.items():
            if worker.owns(token) and text not in self._running and text not in self._finished:
                scope = self._running[text] = anyio.CancelScope()
                group.start_soon(self._keep_running, text, task_id, token, scope)
        for text in self._running.keys() - self._wanted.keys():
            self._running[text].cancel()

    async def _keep_running(self, text: str, task_id: Hashable, token: int, scope: anyio.CancelScope) -> None:
        worker = self._worker
        failures = 0
        with scope:
            while worker.owns(token):
                started_at = worker.clock()
                grant = worker.ownership.grants[token]
                try:
                    async with self._claim(task_id) as claim:
                        await handled(self._handler, claim)
                    self._finished[text] = (token, grant)
                    break
                except (NotOwner, OwnershipLost):
                    failures = 0
                except NotAsync:
                    raise
                except Exception:  # the handler's own, whatever it is: logged, and the handler is started again
                    failures = 1 if worker.clock() - started_at >= _STEADY_SEC else failures + 1
                    wait_sec = _BACKOFF.wait_sec(failures, random.random())  # noqa: S311 - a jitter
                    name = worker.identity.name
                    logger.exception(
                        "%s: the handler of task %r raised; starting it again in %.1f s",
                        name,
                        task_id,
                        wait_sec,
                        extra={"node": name, "task_id": text, "token_id": token, "failures": failures, "seconds": wait_sec},
                    )
                    await anyio.sleep(wait_sec)
        del self._running[text]
        if worker.owns(token) and text not in self._finished:
            worker.wake_waiters()  # the token came back while the coroutine was ending


class NotAsync(UsageError):
    """The handler is a plain function."""


async def handled(handler: Handler, claim: Claim) -> None:
    """Call a handler to its end. Raises NotAsync when it is a plain function, which nothing could cancel."""
    result: object = handler(claim)
    if not inspect.isawaitable(result):
        raise NotAsync(
            f"the handler must be an async function, and {handler!r} is a plain one, which would hold up the event loop: make "
            "it `async def`, and call blocking code in it by `await asyncio.to_thread(…)`"
        )
    await result


def check_handler(handler: Any) -> None:
    """Raise UsageError unless it can be called."""
    if not callable(handler):
        raise UsageError(f"the handler must be an async function that takes a Claim; got {handler!r}")


def check_ids(ids: Any) -> None:
    """Raise ConfigError unless it is several ids: a string would be taken for its characters."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise ConfigError(f"ids must be an iterable of task ids, such as a list; got {ids!r:.100}")
