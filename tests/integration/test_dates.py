"""Dates: the cluster's is the database's, asked anew at each call; a batch is a name and a date,
and nobody waits for ever."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from dataclasses import replace

import anyio
import psycopg
import pytest
from psycopg.types.json import Jsonb

from jobsync_async import ConfigError, CoordinationConfig, CoordinationError, Job
from jobsync_async.core.hashing import task_key
from jobsync_async.core.runs import Asked, Run, batch_key
from jobsync_async.work import others
from tests.handling import nothing

MONDAY, TUESDAY = dt.date(2026, 11, 23), dt.date(2026, 11, 24)
# They differ by 25 hours: whenever it is, their dates are two.
WEST, EAST = "Pacific/Pago_Pago", "Pacific/Kiritimati"


async def date_in(admin, zone: str) -> dt.date:
    cursor = await admin.execute("SELECT (now() AT TIME ZONE %s)::date", [zone])
    ((date,),) = await cursor.fetchall()
    return date


async def move(admin, zone: str) -> dt.date:
    """Let another day begin: the cluster's clock is set to another time zone; its date there."""
    await admin.execute("UPDATE sync_cluster SET time_zone = %s", [zone])
    return await date_in(admin, zone)


async def runs(admin) -> list[tuple]:
    cursor = await admin.execute(
        "SELECT name, date, total, finished_at IS NOT NULL FROM sync_batch ORDER BY date, "
        "started_at"
    )
    return await cursor.fetchall()


# -- the cluster's date


async def test_without_a_date_it_is_the_databases_in_the_clusters_time_zone(
    make_config, admin, monkeypatch
):
    monkeypatch.setenv("TZ", WEST)
    async with Job("anna", make_config(total_tokens=20, time_zone=EAST)) as job:
        assert job.date is None
        assert (await job.run_batch(["x"], nothing)).date == await date_in(admin, EAST)
        await job.add_task("y")
        await job.write_audit()
        assert [row["task_id"] for row in await job.get_audit()] == ["x", "y"]
        assert {row["date"] for row in await job.get_audit()} == {await date_in(admin, EAST)}


async def test_a_job_that_runs_for_days_does_each_days_batch_on_its_day(config, admin):
    calls = []

    async def handle(claim) -> None:
        calls.append(claim.task_id)

    async with Job("anna", config) as job:
        first = await move(admin, WEST)
        results = [await job.run_batch(range(5), handle)]
        second = await move(admin, EAST)
        assert first < second
        results.append(await job.run_batch(range(5), handle))
        again = await job.run_batch(range(5), handle)
    assert [result.date for result in results] == [first, second]
    assert all(result.completed_here == set(range(5)) for result in results)
    assert again.completed_elsewhere == set(range(5))
    assert len(calls) == 10
    assert await runs(admin) == [(None, first, 5, True), (None, second, 5, True)]


async def test_what_is_added_on_one_day_is_written_under_that_day(config, admin):
    async with Job("anna", config) as job:
        first = await move(admin, WEST)
        await job.add_task("early")
        second = await move(admin, EAST)
        await job.add_tasks(["late", "later"])
        await job.set_claim("begun")
        assert await job.write_audit(date=first) == 1
        assert await job.write_audit(date=MONDAY) == 0
        assert await job.write_audit() == 2
        assert [(row["date"], row["task_id"]) for row in await job.get_audit(date=first)] == [
            (first, "early")
        ]
        assert {row["task_id"] for row in await job.get_audit()} == {"late", "later"}
        claims = await (
            await admin.execute("SELECT date, task_id FROM sync_claim ORDER BY 1, 2")
        ).fetchall()
        assert claims == [(first, "early"), (second, "begun"), (second, "late"), (second, "later")]


async def test_a_date_that_is_given_wins_and_the_jobs_comes_next(config):
    async with Job("anna", config, date=MONDAY) as job:
        assert job.date == MONDAY
        await job.add_task("x")
        await job.add_task("x", date=TUESDAY)
        await job.set_claim("y", date=dt.datetime(2026, 11, 24, 23, tzinfo=dt.timezone.utc))
        assert await job.write_audit() == 2
        assert [row["date"] for row in await job.get_audit()] == [MONDAY]
        assert [row["date"] for row in await job.get_audit(date=TUESDAY)] == [TUESDAY]
        assert (await job.run_batch(["z"], nothing)).date == MONDAY
        assert (await job.run_batch(["z"], nothing, date=TUESDAY)).completed_here == {"z"}
        with pytest.raises(ConfigError, match="date must be"):
            await job.add_task("x", date="2026-11-23")
        with pytest.raises(ConfigError, match="date must be"):
            await job.run_batch(["x"], nothing, date=20261123)


