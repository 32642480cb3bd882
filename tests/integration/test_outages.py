"""What is logged when PostgreSQL is away, wholly or in part: two lines of each worker."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import anyio
import pytest

from jobsync_async import CoordinationConfig, Job, Observer, StoreUnavailable
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.postgres.driver_errors import TakesNoWrites, kind_of
from jobsync_async.testing import Cluster
from tests.handling import nothing

OURS = ("jobsync_async", "psycopg")
END_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def told(caplog, least: int = logging.INFO) -> list[logging.LogRecord]:
    return [
        record
        for record in caplog.records
        if record.name.startswith(OURS) and record.levelno >= least
    ]


def texts(caplog, least: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in told(caplog, least)]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(15):
        while not condition():
            await asyncio.sleep(0.01)


async def from_now_on(caplog) -> None:
    """Forget what was told, once the first distribution was."""
    await until(lambda: any("rebalanced" in text for text in texts(caplog)))
    caplog.clear()


async def working(claim) -> None:
    await asyncio.sleep(0.02)


async def test_an_outage_of_five_seconds_is_two_lines_of_each_worker(caplog):
    with EmbeddedPostgres() as server:
        alone = CoordinationConfig(dsn=server.dsn, appname="alone_", total_tokens=60)
        three = replace(alone, appname="three_")
        jobs = [Job("a", alone), *(Job(name, three) for name in ("b", "c", "d"))]
        async with AsyncExitStack() as stack:
            for job in jobs:
                await stack.enter_async_context(job)
            await stack.enter_async_context(Observer(alone))
            batches = [
                asyncio.ensure_future(job.run_batch(range(3000), working, concurrency=5))
                for job in jobs
            ]
            await until(lambda: all(job.metrics.claims > 100 for job in jobs))
            caplog.clear()
            await anyio.to_thread.run_sync(server.stop)
            await asyncio.sleep(5)
            await anyio.to_thread.run_sync(server.start)
            await until(lambda: len(told(caplog)) >= 2 * len(jobs) + 2)
            done = {job: job.metrics.claims for job in jobs}
            await until(lambda: all(job.metrics.claims > done[job] for job in jobs))
            said = told(caplog)
            for batch in batches:
                batch.cancel()
            await asyncio.gather(*batches, return_exceptions=True)
    for name in "abcd":
        began, over = [record for record in said if getattr(record, "node", None) == name]
        assert began.levelno == logging.WARNING and over.levelno == logging.INFO
        assert re.fullmatch(
            rf"{name}: an outage began 0\.\d s ago: PostgreSQL is not available: .*; \d+ tokens "
            r"are held until the lease ends in \d+\.\d s",
            began.getMessage(),
        )
        assert re.fullmatch(
            rf"{name}: the outage is over after [5-7]\.\d s: no token was lost", over.getMessage()
        )
        assert began.outage == over.outage == "heartbeat"
        assert over.failures > 5 and 5 <= over.seconds < 8
    looking = [record for record in said if not hasattr(record, "node")]
    assert [(r.name, r.levelname, r.outage) for r in looking] == [
        ("jobsync_async.postgres.observer", "INFO", "looking"),
        ("jobsync_async.postgres.observer", "INFO", "looking"),
    ]
    details = {r.name for r in caplog.records if r.levelno == logging.DEBUG}
    assert {"psycopg.pool", "jobsync_async.tasks.outages"} <= details, "nothing is hidden"


@pytest.mark.parametrize("silent", [False, True])
async def test_a_lease_that_ends_in_an_outage_is_a_line_of_its_own(quick, caplog, silent):
    async with Cluster(quick) as cluster:
        (anna,) = await cluster.start("anna")
        await from_now_on(caplog)
        with cluster.partition(anna, silent=silent):
            await until(lambda: anna.metrics.lease_losses)
            await until(lambda: len(told(caplog)) >= 2)
        await cluster.settled()
        await until(lambda: len(told(caplog)) >= 3)
        lines = texts(caplog)
    kinds = {"anna: an outage began", "anna: no heartbeat was ack", "anna: the outage is ove"}
    assert {next(kind for kind in kinds if line.startswith(kind)) for line in lines} == kinds
    assert len(lines) == 3
    assert lines[-1].endswith("its lease had ended, and it takes up its tokens again")


@pytest.mark.needs("sessions")
async def test_a_failure_that_is_over_with_the_next_try_is_silent(config, admin, caplog):
    async with Job("anna", config) as job:
        await job.owner_of("x")  # also a connection for calls
        await from_now_on(caplog)
        reconnects, beats = job.metrics.listener_reconnects, job.metrics.heartbeats
        await admin.execute(END_ALL)
        await until(lambda: job.metrics.listener_reconnects > reconnects)
        await until(lambda: job.metrics.heartbeats > beats)
        await job.owner_of("x")
        assert "following changes failed (1 in a row)" in caplog.text
        assert texts(caplog) == []


@pytest.mark.needs("sessions")
async def test_listening_that_fails_by_itself_has_two_lines_of_its_own(quick, admin, caplog):
    async with Job("anna", quick) as job:
        await from_now_on(caplog)
        with anyio.fail_after(15):
            while not told(caplog):
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE '%anna listener%'"
                )
                await asyncio.sleep(0.001)
        await until(lambda: len(told(caplog)) >= 2)
        assert job.metrics.heartbeats_failed == 0
        began, over = told(caplog)
    assert "following changes has failed" in began.getMessage()
    assert "though heartbeats are answered" in began.getMessage()
    assert re.fullmatch(r"anna: following changes works again after \d+\.\d s", over.getMessage())
    assert began.levelno == logging.WARNING and over.levelno == logging.INFO
    assert began.outage == over.outage == "following changes"


async def test_a_statement_that_is_refused_has_two_lines_of_its_own(quick, admin, caplog):
    async with Job("anna", quick) as job:
        await job.run_batch(["before"], nothing)
        await from_now_on(caplog)
        await admin.execute("ALTER TABLE sync_claim RENAME TO elsewhere")
        batch = asyncio.ensure_future(job.run_batch(["x", "y"], nothing))
        await until(lambda: told(caplog))
        await admin.execute("ALTER TABLE elsewhere RENAME TO sync_claim")
        await batch
        began, over = told(caplog)
    assert began.levelno == logging.WARNING and over.levelno == logging.INFO
    assert began.outage == over.outage == "recording a batch"
    assert "PostgreSQL refused" in began.getMessage() and "the batch waits" in began.getMessage()


@pytest.mark.needs("sessions")
async def test_a_server_that_takes_no_writes_is_told_so(quick, admin, dsn_with, caplog):
    anywhere = replace(quick, dsn=dsn_with(target_session_attrs="any"))
    database = admin.info.dbname
    async with Job("anna", anywhere):
        await from_now_on(caplog)
        await admin.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        await admin.execute(END_ALL)
        await until(lambda: told(caplog))
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
        await admin.execute(END_ALL)
        await until(lambda: "is over after" in caplog.text)
        began = told(caplog)[0]
    assert "the server accepts no writes" in began.getMessage()
    assert kind_of(TakesNoWrites("")) == "read-only" != kind_of(StoreUnavailable(""))


async def held(job: Job, inside: asyncio.Event) -> None:
    task = next(n for n in range(1000) if job.owns(n))
    async with job.claim(task):
        inside.set()
        await asyncio.sleep(0.2)


@pytest.mark.needs("names")
@pytest.mark.parametrize("way", ["stop", "signal"])
@pytest.mark.parametrize("order", ["a", "bca", "cab"])
async def test_the_last_worker_that_leaves_warns_of_nothing(config, caplog, order, way):
    """With pins, and with a claim and a batch under way: so it drains first."""
    last = order[-1]
    jobs = {name: Job(name, config, handle_signals=name == last) for name in sorted(order)}
    async with AsyncExitStack() as stack:
        for job in jobs.values():
            await stack.enter_async_context(job)
        await jobs[last].register_lock("mine", last)
        await jobs[last].register_lock("anybody's", "%")
        for name in order[:-1]:
            await jobs[name].stop()
        await until(lambda: len(jobs[last].my_tokens) == config.total_tokens)
        inside = asyncio.Event()
        claim = asyncio.ensure_future(held(jobs[last], inside))
        batch = asyncio.ensure_future(jobs[last].run_batch(range(500), working))
        await inside.wait()
        if way == "stop":
            await jobs[last].stop()
        else:
            os.kill(os.getpid(), signal.SIGTERM)
            await anyio.sleep_forever()  # the signal ends the block
    await asyncio.gather(batch, claim, return_exceptions=True)
    assert texts(caplog, logging.WARNING) == []
    assert f"{last}: left" in texts(caplog)


async def test_a_standalone_job_says_so(caplog):
    async with Job("anna"):
        pass
    (line,) = texts(caplog)
    assert line.startswith("anna: is standalone, for no coordination_config was given")
