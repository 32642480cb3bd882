"""Batches seen from outside the workers: how far, what has failed, to try it again; and old days
that are deleted."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest

from jobsync_async import ConfigError, Job, StoreUnavailable
from jobsync_async.core.hashing import name_key, task_key
from jobsync_async.operations import batches, pruning
from jobsync_async.postgres.batch_runs import MOST_FAILED
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.store import Store
from jobsync_async.postgres.work import WorkStore
from tests.integration.test_commands import Commands
from tests.integration.test_observer import read_only_role
from tests.integration.test_page import looked_at
from tests.integration.test_versions import old_row
from tests.waiting import until

TODAY = dt.date(2026, 11, 23)
YESTERDAY = TODAY - dt.timedelta(days=1)
LONG_AGO = dt.date(2020, 1, 1)
KEY = "0" * 64


@pytest.fixture
def commands(dsn) -> Commands:
    return Commands(dsn)


@pytest.fixture
async def store(config):
    async with Job("first", config):
        """It writes the cluster's row."""
    opened = await Store.open(config, "test", observe=True)
    yield opened
    await opened.close()


async def nothing(claim) -> None:
    """All is well."""


def failing(*ids: object):
    """A handler that raises for some ids."""

    async def handle(claim) -> None:
        if claim.task_id in ids:
            raise ValueError("no such file")

    return handle


async def rows(admin, query: str, *values: object) -> list[tuple[Any, ...]]:
    return await (await admin.execute(query, values)).fetchall()


async def poison(admin, task_id: str, batch: str | None, date: dt.date) -> None:
    """The next worker that begins it finds that one too many has ended at work on it."""
    await admin.execute(
        "INSERT INTO sync_claim (date, task_key, task_id, token_id, node, epoch, batch, "
        "incarnation, open, owners_lost) VALUES (%s, %s, %s, 0, 'dead', 1, %s, %s, true, 1)",
        [date, task_key(task_id, batch), task_id, batch, uuid4()],
    )


async def until_idle(admin) -> None:
    """No worker says that it runs anything."""
    with anyio.fail_after(10):
        while await rows(admin, "SELECT FROM sync_node WHERE runs <> '[]'"):
            await asyncio.sleep(0.01)


# -- how far it is


async def test_the_table_has_the_open_runs_first_then_the_newest_and_says_how_many_more(
    commands, config, admin
):
    at_work, go_on = asyncio.Event(), asyncio.Event()

    async def handle(claim) -> None:
        if claim.task_id == 9:
            at_work.set()
            await go_on.wait()

    async with Job("anna", config) as job:
        assert "no batch was run" in (await commands("batch")).stdout
        running = asyncio.ensure_future(
            job.run_batch(range(10), handle, name="slow", date=YESTERDAY, concurrency=4)
        )
        await at_work.wait()
        for number in range(3):
            await job.run_batch(range(5), failing(3), name=f"b{number}", attempts=1, date=TODAY)
        await job.run_batch([1, 2], nothing, date=TODAY)
        with anyio.fail_after(10):
            while (await commands.json("batch"))["runs"][0]["remaining"] > 1:
                await asyncio.sleep(0.05)
        told = await commands.json("batch")
        assert [(run["name"], run["date"]) for run in told["runs"]] == [
            ("slow", "2026-11-22"),
            (None, "2026-11-23"),
            *((f"b{number}", "2026-11-23") for number in (2, 1, 0)),
        ]
        slow, bare, failed = told["runs"][:3]
        assert (slow["total"], slow["done"], slow["failed"], slow["remaining"]) == (10, 9, 0, 1)
        assert (slow["started_by"], slow["finished_at"]) == ("anna", None)
        assert (failed["completed"], failed["otherwise"], failed["done"]) == (4, 1, 5)
        assert (failed["failed"], failed["remaining"]) == (1, 0)
        assert told["more"] == 0

        short = await commands.json("batch", "--last", "2")
        assert (len(short["runs"]), short["more"]) == (2, 3)
        assert "and 3 more" in (await commands("batch", "--last", "2")).stdout
        assert len((await commands.json("batch", "--date", "2026-11-22"))["runs"]) == 1
        shown = (await commands("batch")).stdout
        assert re.search(r"^slow +2026-11-22 +10 +9 +0 +1 .* anna +open *$", shown, re.MULTILINE)
        assert bare["key"][:12] in shown
        assert "slow" in (await commands("batch", columns=30)).stdout

        found = await commands.json("batch", bare["key"][:12], shape="batch NAME")
        assert (found["name"], found["total"]) == (None, 2)
        go_on.set()
        await running


