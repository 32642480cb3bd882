"""How handlers are run: in tasks of their own, in threads, and what comes out of them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import sys
import threading
import time

import anyio
import psycopg
import pytest
from anyio import from_thread

from jobsync_async import ConfigError, Job, NotOwner, OwnershipLost, UsageError

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def nothing(claim) -> None:
    """A handler that does nothing."""


async def await_what_somebody_cancels() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


def block(seconds: float) -> None:
    """Hold up the event loop."""
    time.sleep(seconds)


def owned_by(job: Job, count: int = 1) -> list[int]:
    return [i for i in range(10_000) if job.owns(i)][:count]


async def until(condition, seconds: float = 5) -> None:
    with anyio.fail_after(seconds):
        while not condition():
            await asyncio.sleep(0.005)


# -- a cancellation that is not ours


async def test_a_cancelled_error_out_of_a_handler_is_a_failure_of_its_task_alone(config, caplog):
    async def handle(claim) -> None:
        if claim.task_id == 3:
            await await_what_somebody_cancels()

    async with Job("a", config) as job:
        with anyio.fail_after(10):
            result = await job.run_batch(range(6), handle, concurrency=2, attempts=2)
    assert result.completed_here == {0, 1, 2, 4, 5}
    assert result.failed == {3: "CancelledError"}
    assert "the handler of task 3 raised in attempt 2 of 2" in caplog.text


async def test_a_cancelled_error_out_of_a_coroutine_ends_no_other(config, caplog):
    running: set[str] = set()
    starts: list[str] = []

    async def handle(claim) -> None:
        starts.append(claim.task_id)
        running.add(claim.task_id)
        try:
            if claim.task_id == "bad":
                await await_what_somebody_cancels()
            await anyio.sleep_forever()
        finally:
            running.discard(claim.task_id)

    async with Job("a", config) as job:
        owned = asyncio.ensure_future(job.run_owned(["good", "bad"], handle))
        await until(lambda: starts.count("bad") >= 3)
        await until(lambda: running == {"good"})
        assert starts.count("good") == 1
        assert "the handler of task 'bad' raised (2 in a row)" in caplog.text
        owned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await owned


@pytest.mark.parametrize("plain", [True, False])
async def test_a_cancelled_error_out_of_progress_is_an_error_and_no_end_in_order(plain):
    async def cancelled(progress) -> None:
        await await_what_somebody_cancels()

    def plainly(progress) -> None:
        raise asyncio.CancelledError

    async with Job("a") as job:
        with pytest.raises(UsageError, match="progress callback of run_batch raised CancelledError"):
            await job.run_batch(["x"], lambda claim: anyio.sleep(60), progress=plainly if plain else cancelled)


async def test_no_batch_returns_while_ids_are_open():
    """Somebody cancels every task that there is, but the one that runs the batch."""
    async with Job("a") as job:
        entered = asyncio.Event()

        async def hang(claim) -> None:
            entered.set()
            await anyio.sleep_forever()

        before = asyncio.all_tasks()
        batch = asyncio.ensure_future(job.run_batch(["x"], hang))
        await entered.wait()
        for task in asyncio.all_tasks() - before - {batch}:
            task.cancel()
        with pytest.raises(UsageError, match="cut off while 1 of its tasks were not done"), anyio.fail_after(5):
            await batch


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup came with Python 3.11")
async def test_a_task_group_that_failed_before_changes_nothing(config):
    """On Python 3.11 and 3.12 it leaves the count of the task's cancellations raised."""

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError

    async def handle(claim) -> None:
        with pytest.raises(Exception, match="unhandled errors"):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        if claim.task_id == 3:
            await await_what_somebody_cancels()

    async with Job("a", config) as job:

        async def caller() -> None:
            with pytest.raises(Exception, match="unhandled errors"):
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
            result = await job.run_batch(range(5), handle, attempts=1)
            assert result.completed_here == {0, 1, 2, 4}
            assert result.failed == {3: "CancelledError"}
            with anyio.move_on_after(0.2):
                await job.run_owned(["x"], handle)

        await asyncio.ensure_future(caller())


