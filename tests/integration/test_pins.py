"""Pins: kept, moved at once, refused when they conflict, and told of when nobody matches."""

from __future__ import annotations

import asyncio
from itertools import count

import anyio
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobsync_async import ConfigError, Job, LockConflict, task_to_token
from jobsync_async.core.patterns import matches


async def owner(job: Job, task: str, name: str | None) -> None:
    """Wait until `task` is owned by the worker called `name`, or by nobody."""
    with anyio.fail_after(5):
        while True:
            found = await job.owner_of(task)
            if (found and found.node) == name:
                return
            await asyncio.sleep(0.005)


def sharing_token(total_tokens: int) -> tuple[str, str]:
    """Two ids on one token."""
    seen: dict[int, str] = {}
    for number in count():
        task = f"task-{number}"
        other = seen.setdefault(task_to_token(task, total_tokens), task)
        if other != task:
            return other, task
    raise AssertionError


async def test_a_pin_moves_its_token_at_once_and_clearing_it_frees_it(jobs):
    anna, _, gpu = await jobs.start("anna", "berta", "gpu-1")
    await jobs.even()
    tasks = [f"model-{n}" for n in range(10)]
    await anna.register_locks_bulk([(task, "gpu-%", "needs a GPU") for task in tasks])
    for task in tasks:
        await owner(anna, task, "gpu-1")
    with anyio.fail_after(5):  # the tables say it before the worker has read it
        while gpu.filter_owned(tasks) != tasks:
            await asyncio.sleep(0.005)
    assert {lock.task_id for lock in await gpu.list_locks()} == set(tasks)
    assert {
        (lock.created_by, lock.reason, lock.node_patterns) for lock in await gpu.list_locks()
    } == {("anna", "needs a GPU", ("gpu-%",))}
    with anyio.fail_after(5):  # pinned tokens count in the balance; others may still be under way
        while max(jobs.counts().values()) - min(jobs.counts().values()) > 1:
            await asyncio.sleep(0.005)
    await anna.register_lock(tasks[0], "berta")  # replaces its own pin
    await owner(anna, tasks[0], "berta")
    assert await anna.clear_locks_by_creator("berta") == 0
    assert await anna.clear_locks_by_creator("anna") == 10
    assert await anna.list_locks() == []


async def test_fallbacks_are_tried_in_order_as_workers_come_and_go(jobs):
    (anna,) = await jobs.start("anna")
    await anna.register_lock("render", ["gpu-%", "big-%", "%"])
    await owner(anna, "render", "anna")
    await jobs.start("big-1")
    await owner(anna, "render", "big-1")
    await jobs.start("gpu-1")
    await owner(anna, "render", "gpu-1")
    await jobs.stop("gpu-1")
    await owner(anna, "render", "big-1")


async def test_a_pin_that_expires_moves_its_token_without_a_change_of_membership(jobs, admin):
    anna, berta = await jobs.start("anna", "berta")
    task = next(f"t{n}" for n in count() if berta.owns(f"t{n}"))
    await berta.register_lock(task, "nobody", expires_in_days=0.7 / 86400)
    await owner(anna, task, None)
    before = (await anna.get_coordination_status())["unmatched_pins"]
    assert [pin["task_id"] for pin in before] == [task]
    with anyio.fail_after(5):
        while await anna.owner_of(task) is None:
            await asyncio.sleep(0.02)
    assert await anna.list_locks() == []


async def test_a_pin_that_nobody_matches_leaves_its_token_unowned_and_says_so(jobs, caplog):
    anna, berta = await jobs.start("anna", "berta")
    await berta.register_lock("lonely", ["gpu-%", "tpu-_"])
    await owner(anna, "lonely", None)
    assert not anna.owns("lonely")
    assert not berta.owns("lonely")
    status = await berta.get_coordination_status()
    assert [(pin["task_id"], pin["node_patterns"]) for pin in status["unmatched_pins"]] == [
        ("lonely", ("gpu-%", "tpu-_"))
    ]
    leader = anna if anna.am_i_leader() else berta
    assert leader.metrics.tokens_unmatched == 1
    assert (
        f"token {anna.task_to_token('lonely')} has no owner: it is pinned to ['gpu-%', 'tpu-_']"
        in caplog.text
    )
    await jobs.start("tpu-1")
    await owner(anna, "lonely", "tpu-1")


async def test_of_two_tasks_on_one_token_the_first_pin_stays(jobs, config):
    anna, berta = await jobs.start("anna", "berta")
    first, second = sharing_token(config.total_tokens)
    await anna.register_lock(first, "anna")
    with pytest.raises(LockConflict) as refused:
        await berta.register_lock(second, "berta")
    assert refused.value.task_id == second
    assert refused.value.holder_task_id == first
    assert refused.value.node_patterns == ("anna",)
    conflicts = await berta.register_locks_bulk([(second, "berta", None), ("other", "berta", None)])
    assert [conflict.task_id for conflict in conflicts] == [second]
    assert {lock.task_id for lock in await anna.list_locks()} == {first, "other"}
    await berta.register_lock(second, "anna")  # the same wish is no conflict
    await owner(anna, second, "anna")


async def test_two_registrations_that_conflict_at_the_same_moment_leave_one(jobs, config):
    anna, berta = await jobs.start("anna", "berta")
    for _ in range(5):
        first, second = sharing_token(config.total_tokens)
        results = await asyncio.gather(
            anna.register_lock(first, "anna"),
            berta.register_lock(second, "berta"),
            return_exceptions=True,
        )
        assert sorted(type(result).__name__ for result in results) == ["LockConflict", "NoneType"]
        await anna.clear_all_locks()


