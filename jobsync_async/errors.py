"""Everything this library raises on purpose.

    JobSyncError
      ConfigError(ValueError)            a bad setting, name, pattern or id, or one that disagrees
      with the cluster UsageError(RuntimeError)           a call at the wrong moment, e.g. before
      start CoordinationError
        ClusterNotFormed                 minimum_nodes or the first tokens did not come in time
        NodeNameTaken                    another live worker has this name NotOwner
        the task is another worker's, or has no owner OwnershipLost                    the task was
        ours and is not any more LockConflict                     another pin of the same token
        wants other workers, and stays
      StoreError
        StoreUnavailable                 PostgreSQL cannot be reached or did not answer in time:
        retry SchemaError                      missing tables or rights, or tables of another
        version

Errors carry their facts as attributes. What a driver said is the ``__cause__``.
"""

from __future__ import annotations

from typing import Any


class JobSyncError(Exception):
    """Base of every error of this library. Each can be pickled and copied with its attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by calling the class again, as exceptions do: it may want other arguments than its
        # message.
        facts = {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") or name == "__notes__"
        }
        return _restored, (type(self), self.args, facts)


def _restored(
    kind: type[JobSyncError], args: tuple[Any, ...], facts: dict[str, Any]
) -> JobSyncError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(facts)
    return error


class ConfigError(JobSyncError, ValueError):
    """A bad setting, name, pattern or id, or one that disagrees with the running cluster."""


class UsageError(JobSyncError, RuntimeError):
    """A call at the wrong moment, such as one that needs the cluster before `Job.start`."""


class CoordinationError(JobSyncError):
    """The cluster is not as the call needs it."""


class ClusterNotFormed(CoordinationError):
    """``minimum_nodes`` workers, or this worker's first tokens, did not come within
    ``wait_on_enter``.

    Attributes:
        live_nodes: workers that were live when the wait ended.
        minimum_nodes: workers that the configuration asks for.
    """

    def __init__(
        self, message: str, *, live_nodes: int | None = None, minimum_nodes: int | None = None
    ) -> None:
        super().__init__(message)
        self.live_nodes = live_nodes
        self.minimum_nodes = minimum_nodes


class NodeNameTaken(CoordinationError):
    """Another live worker has this name.

    Attributes:
        node: the name.
        holder: where that worker runs (``host`` and process id), where known.
    """

    def __init__(self, node: str, holder: str | None = None) -> None:
        where = f" ({holder})" if holder else ""
        super().__init__(
            f"another live worker is named {node!r}{where}; give each worker a name of its own, or "
            "stop the other first. Where several processes run one program, put the process id "
            "into the name, and make the Job in the process that runs it"
        )
        self.node = node
        self.holder = holder


class _OwnershipError(CoordinationError):
    _claim: Any = None  # which claim of this process it is about, where it is about one

    def __init__(
        self,
        message: str,
        *,
        task_id: Any = None,
        token_id: int | None = None,
        epoch: int | None = None,
        owner: str | None = None,
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.token_id = token_id
        self.epoch = epoch
        self.owner = owner


class NotOwner(_OwnershipError):
    """This worker does not own the task: leave it to the worker that does.

    Attributes:
        task_id, token_id: what was asked for, the id as it was given.
        epoch: fencing number, where known.
        owner: the worker that has it, where known.
    """


class OwnershipLost(_OwnershipError):
    """The task was this worker's and is not any more: undo what is not committed and leave it
    alone.

    Attributes:
        task_id, token_id: what was lost, the id as it was given.
        epoch: the fencing number under which it was held.
        owner: the worker that has it now, where known.
    """


class LockConflict(CoordinationError):
    """A pin was refused: another task on the same token is pinned to other workers, and the first
    pin stays.

    Attributes:
        task_id, token_id: the refused pin's task, as text, and the token that it shares.
        holder_task_id: the task whose pin stays, as text.
        node_patterns: the patterns of the pin that stays.
    """

    def __init__(
        self, task_id: str, token_id: int, holder_task_id: str, node_patterns: tuple[str, ...]
    ) -> None:
        super().__init__(
            f"task {task_id!r} was not pinned: it shares token {token_id} with task "
            f"{holder_task_id!r}, which is pinned to {list(node_patterns)!r}; use the same "
            "patterns, clear that pin first, or raise total_tokens"
        )
        self.task_id = task_id
        self.token_id = token_id
        self.holder_task_id = holder_task_id
        self.node_patterns = node_patterns


class StoreError(JobSyncError):
    """PostgreSQL did not do what was asked."""


class StoreUnavailable(StoreError):
    """PostgreSQL cannot be reached, or did not answer in time. Retrying is safe; what was asked may
    have happened."""


class SchemaError(StoreError):
    """Tables or rights are missing, or the tables are another version's. The message says what to
    run."""