async def test_a_run_in_depth_tells_its_rate_the_time_left_and_who_does_it(commands, jobs, admin):
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    go_on = asyncio.Event()

    async def handle(claim) -> None:
        await asyncio.sleep(0.02 if not go_on.is_set() else 0)

    with anyio.fail_after(60):
        running = [
            asyncio.ensure_future(job.run_batch(range(2000), handle, name="n", concurrency=2))
            for job in (anna, berta)
        ]
        while len(await rows(admin, "SELECT FROM sync_batch_part WHERE completed > 0")) < 2:
            await asyncio.sleep(0.01)
        told = await commands.json("batch", "n", "--over", "0.5", shape="batch NAME")
        assert 0 < told["rate_per_sec"] < 400
        assert told["left_sec"] == pytest.approx(told["remaining"] / told["rate_per_sec"])
        assert {one["node"] for one in told["workers"] if one["runs_it"]} == {"anna", "berta"}
        assert all(one["completed"] > 0 for one in told["workers"])
        text = (await commands("batch", "n", "--over", "0.5")).stdout
        assert re.search(r"of 2,000 done, 0 failed, .* a second, about .* left", text)
        go_on.set()
        here = [len((await one).completed_here) for one in running]
    await until_idle(admin)
    told = await commands.json("batch", "n", shape="batch NAME")
    assert (told["done"], told["remaining"], told["left_sec"]) == (2000, 0, 0)
    assert told["rate_per_sec"] > 0
    done = {one["node"]: (one["completed"], one["runs_it"]) for one in told["workers"]}
    assert done == {"anna": (here[0], False), "berta": (here[1], False)}


async def test_of_several_runs_the_open_one_is_shown_then_the_newest_unless_a_date_says_which(
    commands, config, admin
):
    async def shown(*more: str) -> str:
        return (await commands.json("batch", "n", "--over", "0.1", *more, shape="batch NAME"))[
            "date"
        ]

    async with Job("anna", config) as job:
        await job.run_batch([1], nothing, name="n", date=TODAY)
        await job.run_batch([1], nothing, name="n", date=YESTERDAY)
        assert await shown() == "2026-11-22"  # begun last
        assert await shown("--date", "2026-11-23") == "2026-11-23"
        await admin.execute("UPDATE sync_batch SET finished_at = NULL WHERE date = %s", [TODAY])
        assert await shown() == "2026-11-23"


async def test_the_rate_of_a_finished_run_is_that_since_it_was_opened_for_the_last_time(
    commands, config, admin
):
    async def check(name: str, completed: int) -> None:
        told = await commands.json("batch", name, shape="batch NAME")
        ((seconds,),) = await rows(
            admin,
            "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM sync_batch "
            "WHERE name = %s",
            name,
        )
        assert told["rate_per_sec"] == pytest.approx(completed / seconds, rel=0.01)

    async with Job("anna", config) as job:
        await job.run_batch(range(20), failing(7), name="n", attempts=1)
        await check("n", 19)
        await job.run_batch(range(20), nothing, name="n")
        await check("n", 1)
        await job.run_batch(range(10), failing(7), name="another of the day", attempts=1)
        await until_idle(admin)
        await commands("batch", "another of the day", "--retry")
        await job.run_batch(range(10), nothing, name="another of the day")
        await check("another of the day", 1)


# -- what failed