async def test_a_standalone_job_has_dates_and_names_too():
    async with Job("anna") as job:
        today = dt.datetime.now(dt.timezone.utc).date()
        result = await job.run_batch(["x"], nothing)
        assert result.date in (today, today + dt.timedelta(days=1))
        assert (await job.run_batch(["x"], nothing)).completed_elsewhere == {"x"}
        assert (await job.run_batch(["x"], nothing, name="other")).completed_here == {"x"}
        assert (await job.run_batch(["x"], nothing, date=MONDAY)).completed_here == {"x"}
        await job.add_task("y", date=TUESDAY)
        assert await job.write_audit() == 1
        assert [row["task_id"] for row in await job.get_audit(date=TUESDAY)] == ["y"]
        assert [row["batch"] for row in await job.get_audit(date=result.date)] == [None, "other"]
        hanging = asyncio.ensure_future(
            job.run_batch(["z"], lambda claim: anyio.sleep_forever(), date=MONDAY)
        )
        while not job.metrics.claims_active:
            await asyncio.sleep(0)
        hanging.cancel()
        await asyncio.wait([hanging])
        assert (await job.run_batch(["z"], nothing)).date == MONDAY
    async with Job("anna", date=TUESDAY) as job:
        assert (await job.run_batch(["x"], nothing)).date == TUESDAY


# -- the time zone


async def test_the_first_worker_writes_the_time_zone_and_another_one_is_refused_by_both_names(
    make_config, admin
):
    await admin.execute("UPDATE sync_cluster SET time_zone = NULL")  # as 0.1.0 and `init` leave it
    berlin = make_config(total_tokens=20, time_zone="Europe/Berlin")
    async with Job("anna", berlin):
        ((zone,),) = await (await admin.execute("SELECT time_zone FROM sync_cluster")).fetchall()
        assert zone == "Europe/Berlin"
        with pytest.raises(
            ConfigError, match=r"time_zone is 'UTC' here and 'Europe/Berlin' in the running cluster"
        ):
            await Job("berta", replace(berlin, time_zone="UTC")).start()


@pytest.mark.parametrize(
    "zone", ["", "Mars/Olympus", "Europe", "../etc/passwd", "Europe/Berlin\0", None, 3, "utc+3x!"]
)
def test_what_is_no_time_zone_is_refused_when_the_configuration_is_made(zone):
    with pytest.raises(ConfigError, match="time_zone must be an IANA name"):
        CoordinationConfig(time_zone=zone)


async def test_what_this_machine_cannot_check_the_server_does(make_config, admin, monkeypatch):
    import zoneinfo

    await admin.execute("UPDATE sync_cluster SET time_zone = NULL")
    with monkeypatch.context() as patched:
        patched.setattr(
            zoneinfo,
            "ZoneInfo",
            lambda name: (_ for _ in ()).throw(zoneinfo.ZoneInfoNotFoundError(name)),
        )
        patched.setattr(zoneinfo, "available_timezones", set)  # a slim container has no list
        config = make_config(total_tokens=20, time_zone="Mars/Olympus")
    with pytest.raises(ConfigError, match="does not know the time zone 'Mars/Olympus'"):
        await Job("anna", config).start()


# -- runs


async def test_workers_whose_dates_differ_agree_on_one_run(jobs, admin):
    """Two begin at the same moment on both sides of midnight, or with other dates in their jobs."""
    (anna,) = await jobs.start("anna", date=MONDAY)
    (berta,) = await jobs.start("berta", date=TUESDAY)
    with anyio.fail_after(20):
        results = await asyncio.gather(
            *(job.run_batch(range(40), nothing) for job in (anna, berta))
        )
    assert len({result.date for result in results}) == 1
    assert results[0].completed_here | results[1].completed_here == set(range(40))
    assert len(await runs(admin)) == 1


