"""The names that users import, and no others."""

from __future__ import annotations

import pytest

import jobsync_async

NAMES = {
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
}


def test_exactly_the_public_names():
    assert set(jobsync_async.__all__) == NAMES
    assert len(jobsync_async.__all__) == len(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_each_has_a_docstring_and_so_have_its_methods(name):
    thing = getattr(jobsync_async, name)
    assert thing.__doc__
    for attribute, value in vars(thing).items() if isinstance(thing, type) else ():
        if not attribute.startswith("_") and callable(value):
            assert value.__doc__, f"{name}.{attribute}"


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        ("ConfigError", ["JobSyncError", ValueError]),
        ("UsageError", ["JobSyncError", RuntimeError]),
        ("ClusterNotFormed", ["CoordinationError"]),
        ("NodeNameTaken", ["CoordinationError"]),
        ("NotOwner", ["CoordinationError"]),
        ("OwnershipLost", ["CoordinationError"]),
        ("LockConflict", ["CoordinationError"]),
        ("CoordinationError", ["JobSyncError"]),
        ("StoreUnavailable", ["StoreError"]),
        ("SchemaError", ["StoreError"]),
        ("StoreError", ["JobSyncError"]),
    ],
)
def test_the_tree_of_errors(error, bases):
    for base in bases:
        assert issubclass(
            getattr(jobsync_async, error),
            getattr(jobsync_async, base) if isinstance(base, str) else base,
        )
