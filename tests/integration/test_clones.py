"""A storage-level clone is not told from its source by anything but
`jobsync-async init --clone`."""

from __future__ import annotations

import asyncio
import json
import sys

import anyio
import psycopg
import pytest

from jobsync_async import CoordinationConfig, Job, OwnershipLost
from jobsync_async.embedded import EmbeddedPostgres
from tests.clones import Clone
from tests.integration.test_commands import documented, fits

TIMES = {"heartbeat_interval_sec": 0.3, "heartbeat_timeout_sec": 1.5}


def config_of(server: EmbeddedPostgres) -> CoordinationConfig:
    return CoordinationConfig(dsn=server.dsn, total_tokens=100, **TIMES)


def identity(server: EmbeddedPostgres) -> tuple[str, int]:
    with psycopg.connect(server.dsn) as connection:
        return connection.execute("SELECT server_identity, generation FROM sync_cluster").fetchone()


async def init_clone(server: EmbeddedPostgres) -> dict[str, int]:
    arguments = ["-m", "jobsync_async", "init", "--clone", "--json", "--dsn", server.dsn]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(told)


async def epoch_of(server: EmbeddedPostgres, name: str) -> int:
    async with (
        Job(name, config_of(server), wait_on_enter=30) as job,
        job.claim("invoice-7") as claim,
    ):
        return claim.epoch


@pytest.fixture
def source():
    with EmbeddedPostgres() as server:
        yield server


async def test_a_clone_gets_an_identity_of_its_own_and_no_epoch_of_its_source(source):
    job = Job("prod-1", config_of(source))
    await job.start()
    source.stop("immediate")
    clone = Clone(source)
    with clone:
        source.start()
        with anyio.fail_after(60):
            assert identity(clone) == identity(source), "nothing tells them apart"
            (_, before), told = identity(clone), await init_clone(clone)
            assert fits(documented()["init --clone"], told) == []
            assert told == {"generation_before": before, "generation": identity(clone)[1]}
            assert told["generation"] > before
            assert identity(source) == (identity(clone)[0], before), "the source is left alone"
            with psycopg.connect(clone.dsn) as connection:
                query = (
                    "SELECT (SELECT count(*) FROM sync_node), (SELECT count(*) FROM sync_token "
                    "WHERE node IS NOT NULL)"
                )
                assert connection.execute(query).fetchone() == (0, 0)
            while not job.am_i_healthy() or not job.owns("invoice-7"):
                await asyncio.sleep(0.01)
            async with job.claim("invoice-7") as claim:
                there = {claim.epoch}
            await job.stop()
            there |= {await epoch_of(source, "prod-2"), await epoch_of(source, "prod-3")}
            here = {await epoch_of(clone, "staging-1"), await epoch_of(clone, "staging-2")}
            assert min(here) > max(there)


async def test_run_where_workers_run_it_is_an_outage_and_safe(source):
    """Somebody gives it the source's DSN."""
    with anyio.fail_after(60):
        async with Job("prod-1", config_of(source)) as job:
            try:
                async with job.claim("invoice-7") as claim:
                    running = asyncio.ensure_future(init_clone(source))
                    await asyncio.sleep(60)
            except OwnershipLost:
                with psycopg.connect(source.dsn) as connection:
                    assert (
                        connection.execute("SELECT max(epoch) FROM sync_token").fetchone()[0]
                        == claim.epoch
                    ), "lost first"
            await running
            while not job.owns("invoice-7"):
                await asyncio.sleep(0.01)
            async with job.claim("invoice-7") as later:
                assert later.epoch >> 32 > claim.epoch >> 32
