"""`run_batch` over a stream of ids: taken in a portion at a time, and every id done once, whoever
comes late, dies, or gives other ids."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import contextmanager
from weakref import WeakSet

import anyio
import pytest
from rich.console import Console

from jobsync_async import BatchCounts, ConfigError, CoordinationError, Job, UsageError
from jobsync_async.core.batch_ids import BatchIds
from jobsync_async.progress import BatchProgress, RichProgress
from jobsync_async.work import others, portions
from tests.handling import nothing
from tests.waiting import until

PORTION, ALL = 100, 1_050


@pytest.fixture
def config(make_config):
    return make_config(total_tokens=120, hash_function="modulo")


@pytest.fixture(autouse=True)
def _small_portions(monkeypatch):
    monkeypatch.setattr(portions, "PORTION", PORTION)


class Stream:
    """Ids one after the other.

    Attributes:
        taken: how many were taken.
        closed: its code has ended.
    """

    def __init__(self, ids: Iterable[object]) -> None:
        self._ids = ids
        self.taken = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[object]:
        try:
            for each in self._ids:
                self.taken += 1
                yield each
        finally:
            await asyncio.sleep(0)
            self.closed = True


class Watch:
    """Looks that no id is begun before all of the portions before it are done with, and that no
    call returns while one is open."""

    def __init__(self, ids: Iterable[object]) -> None:
        self.ids = list(ids)
        self.calls: Counter[object] = Counter()
        self.done: set[object] = set()
        self.wrong: list[str] = []
        self._at = {task_id: number for number, task_id in reversed(list(enumerate(self.ids)))}

    async def handle(self, claim) -> None:
        self.calls[claim.task_id] += 1
        first = self._at[claim.task_id] // PORTION * PORTION
        left = set(self.ids[:first]) - self.done
        if left:
            self.wrong.append(f"{claim.task_id} is begun, and {len(left)} are left before it")
        await asyncio.sleep(0)
        claim.check()
        self.done.add(claim.task_id)

    async def run(self, job: Job, **options: object) -> BatchCounts:
        stream = Stream(self.ids)
        options = {"name": "b", "handler": self.handle, **options}
        result = await job.run_batch(stream, **options)
        assert stream.closed
        if left := set(self.ids) - self.done:
            self.wrong.append(f"returned, and {len(left)} are open")
        return result


async def completed(admin) -> Counter[str]:
    cursor = await admin.execute("SELECT task_id FROM sync_audit")
    return Counter(task_id for (task_id,) in await cursor.fetchall())


async def row(admin):
    cursor = await admin.execute("SELECT total, mixed, finished_at IS NOT NULL FROM sync_batch")
    return await cursor.fetchone()


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")], ids=len)
async def test_every_id_of_a_stream_is_done_once(jobs, admin, names):
    workers = await jobs.start(*names)
    await jobs.even()
    watch = Watch(range(ALL))
    with anyio.fail_after(30):
        results = await asyncio.gather(*(watch.run(job) for job in workers))
    assert watch.wrong == []
    assert watch.calls == dict.fromkeys(range(ALL), 1)
    assert len(await completed(admin)) == ALL
    assert sum(result.completed_here for result in results) == ALL
    for result in results:
        assert result.completed_here + result.completed_elsewhere == ALL
        assert (result.failed, result.errors, result.name) == (0, {}, "b")
    assert await row(admin) == (ALL, False, True)


@pytest.mark.parametrize("length", [0, 1, PORTION - 1, PORTION, PORTION + 1, 2 * PORTION])
async def test_a_stream_may_end_anywhere(config, admin, length):
    async with Job("anna", config) as job:
        result = await job.run_batch(Stream(range(length)), nothing, name="b")
        assert result.completed_here == length
        assert (await row(admin))[2]
        again = await job.run_batch(Stream(range(length)), nothing, name="b")
        assert again.completed_elsewhere == length
        assert (await row(admin))[2]


async def test_a_list_of_the_same_ids_is_the_same_batch(config):
    async with Job("anna", config) as job:
        await job.run_batch(Stream(range(ALL)), nothing, name="b")
        assert not (await job.run_batch(range(ALL), nothing, name="b")).completed_here
        assert not (await job.run_batch(Stream(range(ALL)), nothing, name="b")).completed_here


# -- memory ----------------------------------------------------------------------------------------


class Id:
    """An id that can be counted while it is kept."""

    def __init__(self, number: int) -> None:
        self.number = number
        kept.add(self)

    def __str__(self) -> str:
        return str(self.number)


kept: WeakSet[Id] = WeakSet()


async def test_no_more_than_a_portion_is_taken_in_or_kept(jobs):
    """Nor does what was kept wait for the collector."""
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    streams = [Stream(Id(number) for number in range(ALL)) for _ in range(2)]
    done: set[int] = set()
    most_ahead = most_kept = 0

    async def handle(claim) -> None:
        nonlocal most_ahead, most_kept
        await asyncio.sleep(0)
        earliest = next(number for number in range(ALL) if number not in done)
        most_ahead = max(most_ahead, *(stream.taken - earliest for stream in streams))
        most_kept = max(most_kept, len(kept))
        done.add(claim.task_id.number)

    gc.collect()
    gc.disable()
    try:
        with anyio.fail_after(30):
            await asyncio.gather(
                anna.run_batch(streams[0], handle, name="b"),
                berta.run_batch(streams[1], handle, name="b"),
            )
    finally:
        gc.enable()
    assert len(done) == ALL
    assert most_ahead <= PORTION
    assert most_kept <= 2 * (PORTION + ALL / PORTION * 9), "but what a slot had in hand last"


async def test_errors_are_kept_up_to_a_bound_and_counted_all(config, monkeypatch):
    monkeypatch.setattr(portions, "_MOST_ERRORS", 150)

    async def handle(claim) -> None:
        raise ZeroDivisionError

    async with Job("anna", config) as job:
        result = await job.run_batch(Stream(range(400)), handle, name="b", attempts=1)
    assert result.failed == 400
    assert len(result.errors) == 150
    assert "ZeroDivisionError" in result.errors[0]


# -- who comes, goes and dies ----------------------------------------------------------------------


async def test_who_comes_late_passes_by_what_is_done_with_and_works_with_the_others(jobs, admin):
    (anna,) = await jobs.start("anna")
    watch, some, go_on = Watch(range(ALL)), asyncio.Event(), asyncio.Event()

    async def handle(claim) -> None:
        if len(watch.done) > 3 * PORTION:
            some.set()
            await go_on.wait()
        await watch.handle(claim)

    first = asyncio.ensure_future(watch.run(anna, handler=handle))
    with anyio.fail_after(30):
        await some.wait()
        (berta,) = await jobs.start("berta")
        late = asyncio.ensure_future(watch.run(berta))
        await until(lambda: berta._worker.runners.announced)
        go_on.set()
        second = await late
        assert (await first).completed_here + second.completed_here == ALL
    assert watch.wrong == []
    assert watch.calls == dict.fromkeys(range(ALL), 1)
    assert await row(admin) == (ALL, False, True)


async def test_when_a_worker_dies_another_does_its_ids_of_the_same_portion(quick_jobs):
    jobs = quick_jobs
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    watch, stuck = Watch(range(ALL)), asyncio.Event()

    async def handle(claim) -> None:
        if claim._worker.identity.name == "anna" and len(watch.done) > 3 * PORTION:
            stuck.set()
            await asyncio.sleep(60)
        await watch.handle(claim)

    first = asyncio.ensure_future(watch.run(anna, handler=handle))
    second = asyncio.ensure_future(watch.run(berta, handler=handle))
    with anyio.fail_after(30):
        await stuck.wait()
        await jobs.crash(anna)
        with contextlib.suppress(UsageError):
            await first
        result = await second
    assert watch.wrong == []
    assert watch.done == set(range(ALL))
    assert result.completed_here + result.completed_elsewhere == ALL


async def test_it_goes_on_after_all_workers_have_died(quick_jobs, admin):
    jobs = quick_jobs
    watch, some = Watch(range(ALL)), asyncio.Event()

    async def handle(claim) -> None:
        if len(watch.done) > 4 * PORTION + 50:
            some.set()
            await asyncio.sleep(60)
        await watch.handle(claim)

    pair = await jobs.start("anna", "berta")
    await jobs.even()
    running = [asyncio.ensure_future(watch.run(job, handler=handle)) for job in pair]
    with anyio.fail_after(60):
        await some.wait()
        for job in pair:
            await jobs.crash(job)
        await asyncio.gather(*running, return_exceptions=True)
        watch.wrong.clear()
        before = await completed(admin)
        pair = await jobs.start("carla", "dora")
        results = await asyncio.gather(*(watch.run(job) for job in pair))
    assert watch.wrong == []
    assert sum(result.completed_here for result in results) == ALL - len(before)
    assert len(await completed(admin)) == ALL
    assert await row(admin) == (ALL, False, True), "nobody had to work anywhere else"


async def test_what_was_given_up_is_tried_again_when_it_is_run_again(jobs, admin):
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    broken = {5, 6, 777}

    async def handle(claim) -> None:
        if claim.task_id in broken:
            raise ZeroDivisionError

    async def both():
        runs = (
            j.run_batch(Stream(range(ALL)), handle, name="b", attempts=1) for j in (anna, berta)
        )
        return await asyncio.gather(*runs)

    with anyio.fail_after(30):
        first = await both()
        assert [set(result.errors) for result in first] == [broken, broken]
        assert [result.failed for result in first] == [3, 3]
        broken.clear()
        again = await both()
    assert sum(result.completed_here for result in again) == 3
    assert [result.failed for result in again] == [0, 0]
    assert len(await completed(admin)) == ALL


async def test_what_was_given_up_is_tried_again_however_long_it_takes_to_find_it(
    config, monkeypatch
):
    """Of a list, too."""
    monkeypatch.setattr(others, "_OLD_FAILURE_SEC", 0.0)

    async def fail(claim) -> None:
        raise ZeroDivisionError

    async with Job("anna", config) as job:
        for ids in (lambda: range(9), lambda: Stream(range(9))):
            await job.run_batch(ids(), fail, name=str(ids), attempts=1)
            assert not (await job.run_batch(ids(), nothing, name=str(ids))).failed


async def test_who_comes_late_tries_again_what_was_given_up_though_others_are_further(jobs):
    """Who goes back says so: nobody takes its ids for those of the last portion."""
    (anna,) = await jobs.start("anna")
    broken, slow, go_on = {5}, asyncio.Event(), asyncio.Event()

    async def handle(claim) -> None:
        if claim.task_id in broken:
            raise ZeroDivisionError
        if claim.task_id >= 1_000:
            slow.set()
            await go_on.wait()

    run = {"name": "b", "attempts": 1, "concurrency": 50}
    running = asyncio.ensure_future(anna.run_batch(Stream(range(ALL)), handle, **run))
    with anyio.fail_after(30):
        await slow.wait()
        broken.clear()
        (berta,) = await jobs.start("berta")
        await until(lambda: len(berta.my_tokens) > 30)
        late = asyncio.ensure_future(berta.run_batch(Stream(range(ALL)), handle, **run))
        await asyncio.sleep(0.5)  # for several looks
        assert not running.done()
        assert not late.done()
        go_on.set()
        assert (await running).failed == 1, "it saw that"
        assert (await late).completed_elsewhere >= ALL - 50


# -- other ids -------------------------------------------------------------------------------------


async def test_another_order_at_one_worker_is_told_and_returns_nothing_early(jobs, monkeypatch):
    """Neither would ever do the other's ids. Given the same order, they go on."""
    monkeypatch.setattr(others, "_ELSEWHERE_SEC", 0.5)
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    forwards, backwards = Watch(range(ALL)), Watch(reversed(range(ALL)))
    backwards.done = forwards.done
    first = asyncio.ensure_future(forwards.run(anna))
    second = asyncio.ensure_future(backwards.run(berta))
    with anyio.fail_after(60):
        (told, *_), _ = await asyncio.wait([first, second], return_when="FIRST_COMPLETED")
        with pytest.raises(CoordinationError, match="the same ids in the same order"):
            await told
        assert len(forwards.done) < ALL
        first.cancel()
        second.cancel()
        await asyncio.wait([first, second])
        results = await asyncio.gather(backwards.run(anna), backwards.run(berta))
    assert forwards.wrong == backwards.wrong == []
    for result in results:
        assert result.completed_here + result.completed_elsewhere == ALL