async def test_each_call_sees_the_context_of_whoever_runs_them_and_no_other(config):
    seen: list[str] = []
    tasks: set[object] = set()

    async def handle(claim) -> None:
        seen.append(variable.get())
        variable.set(f"of {claim.task_id}")
        tasks.add(asyncio.current_task())
        if len(seen) == 1:
            raise ValueError("once more")

    async with Job("a", config) as job:
        variable.set("the caller's")
        await job.run_batch(range(5), handle, concurrency=1)
    assert seen == ["the caller's"] * 6
    assert len(tasks) == 6


async def test_whoever_cancels_the_runner_has_its_handlers_cancelled_once_and_waits_for_their_end(config, caplog):
    ended: list[str] = []
    entered = asyncio.Event()

    async def handle(claim) -> None:
        entered.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.3)
            ended.append(f"{claim.leaving} {claim.valid}")
            raise ValueError("out of the cleanup")

    async with Job("a", config) as job:
        for run in (job.run_batch, job.run_owned):
            entered.clear()
            running = asyncio.ensure_future(run(["x"], handle))
            await entered.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    assert ended == ["stopping True"] * 2
    assert caplog.text.count("was cancelled (stopping), and raised while it ended") == 2


# -- errors of the user's that look like ours


@pytest.mark.parametrize("kind", ["entered", "raised", "another claim's"])
async def test_an_error_about_another_claim_is_the_handlers_failure(jobs, kind, caplog):
    a, b = await jobs.start("a", "b")
    await jobs.even()
    (mine,), (theirs,) = owned_by(a), owned_by(b)
    calls = 0

    async def handle(claim) -> None:
        nonlocal calls
        calls += 1
        if kind == "entered":
            async with a.claim(theirs):
                pass
        elif kind == "raised":
            raise OwnershipLost("by hand")
        else:
            async with b.claim(theirs) as other:
                pass
            other.check()

    with anyio.fail_after(10):
        result = await a.run_batch([mine], handle, attempts=2)
    assert calls == 2
    assert result.failed[mine].startswith("NotOwner: " if kind == "entered" else "OwnershipLost: ")
    calls = 0
    with anyio.move_on_after(1):
        await a.run_owned([mine], handle)
    assert 2 <= calls <= 4, "after growing waits"
    assert f"the handler of task {mine} raised (2 in a row)" in caplog.text


async def test_a_claim_that_the_tables_refuse_is_tried_again_after_growing_waits_with_a_word(config, admin, caplog):
    caplog.set_level(logging.INFO)
    async with Job("a", config) as job:
        await admin.execute("UPDATE sync_token SET epoch = epoch + 1")
        with anyio.move_on_after(1.5):
            await job.run_batch(["x"], nothing)
        told = [record for record in caplog.records if "could not be kept" in record.message]
        assert 2 <= len(told) <= 5
        assert told[0].task_id == "x"


async def test_a_handler_whose_fence_is_refused_is_started_again_after_growing_waits(config, admin):
    calls = 0

    async def handle(claim) -> None:
        nonlocal calls
        calls += 1
        async with await psycopg.AsyncConnection.connect(config.dsn) as connection:
            await job.fence(connection, claim)

    async with Job("a", config) as job:
        await admin.execute("UPDATE sync_token SET epoch = epoch + 1")
        with anyio.move_on_after(1):
            await job.run_owned(["x"], handle)
    assert 2 <= calls <= 4


async def test_whatever_a_handlers_error_says_is_recorded_and_ends_nothing(config, admin):
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    errors = {
        "surrogate": OSError("caf\udce9"),
        "nul": ValueError("a\0b"),
        "long": ValueError("x" * 5_000_000),
        "mute": Mute(),
        "empty": ZeroDivisionError(),
    }

    async def handle(claim) -> None:
        if claim.task_id in errors:
            raise errors[claim.task_id]

    async with Job("a", config) as job:
        result = await job.run_batch([*errors, "good"], handle, attempts=1)
    assert result.completed_here == {"good"}
    stored = dict(await (await admin.execute("SELECT task_id, error FROM sync_claim WHERE error IS NOT NULL")).fetchall())
    assert stored == result.failed
    assert stored["surrogate"] == "OSError: caf\\udce9"
    assert stored["nul"] == "ValueError: a\\x00b"
    assert len(stored["long"]) < 4_100
    assert stored["long"].endswith("(shortened: it has 5,000,012 characters)")
    assert stored["mute"] == "Mute (what it says cannot be told: its __str__ raised RuntimeError)"
    assert stored["empty"] == "ZeroDivisionError"


