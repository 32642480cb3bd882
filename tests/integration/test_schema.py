"""The tables: made once, by whom it may be, checked at every start; and what cannot work is refused
with a reason."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager

import anyio
import psycopg
import pytest
from psycopg import sql

from jobsync_async import ConfigError, CoordinationConfig, Job, SchemaError, StoreUnavailable
from jobsync_async.postgres import schema
from jobsync_async.postgres.schema import creation_script
from tests import products

ROLE = "jobsync_test_role"


@pytest.fixture
def role(empty_dsn, dsn_of):
    """A role that may connect, and its DSN; nothing is granted to it."""
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(ROLE), "p w'@:/%\\ü")
        )
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        try:
            yield dsn_of(empty_dsn, user=ROLE, password="p w'@:/%\\ü")
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(ROLE)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(ROLE)))


@pytest.fixture
def dsn_of():
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    return lambda dsn, **parts: make_conninfo(**{**conninfo_to_dict(dsn), **parts})


async def works(config: CoordinationConfig) -> None:
    async with Job("anna", config, wait_on_enter=10) as job:
        assert len(job.my_tokens) == config.total_tokens
        await job.add_task("x")
        await job.write_audit()
        await job.register_lock("x", "%")


async def test_the_first_start_makes_the_tables(empty_dsn):
    await works(CoordinationConfig(dsn=empty_dsn, total_tokens=50))
    # A second cluster beside it.
    await works(CoordinationConfig(dsn=empty_dsn, total_tokens=60, appname="other_"))


async def test_twenty_processes_start_at_once_on_an_empty_database(empty_dsn):
    program = (
        "import asyncio, sys\n"
        "from jobsync_async import CoordinationConfig, Job\n"
        "async def main():\n"
        "    config = CoordinationConfig(dsn=sys.argv[1], total_tokens=200)\n"
        "    async with Job(sys.argv[2], config, wait_on_enter=60):\n"
        "        print('in', flush=True)\n"
        "        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)\n"
        "asyncio.run(main())\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, empty_dsn, f"w{n:02}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(20)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
        async with await psycopg.AsyncConnection.connect(empty_dsn) as connection:
            for _ in range(1000):
                cursor = await connection.execute(
                    "SELECT node, count(*) FROM sync_token WHERE next_node IS NULL AND node IS "
                    "NOT NULL GROUP BY node"
                )
                counts = dict(await cursor.fetchall())
                if len(counts) == 20 and set(counts.values()) == {10}:
                    break
                await asyncio.sleep(0.01)
            assert counts == {f"w{n:02}": 10 for n in range(20)}
    finally:
        for process in processes:
            process.communicate()
    assert [process.returncode for process in processes] == [0] * 20


async def test_a_start_waits_for_another_that_makes_the_tables_for_longer_than_one_statement_may_take(  # noqa: E501
    empty_dsn,
):
    config = CoordinationConfig(
        dsn=empty_dsn, heartbeat_interval_sec=0.2, heartbeat_timeout_sec=1, total_tokens=100
    )
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    direct = products.direct(empty_dsn)
    async with await psycopg.AsyncConnection.connect(direct, autocommit=True) as other:
        await other.execute(
            "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('public.sync_', 0))"
        )
        starting = asyncio.create_task((job := Job("a", config)).start())
        async with await psycopg.AsyncConnection.connect(direct, autocommit=True) as admin:
            for waiting in (1, 0, 1):  # it waits, gives up, and waits again
                with anyio.fail_after(20):
                    while (await (await admin.execute(waits)).fetchone())[0] != waiting:
                        await asyncio.sleep(0.001)
        await other.execute("COMMIT")
        await starting
        assert len(job.my_tokens) == 100
        await job.stop()


async def test_a_role_that_may_not_create_tables_is_told_what_to_run(role, empty_dsn):
    with pytest.raises(SchemaError, match="jobsync-async init"):
        await works(CoordinationConfig(dsn=role, total_tokens=50))
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone() == (0,)


async def test_a_role_that_may_not_create_tables_works_with_those_that_an_administrator_made(
    role, empty_dsn
):
    config = CoordinationConfig(dsn=role, total_tokens=50)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(creation_script(config).encode())
        connection.execute(
            sql.SQL(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}"
            ).format(sql.Identifier(ROLE))
        )
    await works(config)


async def test_missing_rights_on_a_table_are_named(role, empty_dsn):
    config = CoordinationConfig(dsn=role, total_tokens=50)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(creation_script(config).encode())
    with pytest.raises(SchemaError, match="permission denied"):
        await works(config)


async def test_a_password_of_any_characters_in_a_field_works_too(role, empty_dsn):
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(role)
    config = CoordinationConfig(
        host=parts["host"],
        port=int(parts["port"]),
        dbname=parts["dbname"],
        user=parts["user"],
        password=parts["password"],
    )
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(ROLE))
        )
    await works(config)


async def test_tables_of_another_version_are_refused_with_what_to_do(dsn, admin):
    config = CoordinationConfig(dsn=dsn, total_tokens=50)
    await works(config)
    await admin.execute("UPDATE sync_cluster SET schema_version = 99")
    with pytest.raises(SchemaError, match="this library's newest"):
        await works(config)


async def test_tables_of_an_older_version_are_expanded_by_the_first_worker_that_may(dsn, admin):
    """As 0.1.0 made them: each column that came later is added, and nothing else changes."""
    columns = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM "
        "information_schema.columns"
    )
    made = await (
        await admin.execute(f"{columns} WHERE table_schema = 'public' ORDER BY 1, 2")
    ).fetchall()
    await make_old(admin)
    await works(CoordinationConfig(dsn=dsn, total_tokens=50))
    expanded = await (
        await admin.execute(f"{columns} WHERE table_schema = 'public' ORDER BY 1, 2")
    ).fetchall()
    assert expanded == made
    assert await indexed(admin)


async def test_an_index_is_left_out_where_it_would_lock_a_large_table_for_long(
    dsn, admin, monkeypatch, caplog
):
    await make_old(admin)
    monkeypatch.setattr(schema, "MOST_TO_INDEX", -1)
    await works(CoordinationConfig(dsn=dsn, total_tokens=50))
    assert not await indexed(admin)
    (left_out,) = [record for record in caplog.records if "is left out" in record.message]
    _, _, statement = left_out.message.partition("put CONCURRENTLY into this: ")
    await admin.execute(statement.replace("INDEX", "INDEX CONCURRENTLY"))
    assert await indexed(admin)


async def indexed(admin) -> bool:
    ((there,),) = await (
        await admin.execute("SELECT to_regclass('sync_claim_failed_idx') IS NOT NULL")
    ).fetchall()
    return there


async def make_old(admin) -> None:
    """Take the columns and tables away that are not of 0.1.0."""
    await admin.execute(
        "DROP TABLE sync_evicted, sync_batch, sync_batch_part, sync_set_aside, sync_history"
    )
    await admin.execute("DROP INDEX sync_claim_failed_idx")
    for table, columns in {
        "cluster": (
            "layout",
            "channel",
            "time_zone",
            "longest_wait",
            "longest_allowed",
            "paused_at",
            "paused_by",
            "pause_reason",
        ),
        "node": ("timeout_sec", "interval_sec", "library", "layout", "runs", "said_by"),
        "claim": (
            "batch",
            "incarnation",
            "open",
            "owners_lost",
            "set_aside_at",
            "failures",
            "last_error",
        ),
        "audit": ("batch",),
        "rebalance": ("causes", "moves"),
    }.items():
        for column in columns:
            await admin.execute(f"ALTER TABLE sync_{table} DROP COLUMN {column}")


async def test_a_schema_of_ones_own_and_one_that_is_missing(empty_dsn):
    with pytest.raises(SchemaError, match="does not exist"):
        await works(CoordinationConfig(dsn=empty_dsn, total_tokens=50, schema='My "own"'))
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "My ""own"""')
    await works(CoordinationConfig(dsn=empty_dsn, total_tokens=50, schema='My "own"'))