async def test_of_several_that_begin_at_once_all_get_one_run(config, admin):
    async with (
        Job("anna", config) as job,
        await psycopg.AsyncConnection.connect(config.dsn) as other,
    ):
        store, me, key = job._engine.work, job._worker.identity, batch_key("b", [])
        days = [MONDAY, TUESDAY, MONDAY - dt.timedelta(days=1)]
        # Each comes to where it would write, and no further.
        await other.execute("LOCK TABLE sync_batch IN SHARE MODE")
        beginning = [
            asyncio.ensure_future(store.begin_batch(me, key, b"", Asked("b", None, day), 1))
            for day in days
        ]
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = "
            "current_database()"
        )
        with anyio.fail_after(10):
            while await (await admin.execute(waiting)).fetchone() != (3,):
                await asyncio.sleep(0.01)
        await other.commit()
        opened = await asyncio.gather(*beginning)
    assert len({one.date for one in opened}) == 1
    assert {one.fresh for one in opened} == set(days)


async def test_a_worker_that_begins_after_midnight_continues_the_open_run_and_says_so(
    jobs, admin, caplog
):
    ids, calls = [f"i{n}" for n in range(60)], []
    go_on = asyncio.Event()

    async def handle(claim) -> None:
        calls.append(claim.task_id)
        await go_on.wait()

    anna, berta = await jobs.start("anna", "berta")
    first = await move(admin, WEST)
    running = asyncio.ensure_future(anna.run_batch(ids, handle, concurrency=2))
    while not calls:
        await asyncio.sleep(0.01)
    await move(admin, EAST)
    with caplog.at_level(logging.WARNING), anyio.fail_after(20):
        joined = asyncio.ensure_future(berta.run_batch(ids, handle))
        while len(calls) < 6:
            await asyncio.sleep(0.01)
        go_on.set()
        results = [await running, await joined]
    assert [result.date for result in results] == [first, first]
    assert sorted(calls) == sorted(ids)
    assert f"berta: continues the batch of {first}, which anna began" in caplog.text
    (record,) = [record for record in caplog.records if hasattr(record, "started_by")]
    assert (record.date, record.started_by, record.batch) == (str(first), "anna", None)


async def test_a_run_that_was_finished_but_for_the_word_that_says_so_is_not_continued(
    config, admin
):
    """Whoever completed its last id died before it could finish the run."""
    async with Job("anna", config) as job:
        first = await move(admin, WEST)
        await job.run_batch(range(5), nothing)
        await admin.execute("UPDATE sync_batch SET finished_at = NULL")
        second = await move(admin, EAST)
        result = await job.run_batch(range(5), nothing)
    assert (result.date, result.completed_here) == (second, set(range(5)))
    assert await runs(admin) == [(None, first, 5, True), (None, second, 5, True)]


async def test_a_run_that_is_finished_again_by_a_latecomer_stays_open_for_whoever_opened_it_since(
    config,
):
    async with Job("anna", config) as job:
        store, me, key = job._engine.work, job._worker.identity, batch_key("b", [])
        first = await store.begin_batch(me, key, b"", Asked("b", MONDAY), 1)
        await store.finish_batch(Run(MONDAY, "b", key), first, b"")
        again = await store.begin_batch(me, key, b"", Asked("b", MONDAY), 1)
        assert again.started_at > first.started_at
        await store.finish_batch(Run(MONDAY, "b", key), first, b"")  # late
        assert (await store.begin_batch(me, key, b"", Asked("b", None, TUESDAY), 1)).date == MONDAY
        await store.finish_batch(Run(MONDAY, "b", key), again, b"")
        assert (await store.begin_batch(me, key, b"", Asked("b", None, TUESDAY), 1)).date == TUESDAY


async def test_two_named_batches_over_the_same_ids_on_one_day_are_two(jobs, admin):
    pair = await jobs.start("anna", "berta")
    done = []

    async def run(job: Job, name: str | None):
        async def handle(claim) -> None:
            done.append((name, claim.task_id))

        return await job.run_batch(range(20), handle, name=name)

    names = ("invoices", "reminders", None)
    with anyio.fail_after(20):
        results = await asyncio.gather(*(run(job, name) for job in pair for name in names))
    assert sorted(done, key=repr) == sorted(
        ((name, task) for name in names for task in range(20)), key=repr
    )
    assert [result.name for result in results] == [*names, *names]
    rows = await pair[0].get_audit(date=results[0].date)
    assert {(row["batch"], row["task_id"]) for row in rows} == {
        (name, str(task)) for name in names for task in range(20)
    }
    cursor = await admin.execute("SELECT task_key, batch FROM sync_claim WHERE task_id = '7'")
    assert {(bytes(key), name) for key, name in await cursor.fetchall()} == {
        (task_key("7", name), name) for name in names
    }