async def test_failures_are_told_by_error_with_their_ids(commands, config):
    async def handle(claim) -> None:
        if claim.task_id < 25:
            raise ValueError("no such file")
        if claim.task_id == 30:
            raise KeyError("x")

    async with Job("anna", config) as job:
        await job.run_batch(range(40), handle, name="n", attempts=1)
        await job.run_batch(range(3), nothing, name="fine")
    told = await commands.json("batch", "n", "--failed", shape="batch NAME --failed")
    assert (told["failed"], told["all_counted"]) == (26, True)
    first, second = told["errors"]
    assert (first["error"], first["count"], first["more_ids"]) == (
        "ValueError: no such file", 25, 5,
    )  # fmt: skip
    assert len(first["ids"]) == 20 and set(first["ids"]) <= set(map(str, range(25)))
    assert (second["error"], second["ids"]) == ("KeyError: 'x'", ["30"])
    text = (await commands("batch", "n", "--failed")).stdout
    assert "26 failed" in text and "and 5 more" in text
    fine = await commands.json("batch", "fine", "--failed", shape="batch NAME --failed")
    assert (fine["failed"], fine["errors"]) == (0, [])
    assert "nothing has failed" in (await commands("batch", "fine", "--failed")).stdout
    # Without a name: the first of the table.
    assert "'fine'" in (await commands("batch", "--failed")).stdout


async def test_while_a_task_is_tried_again_it_is_told_how_often_and_why(commands, config):
    called: list[int] = []
    go_on = asyncio.Event()

    async def handle(claim) -> None:
        called.append(claim.task_id)
        if claim.task_id == 1 and called.count(1) == 3:
            await go_on.wait()
        else:
            raise ValueError("no such file")

    async with Job("anna", config) as job:
        batch = asyncio.create_task(job.run_batch([1, 2], handle, attempts=3, name="nightly"))
        await until(lambda: called.count(1) == called.count(2) == 3)
        (told,) = (await commands.json("explain", "1"))["batches"]
        assert (told["running"], told["failures"], told["error"]) == (True, 2, None)
        assert told["last_error"] == "ValueError: no such file"
        shown = (await commands("explain", "1")).stdout
        assert re.search(r"failed attempts +2 *\n *last error +ValueError: no such file", shown)
        async with looked_at(config) as asks:
            page = (await asks.get("/task", params={"id": "1"})).text
        assert re.search(r"Failed attempts</dt>\s*<dd>2</dd>", page)
        assert "ValueError: no such file" in page
        go_on.set()
        result = await batch
        assert (result.completed_here, set(result.failed)) == ({1}, {2})
        (done,) = (await commands.json("explain", "1"))["batches"]
        assert (done["completed_by"], done["failures"]) == ("anna", 2)
        (given_up,) = (await commands.json("explain", "2"))["batches"]
        assert (given_up["error"], given_up["failures"]) == ("ValueError: no such file", 3)