# -- plain functions


async def test_a_plain_function_runs_in_a_thread_and_may_ask_from_there(config):
    threads: set[str] = set()

    def handle(claim) -> None:
        threads.add(threading.current_thread().name)
        assert claim.valid
        assert claim.leaving is None
        claim.check()
        assert job.owns(claim.task_id)
        assert variable.get() == "the caller's"
        from_thread.run(asyncio.sleep, 0)
        if claim.task_id == 3:
            raise ValueError("as meant")

    async with Job("a", config) as job:
        variable.set("the caller's")
        result = await job.run_batch(range(60), handle, concurrency=60, attempts=2)
    assert result.completed_here == set(range(60)) - {3}
    assert result.failed == {3: "ValueError: as meant"}
    assert threading.current_thread().name not in threads


async def test_more_threads_run_at_once_than_anyio_lets_run_by_default():
    together = threading.Barrier(60, timeout=10)

    def handle(claim) -> None:
        together.wait()

    async with Job("a") as job:
        assert len((await job.run_batch(range(60), handle, concurrency=60, attempts=1)).completed_here) == 60


class AsyncCall:
    """A callable object."""

    def __init__(self) -> None:
        self.where: list[bool] = []

    async def __call__(self, claim) -> None:
        self.where.append(threading.current_thread() is threading.main_thread())


async def test_an_async_handler_is_known_through_whatever_is_around_it():
    where: list[bool] = []

    async def handle(more, claim) -> None:
        where.append(threading.current_thread() is threading.main_thread())

    class Holder:
        async def method(self, claim) -> None:
            await handle(None, claim)

    called = AsyncCall()
    handlers = [
        functools.partial(handle, None),
        functools.partial(functools.partial(called)),
        called,
        Holder().method,
        lambda claim: handle(None, claim),
        lambda claim: asyncio.wait_for(handle(None, claim), 1),
    ]
    async with Job("a") as job:
        for number, handler in enumerate(handlers):
            assert (await job.run_batch([number], handler)).completed_here == {number}
    assert where == [True] * 4
    assert called.where == [True] * 2


async def test_what_is_no_handler_is_refused_by_name():
    def generator(claim):
        yield

    async def asynchronous(claim):
        yield

    async with Job("a") as job:
        for handler in (None, "x", generator, asynchronous, functools.partial(generator)):
            for run in (job.run_batch, job.run_owned):
                with pytest.raises(UsageError, match="the handler must be a function that takes a Claim"):
                    await run(["x"], handler)


@pytest.mark.parametrize("how", ["native", "anyio", "every task"])
async def test_a_thread_is_never_given_up_however_its_runner_is_cancelled(how):
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def handle(claim) -> None:
        began.set()
        may_end.wait(10)
        ended.set()

    async with Job("a") as job:
        scope = anyio.CancelScope()

        async def work() -> None:
            with scope:
                await job.run_owned(["x"], handle)

        before = asyncio.all_tasks()
        task = asyncio.ensure_future(work())
        await until(began.is_set)
        if how == "anyio":
            scope.cancel()
        for one in {"native": {task}, "anyio": set(), "every task": asyncio.all_tasks() - before}[how]:
            one.cancel()
        await asyncio.sleep(0.3)
        assert not task.done()
        assert job._worker.ownership._users, "the claim lasts as long as the thread"
        may_end.set()
        await asyncio.wait([task])
        assert ended.is_set()
        assert not job._worker.ownership._users


