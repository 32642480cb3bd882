"""What handlers and readers may do while their token moves as planned."""

from __future__ import annotations

import asyncio
import logging

import anyio
import psycopg
import pytest

from jobsync_async import Job, NotOwner
from tests.waiting import until


@pytest.mark.needs("names")
async def test_what_a_handler_saves_in_its_cleanup_of_a_planned_move_is_saved(
    make_config, admin, caplog
):
    config = make_config(total_tokens=2, hash_function="modulo")
    await admin.execute("CREATE TABLE saved (id integer PRIMARY KEY, n integer)")
    true_count = {0: 0, 1: 0}
    begun_at: list[tuple[int, int]] = []
    leaving: set[str | None] = set()

    def handler_of(job: Job):
        async def handle(claim) -> None:
            row = await (
                await admin.execute("SELECT n FROM saved WHERE id = %s", [claim.task_id])
            ).fetchone()
            n = row[0] if row else 0
            begun_at.append((n, true_count[claim.task_id]))
            try:
                while True:
                    await asyncio.sleep(0.005)
                    n += 1
                    true_count[claim.task_id] += 1
            finally:  # plain awaits: the cancellation comes once
                leaving.add(claim.leaving)
                async with (
                    await psycopg.AsyncConnection.connect(config.dsn) as connection,
                    connection.transaction(),
                ):
                    await job.fence(connection, claim)
                    await asyncio.sleep(0.15)
                    await connection.execute(
                        "INSERT INTO saved VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET n = "
                        "excluded.n",
                        [claim.task_id, n],
                    )
                assert claim.valid

        return handle

    async with Job("a", config) as a:
        running = [asyncio.ensure_future(a.run_owned([0, 1], handler_of(a)))]
        await until(lambda: all(true_count.values()))
        async with Job("b", config) as b:
            running.append(asyncio.ensure_future(b.run_owned([0, 1], handler_of(b))))
            await until(lambda: len(begun_at) == 3)
            await b.drain()
            await until(lambda: len(begun_at) == 4)
        await asyncio.wait([running[1]])
        running[0].cancel()
        await asyncio.wait(running)
    assert all(saved == true for saved, true in begun_at), begun_at
    assert leaving == {"revoked", "stopping"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_after_the_handoff_timeout_a_cleanup_is_cut_off_and_its_error_logged(
    make_config, caplog
):
    config = make_config(total_tokens=2, hash_function="modulo", handoff_timeout_sec=0.2)
    cut = asyncio.Event()

    async def handle(claim) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                assert claim.leaving == "lost"
                cut.set()
                raise ZeroDivisionError("as meant") from None

    async with Job("a", config) as a:
        running = asyncio.ensure_future(a.run_owned([0, 1], handle))
        await until(lambda: a.metrics.claims_active == 2)
        async with Job("b", config):
            await cut.wait()
        running.cancel()
        await asyncio.wait([running])
    assert "and raised while it ended" in caplog.text
    assert "ZeroDivisionError: as meant" in caplog.text


async def test_a_handler_that_was_cut_off_by_a_revocation_that_was_withdrawn_starts_again(config):
    starts, told = 0, asyncio.Event()

    async def handle(claim) -> None:
        nonlocal starts
        starts += 1
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            if starts > 1:
                raise
            told.set()
            await asyncio.sleep(0.3)

    async with Job("a", config) as a:
        running = asyncio.ensure_future(a.run_owned(["x"], handle))
        await until(lambda: starts == 1)
        draining = asyncio.ensure_future(a.drain())
        await told.wait()
        draining.cancel()
        await asyncio.wait([draining])
        await a.undrain()
        await until(lambda: starts == 2)
        running.cancel()
        await asyncio.wait([running])


async def test_whoever_reads_changes_may_still_claim_and_fence_what_was_revoked_until_it_comes_back(
    make_config,
):
    config = make_config(total_tokens=2, hash_function="modulo")
    async with (
        Job("a", config) as a,
        await psycopg.AsyncConnection.connect(config.dsn) as connection,
        a.token_changes() as changes,
    ):
        await changes.__anext__()
        b = Job("b", config)
        joining = asyncio.ensure_future(b.start())
        change = await changes.__anext__()
        (token,) = change.revoked

        async def by_another_task() -> None:
            async with a.claim(token):
                pass

        with pytest.raises(NotOwner):
            await asyncio.create_task(by_another_task())
        async with a.claim(token) as claim, connection.transaction():
            assert claim.valid
            assert claim.leaving == "revoked"
            await a.fence(connection, claim)
        async with connection.transaction():
            await a.fence(connection, token)  # by the id, without a claim
        next_one = asyncio.ensure_future(changes.__anext__())
        await joining
        await until(lambda: b.my_tokens == {token} and a._worker.ownership.epoch(token) is None)
        with pytest.raises(NotOwner):
            async with a.claim(token):
                pass
        with pytest.raises(NotOwner, match="not even revoked"):
            async with connection.transaction():
                await a.fence(connection, token)
        next_one.cancel()
        await asyncio.wait([next_one])
        await b.stop()


async def test_a_scope_that_was_made_before_a_rejoin_fences_with_the_start_that_enters_it(
    config, admin
):
    async with (
        Job("a", config) as a,
        await psycopg.AsyncConnection.connect(config.dsn) as connection,
    ):
        scope, me = a.claim("x"), a._worker.identity
        await admin.execute("DELETE FROM sync_node")
        a._worker.beat_wanted.set()
        await until(lambda: a._worker.identity != me and a.owns("x"), 10)
        async with scope as claim, connection.transaction():
            await a.fence(connection, claim)
