"""``predecessor=``: ours hold nothing while a worker of jobsync lives. With real processes of
jobsync where that matters."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from jobsync_async import ClusterNotFormed, ConfigError, CoordinationConfig, Job, SchemaError
from jobsync_async.core.predecessor import PredecessorBeats
from jobsync_async.tasks import predecessor
from tests import predecessors, products
from tests.predecessors import Marks, overlaps
from tests.waiting import until

TASKS = 22
ROWS = """
CREATE TABLE IF NOT EXISTS {}.sync_leader_lock (singleton integer);
CREATE TABLE IF NOT EXISTS {}.sync_node (name varchar PRIMARY KEY, created_on timestamptz,
    last_heartbeat timestamptz);
"""


# -- what is seen, in the abstract


def stands_still(
    watch: PredecessorBeats, beats: dict[str, object], since: float, until: float
) -> list[str]:
    """Look again and again; what the last look showed."""
    while since < until:
        watch.observe(beats, since)
        since += 1
    return watch.observe(beats, until)


def test_a_row_lives_while_it_is_new_or_changes_and_is_dead_when_it_stood_still():
    watch = PredecessorBeats(4)
    assert watch.observe({"a": 1, "b": 1}, 100) == ["a", "b"]
    assert stands_still(watch, {"a": 2, "b": 1}, 101, 114.9) == ["a", "b"], (
        "jobsync's own 15 s, though ours are 4"
    )
    assert watch.observe({"a": 2, "b": 1}, 115) == ["a"]
    assert watch.observe({"a": 2, "b": 1}, 116) == []
    assert watch.observe({"a": 2, "b": 0}, 117) == ["b"], "whatever its clock says"
    assert watch.observe({"c": None}, 118) == ["c"]
    assert watch.observe({}, 119) == []
    assert stands_still(PredecessorBeats(60), {"a": 1}, 0, 59) == ["a"]


@pytest.mark.parametrize("told", [True, False], ids=["failed looks", "no looks"])
def test_an_outage_takes_nobody_for_dead_and_wakes_no_dead(told):
    watch = PredecessorBeats(15)
    assert stands_still(watch, {"dead": 1}, 0, 15) == []
    assert stands_still(watch, {"dead": 1, "living": 1}, 16, 24) == ["living"]
    if told:
        watch.missed()
    assert watch.observe({"dead": 1, "living": 1}, 28 if told else 40) == ["living"]
    assert stands_still(watch, {"dead": 1, "living": 1}, 41, 56) == []


@pytest.mark.parametrize("value", ["", "Sync_", "a-b", 7, "x;", "sync_"])
def test_a_prefix_that_cannot_be_is_refused(value):
    with pytest.raises(ConfigError, match="predecessor"):
        CoordinationConfig(predecessor=value)
    CoordinationConfig(predecessor="sync_", appname="jobs_")
    CoordinationConfig(predecessor="sync_", schema="another")


# -- with rows as jobsync makes them


@pytest.fixture
async def theirs(admin):
    await admin.execute("DROP TABLE IF EXISTS sync_node CASCADE")
    await admin.execute(ROWS.format("public", "public").encode())
    return admin


@pytest.fixture
def ours(make_config) -> CoordinationConfig:
    times = {"heartbeat_interval_sec": 0.3, "heartbeat_timeout_sec": 1.5}
    return make_config(appname="jobs_", predecessor="sync_", total_tokens=60, **times)


@pytest.fixture
def hasty(monkeypatch) -> None:
    """jobsync's time-out is waited for in the test of real processes."""
    monkeypatch.setattr("jobsync_async.core.predecessor.LEAST_TIMEOUT_SEC", 0.5)
    monkeypatch.setattr(predecessor, "_LOOK_EVERY_SEC", 0.05)