async def test_the_token_of_a_thread_is_handed_on_when_the_thread_has_returned(make_config):
    config = make_config(total_tokens=1, handoff_timeout_sec=0.2)
    at_work: list[str] = []
    may_end = threading.Event()
    seen: set[str | None] = set()

    def handler_of(name: str):
        def handle(claim) -> None:
            assert not at_work
            at_work.append(name)
            while claim.leaving is None and not may_end.is_set():
                time.sleep(0.01)
            seen.add(claim.leaving)
            may_end.wait(10)
            at_work.remove(name)

        return handle

    async with Job("a", config) as a:
        working = asyncio.ensure_future(a.run_owned(["x"], handler_of("a")))
        await until(lambda: at_work == ["a"])
        async with Job("b", config, wait_on_enter=20) as b:
            other = asyncio.ensure_future(b.run_owned(["x"], handler_of("b")))
            await a.register_lock("x", "b")
            await until(lambda: a.metrics.handoffs_overdue)
            assert not b.my_tokens
            assert seen == {"revoked"}
            may_end.set()
            await until(lambda: b.my_tokens)
            for task in (working, other):
                task.cancel()
            await asyncio.wait([working, other])


# -- work that blocks the event loop


async def test_a_handler_that_blocks_past_its_lease_is_blamed_by_name_and_bounded_by_attempts(quick_jobs, caplog):
    """The claim is taken from it each time, so that what it has done does not count."""
    (a,) = await quick_jobs.start("a")
    calls = 0

    async def handle(claim) -> None:
        nonlocal calls
        calls += 1
        block(1.3)
        await asyncio.sleep(60)

    with anyio.fail_after(30):
        result = await a.run_batch(["x"], handle, attempts=2)
    assert calls == 2
    assert result.failed["x"].startswith("it blocked the event loop for 1.3 s, so that no heartbeat was sent")
    told = [record for record in caplog.records if "blocked the event loop" in record.message]
    assert [(record.task_id, record.levelname) for record in told] == [("x", "ERROR")] * 2
    assert all(record.seconds >= 1.3 for record in told)


async def test_only_the_handler_that_blocked_is_blamed(quick_jobs, caplog):
    (a,) = await quick_jobs.start("a")

    async def handle(claim) -> None:
        if claim.task_id == "guilty":
            await asyncio.sleep(0.05)
            block(1.3)
        await asyncio.sleep(0.2)

    with anyio.fail_after(30):
        result = await a.run_batch(["guilty", *range(4)], handle, attempts=1, concurrency=5)
    assert set(result.failed) == {"guilty"}
    assert result.completed_here == set(range(4))


async def test_what_this_worker_has_done_is_told_as_done_here_though_its_lease_ended_meanwhile(quick_jobs):
    (a,) = await quick_jobs.start("a")

    async def handle(claim) -> None:
        if claim.task_id == 3:
            block(1.3)

    result = await a.run_batch([3, 4, 5], handle, attempts=1)
    assert result.completed_here == {3, 4, 5}


async def test_what_this_worker_has_done_is_told_as_done_here_though_it_joined_anew_meanwhile(quick_jobs, admin):
    (a,) = await quick_jobs.start("a")
    me = a._worker.identity

    async def handle(claim) -> None:
        if claim.task_id == 7 and a._worker.identity == me:
            await admin.execute("DELETE FROM sync_node")
            await asyncio.sleep(60)

    assert (await a.run_batch([7, 8], handle)).completed_here == {7, 8}
    assert a._worker.identity != me


async def test_two_batches_over_the_same_ids_in_one_worker_call_one_handler_for_each_id(config):
    calls: list[int] = []
    now: set[int] = set()

    async def handle(claim) -> None:
        assert claim.task_id not in now
        now.add(claim.task_id)
        calls.append(claim.task_id)
        await asyncio.sleep(0.01)
        now.discard(claim.task_id)
        if claim.task_id == 7:
            raise ValueError("as meant")

    async with Job("a", config) as job:
        one, two = await asyncio.gather(*(job.run_batch(range(10), handle, attempts=1) for _ in range(2)))
    assert sorted(calls) == list(range(10))
    assert one.completed_here == two.completed_here == set(range(10)) - {7}
    assert one.failed == two.failed == {7: "ValueError: as meant"}