async def test_a_dead_workers_pins_stay(quick_jobs):
    anna, _ = await quick_jobs.start("anna", "berta")
    await quick_jobs["berta"].register_lock("report", "anna")
    await quick_jobs.crash("berta")
    await quick_jobs.settled()
    assert [lock.task_id for lock in await anna.list_locks()] == ["report"]
    assert anna.owns("report")


async def test_lock_provider_runs_before_the_worker_joins_and_may_clear_its_old_pins(config):
    async def provide(job: Job) -> None:
        await job.register_lock("new", "anna")

    async with Job(
        "anna", config, lock_provider=lambda job: job.register_lock("old", "anna")
    ) as job:
        assert job.owns("old")
    async with Job("anna", config, lock_provider=provide, clear_existing_locks=True) as job:
        assert [lock.task_id for lock in await job.list_locks()] == ["new"]


@pytest.mark.parametrize(
    "bad",
    [
        ("task", [], None),
        ("task", "", None),
        ("task", "ends in\\", None),
        ("task", ["x", 3], None),
        ("task", "nul\0", None),
        ("task\0", "x", None),
        ("task", "x", "reason\0"),
        ("task", "x" * 1001, None),
        ("task", "x"),
    ],
)
async def test_a_bad_pin_is_refused_and_none_of_its_list_is_stored(config, bad):
    async with Job("anna", config) as job:
        with pytest.raises(ConfigError):
            await job.register_locks_bulk([("good", "anna", None), bad])
        with pytest.raises(ConfigError):
            await job.register_lock("good", "anna", expires_in_days=-1)
        assert await job.list_locks() == []


async def test_ten_thousand_pins_are_one_statement_and_one_rebalance(config):
    async with Job("anna", config) as job:
        refused = await job.register_locks_bulk([(n, "anna", None) for n in range(10_000)])
        assert refused == []
        assert len(await job.list_locks()) == 10_000


_ALPHABET = st.text(alphabet="ab%_\\.*\n", max_size=8)


def test_patterns_match_as_postgresql_says(server):
    with psycopg.connect(server.dsn) as connection:

        @settings(max_examples=300, database=None)
        @given(pattern=_ALPHABET, name=_ALPHABET)
        def agrees(pattern: str, name: str) -> None:
            if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
                return  # PostgreSQL raises, and we refuse it on registration
            ((expected,),) = connection.execute("SELECT %s LIKE %s", [name, pattern]).fetchall()
            assert matches(pattern, name) == expected

        agrees()


# -- habits of jobsync


async def test_a_pin_that_is_refused_is_logged_with_both_tasks_and_patterns(config, caplog):
    first, second = sharing_token(config.total_tokens)
    async with Job("anna", config) as job:
        await job.register_lock(first, "gpu-%")
        with pytest.raises(LockConflict):
            await job.register_lock(second, ["big-%", "%"])
        assert await job.register_locks_bulk([(second, "big-%", None)])
    told = [
        record
        for record in caplog.records
        if record.levelname == "WARNING" and record.name == "jobsync_async.work.pins"
    ]
    assert len(told) == 2
    for part in (
        first,
        second,
        "gpu-%",
        "big-%",
        "anna",
        str(task_to_token(first, config.total_tokens)),
    ):
        assert part in told[0].getMessage()


async def test_a_plain_lock_provider_that_forgets_to_await_pins_all_the_same(config):
    def provider(job: Job) -> None:
        job.clear_all_locks()
        job.register_locks_bulk([("model-1", "gpu-%", "GPU"), ("model-2", "gpu-%", None)])
        job.register_lock("model-1", "big-%")

    async with Job("anna", config) as job:
        await job.register_lock("old", "%")
    async with Job("anna", config, lock_provider=provider, clear_existing_locks=True) as job:
        assert {lock.task_id: lock.node_patterns for lock in await job.list_locks()} == {
            "model-1": ("big-%",),
            "model-2": ("gpu-%",),
        }


async def test_a_lock_provider_may_also_await_return_or_hand_its_calls_to_a_task(config):
    async def awaits(job: Job) -> None:
        await job.register_lock("model-1", "gpu-%")

    def returns(job: Job) -> object:
        return job.register_lock("model-2", "gpu-%")

    tasks = []

    def makes_a_task(job: Job) -> None:
        tasks.append(asyncio.ensure_future(job.register_lock("model-3", "gpu-%")))

    for provider in (awaits, returns, makes_a_task):
        async with Job("anna", config, lock_provider=provider) as job:
            await asyncio.gather(*tasks)
    async with Job("anna", config) as job:
        assert {lock.task_id for lock in await job.list_locks()} == {
            "model-1",
            "model-2",
            "model-3",
        }


async def test_what_a_lock_provider_forgot_to_await_fails_the_start_as_if_it_had(config):
    first, second = sharing_token(config.total_tokens)

    def conflicts(job: Job) -> None:
        job.register_lock(first, "gpu-%")
        job.register_lock(second, "big-%")
        job.register_lock("never begun", "%")

    def raises(job: Job) -> None:
        job.register_lock("never begun", "%")
        raise ZeroDivisionError

    for provider, error in ((conflicts, LockConflict), (raises, ZeroDivisionError)):
        with pytest.raises(error):
            await Job("anna", config, lock_provider=provider).start()
    async with Job("anna", config) as job:
        assert [lock.task_id for lock in await job.list_locks()] == [first]
