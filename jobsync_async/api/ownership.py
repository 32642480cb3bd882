"""What this worker may do now. All of it is local, without I/O; and all but `token_changes` may be
asked from any thread."""

from __future__ import annotations

from collections.abc import Iterable

from jobsync_async.api.base import Started
from jobsync_async.types import Id, Task, TaskOrId, task_id_of
from jobsync_async.work.streams import TokenChanges


class OwnershipCalls(Started):
    """Questions about tokens and tasks."""

    def can_claim_task(self, task: TaskOrId) -> bool:
        """Whether work on the task may start here now: its token is owned, the lease is valid by
        the clock, and the cluster is not paused. No I/O. Raises UsageError before start,
        ConfigError for an id that cannot be one.

        A question about now, and no claim: it holds nothing, and says nothing of what is done
        already. Between two workers' starts the answer changes hands. `claim` holds it; `run_batch`
        and `run_owned` ask by themselves.
        """
        worker = self._worker  # asked for every task of a batch
        token = self._token(task.id if isinstance(task, Task) else task)
        # In this order: see Worker.owns.
        if (
            worker.clock() < worker.lease.deadline
            and token in worker.ownership.grants
            and worker.paused is None
        ):
            return True
        self._require_alive()
        return False

    def owns(self, task: TaskOrId) -> bool:
        """The same as `can_claim_task`."""
        return self.can_claim_task(task)

    def filter_owned(self, ids: Iterable[Id]) -> list[Id]:
        """Those of the tasks or ids that may start here now, when all of them were looked at; in
        order. No I/O."""
        self._require_alive()
        grants, token_of = self._worker.ownership.grants, self._token
        hashed = ((item, token_of(item.id if isinstance(item, Task) else item)) for item in ids)
        found = [(item, token) for item, token in hashed if token in grants]
        owned = frozenset() if self._worker.paused else self._worker.owned_now()
        return [item for item, token in found if token in owned]

    def task_to_token(self, task: TaskOrId) -> int:
        """The token that a task hashes to. No I/O."""
        return self._token(task_id_of(task))

    @property
    def my_tokens(self) -> frozenset[int]:
        """The tokens that are this worker's, and stay; also while the cluster is paused. No I/O."""
        return self._worker.owned_now()

    @property
    def token_version(self) -> int:
        """The cluster's version that `my_tokens` reflects; rises with every change. No I/O."""
        return max(0, self._worker.version)

    def token_changes(self) -> TokenChanges:
        """An asynchronous iterator of what changes for this worker, beginning with a snapshot."""
        self._require_started()
        return TokenChanges(self._worker)
