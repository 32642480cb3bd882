"""Whatever a role sets by default, a cluster works: every setting that there is, at an unusual
value.

Roles get many settings at a time, so that few clusters try all. When one fails, halves of its
settings are tried, and the failure names the setting.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count

import anyio
import psycopg
import pytest
from psycopg import errors, sql

from jobsync_async import CoordinationConfig, Observer
from jobsync_async.postgres.connection import Connector
from jobsync_async.postgres.roles import Roles, open_roles
from jobsync_async.postgres.schema import open_schema
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.store import Store
from tests import products
from tests.clusters import cluster

AT_A_TIME = 20
WITHIN_SEC = 30
# What no rule makes up from type and bounds. Times are short enough to end what they would end, and
# longer than a connection needs for its first statement.
UNUSUAL = {
    "application_name": "a stranger's",
    "backtrace_functions": "errstart",
    "client_connection_check_interval": "1",
    "client_encoding": "LATIN1",
    "createrole_self_grant": "set",
    "DateStyle": "SQL, DMY",
    "default_table_access_method": "heap",
    "default_tablespace": "pg_default",
    "default_transaction_isolation": "serializable",
    "default_text_search_config": "pg_catalog.simple",
    "dynamic_library_path": "/nowhere",
    "extension_control_path": "/nowhere",
    "extension_destdir": "/nowhere",  # Debian's
    "idle_in_transaction_session_timeout": "300",
    "idle_session_timeout": "500",
    "lc_messages": "POSIX",
    "lc_monetary": "POSIX",
    "lc_numeric": "POSIX",
    "lc_time": "POSIX",
    "lock_timeout": "300",
    "log_min_messages": "panic",
    "output_plugin_libraries": "pgoutput",
    "restrict_nonsystem_relation_kind": "view, foreign-table",
    "search_path": "nowhere",
    "statement_timeout": "300",
    "tcp_user_timeout": "500",
    "temp_tablespaces": "pg_default",
    "TimeZone": "Asia/Kathmandu",
    "timezone_abbreviations": "India",
    "transaction_timeout": "300",
    "wal_sender_timeout": "1",
}
LEFT_OUT = {
    "debug_discard_caches": "has one value, but in a server that is built for tests of itself",
    "default_transaction_read_only": "who sets it means it: see "
    "test_a_server_that_accepts_no_writes_is_refused",
    "local_preload_libraries": "makes every connection impossible: a library that is not there",
    "session_preload_libraries": "makes every connection impossible: a library that is not there",
    "transaction_deferrable": "is of one transaction, and no role's",
    "transaction_isolation": "is of one transaction, and no role's",
    "transaction_read_only": "is of one transaction, and no role's",
    "wal_consistency_checking": "is for tests of the server itself: every change writes whole "
    "pages to its log",
}
RELIED_ON = {
    "array_nulls",
    "bytea_output",
    "client_min_messages",
    "cpu_index_tuple_cost",
    "cpu_operator_cost",
    "cpu_tuple_cost",
    "DateStyle",
    "default_table_access_method",
    "default_transaction_isolation",
    "enable_bitmapscan",
    "enable_hashagg",
    "enable_hashjoin",
    "enable_indexonlyscan",
    "enable_indexscan",
    "enable_material",
    "enable_mergejoin",
    "enable_nestloop",
    "enable_seqscan",
    "enable_sort",
    "exit_on_error",
    "extra_float_digits",
    "geqo",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "IntervalStyle",
    "jit",
    "lock_timeout",
    "max_parallel_workers_per_gather",
    "plan_cache_mode",
    "random_page_cost",
    "row_security",
    "search_path",
    "seq_page_cost",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronous_commit",
    "TimeZone",
    "transaction_timeout",
    "transform_null_equals",
    "work_mem",
}
_numbers = count()


async def settings_of(admin: psycopg.AsyncConnection) -> dict[str, str]:
    """Every setting that a role may have a default for, with an unusual value."""
    cursor = await admin.execute(
        "SELECT name, setting, vartype, enumvals, min_val, max_val FROM pg_settings "
        "WHERE context IN ('user', 'superuser') AND name NOT LIKE '%.%' ORDER BY name"
    )
    return {
        name: unusual(name, *how) for name, *how in await cursor.fetchall() if name not in LEFT_OUT
    }


def unusual(
    name: str, setting: str, kind: str, choices: Sequence[str] | None, least: str, most: str
) -> str:
    if kind == "bool":
        return "off" if setting == "on" else "on"
    if name in UNUSUAL:
        return UNUSUAL[name]
    if kind == "enum":
        assert choices is not None
        return next((choice for choice in reversed(choices) if choice != setting), setting)
    assert kind in ("integer", "real"), f"say in UNUSUAL what is unusual for {name}"
    return most if float(setting) == float(least) else least


@pytest.fixture
async def role_with(admin, dsn_with) -> AsyncIterator[Callable[..., object]]:
    """A role that has these defaults, for as long as the block lasts; its DSN."""

    @asynccontextmanager
    async def made(settings: Mapping[str, str]) -> AsyncIterator[str]:
        name = f"jobsync_test_settings_{next(_numbers)}"
        role = sql.Identifier(name)
        await admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' CREATEROLE").format(role))
        try:
            await admin.execute(sql.SQL("GRANT CREATE, USAGE ON SCHEMA public TO {}").format(role))
            for setting, value in settings.items():
                parts = sql.SQL(", ").join(sql.Literal(part.strip()) for part in value.split(","))
                listed = setting in ("search_path", "temp_tablespaces")
                given = parts if listed else sql.Literal(value)
                change = sql.SQL("ALTER ROLE {} SET {} = {}")
                with suppress(errors.FeatureNotSupported):  # newer servers know no other value
                    await admin.execute(change.format(role, sql.Identifier(setting), given))
            yield dsn_with(user=name, password="x")
        finally:
            await admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
            await admin.execute(sql.SQL("DROP ROLE {}").format(role))

    return made


async def small_cluster(dsn: str, *, notify: bool) -> None:
    """Two workers make their tables, do a little of everything, and leave; an observer and an
    operator look on."""
    config = CoordinationConfig(
        dsn=dsn,
        appname=f"s{next(_numbers)}_",
        schema="public",
        total_tokens=40,
        heartbeat_interval_sec=0.4,
        heartbeat_timeout_sec=3,
        notify=notify,
        poll_interval_sec=0.1,
    )
    done: list[int] = []

    async def handle(claim) -> None:
        done.append(claim.task_id)

    async with cluster(config) as jobs:
        a, b = await jobs.start("a", "b")
        assert await jobs.even() == {"a": 20, "b": 20}
        await asyncio.gather(*(job.run_batch(range(20), handle) for job in (a, b)))
        assert sorted(done) == list(range(20))
        theirs = next(f"back\\slash'{n}" for n in range(1000) if b.owns(f"back\\slash'{n}"))
        await b.add_task(theirs)
        assert await b.write_audit() == 1
        assert {len(row["task_id"]) for row in await b.get_audit()} == {len(theirs), 1, 2}
        keys = sql.SQL(
            "SELECT count(*), min(octet_length(task_key)), max(octet_length(task_key)) FROM "
            "public.{}"
        )
        assert await one(dsn, keys.format(sql.Identifier(f"{config.appname}audit"))) == (21, 32, 32)
        await a.register_lock(theirs, ["a", "b"], None, expires_in_days=1)
        await a.register_locks_bulk([(f"{theirs}!", ["%"], None), (f"{theirs}?", ["%"], "why")])
        with anyio.fail_after(10):
            while not a.owns(theirs):
                await asyncio.sleep(0.01)
        reasons = {lock.task_id: lock.reason for lock in await a.list_locks()}
        assert reasons[theirs] is None and set(reasons.values()) <= {None, "why"}
        assert {node.name: node.weight for node in await a.get_active_nodes()} == {
            "a": 1.0,
            "b": 1.0,
        }
        async with (
            a.claim(theirs) as claim,
            await psycopg.AsyncConnection.connect(dsn) as connection,
        ):
            await a.fence(connection, claim)
            await connection.commit()
        async with Observer(config) as cluster_seen:
            assert (await cluster_seen.status())["unowned"] == 0
            assert (await cluster_seen.owner_of(theirs)).node == "a"
        store = await Store.open(config, "operator", observe=True)
        try:
            assert (await store.inspection.settings()).total_tokens == 40
            assert await store.membership.set_state("b", "draining")
        finally:
            await store.close()
        assert await jobs.settled(workers=["a"]) == {"a": 40, "b": 0}
        beats = a.metrics.heartbeats
        with anyio.fail_after(10):  # idle for longer than a session may be
            while a.metrics.heartbeats < beats + 3:
                await asyncio.sleep(0.05)
        assert [
            (job._engine.failure, job.metrics.listener_reconnects, job.metrics.rejoins)
            for job in (a, b)
        ] == [(None, 0, 0)] * 2


async def one(dsn: str, query: sql.Composed) -> object:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        return await (await connection.execute(query)).fetchone()


async def tried(role_with, settings: Mapping[str, str]) -> BaseException | None:
    """What went wrong under these settings, if something did."""
    try:
        async with role_with(settings) as dsn:
            for notify in (True, False):
                with anyio.fail_after(WITHIN_SEC):
                    await small_cluster(dsn, notify=notify)
    except Exception as error:  # whatever it is, the settings that lead to it are looked for
        return error
    return None


async def find_the_culprits(role_with, settings: dict[str, str], error: BaseException) -> str:
    """The fewest of these settings under which it still fails."""
    while len(settings) > 1:
        items = list(settings.items())
        for half in (dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])):
            found = await tried(role_with, half)
            if found is not None:
                settings, error = half, found
                break
        else:
            break
    return f"a cluster does not work with {settings}: {type(error).__name__}: {error}"


async def works_under(role_with, settings: dict[str, str]) -> None:
    names = list(settings)
    for first in range(0, len(names), AT_A_TIME):
        some = {name: settings[name] for name in names[first : first + AT_A_TIME]}
        error = await tried(role_with, some)
        if error is not None:
            pytest.fail(await find_the_culprits(role_with, some, error))


@pytest.mark.needs("sessions")
@pytest.mark.timeout(300)
async def test_a_cluster_works_whatever_its_role_sets_of_what_the_statements_rely_on(
    role_with, admin
):
    pinned = set(
        re.findall(r"^    \('(\w+)'", Queries("public", "sync_")["pinned"].decode(), re.MULTILINE)
    )
    assert pinned <= RELIED_ON
    every = await settings_of(admin)
    await works_under(
        role_with, {name: value for name, value in every.items() if name in RELIED_ON}
    )


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_cluster_works_whatever_its_role_sets(role_with, admin):
    await works_under(role_with, await settings_of(admin))


async def test_what_is_left_out_is_there_and_is_nobody_elses(admin):
    every = {
        name for (name,) in await (await admin.execute("SELECT name FROM pg_settings")).fetchall()
    }
    newer = {"debug_discard_caches"}
    assert LEFT_OUT.keys() - every <= newer


async def shown(dsn: str, name: str, *, notify: bool = True) -> set[str]:
    """What a setting is where a worker's statements run: for heartbeats, for a leader, for what
    users call."""

    async def current(connection) -> str:
        row = await (await connection.execute("SELECT current_setting(%s)", [name])).fetchone()
        return row[0]

    store = await Store.open(
        CoordinationConfig(dsn=dsn, appname="shown_", schema="public", notify=notify), "a"
    )
    try:
        return {
            await link.run(current)
            for link in (store._heartbeat_link, store._leader_link, store._pool)
        }
    finally:
        await store.close()


@pytest.mark.parametrize("notify", products.NOTIFY_OR_NOT)
async def test_what_was_acknowledged_survives_a_crash_whatever_the_role_sets(role_with, notify):
    async with role_with({"synchronous_commit": "off"}) as dsn:
        assert await shown(dsn, "synchronous_commit", notify=notify) == {"on"}
    async with role_with({"synchronous_commit": "remote_apply"}) as dsn:
        assert await shown(dsn, "synchronous_commit", notify=notify) == {"remote_apply"}, (
            "who waits for standbys goes on doing so"
        )


@pytest.mark.parametrize("notify", products.NOTIFY_OR_NOT)
async def test_transactions_are_isolated_as_the_statements_are_written_for(role_with, notify):
    async with role_with({"default_transaction_isolation": "serializable"}) as dsn:
        assert await shown(dsn, "transaction_isolation", notify=notify) == {"read committed"}


@pytest.mark.parametrize("notify", products.NOTIFY_OR_NOT)
async def test_six_workers_start_at_once_where_the_role_wants_serializable_transactions(
    role_with, notify
):
    async with role_with({"default_transaction_isolation": "serializable"}) as dsn:
        config = CoordinationConfig(
            dsn=dsn, appname="six_", schema="public", total_tokens=60, notify=notify
        )
        async with cluster(config) as jobs:
            await jobs.start(*"abcdef")
            assert set((await jobs.even()).values()) == {10}


@pytest.mark.needs("sessions")
async def test_memory_that_the_role_is_given_is_not_taken_away(role_with):
    for given, pinned in (("64kB", "4MB"), ("256MB", "256MB")):
        async with role_with({"work_mem": given}) as dsn:
            assert await shown(dsn, "work_mem") == {pinned}


async def test_roles_are_made_whatever_the_administrator_sets(role_with, admin):
    names = (
        "standard_conforming_strings",
        "default_transaction_isolation",
        "search_path",
        "lock_timeout",
        "exit_on_error",
    )
    settings = await settings_of(admin)
    async with role_with({name: settings[name] for name in names}) as dsn:
        config = CoordinationConfig(dsn=dsn, appname="granted_", schema="public")
        connector = Connector(config.conninfo, config.bulk_limit_sec)
        await open_schema(connector, config, upgrade=True)
        role = "jobsync_test back\\slash"
        await open_roles(connector, Roles(worker=role))
        try:
            (may,) = await (
                await admin.execute(
                    "SELECT has_table_privilege(%s, 'granted_node', 'DELETE')", [role]
                )
            ).fetchone()
            assert may
        finally:
            await admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            await admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
