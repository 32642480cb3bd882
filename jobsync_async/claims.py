"""Claims: the scope in which a task is worked on, cancelled when its token goes; and the fence for the user's transaction."""

from __future__ import annotations

from collections.abc import Hashable
from types import TracebackType
from typing import Any, Literal

import anyio
import psycopg
from psycopg import pq

from jobsync_async.core.hashing import task_text
from jobsync_async.errors import NotOwner, OwnershipLost, UsageError
from jobsync_async.fences import ParamStyle, fence_query, savepoints_refused
from jobsync_async.tasks.worker import Worker

OnRevoke = Literal["finish", "cancel"]


class Claim:
    """A task that is worked on here, as `Job.claim` and the handlers of `Job.run_owned` and `Job.run_batch` get it.

    Attributes:
        task_id: the task's id, as it was given.
        token_id: the token that it hashes to.
        epoch: the token's fencing number; higher than that of every owner before. Send it along with effects outside
            PostgreSQL, so that the other side can refuse lower ones.
    """

    def __init__(self, worker: Worker, task_id: Hashable, token_id: int, fence: str | None) -> None:
        self.task_id = task_id
        self.token_id = token_id
        self.epoch = 0
        self._worker = worker
        self._incarnation = worker.identity.incarnation
        self._fence = fence
        self._open = False
        self._why_lost: str | None = None

    def __repr__(self) -> str:
        state = "valid" if self.valid else "lost" if self._why_lost else "ended" if self.epoch else "not entered"
        return f"<Claim {self.task_id!r} token={self.token_id} epoch={self.epoch} {state}>"

    @property
    def valid(self) -> bool:
        """Whether the task is still this worker's: by the clock and at this moment, without I/O. Work on a token that was
        revoked may be finished, so it stays valid until the hand-off timeout."""
        return self._open and self._why_lost is None and self._worker.may_act()

    def check(self) -> None:
        """Raise OwnershipLost unless `valid`."""
        if not self.valid:
            raise self.lost_error()

    def fence_sql(self, paramstyle: ParamStyle = "format") -> tuple[str, tuple[Any, ...]]:
        """A query, and its parameters, to run inside your own transaction with any driver. No row: ownership is lost, so roll
        back. One row: it is yours until you commit, for nobody can take it before.

        Run it first, in the outermost transaction. After a savepoint it is an error, for rolling back to that would undo it.

        Args:
            paramstyle: ``"format"`` for ``%s`` (psycopg), ``"numeric"`` for ``$1`` (asyncpg).
        """
        if self._fence is None:
            raise UsageError("a standalone job has no table to fence with; give the Job a coordination_config")
        return fence_query(self._fence, paramstyle), (self.token_id, self._incarnation, self.epoch)

    def lost_error(self) -> OwnershipLost:
        """The error that says that this claim is over, and why."""
        why = self._why_lost or ("its scope has ended" if not self._open else "the lease is over")
        return OwnershipLost(
            f"task {self.task_id!r} (token {self.token_id}, epoch {self.epoch}) is not this worker's any more: {why}; "
            "undo what is not committed, and leave it to its new owner",
            task_id=self.task_id,
            token_id=self.token_id,
            epoch=self.epoch,
        )


class ClaimScope:
    """``async with job.claim(id) as claim``: the body runs while the task is this worker's, and is cancelled when it is not.

    Raises NotOwner on entering, and OwnershipLost at the end of a body whose ownership did not last until there; an exception
    that the body itself raises passes as it is.
    """

    def __init__(
        self, worker: Worker, task_id: Hashable, token_id: int, fence: str | None, on_revoke: OnRevoke = "finish"
    ) -> None:
        self._worker = worker
        self._claim = Claim(worker, task_id, token_id, fence)
        self._scope = anyio.CancelScope()
        self._on_revoke = on_revoke

    def __repr__(self) -> str:
        return f"<ClaimScope of {self._claim!r}>"

    async def __aenter__(self) -> Claim:
        worker, claim = self._worker, self._claim
        # From here to the registration nothing is awaited: a revocation comes before and is seen, or after and sees us.
        epoch = worker.ownership.enter(claim.token_id, self) if worker.may_act() else None
        if epoch is None:
            raise NotOwner(
                f"task {claim.task_id!r} (token {claim.token_id}) is not this worker's: leave it to its owner, and ask "
                "job.owns(…) first",
                task_id=claim.task_id,
                token_id=claim.token_id,
            )
        claim.epoch, claim._open = epoch, True
        worker.metrics.claims += 1
        worker.metrics.claims_active += 1
        self._scope.__enter__()
        return claim

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        worker, claim = self._worker, self._claim
        try:
            caught = bool(self._scope.__exit__(kind, error, trace))
        finally:
            valid, claim._open = claim.valid, False
            worker.metrics.claims_active -= 1
            if worker.ownership.leave(claim.token_id, self):
                worker.user_left()
        if caught or (error is None and not valid):
            worker.metrics.claims_lost += 1
            claim._why_lost = claim._why_lost or "the lease is over"
            raise claim.lost_error() from None
        return False

    @property
    def task(self) -> str:
        """The task, as text."""
        return task_text(self._claim.task_id)

    def revoked(self) -> None:
        """Called by the worker's tasks: the token is to go."""
        if self._on_revoke == "cancel":
            self.lost("it was handed on to another worker")

    def lost(self, why: str) -> None:
        """Called by the worker's tasks: stop now."""
        if self._claim._why_lost is None:
            self._claim._why_lost = why
            self._scope.cancel()


async def fence(worker: Worker, connection: psycopg.AsyncConnection[Any], claim: Claim) -> None:
    """Lock the claim's token inside the user's transaction; see `Job.fence`."""
    in_transaction = connection.info.transaction_status != pq.TransactionStatus.IDLE
    if connection.autocommit and not in_transaction:
        raise UsageError(
            "fence() must be inside a transaction, or its lock is gone at once: use `async with conn.transaction():`"
        )
    claim.check()
    query, params = claim.fence_sql()
    with savepoints_refused():
        cursor = await connection.execute(query.encode(), params)
    if await cursor.fetchone() is None:
        worker.metrics.fences_rejected += 1
        raise claim.lost_error()