async def test_a_stream_that_is_longer_at_one_worker_returns_there_when_all_of_it_is_done(jobs):
    """As it is where the ids were read a moment later."""
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    less, more = Watch(range(ALL)), Watch(range(ALL + 20))
    less.done = more.done

    async def anna_runs_and_leaves() -> None:
        await less.run(anna)
        await jobs.stop(anna)

    with anyio.fail_after(30):
        _, result = await asyncio.gather(anna_runs_and_leaves(), more.run(berta))
    assert less.wrong == more.wrong == []
    assert result.completed_here + result.completed_elsewhere == ALL + 20


async def test_a_list_and_a_stream_under_one_name_do_not_count_together(jobs):
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    watch = Watch(range(ALL))
    anyhow = Watch(range(ALL))
    anyhow.done = watch.done
    with anyio.fail_after(60):
        _, result = await asyncio.gather(
            watch.run(anna), berta.run_batch(range(ALL), anyhow.handle, name="b")
        )
    assert watch.wrong == []
    assert result.completed_here | result.completed_elsewhere == set(range(ALL))


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=len)
async def test_an_id_that_comes_again_is_done_once_and_makes_nobody_return_early(
    jobs, admin, names
):
    workers = await jobs.start(*names)
    await jobs.even()
    ids = [*range(250), *range(250), 7, 7, *range(240, 500)]
    watch = Watch(ids)
    with anyio.fail_after(30):
        results = await asyncio.gather(*(watch.run(job) for job in workers))
    assert watch.wrong == []
    assert watch.calls == dict.fromkeys(range(500), 1)
    assert len(await completed(admin)) == 500
    for result in results:
        assert result.completed_here + result.completed_elsewhere >= 500


