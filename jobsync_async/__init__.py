"""Spread work over asyncio processes through PostgreSQL: every piece is done by exactly one of
them."""

__version__ = "0.2.0"

from typing import TYPE_CHECKING, Any

# before all others: says what is missing where psycopg cannot be imported
from jobsync_async.postgres import driver as _driver  # noqa: F401

# isort: split
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import task_to_token
from jobsync_async.errors import (
    ClusterNotFormed,
    ConfigError,
    CoordinationError,
    JobSyncError,
    LockConflict,
    NodeNameTaken,
    NotOwner,
    OwnershipLost,
    SchemaError,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from jobsync_async.job import Job
from jobsync_async.types import (
    BatchCounts,
    BatchResult,
    LockInfo,
    NodeInfo,
    Owner,
    RebalanceEvent,
    Task,
    TokenChange,
)
from jobsync_async.work.claims import Claim

if TYPE_CHECKING:
    from jobsync_async.observer import Observer

__all__ = [
    "BatchCounts",
    "BatchResult",
    "Claim",
    "ClusterNotFormed",
    "ConfigError",
    "CoordinationConfig",
    "CoordinationError",
    "Job",
    "JobSyncError",
    "LockConflict",
    "LockInfo",
    "NodeInfo",
    "NodeNameTaken",
    "NotOwner",
    "Observer",
    "Owner",
    "OwnershipLost",
    "RebalanceEvent",
    "SchemaError",
    "StoreError",
    "StoreUnavailable",
    "Task",
    "TokenChange",
    "UsageError",
    "__version__",
    "task_to_token",
]


def __getattr__(name: str) -> Any:
    if name == "Observer":  # loaded when somebody asks: a worker has no use for it
        from jobsync_async.observer import Observer  # noqa: PLC0415

        return Observer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