@asynccontextmanager
async def beating(admin, name: str):
    """A row that moves, as if by a clock that is an hour behind."""
    query = (
        "INSERT INTO sync_node VALUES (%s, now(), now() - interval '1 hour') ON CONFLICT (name) "
        "DO UPDATE SET last_heartbeat = clock_timestamp() - interval '1 hour'"
    )

    async def beat() -> None:
        while True:
            await admin.execute(query, [name])
            await asyncio.sleep(0.1)

    await admin.execute(query, [name])
    task = asyncio.ensure_future(beat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await admin.execute("DELETE FROM sync_node WHERE name = %s", [name])


@pytest.mark.usefixtures("hasty")
async def test_start_waits_while_a_worker_of_jobsync_lives_whatever_its_clock_says_and_names_it_in_the_log(  # noqa: E501
    theirs, ours, caplog
):
    caplog.set_level(logging.INFO)
    job = Job("anna", ours)
    async with beating(theirs, "old-1"):
        starting = asyncio.ensure_future(job.start())
        await until(lambda: "anna: waits for workers of jobsync to leave: old-1" in caplog.text)
        await asyncio.sleep(0.7)  # longer than it takes to find a row that stands still
        assert not starting.done()
    await starting
    assert len(job.my_tokens) == 60
    assert "no worker of jobsync lives" in caplog.text
    await job.stop()


@pytest.mark.usefixtures("hasty")
async def test_a_row_that_stands_still_is_nobodys_and_is_waited_for_as_long_as_jobsync_does(
    theirs, ours
):
    await theirs.execute(
        "INSERT INTO sync_node VALUES ('crashed', now(), now() + interval '1 hour'), ('never', "
        "now(), NULL)"
    )
    async with Job("anna", ours) as job:
        assert job.my_tokens
        await asyncio.sleep(0.2)
        assert job.my_tokens, "nor does it come back to life"


@pytest.mark.usefixtures("hasty")
async def test_the_wait_ends_with_wait_on_enter_and_an_error_that_names_the_living(theirs, ours):
    async with beating(theirs, "old-1"), beating(theirs, "old-2"):
        job = Job("anna", ours, wait_on_enter=0.8)
        with pytest.raises(ClusterNotFormed, match=r"old-1, old-2.*wait_on_enter"):
            await job.start()
    assert await (await theirs.execute("SELECT count(*) FROM jobs_node")).fetchone() == (0,), (
        "it has not joined"
    )


@pytest.mark.usefixtures("hasty")
async def test_ours_hand_on_when_a_worker_of_jobsync_comes_back_and_go_on_when_it_has_left(
    theirs, ours, caplog
):
    async with Job("anna", ours) as anna, Job("berta", ours) as berta:
        await until(lambda: len(anna.my_tokens) == len(berta.my_tokens) == 30)
        async with beating(theirs, "old-1"):
            await until(lambda: not anna.my_tokens and not berta.my_tokens)
        await until(lambda: len(anna.my_tokens) == len(berta.my_tokens) == 30)
    assert "anna: hands on: workers of jobsync are back: old-1" in caplog.text


async def test_no_tables_of_jobsync_are_said_and_nothing_is_waited_for(ours, caplog):
    """Our own tables of that prefix are none of jobsync's."""
    async with Job("other", CoordinationConfig(dsn=ours.dsn)), Job("anna", ours) as job:
        assert job.my_tokens
    assert (
        "anna: waits for no worker of jobsync: there are no tables of it under the prefix 'sync_'"
        in caplog.text
    )


@pytest.mark.needs("startup options")
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("notify", products.NOTIFY_OR_NOT, ids=["push", "polling"])
async def test_its_tables_are_found_where_the_search_path_leads(admin, ours, dsn_with, notify):
    await admin.execute("CREATE SCHEMA legacy")
    await admin.execute(ROWS.format("legacy", "legacy").encode())
    settings = {
        "dsn": dsn_with(options="-c search_path=legacy,public"),
        "schema": "public",
        "notify": notify,
    }
    config = CoordinationConfig(**settings, appname="jobs_", predecessor="sync_", total_tokens=60)
    await admin.execute("SET search_path = legacy")
    async with beating(admin, "old-1"):
        with pytest.raises(ClusterNotFormed, match="old-1"):
            await Job("anna", config, wait_on_enter=0.3).start()
    async with Job("anna", config) as job:
        assert job.my_tokens


async def test_without_the_right_to_see_its_workers_the_start_says_what_to_grant(
    theirs, ours, dsn_with
):
    await theirs.execute("CREATE ROLE stranger_to_jobsync LOGIN PASSWORD 'secret'")
    try:
        await theirs.execute("GRANT CREATE, USAGE ON SCHEMA public TO stranger_to_jobsync")
        dsn = dsn_with(user="stranger_to_jobsync", password="secret")
        with pytest.raises(SchemaError, match=r'GRANT SELECT ON "public"."sync_node"'):
            await Job(
                "anna", CoordinationConfig(dsn=dsn, appname="jobs_", predecessor="sync_")
            ).start()
    finally:
        await theirs.execute(
            "DROP OWNED BY stranger_to_jobsync CASCADE; DROP ROLE stranger_to_jobsync"
        )


# -- with jobsync itself


class Theirs:
    """Processes of jobsync, which work on the tasks."""

    def __init__(self, python: Path, dsn: str, marks: Path) -> None:
        names = {
            "host": "PGHOST",
            "port": "PGPORT",
            "user": "PGUSER",
            "password": "PGPASSWORD",
            "dbname": "PGDATABASE",
        }
        self._environment = os.environ | {
            names[key]: str(value) for key, value in conninfo_to_dict(dsn).items() if key in names
        }
        self._python, self._marks = python, marks

    @asynccontextmanager
    async def worker(self, name: str):
        errors = self._marks.with_name(f"{name}.log").open("wb")
        program = [
            str(self._python),
            predecessors.__file__,
            name,
            "sync_",
            str(TASKS),
            str(self._marks),
        ]
        process = await asyncio.create_subprocess_exec(
            *program, env=self._environment, stdout=asyncio.subprocess.PIPE, stderr=errors
        )
        try:
            with errors:
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def its_tables(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        while await (
            await connection.execute("SELECT to_regclass('sync_rebalance')")
        ).fetchone() == (None,):
            await asyncio.sleep(0.01)


async def work(name: str, config: CoordinationConfig, marks: Marks, begun: asyncio.Event) -> None:
    """One of ours, which does the same work until it is cancelled."""

    async def handle(claim) -> None:
        begun.set()
        while True:
            marks.mark("begin", name, claim.task_id)
            try:
                await asyncio.sleep(predecessors.WORK_SEC)
            finally:
                marks.mark("end", name, claim.task_id)

    async with Job(name, config, wait_on_enter=60) as job:
        await job.run_owned(range(TASKS), handle)


@pytest.mark.needs("plain connections")
async def test_four_workers_of_jobsync_are_replaced_one_by_one_under_load_and_no_task_is_worked_on_twice(  # noqa: E501
    empty_dsn, jobsync_python, tmp_path, make_config
):
    made = {"dsn": empty_dsn, "heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": 2}
    config = CoordinationConfig(**made, appname="jobs_", predecessor="sync_")
    unaware = CoordinationConfig(**made, appname="unaware_")
    path = tmp_path / "marks"
    marks = Marks(path)
    theirs = Theirs(jobsync_python, empty_dsn, path)
    with anyio.fail_after(100):
        async with AsyncExitStack() as stack:
            stack.callback(marks.close)
            old = [await stack.enter_async_context(theirs.worker("old-0"))]
            await its_tables(
                products.direct(empty_dsn)
            )  # of workers that make them at the same time, some fail
            old += [
                await stack.enter_async_context(theirs.worker(f"old-{number}"))
                for number in (1, 2, 3)
            ]
            for process in old:
                assert await process.stdout.readline() == b"in\n"
            assert not overlaps(path)
            new, begun = [], [asyncio.Event() for _ in old]
            for number, process in enumerate(old):
                new.append(
                    asyncio.ensure_future(work(f"new-{number}", config, marks, begun[number]))
                )
                await asyncio.sleep(1)
                assert not any(event.is_set() for event in begun), "one of theirs lives"
                process.send_signal(signal.SIGTERM)
                await process.wait()
            await asyncio.gather(*(event.wait() for event in begun))
            assert not overlaps(path)

            # The way back: one of theirs comes, and ours let go before it begins.
            (last,) = [await stack.enter_async_context(theirs.worker("back"))]
            assert await last.stdout.readline() == b"in\n"
            await asyncio.sleep(1)
            assert not overlaps(path)

            # And what is shown: one of ours that does not know of jobsync works beside it.
            event = asyncio.Event()
            new.append(asyncio.ensure_future(work("unaware", unaware, marks, event)))
            await event.wait()
            await asyncio.sleep(1)
            assert overlaps(path)
            for task in new:
                task.cancel()
            await asyncio.wait(new)
