"""Claims: a task that is worked on here, as whoever works on it sees it; and the fence for the
user's transaction. Who holds a claim is in `holding.py`."""

from __future__ import annotations

from typing import Any, Generic, Literal, overload

import psycopg

from jobsync_async.errors import NotOwner, OwnershipLost
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import Id, Id_co
from jobsync_async.work.fences import (
    ParamStyle,
    check_connection,
    fence_query,
    savepoints_refused,
    standing_query,
)

Leaving = Literal["revoked", "stopping", "lost", "unwanted"]

_NO_ROW = (
    "its row in the tables says so (if this connection leads to a server that was left in a "
    "failover, close it)"
)


class Claim(Generic[Id_co]):
    """A task that is worked on here, as `Job.claim` and the handlers of `Job.run_owned` and
    `Job.run_batch` get it.

    A claim of an id of type `str` is a ``Claim[str]``. What it tells asks nobody, and may be asked
    from any thread.

    Attributes:
        task_id: the task's id, as it was given.
        token_id: the token that it hashes to.
        epoch: the token's fencing number; higher than that of every owner before. Send it along
            with effects outside PostgreSQL, so that the other side can refuse lower ones.
    """

    def __init__(self, worker: Worker, task_id: Id_co, token_id: int, fence: str | None) -> None:
        self.task_id = task_id
        self.token_id = token_id
        self.epoch = 0
        self._worker = worker
        self._incarnation = worker.identity.incarnation
        self._fence = fence
        self._open = False
        self._why_lost: str | None = None
        self._asked_to_end: Leaving | None = None

    def __repr__(self) -> str:
        state = (
            "valid"
            if self.valid
            else "lost"
            if self._why_lost
            else "ended"
            if self.epoch
            else "not entered"
        )
        return f"<Claim {self.task_id!r} token={self.token_id} epoch={self.epoch} {state}>"

    @property
    def valid(self) -> bool:
        """Whether the task is still this worker's: by the clock and at this moment, without I/O. A
        token that was revoked is this worker's until nobody here uses it any more, so it stays
        valid, and its fence holds, until the hand-off timeout."""
        return self._open and self._why_lost is None and self._worker.may_act()

    @property
    def leaving(self) -> Leaving | None:
        """Why the work is to end; None while it may go on. No I/O.

        ``"revoked"``: the token is wanted elsewhere. ``"stopping"``: this worker, or whoever called
        `Job.run_owned` or `Job.run_batch`, stops. ``"unwanted"``: the ids of `Job.run_owned` do not
        have it any more. In these three cases the claim is still `valid`: there is time to save
        what was done. ``"lost"``: it is over, save nothing.
        """
        if self._why_lost is not None or (self._open and not self._worker.may_act()):
            return "lost"
        ownership = self._worker.ownership
        if self._open and self.token_id in ownership.revoking:
            return "stopping" if ownership.leaving else "revoked"
        return self._asked_to_end

    def check(self) -> None:
        """Raise OwnershipLost unless `valid`."""
        if not self.valid:
            raise self.lost_error()

    @overload
    def fence_sql(
        self, paramstyle: Literal["format", "numeric"] = "format"
    ) -> tuple[str, tuple[Any, ...]]: ...

    @overload
    def fence_sql(self, paramstyle: Literal["named"]) -> tuple[str, dict[str, Any]]: ...

    def fence_sql(self, paramstyle: ParamStyle = "format") -> tuple[str, Any]:
        """A query, and its parameters, to run inside your own transaction with any driver. Give
        what it returned to `check_fence`. No row: ownership is lost, so roll back. One row: it is
        yours until you commit, for nobody can take it before.

        Run it first, in the outermost transaction. After a savepoint it is an error, for rolling
        back to that would undo it.

        Args:
            paramstyle: ``"format"`` for ``%s`` (psycopg, Django), ``"numeric"`` for ``$1``
                (asyncpg), ``"named"`` for ``:name`` and a dictionary (``text()`` of SQLAlchemy and
                SQLModel).

        Raises:
            UsageError: another style.
        """
        if self._fence is None:  # standalone: there is nobody else, and so nothing to lock
            return standing_query(paramstyle, epoch=self.epoch)
        return fence_query(
            self._fence,
            paramstyle,
            token_id=self.token_id,
            incarnation=self._incarnation,
            epoch=self.epoch,
        )

    def check_fence(self, row: object) -> None:
        """Raise OwnershipLost unless the query of `fence_sql` returned a row. Let the error pass,
        so that the transaction rolls back.

        Args:
            row: what the driver gives for one row, or None for no row.
        """
        if row is None:
            self._worker.metrics.fences_rejected += 1
            raise self.lost_error(self._why_lost or _NO_ROW)

    def lost_error(self, why: str | None = None) -> OwnershipLost:
        """The error that says that this claim is over, and why."""
        why = (
            why or self._why_lost or ("the lease is over" if self._open else "its scope has ended")
        )
        error = OwnershipLost(
            f"task {self.task_id!r:.200} (token {self.token_id}, epoch {self.epoch}) is not this "
            f"worker's any more: {why}; undo what is not committed, and leave it to its new owner",
            task_id=self.task_id,
            token_id=self.token_id,
            epoch=self.epoch,
        )
        error._claim = self
        return error


async def fence(worker: Worker, connection: psycopg.AsyncConnection[Any], claim: Claim) -> None:
    """Lock the claim's token inside the user's transaction; see `Job.fence`."""
    worker.home.require()
    check_connection(connection)
    claim.check()
    if claim._fence is None:
        return
    query, params = claim.fence_sql()
    with savepoints_refused():
        cursor = await connection.execute(query.encode(), params)
    claim.check_fence(await cursor.fetchone())


def standing_claim(worker: Worker, task_id: Id, token_id: int, fence: str | None) -> Claim[Id]:
    """A claim to fence with, for whoever has no scope: valid while this worker has the token, until
    it is acknowledged.

    Raises NotOwner when it has not.
    """
    claim = Claim(worker, task_id, token_id, fence)
    epoch = worker.ownership.epoch(token_id) if worker.may_act() else None
    if epoch is None:
        raise NotOwner(
            f"task {task_id!r:.200} (token {token_id}) is not this worker's, not even revoked and "
            "on its way: commit nothing for it",
            task_id=task_id,
            token_id=token_id,
        )
    claim.epoch, claim._open = epoch, True
    return claim