# -- the stream's own ends -------------------------------------------------------------------------


async def test_what_the_stream_raises_passes_and_it_can_be_run_again(config, admin):
    def broken():
        yield from range(350)
        raise ZeroDivisionError("of the test")

    async with Job("anna", config) as job:
        stream = Stream(broken())
        with pytest.raises(ZeroDivisionError, match="of the test"):
            await job.run_batch(stream, nothing, name="b")
        assert stream.closed
        assert len(await completed(admin)) == 300
        assert not (await row(admin))[2]
        result = await job.run_batch(Stream(range(ALL)), nothing, name="b")
        assert result.completed_elsewhere + result.completed_here == ALL
        assert len(await completed(admin)) == ALL


@pytest.mark.parametrize("where", ["in the stream", "in a portion"])
async def test_a_batch_that_is_cancelled_closes_its_stream(config, where):
    here = asyncio.Event()

    async def wait() -> None:
        here.set()
        await asyncio.sleep(60)

    async def ids():
        try:
            for number in range(150):
                yield number
            if where == "in the stream":
                await wait()
        finally:
            await asyncio.sleep(0.01)
            closed.append(True)

    async def handle(claim) -> None:
        if where == "in a portion":
            await wait()

    closed: list[bool] = []
    async with Job("anna", config) as job:
        running = asyncio.ensure_future(job.run_batch(ids(), handle, name="b"))
        await here.wait()
        running.cancel()
        with anyio.fail_after(10), pytest.raises(asyncio.CancelledError):
            await running
        assert closed == [True]
        assert job._worker.metrics.claims_active == 0