async def test_a_server_that_accepts_no_writes_is_refused(dsn, admin):
    ((name,),) = await (await admin.execute("SELECT current_database()")).fetchall()
    await admin.execute(
        sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(
            sql.Identifier(name)
        )
    )
    with pytest.raises(StoreUnavailable, match=r"read-only|writes"):
        await works(CoordinationConfig(dsn=dsn, total_tokens=50))


@contextmanager
def encoded(server, dsn_of, encoding):
    """A database in another encoding than UTF-8; its DSN."""
    name = f"jobsync_test_{encoding.lower()}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' "
            "LC_CTYPE 'C'"
        )
        try:
            yield dsn_of(server.dsn, dbname=name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_database_without_an_encoding_is_refused(server, dsn_of):
    with encoded(server, dsn_of, "SQL_ASCII") as dsn, pytest.raises(SchemaError, match="SQL_ASCII"):
        await works(CoordinationConfig(dsn=dsn))


async def test_names_are_written_in_the_encoding_of_the_database(server, dsn_of):
    with encoded(server, dsn_of, "LATIN1") as dsn:
        async with Job(
            "wörker", CoordinationConfig(dsn=dsn, total_tokens=50), wait_on_enter=10
        ) as job:
            assert len(job.my_tokens) == 50
            with psycopg.connect(dsn) as connection:
                assert connection.execute("SELECT DISTINCT node FROM sync_token").fetchall() == [
                    ("wörker",)
                ]


async def test_settings_that_disagree_leave_the_cluster_as_it_is(dsn, admin):
    await works(CoordinationConfig(dsn=dsn, total_tokens=50))
    with pytest.raises(ConfigError, match=r"60.*50"):
        await works(CoordinationConfig(dsn=dsn, total_tokens=60))
    with pytest.raises(ConfigError, match=r"md5.*double_sha256"):
        await works(CoordinationConfig(dsn=dsn, total_tokens=50, hash_function="md5"))
    assert await (await admin.execute("SELECT count(*) FROM sync_node")).fetchall() == [(0,)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"node_name": ""},
        {"node_name": "nul\0"},
        {"node_name": "half \ud800"},
        {"node_name": "x" * 1001},
        {"node_name": 7},
        {"weight": -1},
        {"weight": float("nan")},
        {"weight": "1"},
        {"address": ""},
        {"wait_on_enter": -1},
        {"wait_on_exit": None},
        {"date": "2024-01-01"},
    ],
)
def test_a_job_that_cannot_be_is_refused_when_it_is_made(arguments):
    with pytest.raises(ConfigError):
        Job(**{"node_name": "anna", **arguments})


async def test_jobsyncs_own_tables_are_left_alone(empty_dsn):
    before = (
        "CREATE TABLE sync_node (name text, created_on timestamp); CREATE TABLE sync_leader_lock "
        "(singleton int)"
    )
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(before)
        with pytest.raises(SchemaError, match=r"are jobsync's, .* use another appname"):
            await Job("anna", CoordinationConfig(dsn=empty_dsn)).start()
        tables = (
            "SELECT table_name FROM information_schema.tables WHERE table_name LIKE 'sync%' ORDER "
            "BY 1"
        )
        assert connection.execute(tables).fetchall() == [("sync_leader_lock",), ("sync_node",)]
    async with Job("anna", CoordinationConfig(dsn=empty_dsn, appname="jobs_")) as job:
        assert len(job.my_tokens) == 10_000
