"""A server that does not say on which timeline it is: the identity does without, and a warning says
what that means."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from jobsync_async import CoordinationConfig, Job
from jobsync_async.embedded import EmbeddedPostgres
from tests.clusters import cluster

# How two managed services answer, by the states of their errors.
REFUSALS = {
    "pg_current_wal_lsn()": ("pg_lsn", "55000", "wal_level must be set to logical"),
    "pg_walfile_name(pg_lsn)": (
        "text",
        "0A000",
        "Function pg_walfile_name() is currently not supported",
    ),
}


@pytest.fixture(params=REFUSALS)
def refusing(request) -> Iterator[str]:
    """A server that refuses a function. Its own is renamed, for what is built in is called by its
    number."""
    result, state, message = REFUSALS[request.param]
    name = request.param.partition("(")[0]
    with EmbeddedPostgres({"allow_system_table_mods": "on"}) as postgres:
        with psycopg.connect(postgres.dsn, autocommit=True) as admin:
            admin.execute(
                "UPDATE pg_proc SET proname = proname || '_real' WHERE proname = %s", [name]
            )
            body = f"BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = '{state}'; END"
            function = (
                f"CREATE FUNCTION pg_catalog.{request.param} RETURNS {result} LANGUAGE plpgsql AS "
                f"{{}}"
            )
            admin.execute(sql.SQL(function).format(sql.Literal(body)))
        yield postgres.dsn


@pytest.mark.parametrize("notify", [True, False])
async def test_a_cluster_works_on_a_server_that_refuses_its_timeline_and_says_so(
    refusing, caplog, notify
):
    config = CoordinationConfig(dsn=refusing, total_tokens=60, notify=notify, poll_interval_sec=0.1)
    async with cluster(config) as jobs:
        await jobs.start("a", "b")
        assert await jobs.even() == {"a": 30, "b": 30}
    said = [
        record.message
        for record in caplog.records
        if "does not say on which timeline" in record.message
    ]
    assert len(said) == 2
    assert any(message in said[0] for _, _, message in REFUSALS.values())
    with psycopg.connect(refusing) as admin:
        identity = admin.execute("SELECT server_identity FROM sync_cluster").fetchone()
        assert identity is not None and identity[0].count("/") == 2


async def test_a_server_that_says_it_is_told_by_its_timeline(config, admin, caplog):
    async with Job("a", config):
        ((identity,),) = await (
            await admin.execute("SELECT server_identity FROM sync_cluster")
        ).fetchall()
    assert identity.split("/")[1] == "00000001"
    assert "timeline" not in caplog.text