async def test_whoever_waits_long_for_another_in_this_worker_says_so(monkeypatch, caplog):
    monkeypatch.setattr("jobsync_async.work.claims._LONG_WAIT_SEC", 0.05)
    async with Job("a") as job:
        holding = job._hold("x")
        await holding.enter()
        batch = asyncio.ensure_future(job.run_batch(["x"], nothing))
        await until(lambda: "somebody else in this worker works on it" in caplog.text)
        holding.leave()
        assert (await batch).completed_here == {"x"}


# -- the job ends


async def test_what_runs_on_a_job_that_fails_raises_the_reason(make_config):
    config = make_config(total_tokens=120, handoff_timeout_sec=0.3)
    hanging = asyncio.Event()

    async def hang(claim) -> None:
        hanging.set()
        await anyio.sleep_forever()

    def on_rebalance(event) -> None:
        if not event.is_initial:
            raise ZeroDivisionError("as meant")

    for name in ("run_batch", "run_owned"):
        hanging.clear()
        job = Job("a", config, on_rebalance=on_rebalance)
        await job.start()
        running = asyncio.ensure_future(getattr(job, name)(["x"], hang))
        await hanging.wait()
        async with Job("b", config, weight=5):
            with pytest.raises(UsageError, match="what ended it: ZeroDivisionError: as meant") as caught, anyio.fail_after(10):
                await running
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            await job.stop()


# -- ids


async def test_ids_that_cannot_be_had_leave_running_what_runs_and_are_asked_for_again(config, caplog):
    running: set[object] = set()
    answers: list[object] = [["a", "b"]]

    async def handle(claim) -> None:
        running.add(claim.task_id)
        try:
            await anyio.sleep_forever()
        finally:
            running.discard(claim.task_id)

    async def ids() -> object:
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(answer)
        if answer is asyncio.CancelledError:
            await await_what_somebody_cancels()
        if isinstance(answer, type):
            raise answer("away for a moment")
        return answer

    asked: list[object] = []
    answers += [ConnectionError, "BTC", None, [["unhashable"]], [1, True], asyncio.CancelledError, ["b", "c"]]
    async with Job("a", config) as job:
        owned = asyncio.ensure_future(job.run_owned(ids, handle, refresh_sec=0.01))
        await until(lambda: running == {"a", "b"})
        await until(lambda: len(asked) >= 4)
        assert running == {"a", "b"}
        assert not owned.done()
        for told in ("ConnectionError: away", "ids must be an iterable of task ids"):
            assert told in caplog.text
        await until(lambda: running == {"b", "c"}, 40)
        for told in ("must be hashable", "two of the ids are equal", "raised CancelledError"):
            assert told in caplog.text
        owned.cancel()
        await asyncio.wait([owned])


async def test_an_id_that_is_not_wanted_any_more_may_save_what_it_has(config):
    ids = ["a"]
    seen: list[object] = []

    async def handle(claim) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            seen.append((claim.leaving, claim.valid))

    async with Job("a", config) as job:
        owned = asyncio.ensure_future(job.run_owned(lambda: list(ids), handle, refresh_sec=0.01))
        await until(lambda: job.metrics.claims_active)
        ids.clear()
        await until(lambda: seen)
        assert seen == [("unwanted", True)]
        owned.cancel()
        await asyncio.wait([owned])


class NoHash:
    __hash__ = None


class Unstable:
    def __init__(self) -> None:
        self.number = 0

    def __str__(self) -> str:
        self.number += 1
        return str(self.number)


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no text")


UNUSABLE = {
    "unhashable": [],
    "unhashable object": NoHash(),
    "not a number": float("nan"),
    "an address": object(),
    "a text of its own each time": Unstable(),
    "no text": Mute(),
    "huge": "x" * 1_000_001,
    "a number of too many digits": 10**5000,
    "nul": "a\0",
    "half a surrogate pair": "\ud800",
}


