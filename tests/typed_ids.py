"""What type checkers know of ids. Not run: `mypy` reads it with the project, and ``python -m
tests.environments types`` has another checker read it.

A wrong use has a comment that ignores its error. One that ignores nothing is an error itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from uuid import UUID

from typing_extensions import assert_type

from jobsync_async import BatchCounts, BatchResult, Claim, Job, Task


async def do_number(claim: Claim[int]) -> None:
    assert_type(claim.task_id, int)


def do_text(claim: Claim[str]) -> None:
    assert_type(claim.task_id, str)


async def do_either(claim: Claim[int | str]) -> None:
    assert_type(claim.task_id, int | str)


async def do_anything(claim: Claim[object]) -> None:
    assert_type(claim.task_id, object)


async def do_uuid(claim: Claim[UUID]) -> None:
    assert_type(claim.task_id, UUID)


async def do_pair(claim: Claim[tuple[str, int]]) -> None:
    assert_type(claim.task_id, tuple[str, int])


async def bare(claim: Claim) -> None:
    number: int = claim.task_id
    text: str = claim.task_id
    print(number, text)


async def what_goes_into_a_batch_comes_out(
    job: Job, uuids: list[UUID], either: list[int | str], pairs: set[tuple[str, int]]
) -> None:
    assert_type(await job.run_batch([1, 2], do_number), BatchResult[int])
    assert_type(await job.run_batch(range(9), do_number), BatchResult[int])
    assert_type(await job.run_batch((f"{n}" for n in range(9)), do_text), BatchResult[str])
    assert_type(await job.run_batch(uuids, do_uuid), BatchResult[UUID])
    assert_type(await job.run_batch(pairs, do_pair), BatchResult[tuple[str, int]])
    assert_type(await job.run_batch(either, do_either), BatchResult[int | str])
    assert_type(await job.run_batch({"a": 1}, lambda claim: len(claim.task_id)), BatchResult[str])
    result = await job.run_batch([1, 2], do_anything)
    assert_type(result.completed_here, frozenset[int])
    assert_type(result.completed_elsewhere, frozenset[int])
    for task_id, error in result.failed.items():
        assert_type(task_id, int)
        assert_type(error, str)


async def a_batch_of_tasks_gives_their_ids(job: Job, tasks: list[Task[int]]) -> None:
    assert_type(await job.run_batch(tasks, do_number), BatchResult[int])
    assert_type(await job.run_batch([Task("a"), Task("b", name="b")], do_text), BatchResult[str])


async def a_stream_gives_counts_and_needs_a_name(
    job: Job, numbers: AsyncIterator[int], tasks: AsyncIterable[Task[str]]
) -> None:
    counts = await job.run_batch(numbers, do_number, name="numbers")
    assert_type(counts, BatchCounts[int])
    assert_type(counts.errors, Mapping[int, str])
    assert_type(await job.run_batch(tasks, do_text, name="texts"), BatchCounts[str])
    await job.run_batch(numbers, do_number)  # type: ignore[call-overload]
    await job.run_batch(numbers, do_text, name="numbers")  # type: ignore[arg-type]


async def what_is_claimed_comes_out(job: Job, task: Task[UUID]) -> None:
    async with job.claim(1) as number:
        assert_type(number, Claim[int])
    async with job.claim("a") as text:
        assert_type(text.task_id, str)
    async with job.claim(task) as claim:
        assert_type(claim.task_id, UUID)
    async with job.claim(Task("a", name="b")) as named:
        assert_type(named.task_id, str)


def one_that_takes_any_claim_takes_all(job: Job, number: Claim[int]) -> Awaitable[None]:
    result: Callable[[BatchResult[object]], None] = lambda _: None  # noqa: E731
    result(BatchResult[int](frozenset(), frozenset(), {}))
    return do_anything(number)


async def what_is_asked_for_comes_out(job: Job, tasks: list[Task[int]]) -> None:
    assert_type(job.filter_owned([1, 2]), list[int])
    assert_type(job.filter_owned(tasks), list[Task[int]])
    assert_type(await job.add_tasks(["a"]), list[str])


def what_is_run_while_it_is_owned(job: Job, symbols: list[str]) -> list[Awaitable[object]]:
    async def ask() -> list[str]:
        return symbols

    return [
        job.run_owned(symbols, do_text),
        job.run_owned(range(12), do_number),
        job.run_owned([Task(1)], do_number),
        job.run_owned(lambda: symbols, do_text),
        job.run_owned(ask, do_text),
        job.run_owned(ask, bare),
    ]


async def code_that_says_nothing_of_ids_goes_on_working(
    job: Job, result: BatchResult, task: Task, tasks: list[Task]
) -> BatchResult:
    await job.run_batch([1, 2], bare)
    await job.run_batch(["a"], bare)
    await job.run_batch(tasks, bare)
    async with job.claim(task) as claim:
        await bare(claim)
        print(claim.task_id.anything, task.id.anything)
    number: int = next(iter(result.completed_here))
    print(number)
    return await job.run_batch([1, 2], bare)


async def a_handler_of_other_ids_is_an_error(job: Job, tasks: list[Task[int]]) -> None:
    await job.run_batch([1, 2], do_text)  # type: ignore[arg-type]
    await job.run_batch(["a"], do_number)  # type: ignore[arg-type]
    await job.run_batch(tasks, do_text)  # type: ignore[arg-type]
    await job.run_batch(["a"], lambda claim: claim.task_id + 1)  # type: ignore[operator]


def it_is_one_of_run_owned_too(job: Job, tasks: list[Task[int]]) -> list[Awaitable[object]]:
    return [
        job.run_owned([1, 2], do_text),  # type: ignore[misc]
        job.run_owned(lambda: [1, 2], do_text),  # type: ignore[misc]
        job.run_owned(tasks, do_text),  # type: ignore[arg-type]
    ]


async def a_result_of_other_ids_is_an_error(job: Job) -> BatchResult[str]:
    return await job.run_batch([1, 2], do_number)  # type: ignore[arg-type]


async def what_cannot_be_an_id_is_an_error(job: Job) -> None:
    job.claim([1])  # type: ignore[call-overload]
    await job.add_tasks([[1]])  # type: ignore[type-var]
