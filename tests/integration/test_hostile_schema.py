"""What somebody else puts on the search_path ahead of PostgreSQL's own changes nothing: every name
is pinned or qualified."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import CoordinationConfig, Job
from jobsync_async.postgres.sql import TABLES

pytestmark = pytest.mark.needs("startup options")

FUNCTIONS = {
    "current_schema()": "name",
    "pg_is_in_recovery()": "boolean",
    "current_setting(text)": "text",
    "set_config(text, text, boolean)": "text",
    "replace(text, text, text)": "text",
    "to_regclass(text)": "regclass",
    "has_schema_privilege(oid, text)": "boolean",
    "hashtextextended(text, bigint)": "bigint",
    "pg_advisory_xact_lock(bigint)": "void",
    "pg_notify(text, text)": "void",
    "now()": "timestamptz",
    "clock_timestamp()": "timestamptz",
    "concat_ws(text, text, text, text, text)": "text",
    "shobj_description(oid, name)": "text",
    "gen_random_uuid()": "uuid",
}
OPERATORS = [
    ("=", "integer"),
    ("=", "text"),
    ("=", "uuid"),
    ("=", "bigint"),
    (">", "bigint"),
    ("<", "bigint"),
    ("<>", "text"),
]


@pytest.fixture
def hostile_dsn(empty_dsn):
    """A search_path that begins with a schema of functions, operators and tables by the names that
    we use. Each raises."""
    with psycopg.connect(empty_dsn, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA evil")
        for signature, result in FUNCTIONS.items():
            body = "BEGIN RAISE EXCEPTION 'a stranger''s function ran'; END"
            admin.execute(
                f"CREATE FUNCTION evil.{signature} RETURNS {result} LANGUAGE plpgsql AS $${body}$$"
            )
        for operator, kind in OPERATORS:
            name = f"compare_{kind}"
            body = "BEGIN RAISE EXCEPTION 'a stranger''s operator ran'; END"
            admin.execute(
                f"CREATE OR REPLACE FUNCTION evil.{name}({kind}, {kind}) RETURNS bool LANGUAGE "
                f"plpgsql AS $${body}$$"
            )
            admin.execute(
                f"CREATE OPERATOR evil.{operator} (FUNCTION = evil.{name}, LEFTARG = {kind}, "
                f"RIGHTARG = {kind})"
            )
        for table in TABLES:
            admin.execute(f"CREATE TABLE evil.sync_{table} (trap integer)")
    return make_conninfo(
        **{**conninfo_to_dict(empty_dsn), "options": "-c search_path=evil,pg_catalog,public"}
    )


async def test_a_hostile_schema_first_on_the_search_path_changes_nothing(hostile_dsn):
    with psycopg.connect(hostile_dsn) as connection, pytest.raises(psycopg.errors.RaiseException):
        connection.execute("SELECT current_setting('x'::text)")  # it does bite
    async with Job(
        "a", CoordinationConfig(dsn=hostile_dsn, schema="public", total_tokens=50), wait_on_enter=10
    ) as job:
        await job.register_lock("t", "%")
        await job.add_task("t")
        assert await job.write_audit() == 1
        assert (await job.owner_of("t")).node == "a"
        assert (await job.get_coordination_status())["unowned"] == 0
        async with (
            job.claim("t") as claim,
            await psycopg.AsyncConnection.connect(hostile_dsn) as connection,
        ):
            # The user's own connection has the user's own path.
            await connection.execute("SET search_path = public")
            await job.fence(connection, claim)
    with psycopg.connect(hostile_dsn) as connection:
        for table in TABLES:
            assert connection.execute(f"SELECT FROM evil.sync_{table}").fetchone() is None