async def test_a_stream_that_is_silent_when_the_job_ends_is_closed(config):
    here, closed = asyncio.Event(), asyncio.Event()

    async def ids():
        try:
            here.set()
            await asyncio.sleep(60)
            yield 1
        finally:
            closed.set()

    job = Job("anna", config)
    await job.start()
    running = asyncio.ensure_future(job.run_batch(ids(), nothing, name="b"))
    await here.wait()
    await job.stop()
    with anyio.fail_after(10), pytest.raises(UsageError, match="the stream of ids had not ended"):
        await running
    assert closed.is_set()


async def test_a_stream_that_somebody_cancels_cuts_the_batch_off(config):
    async def ids():
        yield 1
        task = asyncio.ensure_future(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        await task

    async with Job("anna", config) as job:
        with anyio.fail_after(10), pytest.raises(UsageError, match="the stream of ids"):
            await job.run_batch(ids(), nothing, name="b")


async def test_a_stream_may_keep_a_scope_open_while_it_gives(config):
    """It begins and ends in one task."""

    @contextmanager
    def scopes():
        with anyio.fail_after(60), anyio.CancelScope():
            yield

    async def ids():
        with scopes():
            for number in range(250):
                await asyncio.sleep(0)
                yield number

    async with Job("anna", config) as job:
        assert (await job.run_batch(ids(), nothing, name="b")).completed_here == 250


async def test_a_stream_without_a_name_or_with_what_is_no_id_is_refused(config):
    async with Job("anna", config) as job:
        stream = Stream(range(3))
        with pytest.raises(ConfigError, match="needs name="):
            await job.run_batch(stream, nothing)
        assert not stream.taken
        with pytest.raises(ConfigError, match="whole numbers"):
            await job.run_batch(Stream([1, "x"]), nothing, name="b")
        with pytest.raises(ConfigError, match="NUL"):
            await job.run_batch(Stream([1, "\0"]), nothing, name="b")
        with pytest.raises(ConfigError, match="iterable of task ids"):
            await job.run_owned(stream, nothing)


# -- without a cluster, and what is told -----------------------------------------------------------


async def test_it_is_the_same_without_a_cluster():
    watch = Watch(range(ALL))
    async with Job("anna") as job:
        assert (await watch.run(job)).completed_here == ALL
        assert (await watch.run(job)).completed_elsewhere == ALL
    assert watch.wrong == []


@pytest.mark.parametrize("terminal", [True, False], ids=["on a terminal", "in a pipe"])
async def test_progress_says_whether_there_may_be_more(terminal):
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=terminal, width=120, color_system=None)
    told: list[BatchProgress] = []

    async with Job("anna") as job:
        with RichProgress("ids", console=console) as shown:

            def tell(progress: BatchProgress) -> None:
                told.append(progress)
                shown(progress)

            await job.run_batch(Stream(range(ALL)), nothing, name="b", progress=tell)
    assert (told[0].total, told[0].more) == (0, True)
    assert (told[-1].total, told[-1].completed_here, told[-1].more) == (ALL, ALL, False)
    assert (f"{ALL}/{ALL}" if terminal else f"{ALL} of {ALL}") in seen.getvalue()


async def test_what_it_runs_is_said_all_the_time(config):
    """Between two portions too: nobody opens it anew from outside then, or deletes its days."""
    said = set()

    async def ids():
        for number in range(250):
            said.add(job._worker.runners.announced)
            yield number

    async with Job("anna", config) as job:
        result = await job.run_batch(ids(), nothing, name="b")
    ((runner,),) = said
    assert (runner.name, runner.date) == ("b", str(result.date))


def test_the_ids_of_a_portion_have_the_key_of_all_up_to_it():
    ids = [str(number) for number in range(9)]
    every, first = BatchIds(), BatchIds()
    every.add(ids, "utf-8")
    first.add(ids[:4], "utf-8")
    second = BatchIds(first.sum)
    second.add(reversed(ids[4:]), "utf-8")
    assert second.key == every.key != first.key
