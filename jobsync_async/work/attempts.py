"""Calling the handler of a piece, several times if it fails.

* How often it may fail is counted by id, over all its stays at this worker.
* A handler that blocks the event loop until its lease is over has failed by that.
* Between two calls there is a wait, which grows, and ends when the claim does.
* While the cluster is paused, none is begun.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable

import anyio

from jobsync_async.core.lease import Backoff
from jobsync_async.core.rows import Work
from jobsync_async.core.texts import error_text
from jobsync_async.host.logs import WorkerLog
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import Runner
from jobsync_async.work.handlers import Handler, HandlerRunner, blocked_text
from jobsync_async.work.pieces import Piece

_BACKOFF = Backoff(first_sec=0.2, most_sec=10)


class HeldUp(Exception):
    """The cluster is paused: the handler is not called now."""


class Attempts:
    """Calls one handler.

    Args:
        most: how often it may fail for an id.
        name: the batch's.
        note: called with what failed and is called again, and the error's text.
    """

    def __init__(
        self,
        worker: Worker,
        handler: Handler,
        most: int,
        name: str | None,
        note: Callable[[Work, str], Awaitable[None]],
    ) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._runner = HandlerRunner(worker, handler, Runner("batch", name))
        self._attempts = most
        self._note = note
        self._failures: Counter[int] = Counter()
        self._errors: dict[int, str] = {}

    async def run(self, piece: Piece) -> str | None:
        """Call the handler, again if it fails; the last error's text, None when it succeeded.
        Raises OwnershipLost or HeldUp."""
        number = piece.number
        while self._failures[number] < self._attempts:
            if self._worker.paused is not None:
                raise HeldUp
            outcome = await self._runner.run(piece, self._failures[number] + 1)
            # Told in the log. It may have succeeded all the same, as the tables will say.
            if outcome.blocked_sec:
                self._failures[number] += 1
                self._errors[number] = f"it {blocked_text(outcome.blocked_sec)}"
            if outcome.cut or outcome.lost:
                raise piece.claim.lost_error("its handler was told so" if outcome.lost else None)
            if outcome.error is None:
                return None
            if not outcome.blocked_sec:
                self._failures[number] += 1
            self._errors[number] = error_text(outcome.error)
            self._log_failure(piece, outcome.error)
            if self._failures[number] < self._attempts:
                await self._note(piece.work, self._errors[number])
                wait_sec = _BACKOFF.wait_sec(self._failures[number], random.random())  # noqa: S311
                with anyio.move_on_after(wait_sec):
                    await piece.gone()
                piece.claim.check()
        return self._errors[number]

    def _log_failure(self, piece: Piece, error: BaseException) -> None:
        attempt = self._failures[piece.number]
        self._log.warning(
            "the handler of task %r raised in attempt %d of %d",
            piece.claim.task_id,
            attempt,
            self._attempts,
            exc_info=error,
            task_id=piece.task,
            token_id=piece.claim.token_id,
            failures=attempt,
        )
