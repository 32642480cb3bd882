"""What is generic over the type of ids is so for type checkers; when it runs, nothing changes."""

from __future__ import annotations

import copy
import datetime as dt
import pickle
from typing import TypeVar, get_args, get_origin, get_type_hints

import pytest

from jobsync_async import BatchCounts, BatchResult, Claim, Job, Task

T = TypeVar("T")
RESULT = BatchResult(frozenset({1}), frozenset({2}), {3: "ValueError: of the test"})
COUNTS = BatchCounts[int](1, 1, 1, RESULT.failed, dt.date(2024, 3, 1), "b")


async def handle(
    claim: Claim[int], result: BatchResult[int], counts: BatchCounts[int], task: Task[int]
) -> None: ...


def test_what_an_annotation_says_can_be_asked_for():
    told = get_type_hints(handle)
    for name, generic in (
        ("claim", Claim), ("result", BatchResult), ("counts", BatchCounts), ("task", Task)
    ):  # fmt: skip
        assert (get_origin(told[name]), get_args(told[name])) == (generic, (int,))
        assert generic[T][int] == generic[int]


def test_a_value_made_with_its_type_is_the_same_without():
    assert Task[int](7, "seven") == Task(7, "seven")
    assert hash(Task[int](7)) == hash(Task(7))
    assert repr(Task[int](7)) == "Task(7)"
    assert BatchResult[int](frozenset({1}), frozenset({2}), RESULT.failed) == RESULT


@pytest.mark.parametrize("value", [Task[int](7, "seven"), RESULT, COUNTS])
def test_a_value_can_be_copied_and_sent(value):
    for other in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert other == value
        assert type(other) is type(value)
    assert not hasattr(value, "__dict__")


async def test_a_claim_knows_nothing_of_the_type_of_its_id():
    async with Job("a") as job, job.claim(Task[int](7)) as claim:
        assert type(claim) is Claim
        assert type(claim.task_id) is int