async def test_a_failure_that_cannot_be_counted_is_tried_again_all_the_same(config, monkeypatch):
    async def refuse(*_: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(WorkStore, "note_failure", refuse)
    calls: list[int] = []

    async def handle(claim) -> None:
        calls.append(claim.task_id)
        if len(calls) == 1:
            raise ValueError("no such file")

    async with Job("anna", config) as job:
        assert (await job.run_batch([1], handle)).completed_here == {1}


@pytest.mark.parametrize("name", ["n", None])
async def test_what_is_set_aside_has_failed_in_later_runs_too_until_it_is_released(
    commands, config, admin, name
):
    await poison(admin, "3", name, YESTERDAY)
    async with Job("anna", config) as job:
        for date in (YESTERDAY, TODAY):
            result = await job.run_batch(range(5), nothing, name=name, date=date, attempts=2)
            assert set(result.failed) == {3}
        if name is None:  # another batch, in which it is not
            await job.run_batch(range(10, 15), nothing, date=dt.date(2026, 11, 25))
    for date in (YESTERDAY, TODAY):
        told = (await commands.json("batch", "--date", str(date)))["runs"][0]
        which = (name or told["key"], "--date", str(date))
        assert (told["failed"], told["done"], told["remaining"]) == (1, 5, 0)
        told = await commands.json("batch", *which, "--failed", shape="batch NAME --failed")
        ((error, ids),) = [(one["error"], one["ids"]) for one in told["errors"]]
        assert "its workers ended 2 times" in error
        assert (ids, told["errors"][0]["set_aside"]) == (["3"], True)
        assert "set aside: " in (await commands("batch", *which, "--failed")).stdout
    if name is None:
        assert (await commands.json("batch", "--date", "2026-11-25"))["runs"][0]["failed"] == 0
    await commands("release", "3")
    assert (await commands.json("batch", "--date", str(TODAY)))["runs"][0]["failed"] == 0


async def test_no_more_failures_are_looked_at_than_a_bound(commands, config, admin):
    async with Job("anna", config) as job:
        await job.run_batch(range(3), nothing, name="n", date=TODAY)
    await admin.execute(
        "INSERT INTO sync_claim (date, task_key, task_id, token_id, node, epoch, batch, error) "
        "SELECT %s, sha256(('x' || i)::bytea), 'x' || i, 0, 'anna', 1, 'n', 'boom ' || i "
        "FROM generate_series(1, %s) i",
        [TODAY, MOST_FAILED + 5],
    )
    told = await commands.json("batch", "n", "--failed", shape="batch NAME --failed")
    assert (told["failed"], told["all_counted"]) == (MOST_FAILED, False)
    text = (await commands("batch", "n", "--failed")).stdout
    assert "10,000+ failed" in text and "and 9,970 more errors" in text
    assert "10,000+" in (await commands("batch")).stdout


# -- to try it again


async def test_retry_opens_the_run_anew_and_the_next_call_tries_what_failed_and_nothing_else(
    commands, config, admin
):
    calls = []

    async def handle(claim) -> None:
        calls.append(claim.task_id)

    async with Job("anna", config) as job:
        await job.run_batch(range(20), failing(3, 7), name="n", attempts=1, date=YESTERDAY)
        await until_idle(admin)
        done = "SELECT task_id, completed_at FROM sync_audit ORDER BY 1"
        before = await rows(admin, done)
        told = await commands.json("batch", "n", "--retry", shape="batch NAME --retry")
        assert (told["reopened"], told["forgotten"], told["refused"]) == (True, 2, None)
        run = (await commands.json("batch"))["runs"][0]
        assert (run["completed"], run["otherwise"], run["failed"]) == (18, 0, 0)
        assert (run["remaining"], run["finished_at"]) == (2, None)
        assert await rows(admin, done) == before

        result = await job.run_batch(range(20), handle, name="n")
        assert (result.date, result.completed_here) == (YESTERDAY, {3, 7})
        assert sorted(calls) == [3, 7]
        run = (await commands.json("batch"))["runs"][0]
        assert (run["done"], run["remaining"]) == (20, 0)
        assert run["finished_at"] is not None
        assert [row for row in await rows(admin, done) if row in before] == before
        assert len(await rows(admin, done)) == 20

        await until_idle(admin)
        again = await commands.json("batch", "n", "--retry", status=1, shape="batch NAME --retry")
        assert (again["reopened"], again["refused"]) == (False, "nothing was given up in it")
        assert (await commands.json("batch"))["runs"][0]["finished_at"] is not None


async def test_retry_takes_off_what_was_counted_as_given_up_whoever_counted_it(
    commands, config, admin, monkeypatch
):
    """Two starts of a worker have given up ids; one of them has tried those of the other again."""
    monkeypatch.setattr("jobsync_async.postgres.batch_runs._AT_A_TIME", 2)
    for bad in ((1, 2, 3, 4, 5), (1, 2, 3)):
        async with Job("anna", config) as job:
            await job.run_batch(range(9), failing(*bad), name="n", attempts=1, date=TODAY)
    told = await commands.json("batch", "n", "--retry", shape="batch NAME --retry")
    assert told["forgotten"] == 3
    assert await rows(admin, "SELECT sum(completed), sum(otherwise) FROM sync_batch_part") == [
        (6, 0)
    ]


async def test_while_a_worker_runs_it_nothing_is_tried_again_and_nobody_is_misled(
    commands, jobs, admin
):
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    go_on = asyncio.Event()
    mine = next(n for n in range(40) if anna.owns(n))
    theirs = next(n for n in range(40) if berta.owns(n))

    async def handle(claim) -> None:
        if claim.task_id == mine:
            raise ValueError("no such file")
        if claim.task_id == theirs:
            await go_on.wait()

    with anyio.fail_after(20):
        running = [
            asyncio.ensure_future(job.run_batch(range(40), handle, name="n", attempts=1))
            for job in (anna, berta)
        ]
        while (await commands.json("batch"))["runs"][0]["remaining"] != 1:
            await asyncio.sleep(0.05)
        refused = await commands.json("batch", "n", "--retry", status=1, shape="batch NAME --retry")
        assert not refused["reopened"]
        assert "is run now by" in refused["refused"] and "anna" in refused["refused"]
        assert (await commands.json("batch"))["runs"][0]["failed"] == 1
        go_on.set()
        results = [await one for one in running]
    assert all(set(result.failed) == {mine} for result in results)


async def test_a_worker_that_begins_to_run_it_in_that_moment_or_may_run_it_is_in_the_way_too(
    commands, store, config, admin
):
    async with Job("anna", config) as job:
        await job.run_batch(range(5), failing(3), name="n", attempts=1, date=TODAY)
        await until_idle(admin)
        run = await batches.find_run(store, "n", None)
        assert run is not None
        await admin.execute(
            "UPDATE sync_node SET runs = %s",
            [f'[{{"kind": "batch", "name": "n", "date": "{TODAY}", "more": 1}}]'],
        )
        assert await store.batch_runs.reopen(run, "test") is None
        await admin.execute("UPDATE sync_node SET runs = '[]'")
        await old_row(admin, "bert")  # of 0.1.0, which does not say what it runs
        assert await store.batch_runs.reopen(run, "test") is None
        assert await rows(admin, "SELECT FROM sync_batch WHERE finished_at IS NULL") == []
        refused = await commands.json("batch", "n", "--retry", status=1, shape="batch NAME --retry")
        assert (refused["reopened"], refused["forgotten"]) == (False, 0)
        assert "0.1.0" in refused["refused"]


async def test_what_is_set_aside_stays_so(commands, config, admin):
    await poison(admin, "3", "n", TODAY)
    async with Job("anna", config) as job:
        await job.run_batch(range(5), failing(4), name="n", attempts=1, date=TODAY)
        await until_idle(admin)
        text = (await commands("batch", "n", "--retry")).stdout
        assert "1 ids are to be tried again" in text
        assert "1 ids are set aside and stay so" in text
        result = await job.run_batch(range(5), nothing, name="n")
        assert (result.completed_here, set(result.failed)) == ({4}, {3})
        await until_idle(admin)
        refused = await commands("batch", "n", "--retry", status=1)
        assert "nothing was given up" in refused.stderr and "release" in refused.stdout


async def test_failures_of_batches_without_names_on_one_date_are_not_told_apart_and_it_says_so(
    commands, config, admin
):
    async with Job("anna", config) as job:
        await job.run_batch([1, 2], failing(1), attempts=1, date=YESTERDAY)
        await until_idle(admin)
        told = await commands.json("batch", "--retry", shape="batch NAME --retry")
        assert (told["reopened"], told["forgotten"]) == (True, 1)
        await job.run_batch([1, 2], failing(1), attempts=1)
        await job.run_batch([3, 4], failing(3), attempts=1, date=YESTERDAY)
        await until_idle(admin)
        runs = (await commands.json("batch"))["runs"]
        assert [(run["failed"], run["unnamed_beside"]) for run in runs] == [(2, 1), (2, 1)]
        key = runs[0]["key"]
        assert "1 other batches without a name" in (await commands("batch", key)).stdout
        refused = await commands("batch", key, "--retry", status=1)
        assert "2 batches without a name have this date" in refused.stderr
        # As the answer says: their own call tries them again.
        result = await job.run_batch([3, 4], nothing, date=YESTERDAY)
        assert result.completed_here == {3}


# -- how it is asked


async def test_what_is_not_there_is_1_and_what_cannot_be_is_2(commands, config):
    async with Job("anna", config) as job:
        await job.run_batch([1], nothing, name="n", date=TODAY)
    for arguments in (
        ["nobody"], ["nobody", "--failed"], ["n", "--date", "2026-01-01"], [KEY],
        ["n", "--date", "2026-01-01", "--retry"], ["--failed", "--date", "2026-01-01"],
    ):  # fmt: skip
        assert "there is no run" in (await commands("batch", *arguments, status=1)).stderr
    for arguments in (
        ["n", "--failed", "--retry"],
        ["--date", "today"],
        ["--last", "0"],
        ["n", "--over", "0"],
    ):
        await commands("batch", *arguments, status=2)


async def test_who_may_only_read_sees_it_all_and_changes_nothing(
    commands, config, dsn, dsn_with, admin
):
    async with Job("anna", config) as job:
        await job.run_batch([1, 2], failing(1), name="n", attempts=1, date=YESTERDAY)
        await until_idle(admin)
    with read_only_role(dsn, "jobsync_test_reader") as login:
        commands.dsn = dsn_with(**login)
        await commands.json("batch")
        await commands.json("batch", "n", shape="batch NAME")
        await commands.json("batch", "n", "--failed", shape="batch NAME --failed")
        await commands.json("prune", "--before", "2026-11-23", "--dry-run")
        for command in (["batch", "n", "--retry"], ["prune", "--before", "2026-11-23"]):
            assert (await commands(*command, status=1)).stderr.startswith("error:")
    assert len(await rows(admin, "SELECT FROM sync_claim WHERE error IS NOT NULL")) == 1


@pytest.mark.parametrize("columns", [30, 200])
async def test_names_and_errors_of_any_kind_fit_a_terminal(commands, config, columns):
    async def handle(claim) -> None:
        raise ValueError("\x1b[31m" + "x" * 500 + "\n" * 5)

    async with Job("anna", config) as job:
        await job.run_batch(
            ["y" * 400, "\x1b[1m"], handle, name="\x1b[31mnightly " * 20, attempts=1
        )
    for command in (["batch"], ["batch", "\x1b[31mnightly " * 20], ["batch", "--failed"]):
        text = (await commands(*command, columns=columns)).stdout
        assert max(map(len, text.splitlines())) <= columns, command
        assert "\x1b" not in text


async def test_no_statement_reads_a_table_whole_whatever_the_statistics_say(store, config, admin):
    """The statistics know nothing, or a day without a failure, or nothing of the last day."""
    many = (
        "INSERT INTO {0} (date, task_key, task_id, token_id, node, epoch, batch) "
        "SELECT %s, sha256((%s || i)::bytea), 'f' || i, i %% 100, 'anna', 1, 'n' "
        "FROM generate_series(1, 20000) i"
    )

    async def fill(day: dt.date) -> None:
        for table in ("sync_claim", "sync_audit"):
            await admin.execute(many.format(table), [day, str(day)])

    async def fail(day: dt.date) -> None:
        which = "WHERE date = %s AND task_id LIKE '%%77'"
        await admin.execute(f"UPDATE sync_claim SET error = 'boom' {which}", [day])
        await admin.execute(f"DELETE FROM sync_audit {which}", [day])

    for table in ("sync_claim", "sync_audit"):
        await admin.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    async with Job("anna", config) as job:
        await job.run_batch([1], nothing, name="n", date=TODAY)
    for day in (LONG_AGO, YESTERDAY):
        await fill(day)
    run = await batches.find_run(store, "n", None)
    queries = Queries("public", "sync_")
    values = {
        **run._asdict(), **batches.sought("n")._asdict(), "most": 20, "most_failed": MOST_FAILED,
        "after": b"", "last": b"\xff", "started_at": run.at,
    }  # fmt: skip
    statements = {name: queries[name] for name in ("list_runs", "list_failed", "forget_failed")} | {
        f"{name} {table}": queries.by_days(name, table)
        for name in ("piece", "delete_piece")
        for table in ("claim", "audit")
    }

    async def explain(connection) -> None:
        for name, statement in statements.items():
            cursor = await connection.execute(b"EXPLAIN " + statement, values)
            plan = "\n".join(line for (line,) in await cursor.fetchall())
            assert not re.search(r"Seq Scan on sync_(claim|audit)\b", plan), f"{name}\n{plan}"
            if " " not in name:
                assert "sync_claim_failed_idx" in plan, f"{name}\n{plan}"

    async def plans() -> None:
        await store.batch_runs._pool.run(explain)

    await plans()  # never analysed
    await admin.execute("ANALYZE")
    await plans()
    await fill(TODAY)
    await fail(TODAY)
    await plans()
    await admin.execute("ANALYZE")
    await plans()


# -- old days


async def test_old_days_are_deleted_and_the_days_after_stay(commands, jobs, admin):
    anna, berta = [(await jobs.start(name))[0] for name in ("anna", "berta")]
    await jobs.even()
    await poison(admin, "3", "n", LONG_AGO)
    with anyio.fail_after(20):
        for date, ids in ((LONG_AGO, range(30)), (YESTERDAY, range(4, 30)), (None, range(4, 30))):
            await asyncio.gather(
                *(
                    job.run_batch(ids, failing(4), name="n", attempts=1, date=date)
                    for job in (anna, berta)
                )
            )
    await until_idle(admin)
    await admin.execute(
        "UPDATE sync_rebalance SET at = '2019-12-31 23:00Z' WHERE version = "
        "(SELECT min(version) FROM sync_rebalance)"
    )
    counts = (
        "SELECT (SELECT count(*) FROM sync_claim), (SELECT count(*) FROM sync_audit), "
        "(SELECT count(*) FROM sync_batch), (SELECT count(*) FROM sync_batch_part), "
        "(SELECT count(*) FROM sync_rebalance), (SELECT count(*) FROM sync_set_aside)"
    )
    ((claims, audits, runs, parts, rebalances, aside),) = before = await rows(admin, counts)
    assert (runs, aside) == (3, 1)
    dry = await commands.json("prune", "--before", "2026-11-22", "--dry-run")
    assert await rows(admin, counts) == before
    told = await commands.json("prune", "--before", "2026-11-22")
    assert told == {**dry, "dry_run": False}
    deleted = told["deleted"]
    assert (told["days"], told["kept"], deleted["claim"], deleted["audit"]) == (1, [], 30, 28)
    assert (deleted["batch"], deleted["batch_part"]) == (1, 2)
    assert await rows(admin, counts) == [
        (claims - 30, audits - 28, 2, parts - 2, rebalances - deleted["rebalance"], 1)
    ]
    assert rebalances > deleted["rebalance"] > 0
    assert await rows(admin, "SELECT min(date) FROM sync_claim") == [(YESTERDAY,)]
    assert "1 day" not in (await commands("prune", "--before", "2026-11-22")).stdout
    assert (await commands.json("history"))["rebalances"] != []
    # What is set aside is so still, and may be released.
    await commands("release", "3", "--batch", "n")


async def test_the_last_distribution_stays_however_old(commands, config, admin):
    async with Job("anna", config):
        await admin.execute("UPDATE sync_rebalance SET at = '2019-12-31 23:00Z'")
        await commands.json("prune", "--before", "2026-11-22")
        assert len((await commands.json("history"))["rebalances"]) == 1


async def test_a_day_with_an_open_run_is_kept_and_it_says_which(commands, config, admin):
    async with Job("anna", config) as job:
        for name in ("n", "other", None):
            await job.run_batch([1, 2], nothing, name=name, date=LONG_AGO)
        await job.run_batch([1, 2], nothing, name="n", date=YESTERDAY)
        await until_idle(admin)
        await admin.execute(
            "UPDATE sync_batch SET finished_at = NULL WHERE date = %s AND name = 'n'", [LONG_AGO]
        )
        told = await commands.json("prune", "--before", "2026-11-23")
        assert [(one["date"], one["name"]) for one in told["kept"]] == [("2020-01-01", "n")]
        assert (told["days"], told["deleted"]["audit"]) == (1, 2)
        assert await rows(admin, "SELECT date, count(*) FROM sync_audit GROUP BY 1") == [
            (LONG_AGO, 6)
        ]
        text = (await commands("prune", "--before", "2026-11-23")).stdout
        assert "2020-01-01 is kept: the run of batch 'n' is open" in text
        await job.run_batch([1, 2], nothing, name="n")
        await until_idle(admin)
        assert (await commands.json("prune", "--before", "2026-11-23"))["days"] == 1
        assert await rows(admin, "SELECT FROM sync_audit WHERE date < '2026-11-23'") == []


async def test_a_day_is_kept_that_a_worker_says_it_runs(commands, config, admin):
    """It may not have heard yet that all is done."""
    async with Job("anna", config) as job:
        await job.run_batch([1, 2], nothing, name="n", date=LONG_AGO)
        await until_idle(admin)
        await admin.execute(
            "UPDATE sync_node SET runs = %s",
            [f'[{{"kind": "batch", "name": "n", "date": "{LONG_AGO}"}}]'],
        )
        told = await commands.json("prune", "--before", "2026-11-23")
        key = name_key("n").hex()
        assert told["kept"] == [{"date": "2020-01-01", "name": "n", "key": key}]
        assert told["deleted"]["audit"] == 0


async def test_a_run_that_is_opened_while_its_day_is_deleted_keeps_what_is_left(
    store, config, admin
):
    async with Job("anna", config) as job:
        await job.run_batch(range(20), nothing, name="n", date=LONG_AGO)
        await until_idle(admin)
        seen = []

        def at_first_piece_of_audit(day: dt.date, count: int) -> None:
            seen.append(count)
            if count == 25:
                with psycopg.connect(config.dsn, autocommit=True) as other:
                    other.execute("UPDATE sync_batch SET finished_at = NULL")

        told = await pruning.prune(store, YESTERDAY, progress=at_first_piece_of_audit, most_rows=5)
    assert seen == [5, 10, 15, 20, 25]
    assert (told["deleted"]["claim"], told["deleted"]["audit"], told["days"]) == (20, 5, 0)
    assert [one["name"] for one in told["kept"]] == ["n"]
    assert len(await rows(admin, "SELECT FROM sync_audit")) == 15


async def test_whoever_opens_a_run_waits_for_the_piece_that_is_being_deleted(store, config, admin):
    async with Job("anna", config) as job:
        await job.run_batch(range(20), failing(3), name="n", attempts=1, date=LONG_AGO)
        await until_idle(admin)
        waiting = (
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = "
            "current_database()"
        )
        async with await psycopg.AsyncConnection.connect(config.dsn) as reader:
            # Rows that somebody has locked hold the piece up, with the table of runs locked.
            await reader.execute("SELECT FROM sync_audit LIMIT 1 FOR UPDATE")
            deleting = asyncio.ensure_future(pruning.prune(store, YESTERDAY))

            async def handle(claim) -> None:
                await asyncio.wait([deleting])

            with anyio.fail_after(10):
                while not await rows(admin, waiting):
                    await asyncio.sleep(0.01)
                opening = asyncio.ensure_future(
                    job.run_batch(range(20), handle, name="n", date=LONG_AGO)
                )
                while len(await rows(admin, waiting)) < 2:
                    await asyncio.sleep(0.01)
            await reader.rollback()
        with anyio.fail_after(20):
            told, result = await deleting, await opening
    # All of audit was one piece: what the run finds is gone, so it does all of it again, once.
    assert told["deleted"]["audit"] == 19
    assert result.completed_here == set(range(20))
    assert len(await rows(admin, "SELECT FROM sync_audit")) == 20


@pytest.mark.parametrize("days", [0, 1, 30])
async def test_a_date_that_is_not_in_the_past_for_the_cluster_is_refused(
    commands, store, config, admin, days
):
    async with Job("anna", config) as job:
        await job.run_batch([1], nothing, name="n")
        await until_idle(admin)
        before = await store.work.read_date() + dt.timedelta(days=days)
        with pytest.raises(ConfigError, match="not in the past"):
            await pruning.prune(store, before)
        refused = await commands("prune", "--before", str(before), status=2)
        assert str(before) in refused.stderr
        await commands("prune", status=2)
        await commands("prune", "--before", "yesterday", status=2)
        assert len(await rows(admin, "SELECT FROM sync_audit")) == 1


async def test_nothing_is_deleted_while_a_worker_is_there_that_does_not_tell_what_it_runs(
    commands, config, admin
):
    async with Job("anna", config) as job:
        await job.run_batch([1], nothing, date=LONG_AGO)
        await until_idle(admin)
        await old_row(admin, "bert")
        refused = await commands("prune", "--before", "2026-11-23", status=1)
        assert "bert" in refused.stderr
        told = await commands.json("prune", "--before", "2026-11-23", status=1)
        assert told["deleted"]["audit"] == 0
        assert len(await rows(admin, "SELECT FROM sync_audit")) == 1


async def test_long_work_tells_how_far_it_is(commands, config, admin, monkeypatch):
    monkeypatch.setattr("jobsync_async.cli.prune._TELL_SEC", 0)
    async with Job("anna", config) as job:
        await job.run_batch(range(7), nothing, date=LONG_AGO)
        await until_idle(admin)
    done = await commands("prune", "--before", "2026-11-23", "--json")
    assert "at 2020-01-01: 14 rows so far" in done.stderr
