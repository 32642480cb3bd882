"""Tables change while workers run: expanded while nobody stops, contracted when no older worker is
left."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg import errors

from jobsync_async import CoordinationConfig, Job, SchemaError, StoreUnavailable, __version__
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.postgres import expanding
from jobsync_async.postgres.sql import LAYOUT, TOO_OLD
from jobsync_async.postgres.store import Store
from tests.handling import nothing
from tests.integration.test_schema import make_old
from tests.poolers import pgbouncer

pytestmark = pytest.mark.needs("timeline")

OLD_HEARTBEAT = (
    "UPDATE sync_node SET beat = beat + 1, last_heartbeat = clock_timestamp() WHERE name = 'old'"
)


def command(*arguments: str, dsn: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "jobsync_async", *arguments, "--dsn", dsn]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


async def old_row(admin, name: str = "old") -> None:
    """What a worker of 0.1.0 writes when it joins."""
    await admin.execute(
        "INSERT INTO sync_node (name, incarnation, joined) VALUES (%s, %s, 1000)", [name, uuid4()]
    )


async def versions(admin) -> tuple[int, int]:
    ((schema_version, layout),) = await (
        await admin.execute("SELECT schema_version, layout FROM sync_cluster")
    ).fetchall()
    return schema_version, layout


async def test_an_expansion_that_waits_behind_a_reader_never_makes_others_wait_for_long(
    direct_dsn, admin, make_config
):
    """A backup or an analyst reads each table in one long transaction: whoever queues for a table
    blocks all behind it."""
    config = make_config(total_tokens=50)
    async with Job("somebody", config):
        pass
    await make_old(admin)
    await old_row(admin)
    longest = 0.0
    async with (
        await psycopg.AsyncConnection.connect(direct_dsn) as reader,
        await psycopg.AsyncConnection.connect(direct_dsn, autocommit=True) as old,
    ):
        await reader.execute("SELECT FROM sync_cluster, sync_node, sync_claim, sync_audit")
        async with anyio.create_task_group() as group:
            store = asyncio.create_task(Store.open(config, "new"))
            began = time.monotonic()
            while time.monotonic() - began < 3:  # for so long the fault lasts
                at = time.monotonic()
                await old.execute(OLD_HEARTBEAT)
                await old.execute("SELECT version FROM sync_cluster")
                longest = max(longest, time.monotonic() - at)
                await asyncio.sleep(0.005)
            assert not store.done()
            assert "layout" not in await columns(admin, "sync_cluster")
            await reader.rollback()
            group.start_soon((await store).close)
    assert await versions(admin) == (1, LAYOUT)
    print(f"the longest heartbeat took {longest:.3f} s")
    assert longest < 1.2, "a heartbeat waited for more than two tries"


async def columns(admin, table: str) -> set[str]:
    rows = await admin.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s", [table]
    )
    return {name for (name,) in await rows.fetchall()}


async def test_who_holds_the_lock_is_named_when_the_tables_cannot_be_expanded(
    direct_dsn, admin, make_config, monkeypatch
):
    monkeypatch.setattr(expanding, "_PATIENCE_SEC", 0.5)
    config = make_config(total_tokens=50)
    async with Job("somebody", config):
        pass
    await make_old(admin)
    async with await psycopg.AsyncConnection.connect(
        direct_dsn, application_name="the analyst"
    ) as reader:
        await reader.execute("SELECT FROM sync_node")
        pid = reader.info.backend_pid
        with pytest.raises(
            StoreUnavailable,
            match=rf"sync_node.*process {pid} .*the analyst.*pg_terminate_backend\({pid}\)",
        ):
            await Job("new", config).start()
    async with Job("new", config):  # what was done before did no harm
        pass
    assert await versions(admin) == (1, LAYOUT)


async def test_a_prepared_transaction_in_the_way_is_called_so(monkeypatch):
    monkeypatch.setattr(expanding, "_PATIENCE_SEC", 0.5)
    with EmbeddedPostgres({"max_prepared_transactions": "1"}) as server:
        config = CoordinationConfig(dsn=server.dsn, total_tokens=50)
        async with Job("somebody", config):
            pass
        async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as admin:
            await make_old(admin)
            await admin.execute("BEGIN; SELECT FROM sync_node; PREPARE TRANSACTION 'forgotten'")
            with pytest.raises(StoreUnavailable, match="pg_prepared_xacts"):
                await Job("new", config).start()


async def test_an_expansion_leaves_every_lock_as_soon_as_its_statement_is_done(
    dsn, admin, make_config
):
    """No step waits for the next: between two of them nobody is locked out of anything."""
    async with Job("somebody", make_config(total_tokens=50)):
        pass
    await make_old(admin)
    async with await psycopg.AsyncConnection.connect(dsn) as reader:
        await reader.execute("SELECT FROM sync_claim")  # the third of four tables
        opening = asyncio.create_task(Store.open(make_config(total_tokens=50), "new"))
        with anyio.fail_after(10):
            while "layout" not in await columns(admin, "sync_node"):
                await asyncio.sleep(0.01)
        # Else this would wait for what the expansion holds.
        await reader.execute("SELECT FROM sync_cluster, sync_node")
        await reader.rollback()
        await (await opening).close()


@pytest.mark.needs("plain connections")
async def test_the_tables_are_expanded_through_a_pooler_too_and_nothing_is_locked_between_two_steps(
    dsn, admin, make_config
):
    async with Job("somebody", make_config(total_tokens=50)):
        pass
    await make_old(admin)
    with pgbouncer(dsn, "transaction", size=4) as through:
        config = CoordinationConfig(
            dsn=through, notify=False, poll_interval_sec=0.1, total_tokens=50
        )
        async with await psycopg.AsyncConnection.connect(dsn) as reader:
            await reader.execute("SELECT FROM sync_claim")
            async with anyio.create_task_group() as group:
                job = Job("new", config)
                group.start_soon(job.start)
                with anyio.fail_after(10):
                    while "layout" not in await columns(admin, "sync_node"):
                        await asyncio.sleep(0.01)
                await reader.execute("SELECT FROM sync_cluster, sync_node")
                await reader.rollback()
        await job.stop()
    assert await versions(admin) == (1, LAYOUT)


async def test_ten_new_workers_expand_at_once(admin, make_config):
    config = make_config(total_tokens=50)
    async with Job("somebody", config):
        pass
    await make_old(admin)
    jobs = [Job(f"w{n}", config) for n in range(10)]
    await asyncio.gather(*(job.start() for job in jobs))
    assert await versions(admin) == (1, LAYOUT)
    await asyncio.gather(*(job.stop() for job in jobs))


async def test_the_printed_script_expands_older_tables_and_says_so_to_workers_that_may_not(
    dsn, admin, make_config
):
    async with Job("somebody", make_config(total_tokens=50)):
        pass
    await make_old(admin)
    await admin.execute(command("init", "--sql", dsn=dsn).stdout.encode())
    assert await versions(admin) == (1, LAYOUT)


async def test_the_printed_script_changes_nothing_when_it_cannot_have_a_lock(
    dsn, admin, make_config
):
    async with Job("somebody", make_config(total_tokens=50)):
        pass
    await make_old(admin)
    async with await psycopg.AsyncConnection.connect(dsn) as reader:
        await reader.execute("SELECT FROM sync_audit")
        with pytest.raises(errors.LockNotAvailable):
            await admin.execute(command("init", "--sql", dsn=dsn).stdout.encode())
        await admin.execute("ROLLBACK")
    assert "layout" not in await columns(admin, "sync_cluster")


async def test_a_worker_says_of_which_version_it_is(config, admin):
    async with Job("anna", config) as job:
        (anna,) = await job.get_active_nodes()
        assert (anna.library, anna.layout) == (__version__, LAYOUT)
        await old_row(admin)
        old = (await job.get_active_nodes())[1]
        assert (old.library, old.layout, old.runs) == ("0.1.0", 1, None)
        status = await job.get_coordination_status()
        assert status["versions"] == [
            {"library": "0.1.0", "layout": 1, "nodes": ["old"]},
            {"library": __version__, "layout": LAYOUT, "nodes": ["anna"]},
        ]
        assert any("0.1.0 (old)" in warning for warning in status["warnings"])


async def test_what_a_start_of_0_1_0_does_not_say_is_not_taken_from_its_namesakes_row(quick, admin):
    """It takes a dead worker's row over and leaves the columns that it does not know as they
    are."""
    async with Job("anna", quick) as job:
        await admin.execute(
            "INSERT INTO sync_node (name, incarnation, joined, library, layout, runs, said_by) "
            "SELECT 'berta', i, 2000, '9.9', 9, '[]', i FROM gen_random_uuid() AS i"
        )
        await admin.execute(
            "UPDATE sync_node SET incarnation = gen_random_uuid(), beat = beat + 1 WHERE name = "
            "'berta'"
        )
        berta = (await job.get_active_nodes())[1]
        assert (berta.library, berta.layout, berta.runs) == ("0.1.0", 1, None)


async def test_a_role_that_may_not_expand_is_told_what_to_run_and_works_once_the_owner_has(
    dsn, admin, make_config, dsn_with
):
    role = f"worker_{uuid4().hex[:8]}"
    assert command("init", "--role", role, dsn=dsn).returncode == 0
    try:
        await admin.execute(f"ALTER ROLE {role} LOGIN PASSWORD 'x'")
        config = make_config(dsn=dsn_with(user=role, password="x"))
        async with Job("anna", config):
            pass
        await make_old(admin)
        with pytest.raises(
            SchemaError,
            match="may not expand them; run `jobsync-async init` of this version as their owner",
        ):
            await Job("anna", config).start()
        assert command("init", "--role", role, dsn=dsn).returncode == 0
        async with Job("anna", config) as job:
            assert (await job.run_batch(["a"], nothing)).completed_here == {"a"}
            refused = command("contract", dsn=config.dsn)
            assert (refused.returncode, "as their owner" in refused.stderr) == (1, True)
    finally:
        await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_worker_takes_part_where_its_layout_lies_between_what_is_needed_and_what_is_there(
    config, admin
):
    async with Job("anna", config):
        pass
    # A newer one has expanded them.
    await admin.execute("UPDATE sync_cluster SET layout = 9, schema_version = %s", [LAYOUT])
    async with Job("anna", config):
        pass
    # And contracted them.
    await admin.execute("UPDATE sync_cluster SET schema_version = %s", [LAYOUT + 1])
    with pytest.raises(SchemaError, match="install the version"):
        await Job("anna", config).start()


async def test_init_repairs_a_missing_index_without_making_anybody_wait_for_long(dsn, admin):
    await admin.execute("DROP INDEX sync_token_version_idx")
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute("LOCK TABLE sync_token IN ROW EXCLUSIVE MODE")
        refused = command("init", dsn=dsn)
        assert (refused.returncode, "lock timeout" in refused.stderr) == (1, True)
    assert command("init", dsn=dsn).returncode == 0
    assert await (
        await admin.execute("SELECT to_regclass('sync_token_version_idx') IS NOT NULL")
    ).fetchall() == [(True,)]


# -- contract --------------------------------------------------------------------------------------


async def test_contract_is_refused_with_the_names_of_the_older_workers(dsn, admin, config):
    async with Job("anna", config):
        await old_row(admin, "bert")
        await old_row(admin, "carl")
        done = await asyncio.to_thread(command, "contract", dsn=dsn)
        assert done.returncode == 1
        assert "bert (0.1.0), carl (0.1.0)" in done.stderr
        assert await versions(admin) == (1, LAYOUT)
        await old_row(admin, "dora")  # they may still come


async def test_after_contract_no_older_worker_can_make_its_row_whatever_it_looked_at_before(
    dsn, admin, config
):
    """0.1.0 compares the version when it opens the tables, and makes its row later, or again after
    it was expired."""
    async with Job("anna", config):
        done = await asyncio.to_thread(command, "contract", "--json", dsn=dsn)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["schema_version"] == LAYOUT
        assert await versions(admin) == (LAYOUT, LAYOUT)
        with pytest.raises(errors.CheckViolation, match=TOO_OLD):
            await old_row(admin)
        # As one that takes a dead worker's name over.
        with pytest.raises(errors.CheckViolation, match=TOO_OLD):
            await admin.execute(
                "UPDATE sync_node SET incarnation = gen_random_uuid() WHERE name = 'anna'"
            )
        async with Job("berta", config):  # today's go on
            pass
        again = await asyncio.to_thread(command, "contract", dsn=dsn)
        assert (again.returncode, "was done before" in again.stdout) == (0, True)


async def test_a_worker_that_joins_while_its_version_is_contracted_away_is_told_so(
    admin, config, monkeypatch
):
    from jobsync_async.postgres import membership

    monkeypatch.setattr(membership, "LAYOUT", LAYOUT - 1)
    job = Job("anna", config, lock_provider=lambda job: admin_contracts(config))
    with pytest.raises(SchemaError, match=r"too old for this cluster.*install the version"):
        await job.start()


async def admin_contracts(config) -> None:
    done = await asyncio.to_thread(command, "contract", dsn=config.dsn)
    assert done.returncode == 0, done.stderr


async def test_contract_waits_for_nobody_for_long_either(dsn, admin, config, monkeypatch):
    monkeypatch.setattr(expanding, "_PATIENCE_SEC", 0.5)
    async with Job("anna", config), await psycopg.AsyncConnection.connect(dsn) as reader:
        await reader.execute("SELECT FROM sync_node")
        store = await Store.open(config, "somebody")
        try:
            with pytest.raises(StoreUnavailable, match="sync_node"):
                await expanding.contract(store._others, config, LAYOUT)
        finally:
            await store.close()
    assert await versions(admin) == (1, LAYOUT)