@pytest.mark.parametrize("bad", UNUSABLE)
async def test_an_id_that_cannot_be_one_is_refused_by_name_before_anything_is_done(bad):
    calls: list[object] = []

    async def handle(claim) -> None:
        calls.append(claim.task_id)

    value = UNUSABLE[bad]
    async with Job("a") as job:
        for attempt in (
            lambda: job.run_batch(["good", value], handle),
            lambda: job.run_owned(["good", value], handle),
            lambda: job.add_task(value),
            lambda: job.add_tasks(["good", value]),
            lambda: job.set_claim(["good", value]),
            lambda: job.claim(value).__aenter__(),
            lambda: job.owner_of(value),
            lambda: asyncio.sleep(0, job.owns(value)),
        ):
            with pytest.raises(ConfigError, match="task id"):
                await attempt()
        assert await job.write_audit() == 0
    assert calls == []


async def test_ids_that_no_result_could_tell_apart_are_refused():
    async with Job("a") as job:
        for ids in ([1, True], [1, 1.0], [0.0, -0.0]):
            with pytest.raises(ConfigError, match="equal and have different texts"):
                await job.run_batch(ids, nothing)
        assert len((await job.run_batch(["a", "a", 1, "1", 1], nothing)).completed_here) == 2


# -- a planned move


