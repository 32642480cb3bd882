"""Behind a pooler: refused in transaction mode unless changes are polled for, and nothing of a
session is relied on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from uuid import uuid4

import anyio
import psycopg
import pytest

from jobsync_async import ConfigError, CoordinationConfig, Job, Observer, OwnershipLost, Task
from jobsync_async.operations.doctor import examine
from jobsync_async.postgres import pooler
from jobsync_async.postgres.store import Store
from tests.clusters import Cluster, cluster
from tests.integration.test_commands import Commands
from tests.poolers import pgbouncer
from tests.products import middleman

pytestmark = pytest.mark.needs("plain connections")

TOKENS = 120
POLL_SEC = 0.1
QUICK = {"total_tokens": TOKENS, "heartbeat_interval_sec": 0.4, "heartbeat_timeout_sec": 2}


@pytest.fixture
def transactions(dsn) -> Iterator[str]:
    with pgbouncer(dsn, "transaction", size=4) as through:
        yield through


@pytest.fixture
def sessions(dsn) -> Iterator[str]:
    with pgbouncer(dsn, "session", size=50) as through:
        yield through


@pytest.fixture
def polling(transactions) -> CoordinationConfig:
    return CoordinationConfig(dsn=transactions, notify=False, poll_interval_sec=POLL_SEC, **QUICK)


@pytest.fixture
async def jobs(polling) -> AsyncIterator[Cluster]:
    async with cluster(polling) as made:
        yield made


@pytest.mark.needs("sessions")
async def test_a_pooler_in_transaction_mode_is_refused_and_the_error_names_the_setting(
    transactions, admin
):
    with pytest.raises(
        ConfigError,
        match=r"^PostgreSQL is reached through a pooler in transaction mode.*notify=False",
    ):
        await Job("a", CoordinationConfig(dsn=transactions, **QUICK)).start()
    assert await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone() == (0,)
    async with await psycopg.AsyncConnection.connect(
        transactions, autocommit=True, prepare_threshold=None
    ) as other:
        assert await (
            await other.execute("SELECT current_setting('statement_timeout')")
        ).fetchone() == ("0",)
        assert (await (await other.execute("SELECT current_setting('search_path')")).fetchone())[
            0
        ] != "pg_catalog"


@pytest.mark.needs("sessions")
async def test_a_pooler_that_is_not_recognised_is_refused_when_no_notification_arrives(
    transactions, admin, monkeypatch
):
    monkeypatch.setattr(pooler, "_TRIES", 0)
    with pytest.raises(
        ConfigError, match=r"no notification arrives.*transaction mode.*notify=False"
    ):
        await Job("a", CoordinationConfig(dsn=transactions, **QUICK)).start()
    assert await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone() == (0,)


@pytest.mark.needs("sessions")
async def test_a_proxy_that_lets_a_client_keep_its_session_once_it_sets_something_there_just_works(
    direct_dsn,
):
    """As RDS Proxy does: sessions pass from client to client only until then."""
    with middleman.running(direct_dsn, mode="pinning") as through:
        async with cluster(CoordinationConfig(dsn=through, **QUICK)) as jobs:
            await jobs.start("a", "b")
            await jobs.even()
            assert jobs["b"].metrics.notifications > 0
            assert jobs["b"].metrics.listener_reconnects == 0


async def test_a_pooler_that_gives_sessions_another_name_is_told_at_the_start_and_by_the_doctor(
    direct_dsn, caplog
):
    with middleman.running(direct_dsn, mode="session", name="Somebody") as through:
        config = CoordinationConfig(dsn=through, **QUICK)
        async with Job("a", config, wait_on_enter=20) as job:
            assert len(job.my_tokens) == TOKENS
            assert "name 'Somebody' on this server, not their worker's" in caplog.text
            checks = {check.name: check for check in await examine(config)}
            assert checks["session names"].status == "warn"
            assert "pass application_name on" in checks["session names"].advice


async def test_somebody_who_only_looks_may_look_through_the_pooler(transactions, jobs):
    await jobs.start("a")
    store = await Store.open(CoordinationConfig(dsn=transactions), "visitor", observe=True)
    try:
        assert [node.name for node in await store.status.nodes()] == ["a"]
    finally:
        await store.close()


async def test_an_observer_polls_too_and_takes_no_change_for_one_that_it_missed(
    jobs, polling, caplog
):
    await jobs.start("a")
    async with Observer(polling) as cluster:
        changes = cluster.changes()
        assert set((await changes.__anext__()).workers) == {"a"}
        await jobs.start("b")
        with anyio.fail_after(5):
            while "b" not in (await changes.__anext__()).workers:
                pass
            await jobs.stop("b")
            while "b" in (await changes.__anext__()).workers:
                pass
    assert "observing anew" not in caplog.text


@pytest.mark.needs("sessions")
async def test_a_pooler_in_session_mode_just_works(sessions):
    async with cluster(CoordinationConfig(dsn=sessions, **QUICK)) as jobs:
        await jobs.start("a", "b")
        await jobs.even()
        await jobs.stop("a")
        assert await jobs.settled() == {"b": TOKENS}
        assert jobs["b"].metrics.notifications > 0 and jobs["b"].metrics.listener_reconnects == 0


async def test_sessions_that_end_behind_a_pooler_are_an_outage_and_end_no_worker(sessions, admin):
    async with cluster(CoordinationConfig(dsn=sessions, **QUICK)) as jobs:
        await jobs.start("a", "b")
        await jobs.even()
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = "
        ended += "session_user AND pid <> pg_backend_pid() AND datname = current_database()"
        await admin.execute(ended)
        await jobs.start("c")  # whose tokens come by transactions on sessions that were ended
        assert await jobs.even() == {"a": 40, "b": 40, "c": 40}


async def test_workers_that_poll_join_hand_on_leave_and_replace_the_dead(jobs, admin):
    await jobs.start("a", "b")
    await jobs.even()
    await jobs.start("c")
    assert await jobs.even() == {"a": 40, "b": 40, "c": 40}
    await jobs.stop("b")
    await jobs.settled()
    await jobs.crash("a")  # it led
    assert await jobs.settled() == {"c": TOKENS}
    assert jobs["c"].metrics.notifications == 0
    listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%listener%'"
    assert await (await admin.execute(listening)).fetchone() == (0,)


async def test_claims_fences_audit_and_pins_work_for_those_who_poll(jobs, transactions):
    await jobs.start("a", "b")
    await jobs.even()
    a = jobs["a"]
    mine, theirs = (
        next(f"t{n}" for n in range(1000) if job.owns(f"t{n}")) for job in (a, jobs["b"])
    )
    await a.add_tasks([Task(mine)])
    assert await a.write_audit() == 1
    result = await asyncio.gather(
        *(job.run_batch([f"x{n}" for n in range(50)], _handle) for job in jobs.jobs.values())
    )
    assert sum(len(one.completed_here) for one in result) == 50
    async with (
        a.claim(mine) as claim,
        await psycopg.AsyncConnection.connect(transactions, prepare_threshold=None) as user,
    ):
        await a.fence(user, claim)
        await user.commit()
        stale = "UPDATE sync_token SET epoch = epoch + 1 WHERE token_id = %s"
        await user.execute(stale, [claim.token_id])
        await user.commit()
        with pytest.raises(OwnershipLost):
            await a.fence(user, claim)
    await a.register_lock(theirs, ["a"])
    with anyio.fail_after(5):
        while not a.owns(theirs):
            await asyncio.sleep(0.01)


async def _handle(claim) -> None:
    """A handler that succeeds."""


async def test_nothing_of_a_session_is_changed_behind_the_pooler(jobs, transactions):
    names = (
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "search_path",
        "plan_cache_mode",
    )
    show = b"SELECT " + b", ".join(b"current_setting('%s')" % name.encode() for name in names)
    async with await psycopg.AsyncConnection.connect(
        transactions, autocommit=True, prepare_threshold=None
    ) as before:
        fresh = await (await before.execute(show)).fetchone()
    await jobs.start("a", "b")
    await jobs.even()
    prepared = b"SELECT count(*) FROM pg_prepared_statements"
    users = [
        await psycopg.AsyncConnection.connect(transactions, prepare_threshold=None)
        for _ in range(3)
    ]
    for user in users:  # each keeps one of the pooler's few connections
        assert await (await user.execute(show)).fetchone() == fresh
        assert await (await user.execute(prepared)).fetchone() == (0,)
    for user in users:
        await user.close()


COMMANDS = (
    ["init", "--role", "{role}"],
    ["contract"],
    ["status"],
    ["doctor"],
    ["history"],
    ["locks", "add", "x", "a"],
    ["explain", "x"],
    ["plan", "--without", "a"],
    ["bound"],
    ["drain", "nobody"],
    ["prune", "--before", "2000-01-01"],
)


async def settings_of_sessions(through: str) -> dict[int, list]:
    """By process, of the two that the pooler has: two clients, of which each has one."""
    names = ("statement_timeout", "lock_timeout", "search_path", "plan_cache_mode")
    show = ", ".join(f"current_setting('{name}')" for name in names)
    found = {}
    async with AsyncExitStack() as stack:
        for _ in range(2):
            connecting = psycopg.AsyncConnection.connect(through, prepare_threshold=None)
            user = await stack.enter_async_context(await connecting)
            listens = "array(SELECT pg_listening_channels())"
            asked = f"SELECT pg_backend_pid(), {show}, {listens}"
            cursor = await user.execute(asked.encode())
            pid, *settings = await cursor.fetchone()
            found[pid] = settings
    return found


@pytest.mark.needs("sessions")
@pytest.mark.parametrize("notify", ["", "false"])
async def test_no_command_changes_anything_of_a_session_behind_the_pooler(
    direct_dsn, admin, monkeypatch, notify
):
    """Whoever uses the session next would have our search_path and our bounds, and would listen."""
    role = f"worker_{uuid4().hex}"
    monkeypatch.setenv("JOBSYNC_NOTIFY", notify)
    with pgbouncer(direct_dsn, "transaction", size=2) as through:
        fresh = await settings_of_sessions(through)
        assert len(fresh) == 2
        for command in COMMANDS:
            arguments = [argument.format(role=role) for argument in command]
            done = await Commands(through)(*arguments, status=None)
            assert "Traceback" not in done.stderr
            if command == ["doctor"]:
                expected = "changes are polled for every 1 s" if notify else "no notification"
                assert expected in done.stdout
            assert await settings_of_sessions(through) == fresh, command
    await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


async def test_statements_are_bounded_behind_the_pooler_too(jobs, admin):
    await jobs.start("a")
    limit = jobs["a"]._engine.store.membership

    async def settings(connection):
        return await (
            await connection.execute(
                "SELECT current_setting('statement_timeout'), current_schemas(true)::text"
            )
        ).fetchone()

    assert await limit._heartbeats.run(settings) == ("400ms", "{pg_catalog}")


async def test_another_server_behind_the_pooler_is_noticed_and_begun_anew(jobs, admin):
    await jobs.start("a", "b")
    await jobs.even()
    await admin.execute("UPDATE sync_cluster SET server_identity = '1/00000001/1/1'")
    with anyio.fail_after(2):
        while jobs.owners():
            await asyncio.sleep(0.002)
    await jobs.even()
    assert (await (await admin.execute("SELECT min(epoch >> 32) FROM sync_token")).fetchone())[
        0
    ] > 1


async def test_some_may_poll_while_others_listen(jobs, dsn):
    await jobs.start("a")
    async with Job("b", CoordinationConfig(dsn=dsn, **QUICK)) as listener:
        jobs.jobs["b"] = listener
        await jobs.even()
        del jobs.jobs["b"]
    assert await jobs.settled() == {"a": TOKENS}
