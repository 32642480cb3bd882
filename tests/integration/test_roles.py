"""Least privilege: a whole cluster works under the worker's role, and neither role can do more than
it is for."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import ConfigError, CoordinationConfig, Job, SchemaError
from jobsync_async.operations.doctor import examine
from jobsync_async.operations.judgements import Check
from jobsync_async.postgres.roles import Roles
from tests.clusters import cluster
from tests.integration.test_commands import Commands

WORKER = f"worker \"{uuid4().hex[:6]}'$$"  # quotes of every kind: such a name must do no harm
OBSERVER = f"observer {uuid4().hex[:6]}"
PRUNER = f"pruner {uuid4().hex[:6]}"


def init(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "jobsync_async", "init", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["init", "init --sql"])
def roles(request, empty_dsn) -> Iterator[dict[str, str]]:
    """DSNs of the administrator, and of the login of a worker, an observer, and one that prunes,
    made by one command or its printed script."""
    options = ["--role", WORKER, "--observer-role", OBSERVER, "--prune-role", PRUNER]
    with psycopg.connect(empty_dsn, autocommit=True) as admin:
        admin.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        admin.execute("CREATE TABLE secrets (x integer)")
        try:
            if request.param == "init":
                for _ in range(2):  # the second time changes nothing
                    init("--dsn", empty_dsn, "--total-tokens", "120", *options)
            else:
                script = init("--sql", *options)
                for _ in range(2):
                    admin.execute(script.encode())
            dsns = {"admin": empty_dsn}
            for kind, role in (("worker", WORKER), ("observer", OBSERVER), ("pruner", PRUNER)):
                login = f"login of {role}"
                admin.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' IN ROLE {}").format(
                        *map(sql.Identifier, (login, role))
                    )
                )
                dsns[kind] = make_conninfo(
                    **{**conninfo_to_dict(empty_dsn), "user": login, "password": "x"}
                )
            yield dsns
        finally:
            for role in (WORKER, OBSERVER, PRUNER):
                for name in (f"login of {role}", role):
                    if (
                        admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone()
                        is not None
                    ):
                        admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
                        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


async def test_a_whole_cluster_works_under_the_workers_role_and_an_observer_sees_it(roles):
    config = CoordinationConfig(
        dsn=roles["worker"],
        schema="public",
        total_tokens=120,
        heartbeat_interval_sec=0.3,
        heartbeat_timeout_sec=1.5,
    )
    handled: list[int] = []

    async def handle(claim) -> None:
        handled.append(claim.task_id)

    async with cluster(config) as jobs:
        await jobs.start("a")
        await jobs.start("b", "c")
        assert await jobs.even() == {"a": 40, "b": 40, "c": 40}
        mine = next(n for n in range(1000) if jobs["b"].owns(n))
        await jobs["b"].add_task(mine)
        assert await jobs["b"].write_audit() == 1
        assert len(await jobs["b"].get_audit()) == 1
        async with (
            jobs["b"].claim(mine) as claim,
            await psycopg.AsyncConnection.connect(roles["worker"]) as connection,
        ):
            await jobs["b"].fence(connection, claim)
            await connection.commit()
        await jobs["a"].register_lock(mine, "c", "a reason", expires_in_days=1)
        while not jobs["c"].owns(mine):
            await asyncio.sleep(0.002)
        assert [lock.created_by for lock in await jobs["a"].list_locks()] == ["a"]
        assert await jobs["a"].clear_locks_by_creator("a") == 1
        results = await asyncio.gather(
            *(job.run_batch(range(50), handle) for job in jobs.jobs.values())
        )
        assert sum(len(result.completed_here) for result in results) == 50 - (mine < 50)
        assert sorted(handled) == [n for n in range(50) if n != mine]
        await jobs["b"].drain()
        await jobs.crash("a")  # the leader: taken over
        assert await jobs.settled() == {"b": 0, "c": 120}
        command = ["status", "--dsn", roles["observer"], "--schema", "public"]
        status = await anyio.run_process(
            [sys.executable, "-m", "jobsync_async", *command], check=False
        )
        assert status.returncode == 0, status.stderr
        assert b"120 tokens, all owned" in status.stdout


async def test_the_doctor_asks_for_what_a_worker_needs_and_no_more(roles):
    async def rights() -> Check:
        (found,) = [check for check in await examine(config) if check.name == "rights"]
        return found

    config = CoordinationConfig(dsn=roles["worker"], schema="public")
    assert (await rights()).status == "ok"
    with psycopg.connect(roles["admin"], autocommit=True) as admin:
        for table, right in (("sync_node", "DELETE"), ("sync_token", "UPDATE")):
            revoke = sql.SQL("REVOKE {} ON {} FROM {}")
            admin.execute(
                revoke.format(sql.SQL(right), sql.Identifier(table), sql.Identifier(WORKER))
            )
    assert (await rights()).found == "a worker needs also DELETE on sync_node; UPDATE on sync_token"
    config = CoordinationConfig(dsn=roles["observer"], schema="public")
    assert (await rights()).status == "warn"


async def test_old_days_are_deleted_by_the_role_for_it_and_by_no_other(roles):
    config = CoordinationConfig(dsn=roles["worker"], schema="public", total_tokens=120)

    async def handle(claim) -> None:
        if claim.task_id == 3:
            raise ValueError

    async with Job("anna", config) as job:
        await job.run_batch(range(5), handle, name="n", attempts=1, date=dt.date(2020, 1, 1))
    look, retry = ("batch", "n"), ("batch", "n", "--retry")
    prune = ("prune", "--before", "2020-01-02")
    for command, kind, status in (
        (prune, "worker", 1),
        (prune, "observer", 1),
        (retry, "observer", 1),
        (retry, "pruner", 1),
        (look, "observer", 0),
        (retry, "worker", 0),
        (prune, "pruner", 0),
    ):
        done = await Commands(roles[kind])(*command, "--schema", "public", status=status)
        assert status == 0 or "permission denied" in done.stderr
    with psycopg.connect(roles["admin"]) as admin:  # the run is open: it was kept
        assert admin.execute("SELECT count(*) FROM sync_audit").fetchone() == (4,)
        admin.execute("UPDATE sync_batch SET finished_at = now()")
    await Commands(roles["pruner"])(*prune, "--schema", "public")
    with psycopg.connect(roles["admin"]) as admin:
        for table in ("audit", "claim", "batch", "batch_part"):
            assert admin.execute(f"SELECT count(*) FROM sync_{table}").fetchone() == (0,)


MORE_THAN_A_WORKER = [
    "CREATE TABLE public.mine (x integer)",
    "DROP TABLE public.sync_token",
    "TRUNCATE public.sync_claim",
    "ALTER TABLE public.sync_node ADD x integer",
    "CREATE INDEX ON public.sync_token (node)",
    (
        "CREATE TRIGGER t BEFORE INSERT ON public.sync_node "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    ),
    "SELECT * FROM public.secrets",
    "INSERT INTO public.secrets VALUES (1)",
    "DELETE FROM public.sync_token",
    "DELETE FROM public.sync_cluster",
    "UPDATE public.sync_cluster SET total_tokens = 7",
    "UPDATE public.sync_cluster SET schema_version = 7",
    "DELETE FROM public.sync_claim",
    "UPDATE public.sync_audit SET node = 'me'",
    "DELETE FROM public.sync_audit",
    "UPDATE public.sync_rebalance SET reason = 'none'",
    "UPDATE public.sync_history SET by = 'somebody else'",
    "TRUNCATE public.sync_history",
    "CREATE ROLE another",
]
MORE_THAN_AN_OBSERVER = [
    *MORE_THAN_A_WORKER,
    (
        "INSERT INTO public.sync_lock (task_key, task_id, token_id, node_patterns) "
        "VALUES ('x', 'x', 1, '[]')"
    ),
    "UPDATE public.sync_cluster SET version = version + 1",
    "UPDATE public.sync_node SET state = 'draining'",
    "UPDATE public.sync_token SET epoch = epoch + 1",
    "SELECT FROM public.sync_token FOR KEY SHARE",
    "INSERT INTO public.sync_audit SELECT now(), 'x', 'x', 1, 'x', 1",
]


MORE_THAN_TO_PRUNE = [
    *(statement for statement in MORE_THAN_AN_OBSERVER if "DELETE" not in statement),
    "DELETE FROM public.sync_token",
    "DELETE FROM public.sync_cluster",
    "DELETE FROM public.sync_node",
    "DELETE FROM public.sync_set_aside",
    "DELETE FROM public.sync_lock",
    "INSERT INTO public.sync_history (version, kind) VALUES (1, 'left')",
    "SELECT FROM public.sync_token",
    "UPDATE public.sync_claim SET error = NULL",
]


async def test_no_role_can_do_more(roles):
    for kind, forbidden in (
        ("worker", MORE_THAN_A_WORKER),
        ("observer", MORE_THAN_AN_OBSERVER),
        ("pruner", MORE_THAN_TO_PRUNE),
    ):
        async with await psycopg.AsyncConnection.connect(
            roles[kind], autocommit=True
        ) as connection:
            for statement in forbidden:
                with pytest.raises(errors.InsufficientPrivilege):
                    await connection.execute(statement)
                    pytest.fail(f"a {kind} may {statement}")


async def test_an_observers_role_cannot_be_a_worker_and_leaves_nothing_behind(roles):
    async with await psycopg.AsyncConnection.connect(roles["admin"], autocommit=True) as admin:
        values = (
            "(schema_version, layout, total_tokens, hash_function) VALUES (1, 2, 120, "
            "'double_sha256')"
        )
        await admin.execute(f"INSERT INTO sync_cluster {values} ON CONFLICT DO NOTHING")
        with pytest.raises(SchemaError, match="permission denied"):
            await Job(
                "spy", CoordinationConfig(dsn=roles["observer"], schema="public", total_tokens=120)
            ).start()
        assert await (await admin.execute("SELECT count(*) FROM sync_node")).fetchall() == [(0,)]


@pytest.mark.parametrize(
    "name", ["", "public", "none", "pg_monitor", "x" * 64, "nul\0", "half \ud800"]
)
def test_a_name_that_no_role_can_have_is_refused(name):
    with pytest.raises(ConfigError, match="role"):
        Roles(worker=name)
    with pytest.raises(ConfigError, match="observer-role"):
        Roles(observer=name)
    with pytest.raises(ConfigError, match="prune-role"):
        Roles(pruner=name)


def test_one_role_cannot_be_both():
    for roles in (("app", "app"), ("app", None, "app"), (None, "app", "app")):
        with pytest.raises(ConfigError, match="two roles"):
            Roles(*roles)