async def test_what_a_handler_saves_in_its_cleanup_of_a_planned_move_is_saved(make_config, admin, caplog):
    config = make_config(total_tokens=2, hash_function="modulo")
    await admin.execute("CREATE TABLE saved (id integer PRIMARY KEY, n integer)")
    true_count = {0: 0, 1: 0}
    begun_at: list[tuple[int, int]] = []
    leaving: set[str | None] = set()

    def handler_of(job: Job):
        async def handle(claim) -> None:
            row = await (await admin.execute("SELECT n FROM saved WHERE id = %s", [claim.task_id])).fetchone()
            n = row[0] if row else 0
            begun_at.append((n, true_count[claim.task_id]))
            try:
                while True:
                    await asyncio.sleep(0.005)
                    n += 1
                    true_count[claim.task_id] += 1
            finally:  # plain awaits: the cancellation comes once
                leaving.add(claim.leaving)
                async with await psycopg.AsyncConnection.connect(config.dsn) as connection, connection.transaction():
                    await job.fence(connection, claim)
                    await asyncio.sleep(0.15)
                    await connection.execute(
                        "INSERT INTO saved VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET n = excluded.n", [claim.task_id, n]
                    )
                assert claim.valid

        return handle

    async with Job("a", config) as a:
        running = [asyncio.ensure_future(a.run_owned([0, 1], handler_of(a)))]
        await until(lambda: all(true_count.values()))
        async with Job("b", config) as b:
            running.append(asyncio.ensure_future(b.run_owned([0, 1], handler_of(b))))
            await until(lambda: len(begun_at) == 3)
            await b.drain()
            await until(lambda: len(begun_at) == 4)
        await asyncio.wait([running[1]])
        running[0].cancel()
        await asyncio.wait(running)
    assert all(saved == true for saved, true in begun_at), begun_at
    assert leaving == {"revoked", "stopping"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_after_the_handoff_timeout_a_cleanup_is_cut_off_and_its_error_logged(make_config, caplog):
    config = make_config(total_tokens=2, hash_function="modulo", handoff_timeout_sec=0.2)
    cut = asyncio.Event()

    async def handle(claim) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                assert claim.leaving == "lost"
                cut.set()
                raise ZeroDivisionError("as meant") from None

    async with Job("a", config) as a:
        running = asyncio.ensure_future(a.run_owned([0, 1], handle))
        await until(lambda: a.metrics.claims_active == 2)
        async with Job("b", config):
            await cut.wait()
        running.cancel()
        await asyncio.wait([running])
    assert "and raised while it ended" in caplog.text
    assert "ZeroDivisionError: as meant" in caplog.text


async def test_a_handler_that_was_cut_off_by_a_revocation_that_was_withdrawn_starts_again(config):
    starts = 0

    async def handle(claim) -> None:
        nonlocal starts
        starts += 1
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            if starts > 1:
                raise
            await asyncio.sleep(0.3)

    async with Job("a", config) as a:
        running = asyncio.ensure_future(a.run_owned(["x"], handle))
        await until(lambda: starts == 1)
        draining = asyncio.ensure_future(a.drain())
        await asyncio.sleep(0.1)
        draining.cancel()
        await asyncio.wait([draining])
        await a.undrain()
        await until(lambda: starts == 2)
        running.cancel()
        await asyncio.wait([running])


async def test_whoever_reads_changes_may_still_claim_and_fence_what_was_revoked_until_it_comes_back(make_config):
    config = make_config(total_tokens=2, hash_function="modulo")
    async with (
        Job("a", config) as a,
        await psycopg.AsyncConnection.connect(config.dsn) as connection,
        a.token_changes() as changes,
    ):
        await changes.__anext__()
        b = Job("b", config)
        joining = asyncio.ensure_future(b.start())
        change = await changes.__anext__()
        (token,) = change.revoked

        async def by_another_task() -> None:
            async with a.claim(token):
                pass

        with pytest.raises(NotOwner):
            await asyncio.create_task(by_another_task())
        async with a.claim(token) as claim, connection.transaction():
            assert claim.valid
            assert claim.leaving == "revoked"
            await a.fence(connection, claim)
        async with connection.transaction():
            await a.fence(connection, token)  # by the id, without a claim
        next_one = asyncio.ensure_future(changes.__anext__())
        await joining
        await until(lambda: b.my_tokens == {token})
        with pytest.raises(NotOwner):
            async with a.claim(token):
                pass
        with pytest.raises(NotOwner, match="not even revoked"):
            async with connection.transaction():
                await a.fence(connection, token)
        next_one.cancel()
        await asyncio.wait([next_one])
        await b.stop()


async def test_a_scope_that_was_made_before_a_rejoin_fences_with_the_start_that_enters_it(config, admin):
    async with Job("a", config) as a, await psycopg.AsyncConnection.connect(config.dsn) as connection:
        scope, me = a.claim("x"), a._worker.identity
        await admin.execute("DELETE FROM sync_node")
        a._worker.beat_wanted.set()
        await until(lambda: a._worker.identity != me and a.owns("x"), 10)
        async with scope as claim, connection.transaction():
            await a.fence(connection, claim)


# -- a database that cannot hold every character


@pytest.fixture
def latin(server):
    from uuid import uuid4

    from psycopg.conninfo import make_conninfo

    name = f"latin_{uuid4().hex[:8]}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0".encode())
        yield make_conninfo(server.dsn, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.mark.parametrize("client_encoding", ["", "UTF8"])
async def test_what_the_databases_encoding_lacks_is_escaped_in_texts_and_refused_in_ids(latin, make_config, client_encoding):
    from psycopg.conninfo import make_conninfo

    config = make_config(dsn=make_conninfo(latin, **({"client_encoding": client_encoding} if client_encoding else {})))

    async def handle(claim) -> None:
        if claim.task_id == "bad":
            raise ValueError("5 € for naïve \0 \ud800")

    async with Job("ä", config, address="ö") as job:
        assert (await job.run_batch(["bad", "naïve"], handle, attempts=1)).completed_here == {"naïve"}
        again = await asyncio.gather(*(job.run_batch(["bad"], handle, attempts=1) for _ in range(2)))
        assert {result.failed["bad"] for result in again} >= {"ValueError: 5 \\u20ac for naïve \\x00 \\ud800"}
        await job.register_lock("x", "ä", reason="costs 5 €")
        assert [lock.reason for lock in await job.list_locks()] == ["costs 5 \\u20ac"]
        for attempt in (
            lambda: job.run_batch(["€"], handle),
            lambda: job.add_task("€"),
            lambda: job.claim("€").__aenter__(),
            lambda: job.register_lock("€", "%"),
            lambda: job.register_lock("x", "€%"),
            lambda: job.clear_locks_by_creator("€"),
        ):
            with pytest.raises(ConfigError, match="encoding"):
                await attempt()
    for job in (Job("€", config), Job("b", config, address="€")):
        with pytest.raises(ConfigError, match="encoding"):
            await job.start()