async def test_batches_without_a_name_over_other_ids_are_others(config, admin):
    async with Job("anna", config) as job:
        await asyncio.gather(
            job.run_batch(["a", "b"], nothing),
            job.run_batch(["c"], nothing),
            job.run_batch(["b", "a"], nothing),
        )
    assert sorted(total for _, _, total, _ in await runs(admin)) == [1, 2]


@pytest.mark.parametrize("name", ["", "nul\0", "x" * 1001, 7])
async def test_a_name_that_cannot_be_stored_is_refused(config, name):
    async with Job("anna", config) as job:
        with pytest.raises(ConfigError, match="name"):
            await job.run_batch(["x"], nothing, name=name)


# -- nobody waits for ever


async def test_workers_that_run_a_batch_under_two_dates_are_told_of_each_other(jobs):
    anna, berta = await jobs.start("anna", "berta")
    with anyio.fail_after(60):
        ends = await asyncio.gather(
            anna.run_batch(range(40), nothing, date=MONDAY),
            berta.run_batch(range(40), nothing, date=TUESDAY),
            return_exceptions=True,
        )
    for end, (me, mine), (other, its) in zip(
        ends,
        (("anna", MONDAY), ("berta", TUESDAY)),
        (("berta", TUESDAY), ("anna", MONDAY)),
        strict=True,
    ):
        assert isinstance(end, CoordinationError)
        assert str(end).startswith(
            f"{me} runs the batch of {mine} and waits for ids that {other} owns, but {other} runs"
        )
        assert str(its) in str(end)
    with anyio.fail_after(20):  # with one date it resumes
        results = await asyncio.gather(
            *(job.run_batch(range(40), nothing, date=MONDAY) for job in (anna, berta))
        )
    assert results[1].completed_here
    assert results[0].completed_elsewhere == set(range(40)) - results[0].completed_here


async def test_workers_that_run_two_dates_of_a_batch_at_once_wait_for_each_other_in_peace(
    jobs, monkeypatch
):
    monkeypatch.setattr(others, "_ELSEWHERE_SEC", 0.3)
    pair = await jobs.start("anna", "berta")
    go_on = asyncio.Event()

    async def handle(claim) -> None:
        if claim.token_id in pair[1].my_tokens:
            await go_on.wait()

    works = [
        job.run_batch(range(40), handle, date=date) for job in pair for date in (MONDAY, TUESDAY)
    ]
    running = [asyncio.ensure_future(work) for work in works]
    done, _ = await asyncio.wait(running, timeout=3, return_when=asyncio.FIRST_COMPLETED)
    assert not done, "both work on both dates"
    go_on.set()
    with anyio.fail_after(20):
        assert {result.date for result in await asyncio.gather(*running)} == {MONDAY, TUESDAY}


async def test_who_says_that_it_runs_a_batch_under_another_date_is_found_also_before_it_has_begun_anything(  # noqa: E501
    jobs, admin
):
    """What it owns was completed there before it was started again."""
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    said = Jsonb([{"kind": "batch", "name": "b", "date": str(TUESDAY)}])
    await admin.execute("UPDATE sync_node SET runs = %s WHERE name = 'berta'", [said])
    store, me, key = berta._engine.work, berta._worker.identity, batch_key("b", [])
    await store.begin_batch(me, key, b"", Asked("b", TUESDAY), 1)
    tokens = {str(task): anna.task_to_token(task) for task in range(40)}
    found = await store.find_dates(Run(MONDAY, "b", key), tokens)
    assert found == {("berta", TUESDAY)}
    both = Jsonb([{"kind": "batch", "name": "b", "date": str(date)} for date in (MONDAY, TUESDAY)])
    await admin.execute("UPDATE sync_node SET runs = %s WHERE name = 'berta'", [both])
    assert await store.find_dates(Run(MONDAY, "b", key), tokens) == set()
