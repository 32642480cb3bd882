"""What a call of `Job.run_batch` was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobsync_async.core.runs import Asked
from jobsync_async.errors import UsageError
from jobsync_async.tasks.worker import Worker
from jobsync_async.work.engine import WorkRecords
from jobsync_async.work.handlers import Handler
from jobsync_async.work.progress import ProgressCallback


@dataclass(frozen=True, slots=True)
class Order:
    """How a batch is to be done here, whatever its ids.

    Attributes:
        records, fence: where it is recorded, and the table to fence with.
        codec: the encoding of what can be stored.
        token_of: the token of an id.
        ended: makes the error for a job that has ended, with what that means here.
        asked: which run of the batch is wanted.
        concurrency: how many handlers may run at once here.
        attempts: how often a handler that fails is called here before the task is given up.
        progress: called as the batch proceeds.
    """

    worker: Worker
    records: WorkRecords
    fence: str | None
    codec: str
    token_of: Callable[[Any], int]
    ended: Callable[[str], UsageError]
    asked: Asked
    handler: Handler
    concurrency: int
    attempts: int
    progress: ProgressCallback | None = None
